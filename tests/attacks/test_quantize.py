"""Rounded weights have the levels that their bits allow, and nothing but the linear layers is rounded."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trl_unlearn.attacks.not_applicable import NotApplicable
from trl_unlearn.attacks.quantize import quantize, round_to_nearest


def linear_weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "_proj" in name}


def other_weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "_proj" not in name}


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (4, 64), (4, 128), (4, 24)])
def test_levels_of_each_group(load, target_dir, bits, group_size):
    model, _ = load(target_dir)
    before, others = linear_weights(model), other_weights(model)
    model, how = quantize(model, bits, group_size)
    levels = 2**bits
    largest = 0
    for name, weight in linear_weights(model).items():
        width = weight.shape[1] if bits == 8 else group_size
        for old, new in zip(before[name].split(width, dim=1), weight.split(width, dim=1), strict=True):
            for old_row, new_row in zip(old, new, strict=True):
                largest = max(largest, len(new_row.unique()))
                step = (old_row.max() - old_row.min()) / (levels - 1)
                assert (new_row - old_row).abs().max() <= 0.5001 * step
                torch.testing.assert_close(new_row.aminmax(), old_row.aminmax())
    assert largest <= levels
    if bits == 4:  # of 24 or more weights, some group uses most levels
        assert largest > 10
    else:
        assert largest > 16
    assert all(torch.equal(weight, others[name]) for name, weight in other_weights(model).items())
    expected = sum(weight.numel() for weight in before.values())
    assert how["share"] == pytest.approx(expected / sum(parameter.numel() for parameter in model.parameters()))
    assert how["quantizer"].startswith("round to nearest") and str(levels) in how["quantizer"]


def test_fewer_bits_move_the_model_more(load, target_dir):
    ids = torch.arange(20, 60)[None]
    whole, _ = load(target_dir)
    distances = []
    for bits in (8, 4):
        model, _ = quantize(load(target_dir)[0], bits)
        distances.append((model(ids).logits - whole(ids).logits).abs().mean().item())
    assert 0 < 4 * distances[0] < distances[1]


def test_an_adapter_is_merged_and_rounded_with_its_base(load, adapter_dir):
    model, _ = quantize(load(adapter_dir)[0], 4)
    merged, _ = load(adapter_dir, merge=True)
    round_to_nearest(merged, 4, 64)
    for (name, found), expected in zip(model.named_parameters(), merged.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_data_type_stays(load, target_dir):
    model, _ = quantize(load(target_dir, dtype="bfloat16")[0], 8)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_layers_of_gpt2_are_rounded_by_output_channel():
    config = GPT2Config(n_layer=1, n_head=2, n_embd=48, vocab_size=40, n_positions=16)
    model = GPT2LMHeadModel(config)
    _, how = quantize(model, 4, 48)
    weight = model.transformer.h[0].attn.c_attn.weight  # output channels last
    assert max(len(channel.unique()) for channel in weight.T) <= 16
    assert max(len(channel.unique()) for channel in weight) > 16
    assert how["share"] > 0.8


def test_a_constant_group_stays(load, target_dir):
    model, _ = load(target_dir)
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[:, :10] = 0.25
    round_to_nearest(model, 4, 10)
    assert (weight[:, :10] == 0.25).all() and weight.isfinite().all()


def test_nothing_to_round(load, target_dir):
    model, _ = load(target_dir)
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(NotApplicable, match="no linear layers"):
        round_to_nearest(model, 8)
