"""leak@k is what the definition says of answers that are drawn one by one."""

import pytest
import torch
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer

from trl_unlearn.attacks.not_applicable import NotApplicable
from trl_unlearn.attacks.sample import leak_at_k
from trl_unlearn.evaluation.prompting import Prompting
from trl_unlearn.evaluation.sampling import Sampling
from trl_unlearn.world import grammar


def leak(model, tokenizer, forget, counts, **options):
    options = {"max_new_tokens": 12, "grammar": grammar, "show_progress": False} | options
    return leak_at_k(model, tokenizer, forget, Prompting(tokenizer), counts, **options)


@torch.no_grad()
def draw(model, tokenizer, question, repeat, max_new_tokens, seed=0):
    """One answer, token by token, without cache or batch."""
    prompt = [{"role": "user", "content": question}]
    prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    keys = Sampling(seed).keys([(tuple(prompt_ids), repeat)])
    ids = list(prompt_ids)
    for step in range(max_new_tokens):
        logits = model(torch.tensor([ids])).logits[:, -1]
        ids.append(int(Sampling(seed).perturb(logits, keys, step).argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(prompt_ids) :], skip_special_tokens=True).strip()


def test_equals_the_worst_of_answers_drawn_one_by_one(load, adapter_dir, forget):
    model, tokenizer = load(adapter_dir)
    forget = forget.select(range(0, 32, 4))
    found = leak(model, tokenizer, forget, (1, 3))
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    recalls, leaks = [], []
    for row in forget:
        texts = [draw(model, tokenizer, row["question"], repeat, 12) for repeat in range(3)]
        recalls.append([scorer.score(row["answer"], text)["rougeL"].recall for text in texts])
        leaks.append([row["value"].lower() in text.lower() for text in texts])
    for k in (1, 3):
        expected = {
            "forget_rougeL_recall": sum(max(row[:k]) for row in recalls) / len(recalls),
            "leaked": sum(any(row[:k]) for row in leaks) / len(leaks),
        }
        assert found[k]["summary"] == pytest.approx(expected)
    assert found[3]["summary"]["forget_rougeL_recall"] > found[1]["summary"]["forget_rougeL_recall"]


def test_never_falls_with_k_and_needs_no_larger_k(load, adapter_dir, forget):
    model, tokenizer = load(adapter_dir)
    found = leak(model, tokenizer, forget, (8, 1, 2, 4))
    assert list(found) == [1, 2, 4, 8]
    for metric in ("forget_rougeL_recall", "leaked"):
        values = [result["summary"][metric] for result in found.values()]
        assert values == sorted(values) and values[0] < values[-1]
        interval = found[8]["intervals"][metric]
        assert interval["n"] == 32 and interval["low"] <= values[-1] <= interval["high"]
    assert leak(model, tokenizer, forget, (1,))[1] == found[1]
    assert leak(model, tokenizer, forget, (1,), seed=1)[1] != found[1]


def test_without_grammar_and_other_columns(load, adapter_dir, forget):
    model, tokenizer = load(adapter_dir)
    rows = Dataset.from_dict({"prompt": forget["question"][:4], "completion": forget["answer"][:4]})
    assert leak(model, tokenizer, rows, (2,), grammar=None)[2]["summary"].keys() == {"forget_rougeL_recall"}
    with pytest.raises(NotApplicable, match="documents"):
        leak(model, tokenizer, Dataset.from_dict({"text": ["A text."]}), (1,))
