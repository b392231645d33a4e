"""Scores equal those of transformers alone, whatever the batch, the architecture and the wrapper."""

import random

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig

from trl_unlearn.evaluation.batching import batch_by_length, evaluation_mode
from trl_unlearn.evaluation.gradnorm import gradient_norms
from trl_unlearn.evaluation.plan import Plan
from trl_unlearn.evaluation.score import score_batch


PAD = 0


def score(model, tokenizer, rows, moments=False, **options):
    """The scores of rows through a plan, in their order."""
    plan = Plan()
    keys = [plan.score(prompt, completion, moments) for prompt, completion in rows]
    plan.run(model, tokenizer, show_progress=False, **options)
    return [plan.scores[key] for key in keys]


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
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
        distribution = torch.distributions.Categorical(logits=logits)
        log_probabilities = logits.log_softmax(-1)
        mu = (distribution.probs * log_probabilities).sum(-1, keepdim=True)
        sigma = (distribution.probs * (log_probabilities - mu) ** 2).sum(-1).sqrt()
        columns = {
            "log_probabilities": distribution.log_prob(ids[0, len(prompt) :]),
            "matches": logits.argmax(-1) == ids[0, len(prompt) :],
            "mu": mu.squeeze(-1),
            "sigma": sigma,
        }
        scores.append({name: values.tolist() for name, values in columns.items()})
    return scores


def assert_equal_scores(scores, expected, columns=("log_probabilities", "matches")):
    assert len(scores) == len(expected)
    for row, expected_row in zip(scores, expected, strict=True):
        assert row.keys() == set(columns)
        for column in columns:
            assert row[column] == pytest.approx(expected_row[column], abs=1e-5, rel=1e-4), column


@pytest.mark.parametrize("max_batch_tokens", [1, 30, 8192])
def test_equals_transformers(model, tokenizer, max_batch_tokens):
    rows = make_rows(model.config.vocab_size)
    with torch.no_grad():
        favourite = int(model.eval()(input_ids=torch.tensor([[5, 6]])).logits[0, -1].argmax())
    rows.append(([5, 6], [favourite, 7]))
    scores = score(model, tokenizer, rows, max_batch_tokens=max_batch_tokens)
    assert_equal_scores(scores, plain_scores(model, rows))
    assert {match for row in scores for match in row["matches"]} == {True, False}


def test_moments_of_the_distribution(model, tokenizer):
    rows = make_rows(model.config.vocab_size)
    columns = ("log_probabilities", "matches", "mu", "sigma")
    assert_equal_scores(score(model, tokenizer, rows, moments=True), plain_scores(model, rows), columns)


def test_moments_are_finite_where_tokens_are_impossible(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 1e4)
    for row in score(model, tokenizer, make_rows(model.config.vocab_size), moments=True):
        assert all(abs(value) < float("inf") for column in row.values() for value in column)
        assert min(row["sigma"]) >= 0


def test_pad_token_inside_a_row_is_a_token(model, tokenizer):
    pad = tokenizer.pad_token_id
    rows = [([5, pad, 6], [pad, 7, pad]), ([8] * 9, [pad])]
    assert_equal_scores(score(model, tokenizer, rows), plain_scores(model, rows))


def test_a_hidden_token_is_not_attended_to_and_the_losses_are_open_unlearnings(model):
    """Their collator hides what equals the padding, their loss takes the softmax over a first dimension."""
    batch = [((5, 9, 6), (9, 7, 11)), ((8, 4, 3, 2, 9, 6), (12, 3))]
    rows, _ = score_batch(model.eval(), batch, pad_token_id=9, hidden_token_id=9)
    for (prompt, completion), row in zip(batch, rows, strict=True):
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=(ids != 9).long()).logits[:, len(prompt) - 1 : -1]
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, len(prompt) :], reduction="none")[0]
        assert row["losses"] == pytest.approx(losses.tolist(), abs=2e-6)
        assert row["log_probabilities"] == pytest.approx((-losses).tolist(), abs=1e-4)
    plain, _ = score_batch(model, batch, pad_token_id=9)
    assert all(
        row["log_probabilities"] != pytest.approx(other["log_probabilities"], abs=1e-3)
        for row, other in zip(rows, plain, strict=True)
    )


def test_gradient_norms(model, lora_config):
    prompt, completion = (5, 9, 6), (9, 7, 11)
    ids = torch.tensor([prompt + completion])
    loss = F.cross_entropy(model(input_ids=ids).logits[0, len(prompt) - 1 : -1], ids[0, len(prompt) :])
    loss.backward()
    expected = [parameter.grad.norm().item() for parameter in model.parameters()]
    kept = [parameter.grad.clone() for parameter in model.parameters()]
    assert gradient_norms(model, prompt, completion) == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(old, parameter.grad) for old, parameter in zip(kept, model.parameters(), strict=True))

    peft_model = get_peft_model(model, lora_config)  # its B matrices are 0, so that those of A have no gradient
    trainable = [parameter.requires_grad for parameter in peft_model.parameters()]
    norms = gradient_norms(peft_model, prompt, completion)
    assert len(norms) == len(trainable) > len(expected)
    assert sorted(norms)[-len(expected) :] != sorted(norms)[: len(expected)]
    for norm in expected:
        assert any(norm == pytest.approx(other, rel=1e-4) for other in norms)
    assert [parameter.requires_grad for parameter in peft_model.parameters()] == trainable


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
def test_equals_transformers_for_architectures_that_differ_at_the_head(config, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    rows = make_rows(120)
    assert_equal_scores(score(model, tokenizer, rows, max_batch_tokens=64), plain_scores(model, rows))


@pytest.mark.parametrize("target_modules", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_equals_transformers_for_an_adapter(model, tokenizer, lora_config, target_modules):
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
    for row, base_row in zip(expected, base_scores, strict=True):
        assert abs(sum(row["log_probabilities"]) - sum(base_row["log_probabilities"])) > 1e-3
    assert_equal_scores(score(peft_model, tokenizer, rows, max_batch_tokens=64), expected)


def test_softmax_of_a_bf16_model_is_in_fp32(model, tokenizer):
    model.bfloat16()
    (row,) = make_rows(model.config.vocab_size, count=1)[:1]
    (scored,) = score(model, tokenizer, [row])
    (expected,) = plain_scores(model, [row])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row[0] + row[1]])).logits[0, len(row[0]) - 1 : -1]
    in_bf16 = F.cross_entropy(logits, torch.tensor(row[1]), reduction="sum").item()
    assert sum(scored["log_probabilities"]) == pytest.approx(sum(expected["log_probabilities"]), rel=1e-4)
    assert -in_bf16 != pytest.approx(sum(expected["log_probabilities"]), rel=1e-4)


def test_only_distinct_label_positions_reach_the_head(model, tokenizer):
    rows = make_rows(model.config.vocab_size)
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    plan = Plan()
    for prompt, completion in rows:
        plan.score(prompt, completion)
    plan.run(model, tokenizer, max_batch_tokens=64, show_progress=False)
    handle.remove()
    distinct = {(tuple(prompt), tuple(completion)) for prompt, completion in rows}
    assert len(distinct) < len(rows)
    # the first token of all completions of a prompt is predicted at one and the same position
    prompts = {prompt for prompt, _ in distinct}
    assert sum(seen) == sum(len(completion) - 1 for _, completion in distinct) + len(prompts)
    assert len(seen) > 2
    assert plan.cost["scored_rows"] == len(distinct)
    # the last token of a row predicts nothing, and is not computed
    assert plan.cost["scored_tokens"] == sum(len(prompt) + len(completion) - 1 for prompt, completion in distinct)
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 8192])
def test_answers_of_a_question_share_its_prompt(model, tokenizer, max_batch_tokens):
    """Prompts are longer than completions here, and each has six of these, one of a single token."""
    rng = random.Random(1)
    prompts = [[rng.randrange(model.config.vocab_size) for _ in range(rng.randrange(12, 20))] for _ in range(5)]
    rows = [
        (prompt, [rng.randrange(model.config.vocab_size) for _ in range(length)])
        for prompt in prompts
        for length in (1, 2, 4, 4, 5, 7)
    ]
    plan = Plan()
    keys = [plan.score(*row) for row in rows]
    plan.run(model, tokenizer, max_batch_tokens=max_batch_tokens, show_progress=False)
    assert_equal_scores([plan.scores[key] for key in keys], plain_scores(model, rows))
    assert plan.cost["padded_tokens"] < 0.75 * plan.cost["scored_tokens"]


def test_models_without_positions_are_scored_row_by_row(tokenizer):
    config = BloomConfig(vocab_size=120, hidden_size=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    rows = make_rows(120)
    assert_equal_scores(score(model, tokenizer, rows, max_batch_tokens=64), plain_scores(model, rows))
    plan = Plan()
    key = plan.generate([5, 6, 7], 4)
    plan.run(model, tokenizer, show_progress=False)
    ids = [5, 6, 7]
    for _ in range(4):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert plan.generations[key] == ids[3 : 3 + len(plan.generations[key])]


def test_what_is_answered_is_not_computed_again(model, tokenizer):
    plan = Plan()
    first = plan.score([1, 2], [3, 4])
    plan.run(model, tokenizer, show_progress=False)
    answer = plan.scores[first]
    second = plan.score([1, 2], [5])
    assert plan.score([1, 2], [3, 4]) == first
    plan.run(model, tokenizer, show_progress=False)
    assert plan.cost["scored_rows"] == 2
    assert plan.scores[first] is answer and plan.scores[second] is not None
    plan.score([1, 2], [3, 4], moments=True)
    plan.run(model, tokenizer, show_progress=False)
    assert plan.scores[first].keys() - answer.keys() == {"mu", "sigma"}


def test_modes_are_left_as_they_were_and_dropout_is_off(model, tokenizer):
    model.model.layers[0].self_attn.attention_dropout = 0.5  # used by the attention only in training mode
    model.train()
    model.model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    rows = make_rows(model.config.vocab_size)
    assert score(model, tokenizer, rows) == score(model, tokenizer, rows)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mode_and_head_are_restored_after_an_error(model, tokenizer):
    model.train()
    with pytest.raises((IndexError, RuntimeError)):
        score(model, tokenizer, [([1, 2], [model.config.vocab_size])])
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training


def test_batches_keep_to_the_budget():
    lengths = [3, 9, 1, 4, 4, 20, 2]
    batches = list(batch_by_length(lengths, lambda length: length, max_batch_tokens=10))
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    assert batches == [[20], [9], [4, 4], [3, 2, 1]]
