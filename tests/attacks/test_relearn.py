"""Relearning trains what it says on what it says, and finds what a shallow unlearning has left."""

import pytest
import torch
from datasets import Dataset

from trl_unlearn.attacks.relearn import encode_rows, relearn
from trl_unlearn.attacks.subsets import groups_of, split_rows
from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.evaluation.prompting import Prompting
from trl_unlearn.world import grammar


def evaluator(tokenizer, rows):
    def evaluate(model):
        options = {"max_new_tokens": 12, "grammar": grammar, "show_progress": False}
        return evaluate_unlearning(model, tokenizer, rows, **options)["summary"]

    return evaluate


def attack(model, tokenizer, forget, evaluate=None, rows=None, **options):
    """On one of four persons, asking for the three others."""
    trained, asked = split_rows(forget, "held_out", 0.25, 0, groups_of(forget, "world"))
    rows = encode_rows(forget.select(trained) if rows is None else rows, Prompting(tokenizer))
    evaluate = evaluate or evaluator(tokenizer, forget.select(asked))
    options = {"steps": (5, 10), "learning_rate": 1e-3, "show_progress": False} | options
    return relearn(model, tokenizer, rows, evaluate, **options)


def test_what_a_shallow_unlearning_has_hidden_comes_back(load, unlearned_dir, forget):
    model, tokenizer = load(unlearned_dir)
    results = attack(model, tokenizer, forget)
    assert list(results) == [0, 5, 10]
    assert results[0]["leaked"] == 0 and results[0]["forget_probability"] < 0.4
    # of persons of whom nothing was trained on
    assert results[5]["forget_probability"] > results[0]["forget_probability"] + 0.3
    assert results[5]["leaked"] > 0.1
    # with all that it knew gone, there is nothing to come back
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    blank = attack(model, tokenizer, forget)
    assert blank[10]["forget_probability"] < 0.2


def test_same_seed_same_curve(load, unlearned_dir, forget):
    curves = []
    for seed in (0, 0, 1):
        model, tokenizer = load(unlearned_dir)
        curves.append(attack(model, tokenizer, forget, steps=[3], batch_size=4, seed=seed))
    assert curves[0] == curves[1]
    assert curves[0][3] != curves[2][3] and curves[0][0] == curves[2][0]


def test_the_last_step_and_all_weights(load, unlearned_dir, forget):
    """Plain AdamW over the mean loss of the answers' tokens, by hand, gives the same weights."""
    model, tokenizer = load(unlearned_dir)
    by_hand, _ = load(unlearned_dir)
    attack(model, tokenizer, forget, evaluate=lambda model: {}, steps=[2], batch_size=64)
    trained, _ = split_rows(forget, "held_out", 0.25, 0, groups_of(forget, "world"))
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        losses, num_tokens = [], 0
        for index in trained:
            question = [{"role": "user", "content": forget[index]["question"]}]
            whole = [*question, {"role": "assistant", "content": forget[index]["answer"]}]
            start = len(tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False))
            ids = torch.tensor([tokenizer.apply_chat_template(whole, return_dict=False)])
            logps = by_hand(ids).logits[0, start - 1 : -1].log_softmax(-1)
            losses.append(-logps.gather(-1, ids[0, start:, None]).sum())
            num_tokens += ids.shape[1] - start
        (sum(losses) / num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    before, _ = load(unlearned_dir)
    for (name, found), expected, old in zip(
        model.named_parameters(), by_hand.parameters(), before.parameters(), strict=True
    ):
        assert not torch.equal(found, old), name
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_small_updates_are_not_lost_in_bf16(load, unlearned_dir, forget):
    model, tokenizer = load(unlearned_dir, dtype="bfloat16")
    dtypes = []
    results = attack(
        model, tokenizer, forget, steps=[1], learning_rate=1e-6,
        evaluate=lambda model: dtypes.append(model.dtype) or {"norm": [p.detach().clone() for p in model.parameters()]},
    )  # fmt: skip
    assert dtypes == [torch.float32] * 2
    for old, new in zip(results[0]["norm"], results[1]["norm"], strict=True):
        assert (old != new).float().mean() > 0.3


@pytest.mark.parametrize("lora_r", [0, 3])
def test_an_adapter_is_merged_first(load, adapter_dir, forget, lora_r):
    model, tokenizer = load(adapter_dir)
    merged, _ = load(adapter_dir, merge=True)
    seen = []

    def evaluate(model):
        seen.append(model)
        return {"probability": evaluator(tokenizer, forget.select(range(4)))(model)["forget_probability"]}

    results = attack(model, tokenizer, forget, evaluate, steps=[2], lora_r=lora_r)
    assert results[0] == evaluate(merged) and results[2] != results[0]
    trained = seen[0]
    if lora_r == 0:
        assert not hasattr(trained, "peft_config") and all(p.requires_grad for p in trained.parameters())
    else:
        assert trained.active_peft_config.r == 3
        with trained.disable_adapter():  # nothing but the new adapter has changed
            assert evaluate(trained) == results[0]


def test_documents_are_cut_in_windows(load, target_dir, people):
    _, tokenizer = load(target_dir)
    texts = [" ".join(row["answer"] for row in people["forget"][:40]), people["forget"][0]["answer"]]
    rows = encode_rows(Dataset.from_dict({"text": texts}), Prompting(tokenizer), max_length=50)
    lengths = [len(ids) for ids in rows["input_ids"]]
    assert max(lengths) == 50 and len(rows) == sum(-(-(len(tokenizer(text)["input_ids"])) // 49) for text in texts)
    assert rows[0]["labels"] == rows[0]["input_ids"]


def test_rows_are_the_tokens_that_are_evaluated(load, target_dir, forget):
    _, tokenizer = load(target_dir)
    prompting = Prompting(tokenizer, "Q: {question} A: {answer}")
    row = encode_rows(forget.select([0]), prompting)[0]
    answer = [token_id for token_id, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(answer) == f" {forget[0]['answer']}{tokenizer.eos_token}"
    assert tokenizer.decode(row["input_ids"]).startswith(f"Q: {forget[0]['question']} A: ")
