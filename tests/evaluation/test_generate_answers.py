"""Greedy answers equal a token-by-token search, whatever the batch."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, MistralConfig

from trl_unlearn.evaluation.plan import Plan


def generate_answers(model, tokenizer, prompts, max_new_tokens, factor=8192, own=False):
    """The texts of continued prompts through a plan, in their order."""
    plan = Plan()
    keys = [plan.generate(prompt, max_new_tokens) for prompt in prompts]
    plan.run(model, tokenizer, max_batch_tokens=factor, own_generation_config=own, show_progress=False)
    return [tokenizer.decode(plan.generations[key], skip_special_tokens=True) for key in keys]


@torch.no_grad()
def greedy(model, tokenizer, prompt, max_new_tokens):
    """One prompt, no padding, no cache, no `generate`."""
    model.eval()
    ids = list(prompt)
    for _ in range(max_new_tokens):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


@pytest.fixture
def prompts(world, tokenizer):
    rows = world["full"][::7]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, return_dict=False
        )
        for row in rows
    ]


@pytest.mark.parametrize("max_batch_tokens", [1, 6, 8192])
def test_equals_greedy_search(model, tokenizer, prompts, max_batch_tokens):
    assert len({len(prompt) for prompt in prompts}) > 3
    answers = generate_answers(model, tokenizer, prompts, 12, max_batch_tokens)
    expected = [greedy(model, tokenizer, prompt, 12) for prompt in prompts]
    assert answers == expected
    assert any(answer.endswith(".") for answer in answers)  # some stop at EOS


def test_limit_counts_new_tokens(model, tokenizer, prompts):
    assert generate_answers(model, tokenizer, prompts, 2) == [
        greedy(model, tokenizer, prompt, 2) for prompt in prompts
    ]


def test_equal_prompts_are_answered_once_and_limits_kept_apart(model, tokenizer, prompts):
    plan = Plan()
    for prompt in prompts + prompts:
        plan.generate(prompt, 8)
    short = plan.generate(prompts[0], 2)
    plan.run(model, tokenizer, show_progress=False)
    assert len(plan.generations) == len({tuple(prompt) for prompt in prompts}) + 1
    assert plan.generations[short] == plan.generations[tuple(prompts[0]), 8][:2]
    assert plan.cost["decoding_steps"] <= 8 + 2
    assert plan.cost["generated_tokens"] == sum(map(len, plan.generations.values()))


def test_end_token_is_the_last_of_an_answer(model, tokenizer, prompts):
    plan = Plan()
    for prompt in prompts:
        plan.generate(prompt, 12)
    plan.run(model, tokenizer, show_progress=False)
    ended = [ids for ids in plan.generations.values() if tokenizer.eos_token_id in ids]
    assert ended and all(ids.index(tokenizer.eos_token_id) == len(ids) - 1 for ids in ended)
    assert all(len(ids) == 12 for ids in plan.generations.values() if ids not in ended)


def test_sampling_settings_of_a_chat_model_are_not_used(model, tokenizer, prompts):
    expected = generate_answers(model, tokenizer, prompts, 8)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=50, top_p=0.9, repetition_penalty=3.0)
    assert generate_answers(model, tokenizer, prompts, 8) == expected
    # open-unlearning switches sampling off and leaves the penalty in
    penalized = generate_answers(model, tokenizer, prompts, 8, own=True)
    assert penalized != expected
    assert penalized == generate_answers(model, tokenizer, prompts, 8, own=True)


SMALL = {"vocab_size": 500, "num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 32, "pad_token_id": 0}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, sliding_window=4),
        MistralConfig(**SMALL, sliding_window=4),
        GPT2Config(vocab_size=500, n_embd=16, n_layer=2, n_head=2),
    ],
    ids=lambda config: config.model_type,
)
def test_other_caches_and_positions(config, tokenizer, prompts):
    """Windows that a prompt does not fit in, positions that are learned; rows end at different steps."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    answers = [greedy(model, tokenizer, prompt, 12) for prompt in prompts]
    ends = [tokenizer(answer, add_special_tokens=False)["input_ids"][2] for answer in answers[:3]]
    model.generation_config.eos_token_id = ends  # so that some rows end early and are dropped
    plan = Plan()
    keys = [plan.generate(prompt, 12) for prompt in prompts]
    plan.run(model, tokenizer, show_progress=False)
    lengths = {len(plan.generations[key]) for key in keys}
    assert len(lengths) > 1
    for prompt, key in zip(prompts, keys, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12:
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in (*ends, tokenizer.eos_token_id):
                break
        assert plan.generations[key] == ids[len(prompt) :]


def test_every_eos_token_of_the_model_stops(model, tokenizer, prompts):
    (answer,) = generate_answers(model, tokenizer, prompts[:1], 8)
    second_token = tokenizer(answer)["input_ids"][1]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, second_token]
    (stopped,) = generate_answers(model, tokenizer, prompts[:1], 8)
    assert tokenizer(stopped)["input_ids"] == tokenizer(answer)["input_ids"][:2]


def test_training_mode_is_left_as_it_was(model, tokenizer, prompts):
    model.train()
    generate_answers(model, tokenizer, prompts[:2], 3)
    assert model.training
