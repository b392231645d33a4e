"""Exact memorisation, extraction strength, and MUSE's two: on known numbers, and as open-unlearning computes them."""

import json
from pathlib import Path

import pytest

from trl_unlearn.metrics import exact_memorization, extraction_strength, knowmem, rouge_l, verbmem


FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics.json").read_text(encoding="utf-8"))
MATCHES = [row[:-1] for row in FIXTURE["tokens"]["forget"]["matches"]]  # the EOS left out


def test_exact_memorization_equals_open_unlearning():
    case, result = FIXTURE["exact_memorization"], exact_memorization(MATCHES)
    assert result["exact_memorization"] == pytest.approx(case["mean"], abs=1e-7)
    assert [row is None for row in result["per_row"]] == [row is None for row in case["per_row"]]
    scored = [pair for pair in zip(result["per_row"], case["per_row"], strict=True) if None not in pair]
    assert [ours for ours, _ in scored] == pytest.approx([theirs for _, theirs in scored], abs=1e-7)


def test_extraction_strength_equals_open_unlearning():
    case, result = FIXTURE["extraction_strength"], extraction_strength(MATCHES, convention="open-unlearning")
    assert result["per_row"] == pytest.approx(case["per_row"], abs=1e-12)
    assert result["extraction_strength"] == pytest.approx(case["mean"], abs=1e-12)


def test_extraction_strength_is_zero_where_the_end_is_wrong():
    result = extraction_strength(MATCHES)
    assert result["per_row"] == [0.5, 1.0, 0.0, None, 0.0, None]
    assert result["extraction_strength"] == 0.375
    with pytest.raises(ValueError, match="'tofu'; expected 'exact' or 'open-unlearning'"):
        extraction_strength(MATCHES, convention="tofu")


@pytest.mark.parametrize(("convention", "key"), [("muse", "rougeL_f1_no_stemmer"), ("open-unlearning", "rougeL_f1")])
def test_verbmem_and_knowmem_conventions(convention, key):
    samples = FIXTURE["rouge"]
    expected = [row[key] for row in samples]
    predictions, references = ([row[column] for row in samples] for column in ("generation", "ground_truth"))
    result = verbmem(predictions, references, convention=convention)
    assert result["per_row"] == pytest.approx(expected, abs=1e-12)
    assert result["verbmem"] == pytest.approx(sum(expected) / len(expected))
    whole = [row for row in samples if "\n\n" not in row["generation"]]
    answers = [f"{row['generation']}\n\nQuestion: And then?" for row in whole]
    result = knowmem(answers, [row["ground_truth"] for row in whole], convention=convention)
    assert result["per_row"] == pytest.approx([row[key] for row in whole], abs=1e-12)


def test_knowmem_cuts_the_answer_where_the_next_question_begins():
    answers = [
        "The Guardian\n\nAnswer: no",
        "The Guardian Question: who?",
        "The Guardian\nof London",
        "\n\nThe Guardian",
    ]
    result = knowmem(answers, ["The Guardian"] * 4)
    assert result["per_row"] == pytest.approx([1.0, 1.0, 2 / 3, 0.0])
    assert rouge_l(answers[:1], ["The Guardian"])["rougeL_f1"] < 1


@pytest.mark.parametrize("metric", [verbmem, knowmem])
def test_muse_says_which_conventions_there_are(metric):
    with pytest.raises(ValueError, match="'tofu'; expected 'muse' or 'open-unlearning'"):
        metric(["a"], ["a"], convention="tofu")
