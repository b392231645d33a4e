"""Greedy answers equal a token-by-token search, whatever the batch."""

import pytest
import torch

from trl_unlearn.evaluation.generate import generate_answers


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


@pytest.mark.parametrize("max_batch_tokens", [1, 200, 65536])
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


def test_order_repeats_and_progress(model, tokenizer, prompts):
    done = []
    answers = generate_answers(model, tokenizer, prompts, 8, 200, progress=done.append)
    assert generate_answers(model, tokenizer, prompts[::-1] + prompts, 8) == answers[::-1] + answers
    assert len(done) > 1 and sum(done) == len({tuple(prompt) for prompt in prompts})


def test_sampling_settings_of_a_chat_model_are_not_used(model, tokenizer, prompts):
    expected = generate_answers(model, tokenizer, prompts, 8)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=50, top_p=0.9, repetition_penalty=3.0)
    assert generate_answers(model, tokenizer, prompts, 8) == expected


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
