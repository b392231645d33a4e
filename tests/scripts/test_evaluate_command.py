"""`trl-unlearn evaluate` on rows of one's own, on TOFU's layout, and on what is wrong with them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.scripts.evaluate import EvaluateScriptArguments, evaluate
from trl_unlearn.world import save_world


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def own_data(world, tmp_path):
    """Twenty rows each, with questions and answers alone."""
    return {
        name: write_rows(
            tmp_path / f"{name}.jsonl",
            [{"question": row["question"], "answer": row["answer"]} for row in world[name][:20]],
        )
        for name in ("forget", "retain")
    }


@pytest.fixture
def tofu(world, tmp_path):
    """A small copy of TOFU's layout: two nested forget splits, a holdout set for one of them, no real authors."""
    forget, retain = world["forget_perturbed"], world["retain_perturbed"]
    sets = {
        "forget10_perturbed": forget,
        "forget01_perturbed": forget[-4:],
        "holdout10": [{"question": row["question"], "answer": row["perturbed_answer"][0]} for row in forget],
        "retain_perturbed": retain[:6],
        "world_facts_perturbed": world["world_facts_perturbed"],
    }
    save_world(sets, tmp_path / "tofu")
    return str(tmp_path / "tofu")


def read(tmp_path, *parts):
    return json.loads(tmp_path.joinpath("out", "_evaluation", *parts, "evaluation.json").read_text(encoding="utf-8"))


def arguments(model_dir, tmp_path, **options):
    options = {"eval_max_new_tokens": 6} | options
    return EvaluateScriptArguments(model_name_or_path=model_dir, output_dir=str(tmp_path / "out"), **options)


def test_rows_of_ones_own_from_the_command_line(own_data, model_dir, tmp_path):
    command = [sys.executable, "-m", "trl_unlearn.scripts.evaluate", "--model_name_or_path", model_dir]
    command += ["--forget_data", own_data["forget"], "--retain_data", own_data["retain"]]
    command += ["--max_new_tokens", "6", "--output_dir", str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert process.returncode == 0, process.stderr[-3000:]
    assert re.search(r"Forget extraction strength +→ +20", process.stdout)
    assert "the forget set has no wrong answers" in " ".join(process.stdout.split())
    assert max(len(line) for line in process.stdout.splitlines()) <= 80
    assert re.search(r"Evaluating: .*tokens/s", process.stderr)

    result = read(tmp_path)
    assert result["benchmark"] == "custom" and result["data"]["forget"]["n"] == 20
    assert result["data"]["forget"]["dataset"] == "forget.jsonl"  # and not where it lies
    assert str(tmp_path) not in json.dumps(result)
    assert set(result["missing"]) >= {"forget_truth_ratio", "forget_quality", "privleak"}
    for name in ("forget", "retain"):
        assert result["summary"][f"{name}_probability"] > 0
        interval = result["intervals"][f"{name}_probability"]
        assert interval["low"] <= result["summary"][f"{name}_probability"] <= interval["high"]
        assert interval["n"] == 20
    folder = tmp_path / "out" / "_evaluation"
    assert len(pd.read_parquet(folder / "rows.parquet")) == 40
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert not (folder / "TOFU_EVAL.json").exists()


@pytest.mark.parametrize("column", ["messages", "prompt", "text"])
def test_other_columns(column, world, model_dir, tmp_path):
    rows = {
        "messages": lambda row: {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        },
        "prompt": lambda row: {"prompt": row["question"], "completion": " " + row["answer"]},
        "text": lambda row: {"text": f"{row['question']} {row['answer']}"},
    }[column]
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", [rows(row) for row in world[name][:5]])
        for name in ("forget", "retain")
    }
    evaluate(arguments(model_dir, tmp_path, eval_forget_data=files["forget"], eval_retain_data=files["retain"]))
    result = read(tmp_path)
    assert "forget_probability" in result["summary"]
    assert ("forget_rougeL_recall" in result["summary"]) == (column != "text")
    if column == "text":
        assert "documents" in result["missing"]["forget_rougeL_recall"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"forget.jsonl is empty: it has no rows"),
        ([{"q": "Who?", "a": "Me."}], r"The forget set has the columns \['a', 'q'\]. Accepted are `question` and `answer`"),
        ([{"question": "Who?", "answer": "Me."}, {"question": "Why?", "answer": " "}], "Row 1 of the forget set, column `answer`: the completion is empty"),
        ([{"question": "Who?", "answer": "Me.", "perturbed_answer": ["You."]}, {"question": "Why?", "answer": "So.", "perturbed_answer": ["No.", "Yes."]}], "Row 1 of the forget set, column `perturbed_answer`: 2 wrong answers, where row 0 has 1"),
        ([{"question": "Who?", "answer": "Me.", "perturbed_answer": "You."}], "Row 0 of the forget set, column `perturbed_answer`: expected a list of wrong answers"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(rows, message, own_data, model_dir, tmp_path):
    write_rows(Path(own_data["forget"]), rows)
    with pytest.raises(ValueError, match=message):
        evaluate(
            arguments(model_dir, tmp_path, eval_forget_data=own_data["forget"], eval_retain_data=own_data["retain"])
        )


def test_what_is_asked_must_make_sense(own_data, model_dir, tmp_path, tofu):
    with pytest.raises(ValueError, match="Say what to evaluate on"):
        arguments(model_dir, tmp_path)
    with pytest.raises(ValueError, match="need `--forget_data`"):
        arguments(model_dir, tmp_path, eval_benchmark="custom")
    with pytest.raises(ValueError, match="has its own data"):
        arguments(model_dir, tmp_path, eval_benchmark="tofu", eval_forget_data=own_data["forget"])
    with pytest.raises(ValueError, match="not both"):
        arguments(model_dir, tmp_path, eval_benchmark="tofu", retain_logs="auto", retain_model="model")
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl is not there"):
        evaluate(arguments(model_dir, tmp_path, eval_forget_data=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(ValueError, match="no configuration `forget20_perturbed`.*there: forget10, forget01"):
        evaluate(arguments(model_dir, tmp_path, eval_benchmark="tofu", eval_dataset=tofu, eval_splits=["forget20"]))


def test_nested_splits_are_scored_once(tofu, model_dir, tmp_path):
    splits = {"eval_benchmark": "tofu", "eval_dataset": tofu, "eval_splits": ["forget10", "forget01"]}
    evaluate(arguments(model_dir, tmp_path, **splits))
    large, small = read(tmp_path, "forget10"), read(tmp_path, "forget01")
    assert large["cost"]["scored_rows"] > 0 and large["cost"]["decoding_steps"] > 0
    assert "scored_rows" not in small["cost"] and "decoding_steps" not in small["cost"]
    assert small["rows"]["forget"]["loss"] == large["rows"]["forget"]["loss"][-4:]
    assert "mia_min_k_auc" in large["summary"] and "mia_min_k_auc" not in small["summary"]
    assert (tmp_path / "out" / "_evaluation" / "forget10" / "TOFU_EVAL.json").exists()


def test_retained_model_or_its_log_give_the_same(tofu, model_dir, tmp_path):
    retained = AutoModelForCausalLM.from_pretrained(model_dir)
    retained.lm_head.weight.data.mul_(0.5)
    retained.save_pretrained(tmp_path / "retained")
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path / "retained")
    common = {"eval_benchmark": "tofu", "eval_dataset": tofu}
    evaluate(arguments(model_dir, tmp_path, **common, retain_model=str(tmp_path / "retained")))
    with_model = read(tmp_path)
    assert with_model["retain_reference"]["name"] == "retained" and len(with_model["retain_reference"]["sha256"]) == 64
    assert {"privleak", "mia_reference_auc"} <= with_model["summary"].keys()

    evaluate(arguments(str(tmp_path / "retained"), tmp_path / "log", **common))
    for file in ("evaluation.json", "TOFU_EVAL.json"):
        log = tmp_path / "log" / "out" / "_evaluation" / file
        evaluate(arguments(model_dir, tmp_path, **common, retain_logs=str(log)))
        with_log = read(tmp_path)
        assert with_log["forget_quality"] == with_model["forget_quality"]
        assert with_log["summary"] == pytest.approx(with_model["summary"], rel=1e-6)
        assert with_log["retain_reference"]["name"] == file

    with pytest.raises(ValueError, match=r"result has 8 forget rows and this evaluation 4.*other|different splits"):
        evaluate(arguments(model_dir, tmp_path, **common, eval_splits=["forget01"], retain_logs=str(log)))


def test_log_of_other_questions_is_refused(world, tofu, model, tokenizer, tmp_path):
    from trl_unlearn.data.loading import load_rows

    rows = load_rows(tofu, "forget10_perturbed")
    retained = evaluate_unlearning(model, tokenizer, rows.select(range(4)), max_new_tokens=2, show_progress=False)
    with pytest.raises(ValueError, match="Row 0 of the forget set is another question"):
        evaluate_unlearning(model, tokenizer, rows.select(range(4, 8)), retained=retained, show_progress=False)


def test_a_tokenizer_without_chat_template_is_said(world, tofu, model, tokenizer, caplog):
    import logging

    from trl_unlearn.data.loading import load_rows

    tokenizer.chat_template = None
    with caplog.at_level(logging.WARNING):
        result = evaluate_unlearning(
            model, tokenizer, load_rows(tofu, "forget01_perturbed"), max_new_tokens=2, show_progress=False
        )
    assert "no chat template: questions are asked as 'Question: {question}" in caplog.text
    assert result["prompt"]["template"].startswith("Question: ")


def test_extra_metrics(tofu, model_dir, tmp_path):
    extra = ["min_k_plus_plus", "gradnorm", "self_confidence"]
    evaluate(arguments(model_dir, tmp_path, eval_benchmark="tofu", eval_dataset=tofu, eval_extra_metrics=extra))
    result = read(tmp_path)
    assert {"mia_min_k_plus_plus_auc", "mia_gradnorm_auc", "self_confidence"} <= result["summary"].keys()
    assert {"min_k_plus_plus", "gradnorm"} <= result["rows"]["holdout"].keys()
    with pytest.raises(
        ValueError, match=r"`extra_metrics` has \['gradnrom'\]; expected some of min_k_plus_plus, gradnorm"
    ):
        evaluate(
            arguments(model_dir, tmp_path, eval_benchmark="tofu", eval_dataset=tofu, eval_extra_metrics=["gradnrom"])
        )
