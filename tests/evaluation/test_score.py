"""Scores equal those of transformers alone, whatever the batch, the architecture and the wrapper."""

import random

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig

from trl_unlearn.evaluation.batching import batch_by_length, evaluation_mode
from trl_unlearn.evaluation.score import score_completions


PAD = 0


def make_rows(vocab_size, seed=0, count=40):
    rng = random.Random(seed)
    rows = [
        (
            [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 12))],
            [rng.randrange(vocab_size) for _ in range(n)],
        )
        for n in (rng.randrange(1, 9) for _ in range(count))
    ]
    return rows + rows[5:15]  # exact repeats


@torch.no_grad()
def plain_scores(model, rows):
    """One row at a time, every logit, no padding."""
    scores = []
    model.eval()
    for prompt, completion in rows:
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        scores.append((F.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").item(), len(completion)))
    return scores


def assert_equal_scores(scores, expected):
    assert [count for _, count in scores] == [count for _, count in expected]
    assert [nll for nll, _ in scores] == pytest.approx([nll for nll, _ in expected], abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("max_batch_tokens", [1, 30, 8192])
def test_equals_transformers(model, max_batch_tokens):
    rows = make_rows(model.config.vocab_size)
    assert_equal_scores(score_completions(model, rows, PAD, max_batch_tokens), plain_scores(model, rows))


def test_pad_token_inside_a_row_is_a_token(model):
    rows = [([5, PAD, 6], [PAD, 7, PAD]), ([8] * 9, [PAD])]
    assert_equal_scores(score_completions(model, rows, PAD), plain_scores(model, rows))


SMALL = {
    "vocab_size": 120,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CohereConfig(**SMALL, logit_scale=0.3), id="logits scaled"),
        pytest.param(GraniteConfig(**SMALL, logits_scaling=7.0), id="logits divided"),
        pytest.param(Gemma2Config(**SMALL, final_logit_softcapping=0.05), id="logits soft-capped"),
        pytest.param(GPT2Config(vocab_size=120, n_embd=16, n_layer=2, n_head=2), id="learned positions"),
    ],
)
def test_equals_transformers_for_architectures_that_differ_at_the_head(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    rows = make_rows(120)
    assert_equal_scores(score_completions(model, rows, PAD, max_batch_tokens=64), plain_scores(model, rows))


@pytest.mark.parametrize("target_modules", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_equals_transformers_for_an_adapter(model, lora_config, target_modules):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    lora_config.target_modules = set(target_modules)
    base_scores = plain_scores(model, make_rows(model.config.vocab_size))
    peft_model = get_peft_model(model, lora_config)
    torch.manual_seed(0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    rows = make_rows(model.config.vocab_size)
    expected = plain_scores(peft_model, rows)
    assert all(abs(nll - base_nll) > 1e-3 for (nll, _), (base_nll, _) in zip(expected, base_scores, strict=True))
    assert_equal_scores(score_completions(peft_model, rows, PAD, max_batch_tokens=64), expected)


def test_softmax_of_a_bf16_model_is_in_fp32(model):
    model.bfloat16()
    (row,) = make_rows(model.config.vocab_size, count=1)[:1]
    ((nll, _),) = score_completions(model, [row], PAD)
    ((expected, _),) = plain_scores(model, [row])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row[0] + row[1]])).logits[0, len(row[0]) - 1 : -1]
    in_bf16 = F.cross_entropy(logits, torch.tensor(row[1]), reduction="sum").item()
    assert nll == pytest.approx(expected, rel=1e-4)
    assert in_bf16 != pytest.approx(expected, rel=1e-4)


def test_only_distinct_label_positions_reach_the_head(model):
    rows = make_rows(model.config.vocab_size)
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    done = []
    score_completions(model, rows, PAD, max_batch_tokens=64, progress=done.append)
    handle.remove()
    distinct = {(tuple(prompt), tuple(completion)) for prompt, completion in rows}
    assert len(distinct) < len(rows)
    assert sum(seen) == sum(len(completion) for _, completion in distinct)
    assert len(seen) == len(done) > 1 and sum(done) == len(distinct)
    assert not model.lm_head._forward_pre_hooks


def test_modes_are_left_as_they_were_and_dropout_is_off(model):
    model.model.layers[0].self_attn.attention_dropout = 0.5  # used by the attention only in training mode
    model.train()
    model.model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    rows = make_rows(model.config.vocab_size)
    assert score_completions(model, rows, PAD) == score_completions(model, rows, PAD)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mode_and_head_are_restored_after_an_error(model):
    model.train()
    with pytest.raises(IndexError):
        score_completions(model, [([1, 2], [model.config.vocab_size])], PAD)
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training


@pytest.mark.parametrize("row", [([], [1]), ([1], [])])
def test_empty_parts_are_refused(model, row):
    with pytest.raises(ValueError, match=r"Row 1 has \d prompt tokens and \d completion tokens"):
        score_completions(model, [([1], [2]), row], PAD)


def test_batches_keep_to_the_budget():
    lengths = [3, 9, 1, 4, 4, 20, 2]
    batches = list(batch_by_length(lengths, lambda length: length, max_batch_tokens=10))
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    assert batches == [[20], [9], [4, 4], [3, 2, 1]]
