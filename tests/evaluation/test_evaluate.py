"""The evaluation's numbers are those that a reader of the definitions would compute, row by row."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, load_dataset
from packaging.version import Version
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean
from transformers import AutoModelForCausalLM, AutoTokenizer

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
    assert result["summary"] == pytest.approx(summary, rel=1e-4)


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
    assert plain["summary"] == pytest.approx(chat["summary"], rel=1e-6)
    assert evaluate(model, tokenizer, sets)["summary"] != pytest.approx(chat["summary"], rel=1e-3)


def test_same_result_in_any_batch_size(model, tokenizer, sets):
    results = [evaluate(model, tokenizer, sets, max_batch_tokens=tokens) for tokens in (50, 8192)]
    assert results[0]["summary"] == pytest.approx(results[1]["summary"], rel=1e-5)


def test_forget_quality_of_two_results(model, tokenizer, sets):
    before = evaluate(model, tokenizer, sets)["rows"]["forget"]["truth_ratio"]
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.1)
    after = evaluate(model, tokenizer, sets)["rows"]["forget"]["truth_ratio"]
    assert forget_quality(before, before)["p_value"] == 1.0
    assert forget_quality(before, after)["statistic"] > 0


@pytest.mark.skipif(
    not ORACLE.exists(), reason="open-unlearning's results on two tiny models are not next to this repository"
)
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.0.0"), reason="their tokenizer was saved by transformers 5"
)
def test_equals_open_unlearning(tmp_path):
    data = {
        name: load_dataset(str(ORACLE / "TOFU"), f"{name}_perturbed", split="train", cache_dir=str(tmp_path))
        for name in ("forget01", "retain", "real_authors", "world_facts")
    }
    results, expected = {}, {}
    for which in ("full", "retain"):
        model = AutoModelForCausalLM.from_pretrained(ORACLE / f"model_{which}")
        tokenizer = AutoTokenizer.from_pretrained(ORACLE / f"model_{which}")
        tokenizer.chat_template = None
        results[which] = evaluate_unlearning(
            model,
            tokenizer,
            data["forget01"],
            data["retain"],
            {"ra": data["real_authors"], "wf": data["world_facts"]},
            question_answer_template="[INST] {question} [/INST]{answer}",
        )
        expected[which] = json.loads((ORACLE / f"logs_llama2_{which}" / "TOFU_EVAL.json").read_text(encoding="utf-8"))
        theirs = {key: value["agg_value"] for key, value in expected[which].items()}
        assert (
            results[which]["summary"]
            == pytest.approx(
                {
                    "forget_probability": theirs["forget_Q_A_Prob"],
                    "forget_rougeL_recall": theirs["forget_Q_A_ROUGE"],
                    "forget_truth_ratio": theirs["forget_truth_ratio"],
                    "retain_probability": theirs["retain_Q_A_Prob"],
                    "retain_rougeL_recall": theirs["retain_Q_A_ROUGE"],
                    "retain_truth_ratio": theirs["retain_Truth_Ratio"],
                    "ra_probability": theirs["ra_Q_A_Prob_normalised"],
                    "ra_rougeL_recall": theirs["ra_Q_A_ROUGE"],
                    "ra_truth_ratio": theirs["ra_Truth_Ratio"],
                    "wf_probability": theirs["wf_Q_A_Prob_normalised"],
                    "wf_rougeL_recall": theirs["wf_Q_A_ROUGE"],
                    "wf_truth_ratio": theirs["wf_Truth_Ratio"],
                    "model_utility": theirs["model_utility"],
                },
                abs=2e-5,  # their fp32 loss of the first row, 0.02757, is not quite that of their own saved weights, 0.02758
            )
        )
        scores = expected[which]["forget_truth_ratio"]["value_by_index"]
        ratios = results[which]["rows"]["forget"]["truth_ratio"]
        assert ratios == pytest.approx([scores[str(index)]["score"] for index in range(40)], rel=1e-4)
    quality = forget_quality(*(results[which]["rows"]["forget"]["truth_ratio"] for which in ("full", "retain")))
    assert quality["p_value"] == pytest.approx(expected["full"]["forget_quality"]["agg_value"])
