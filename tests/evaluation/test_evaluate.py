"""The evaluation's numbers are those that a reader of the definitions would compute, row by row."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_unlearn.data.loading import load_rows
from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.metrics import forget_quality
from trl_unlearn.world import grammar


ORACLE = Path(__file__).parents[3] / "shared" / "oracles" / "e2e"


@pytest.fixture
def sets(world):
    return {
        "forget": Dataset.from_list(world["forget_perturbed"]),
        "retain": Dataset.from_list(world["retain_perturbed"][:9]),
        "world_facts": Dataset.from_list(world["world_facts_perturbed"]),
    }


def evaluate(model, tokenizer, sets, **arguments):
    utility_sets = {name: rows for name, rows in sets.items() if name not in ("forget", "retain")}
    arguments = {"max_new_tokens": 12} | arguments
    return evaluate_unlearning(model, tokenizer, sets["forget"], sets["retain"], utility_sets, **arguments)


@torch.no_grad()
def loss(model, tokenizer, question, answer):
    """Token-mean loss of an answer, EOS included, by transformers alone."""
    prompt = [{"role": "user", "content": question}]
    prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    conversation = [*prompt, {"role": "assistant", "content": answer}]
    ids = torch.tensor([tokenizer.apply_chat_template(conversation, return_dict=False)])
    labels = ids.clone()
    labels[:, : len(prompt_ids)] = -100
    return model(input_ids=ids, labels=labels).loss.item()


@pytest.mark.parametrize("truth_ratio_question", ["question", "paraphrased_question"])
def test_equals_the_definitions(model, tokenizer, sets, truth_ratio_question):
    result = evaluate(model, tokenizer, sets, truth_ratio_question=truth_ratio_question)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    summary = {}
    for name, dataset in sets.items():
        expected = {"probability": [], "rougeL_recall": [], "truth_ratio": []}
        for row, generated in zip(dataset, result["rows"][name]["generated"], strict=True):
            question = row.get(truth_ratio_question, row["question"])
            probability = math.exp(-loss(model, tokenizer, row["question"], row["answer"]))
            perturbed = [loss(model, tokenizer, question, answer) for answer in row["perturbed_answer"]]
            paraphrased = loss(model, tokenizer, question, row.get("paraphrased_answer", row["answer"]))
            if name == "world_facts":
                probability /= probability + sum(math.exp(-value) for value in perturbed)
            expected["probability"].append(probability)
            expected["rougeL_recall"].append(scorer.score(row["answer"], generated)["rougeL"].recall)
            expected["truth_ratio"].append(math.exp(paraphrased - np.mean(perturbed)))
        for metric, values in expected.items():
            assert result["rows"][name][metric] == pytest.approx(values, rel=1e-4), (name, metric)
        ratios = np.array(expected["truth_ratio"])
        summary[f"{name}_probability"] = np.mean(expected["probability"])
        summary[f"{name}_rougeL_recall"] = np.mean(expected["rougeL_recall"])
        summary[f"{name}_truth_ratio"] = np.mean(
            np.minimum(ratios, 1 / ratios) if name == "forget" else np.maximum(0, 1 - ratios)
        )
    summary["model_utility"] = hmean([value for key, value in summary.items() if not key.startswith("forget")])
    shared = {name: value for name, value in result["summary"].items() if name in summary}
    assert shared == pytest.approx(summary, rel=1e-4)


def test_result_is_plain_json(model, tokenizer, sets):
    result = evaluate(model, tokenizer, sets, grammar=grammar)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for name, dataset in sets.items():
        assert {len(column) for column in result["rows"][name].values()} == {len(dataset)}


def test_grammar_judges_the_forget_answers(model, tokenizer, sets):
    result = evaluate(model, tokenizer, sets, grammar=grammar)
    generated = result["rows"]["forget"]["generated"]
    facts = list(zip(generated, sets["forget"]["attribute"], sets["forget"]["value"], strict=True))
    assert result["summary"]["leaked"] == np.mean([value.lower() in text.lower() for text, _, value in facts])
    sentences = {
        (attribute, answer.format(value=value))
        for attribute, values in grammar.VALUES.items()
        for value in values
        for _, answer in grammar.PHRASINGS[attribute]
    }
    assert result["summary"]["well_formed"] == np.mean(
        [(attribute, text) in sentences for text, attribute, _ in facts]
    )
    assert "leaked" not in evaluate(model, tokenizer, sets)["summary"]


def test_template_without_chat(model, tokenizer, sets):
    chat = evaluate(model, tokenizer, sets)
    tokenizer.chat_template = None
    # The chat template spelt out, but for BOS.
    template = "<|bos|><|user|>{question}<|assistant|>{answer}"
    plain = evaluate(model, tokenizer, sets, question_answer_template=template)
    assert plain["summary"] == pytest.approx(chat["summary"], rel=1e-5)
    assert evaluate(model, tokenizer, sets)["summary"] != pytest.approx(chat["summary"], rel=1e-3)


def test_same_result_in_any_batch_size(model, tokenizer, sets):
    results = [evaluate(model, tokenizer, sets, max_batch_tokens=tokens) for tokens in (50, 512, 16384)]
    for result in results[1:]:
        assert result["summary"] == pytest.approx(results[0]["summary"], rel=1e-5)
        for name, rows in result["rows"].items():
            assert rows["generated"] == results[0]["rows"][name]["generated"]
            assert rows["exact_memorization"] == results[0]["rows"][name]["exact_memorization"]


def test_forget_quality_of_two_results(model, tokenizer, sets):
    before = evaluate(model, tokenizer, sets)["rows"]["forget"]["truth_ratio"]
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.1)
    after = evaluate(model, tokenizer, sets)["rows"]["forget"]["truth_ratio"]
    assert forget_quality(before, before)["p_value"] == 1.0
    assert forget_quality(before, after)["statistic"] > 0


def open_unlearning_names(summary):
    """Our summary under their names."""
    names = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
    theirs = {}
    for ours, name in names.items():
        normalised = "" if ours in ("forget", "retain") else "_normalised"
        theirs[f"{name}_Q_A_Prob{normalised}"] = summary[f"{ours}_probability"]
        theirs[f"{name}_Q_A_ROUGE"] = summary[f"{ours}_rougeL_recall"]
        ratio = "forget_truth_ratio" if ours == "forget" else f"{name}_Truth_Ratio"
        theirs[ratio] = summary[f"{ours}_truth_ratio"]
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        theirs[f"mia_{attack}"] = summary[f"mia_{attack}_auc"]
    for metric in ("exact_memorization", "extraction_strength"):
        theirs[metric] = summary[f"forget_{metric}"]
    return theirs | {name: summary[name] for name in ("model_utility", "privleak") if name in summary}


@pytest.fixture(scope="module")
def oracle_results():
    """Both models of the oracle, the retained one first, by our convention and by theirs."""
    if not ORACLE.exists():
        pytest.skip("open-unlearning's results on two tiny models are not next to this repository")
    if Version(transformers.__version__) < Version("5.0.0"):
        pytest.skip("their tokenizer was saved by transformers 5")
    data = {
        name: load_rows(str(ORACLE / "TOFU"), name)
        for name in ("forget01_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    }
    results = {}
    for which in ("retain", "full"):
        for compat in (None, "open-unlearning"):
            results[which, compat] = evaluate_unlearning(
                AutoModelForCausalLM.from_pretrained(ORACLE / f"model_{which}"),
                AutoTokenizer.from_pretrained(ORACLE / f"model_{which}"),
                data["forget01_perturbed"],
                data["retain_perturbed"],
                {name: data[f"{name}_perturbed"] for name in ("real_authors", "world_facts")},
                holdout=load_rows(str(ORACLE / "TOFU"), "holdout01"),
                retained=results.get(("retain", compat)),
                extra_metrics=["min_k_plus_plus"],
                question_answer_template="[INST] {question} [/INST]{answer}",
                compat=compat,
                show_progress=False,
            )
    return results


def their_log(which):
    return json.loads((ORACLE / f"logs_llama2_{which}" / "TOFU_EVAL.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("which", ["retain", "full"])
def test_compat_reproduces_open_unlearning(oracle_results, which):
    result, log = oracle_results[which, "open-unlearning"], their_log(which)
    for ours, theirs in {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}.items():
        rows = result["rows"][ours]

        def column(metric, field, theirs=theirs):
            values = log[f"{theirs}_Q_A_{metric}"]["value_by_index"]
            return [values[str(index)][field] for index in range(len(values))]

        assert rows["loss"] == pytest.approx(column("Prob", "avg_loss"), abs=1e-5)
        assert rows["generated"] == column("ROUGE", "generation")
        assert rows["rougeL_recall"] == column("ROUGE", "rougeL_recall")
        for ours_row, theirs_row in zip(rows["perturbed_loss"], column("PERT_Prob", "avg_loss"), strict=True):
            assert ours_row == pytest.approx(theirs_row, abs=1e-5)
        if ours in ("forget", "retain"):
            assert rows["paraphrased_loss"] == pytest.approx(column("PARA_Prob", "avg_loss"), abs=1e-5)
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        for name in ("forget", "holdout"):
            scores = log[f"mia_{attack}"][name]["value_by_index"]
            expected = [scores[str(index)]["score"] for index in range(len(scores))]
            # their softmax, which compat reproduces, rounds as the vectors of a CPU are wide: min-k++ shows it most
            assert result["rows"][name][attack] == pytest.approx(expected, abs=1e-5, rel=5e-6)
    summary = open_unlearning_names(result["summary"])
    expected = {name: log[name]["agg_value"] for name in summary}
    assert summary == pytest.approx(expected, abs=1e-5)
    if which == "full":  # the retained model has nothing to be compared with, where they take an AUC of 0.5
        assert "privleak" in summary
        assert result["forget_quality"]["p_value"] == log["forget_quality"]["agg_value"]


@pytest.mark.parametrize("which", ["retain", "full"])
def test_default_differs_from_open_unlearning_only_where_it_should(oracle_results, which):
    """Prompts as text have no EOS inside, so that the mask is the same; each other difference is one of those below."""
    ours, theirs = (oracle_results[which, compat] for compat in (None, "open-unlearning"))
    # their softmax over a first dimension is off by up to 4e-5 a token for a sure model; 1e-10 in ratios is less
    unlike = {"forget_extraction_strength", "retain_extraction_strength"}
    for metric, value in theirs["summary"].items():
        if metric not in unlike:
            assert ours["summary"][metric] == pytest.approx(value, abs=3e-5), metric
    for name in ("forget", "retain", "real_authors", "world_facts"):
        assert ours["rows"][name]["generated"] == theirs["rows"][name]["generated"]
        ours_rows, their_rows = (result["rows"][name] for result in (ours, theirs))
        for strength, their_strength, answer in zip(
            ours_rows["extraction_strength"], their_rows["extraction_strength"], ours_rows["num_tokens"], strict=True
        ):
            # a wrong last token: nothing was extracted, which they count as one token
            assert strength == their_strength or (strength == 0 and their_strength == pytest.approx(1 / (answer - 1)))
    if which == "full":
        assert ours["forget_quality"] == theirs["forget_quality"]


def test_the_hidden_end_of_turn_changes_a_chat(oracle_results):
    """With the chat template, whose turns end with EOS, open-unlearning's mask hides where the question ends."""
    model = AutoModelForCausalLM.from_pretrained(ORACLE / "model_full")
    tokenizer = AutoTokenizer.from_pretrained(ORACLE / "model_full")
    rows = load_rows(str(ORACLE / "TOFU"), "forget01_perturbed").select(range(20))
    ours, theirs = (
        evaluate_unlearning(model, tokenizer, rows, compat=compat, show_progress=False)
        for compat in (None, "open-unlearning")
    )
    for row, scored in zip(rows, ours["rows"]["forget"]["loss"], strict=True):
        assert scored == pytest.approx(loss(model, tokenizer, row["question"], row["answer"]), rel=1e-4)
    assert ours["rows"]["forget"]["generated"] != theirs["rows"]["forget"]["generated"]
    # the model knows its answers, which by that mask it seems to have forgotten
    assert ours["summary"]["forget_rougeL_recall"] > theirs["summary"]["forget_rougeL_recall"] + 0.3
