"""Losses of tokens without Triton, against full logits and autograd."""

import pytest
import torch
import torch.nn.functional as F

from trl_unlearn.trainer import chunked_head
from trl_unlearn.trainer.chunked_head import Head, chunked_kl, chunked_nll


VOCABULARY = 11
SCALE = 0.7


def make(dtype=torch.float32, frozen=(), tokens=7):
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden_states": (tokens, 4), "weight": (VOCABULARY, 4), "bias": (VOCABULARY,)}
    values = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(name not in frozen)
        for name, shape in shapes.items()
    }
    labels = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    reference = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes.values()]
    return values, labels, reference


def logps_of(hidden_states, weight, bias):
    return F.log_softmax(SCALE * F.linear(hidden_states, weight, bias), dim=-1)


def full_nll(values, labels, reference):
    return F.nll_loss(logps_of(**values), labels, reduction="none")


def full_kl(values, labels, reference):
    return F.kl_div(logps_of(**values), logps_of(*reference), log_target=True, reduction="none").sum(-1)


def nll(values, labels, reference):
    head = Head(values["weight"], values["bias"], SCALE, None)
    return chunked_nll(head, values["hidden_states"], labels)


def kl(values, labels, reference):
    head = Head(values["weight"], values["bias"], SCALE, None)
    ref_hidden_states, ref_weight, ref_bias = reference
    return chunked_kl(head, values["hidden_states"], Head(ref_weight, ref_bias, SCALE, None), ref_hidden_states)


LOSSES = pytest.mark.parametrize("ours, full", [(nll, full_nll), (kl, full_kl)], ids=["nll", "kl"])


@LOSSES
@pytest.mark.parametrize("tokens_per_chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("frozen", [(), ("weight", "bias"), ("bias",), ("hidden_states",), ("weight",)])
def test_values_and_gradients_equal_full_logits(monkeypatch, ours, full, tokens_per_chunk, frozen):
    monkeypatch.setattr(chunked_head, "CHUNK_BYTES", tokens_per_chunk * VOCABULARY * 8)
    monkeypatch.setattr(chunked_head, "_REF_TOKENS", 2)
    values, labels, reference = make(torch.float64, frozen)
    weights = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for function in (ours, full):
        losses = function(values, labels, reference)
        (losses * weights).sum().backward()
        results.append([losses.detach(), *(value.grad for value in values.values() if value.requires_grad)])
        for value in values.values():
            value.grad = None
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@LOSSES
def test_a_second_backward_gives_the_same_gradients(ours, full):
    values, labels, reference = make(torch.float64)
    loss = ours(values, labels, reference).sum()
    first = torch.autograd.grad(loss, list(values.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(values.values()))
    torch.testing.assert_close(second, first, rtol=1e-12, atol=1e-12)


@LOSSES
def test_in_16_bits_it_is_near(ours, full):
    exact, labels, exact_reference = make(torch.float64)
    values = {name: value.detach().bfloat16().requires_grad_() for name, value in exact.items()}
    losses = ours(values, labels, [value.bfloat16() for value in exact_reference])
    assert losses.dtype == torch.float32
    losses.sum().backward()
    full(exact, labels, exact_reference).sum().backward()
    for name, value in values.items():
        assert value.grad.dtype == torch.bfloat16
        torch.testing.assert_close(value.grad.double(), exact[name].grad, rtol=0.05, atol=0.1)


@LOSSES
def test_autocast_multiplies_in_16_bits(ours, full):
    data = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = ours(*data)
    losses.sum().backward()
    assert losses.dtype == data[0]["weight"].grad.dtype == torch.float32
    assert (losses - full(*data)).abs().max() > 1e-5  # else nothing was rounded
    torch.testing.assert_close(losses, full(*data), rtol=0.05, atol=0.05)


def test_very_unlikely_labels_keep_their_loss():
    hidden_states = torch.tensor([[300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    losses = chunked_nll(Head(weight, None, 1.0, None), hidden_states, torch.tensor([1]))
    assert losses.item() == 600.0
    losses.sum().backward()
    assert hidden_states.grad.item() == 2.0


@LOSSES
def test_nothing_is_prepared_for_a_backward_that_does_not_come(ours, full):
    data = make()
    with torch.no_grad():
        assert ours(*data).grad_fn is None


@LOSSES
def test_no_tokens(ours, full):
    values, labels, reference = make(tokens=0)
    losses = ours(values, labels, reference)
    losses.sum().backward()
    assert losses.shape == (0,)
    assert not values["weight"].grad.any()
