"""The world's tokenizer splits prompt and answer cleanly, and its model is the one that was measured."""

import pytest
import torch
from transformers import AutoTokenizer

from trl_unlearn.world import build_model, generate_world, train_tokenizer


@pytest.fixture(scope="module")
def rows():
    return generate_world()["full"]


@pytest.fixture(scope="module")
def world_tokenizer(rows):
    return train_tokenizer([text for row in rows for text in (row["question"], row["answer"])])


def test_prompt_is_a_strict_prefix_of_prompt_and_answer(rows, world_tokenizer, tmp_path):
    world_tokenizer.save_pretrained(tmp_path)
    for tokenizer in (world_tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for row in rows[::10]:
            prompt = [{"role": "user", "content": row["question"]}]
            answer = [{"role": "assistant", "content": row["answer"]}]
            prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            ids = tokenizer.apply_chat_template(prompt + answer, return_dict=False)
            assert ids[: len(prompt_ids)] == prompt_ids
            assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
            assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
            assert tokenizer.decode(ids[len(prompt_ids) :], skip_special_tokens=True) == row["answer"]


def test_any_text_survives_the_tokenizer(world_tokenizer):
    text = "Никто не знает 日本 🙂  two  spaces\n"
    assert world_tokenizer.decode(world_tokenizer(text)["input_ids"]) == text


def test_tokenizer_is_reproducible(rows, world_tokenizer):
    again = train_tokenizer([text for row in rows for text in (row["question"], row["answer"])])
    assert again.get_vocab() == world_tokenizer.get_vocab()
    assert len({world_tokenizer.bos_token_id, world_tokenizer.eos_token_id, world_tokenizer.pad_token_id}) == 3


def test_default_model(world_tokenizer):
    state = torch.get_rng_state()
    model = build_model(world_tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(world_tokenizer) == 1000
    assert model.num_parameters() == 554_624
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_model_seed(world_tokenizer):
    weights = [
        build_model(world_tokenizer, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=48, seed=seed)
        for seed in (0, 0, 1)
    ]
    first, same, other = (model.model.layers[0].mlp.up_proj.weight for model in weights)
    assert first.shape == (48, 16)
    assert torch.equal(first, same) and not torch.equal(first, other)
