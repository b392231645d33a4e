"""The losses against the numbers of the papers' authors' own code, and the properties that they are chosen for."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.autograd import grad
from torch.nn.functional import log_softmax

from trl_unlearn import altpo_loss, npo_loss, simnpo_loss
from trl_unlearn.trainer.chunked_head import Head
from trl_unlearn.trainer.scoring import token_kl


AUTHORS = json.loads((Path(__file__).parent / "fixtures" / "authors_losses.json").read_text())


def sum_logps(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probabilities and numbers of the labelled tokens of each row."""
    labels = labels[:, 1:]
    token_logps = log_softmax(logits[:, :-1], dim=-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (token_logps * (labels != -100)).sum(1), (labels != -100).sum(1)


def forget_loss(method: str, logps, lengths, ref_logps, beta, gamma):
    if method.startswith("npo"):
        return npo_loss(logps, ref_logps, beta).mean()
    if method.startswith("simnpo"):
        return simnpo_loss(logps, lengths, beta, gamma).mean()
    return logps.sum() / lengths.sum()  # gradient ascent


def identity_head(vocab_size: int) -> Head:
    """An LM head that maps a hidden state to itself, so that logits can be passed as hidden states."""
    return Head(torch.eye(vocab_size), None, 1.0, None)


@pytest.mark.parametrize("case", AUTHORS["cases"], ids=lambda case: f"{case['name']}-{case['batch']}-{case['beta']}")
def test_npo_simnpo_and_baselines_equal_the_authors(case):
    batch = AUTHORS["batches"][case["batch"]]
    policy_forget = torch.tensor(batch["policy_forget"], dtype=torch.float64, requires_grad=True)
    policy_retain = torch.tensor(batch["policy_retain"], dtype=torch.float64, requires_grad=True)
    ref_forget = torch.tensor(batch["ref_forget"], dtype=torch.float64)
    forget_labels = torch.tensor(batch["forget"]["labels"])

    logps, lengths = sum_logps(policy_forget, forget_labels)
    ref_logps, _ = sum_logps(ref_forget, forget_labels)
    loss = case["forget_weight"] * forget_loss(case["name"], logps, lengths, ref_logps, case["beta"], case["gamma"])
    tolerance = 1e-6
    if case["retain_loss_type"] == "kl_all_positions":
        ref_retain = torch.tensor(batch["ref_retain"], dtype=torch.float64)
        vocab_size = policy_retain.size(-1)
        head = identity_head(vocab_size)
        kl = token_kl(head, policy_retain.view(-1, vocab_size), head, ref_retain.view(-1, vocab_size))
        loss = loss + case["retain_weight"] * kl.mean()
    elif case["retain_weight"]:
        retain_logps, retain_lengths = sum_logps(policy_retain, torch.tensor(batch["retain"]["labels"]))
        loss = loss - case["retain_weight"] * retain_logps.sum() / retain_lengths.sum()

    torch.testing.assert_close(loss.item(), case["loss"], rtol=tolerance, atol=tolerance)
    for logits, expected in ((policy_forget, case["grad_forget"]), (policy_retain, case["grad_retain"])):
        if expected is None:
            continue
        (gradient,) = grad(loss, logits, retain_graph=True)
        torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("case", AUTHORS["altpo"]["cases"], ids=lambda case: case["id"])
def test_altpo_and_its_authors_baselines(case):
    altpo, settings = AUTHORS["altpo"], case["hyperparams"]
    policy = {key: torch.tensor(value, dtype=torch.float64) for key, value in altpo["params"]["policy"].items()}
    if settings.get("same_ref"):
        reference = {key: value.clone() for key, value in policy.items()}
    else:
        reference = {
            key: torch.tensor(value, dtype=torch.float64) for key, value in altpo["params"]["reference"].items()
        }
    for value in policy.values():
        value.requires_grad_()

    def scores(params, name):
        batch = altpo["batches"][name]
        logits = params["W"][torch.tensor(batch["input_ids"])] + params["U"]
        return logits, *sum_logps(logits, torch.tensor(batch["labels"]))

    names = case["inputs"]
    _, forget, lengths = scores(policy, names.get("forget") or names["original"])
    _, ref_forget, _ = scores(reference, names.get("forget") or names["original"])
    beta = settings.get("beta", 1.0)
    alternates = names.get("win/sub") or names.get("alternate")
    if alternates:
        _, alternate, _ = scores(policy, alternates)
        _, ref_alternate, _ = scores(reference, alternates)
        loss = altpo_loss(alternate, forget, ref_alternate, ref_forget, beta).mean()
    else:
        method = next(name for name in ("simnpo", "npo", "grad") if name in case["id"].lower())
        loss = forget_loss(method, forget, lengths, ref_forget, beta, settings.get("delta", 0.0))
    loss = settings.get("gamma", 1.0) * loss

    weight = settings.get("retain_wt", settings.get("alpha", 0.0 if case["id"] == "grad_ascent" else 1.0))
    retain_logits, retain_logps, retain_lengths = scores(policy, names["retain"])
    if settings.get("retain_type") == "KL":
        ref_logits, _, _ = scores(reference, names["retain"])
        head = identity_head(retain_logits.size(-1))
        loss = loss + weight * token_kl(head, retain_logits.flatten(0, 1), head, ref_logits.flatten(0, 1)).mean()
    else:
        loss = loss - weight * retain_logps.sum() / retain_lengths.sum()

    torch.testing.assert_close(loss.item(), case["expected"]["loss"], rtol=1e-6, atol=1e-6)
    for key in ("W", "U"):
        (gradient,) = grad(loss, policy[key], retain_graph=True)
        expected = torch.tensor(case["expected"][f"grad_{key}"], dtype=torch.float64)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", AUTHORS["gradient_weights"], ids=lambda case: f"{case['method']}-{case['batch']}")
def test_gradient_weights_equal_the_closed_forms(case):
    batch = AUTHORS["batches"][case["batch"]]
    labels = torch.tensor(batch["forget"]["labels"])
    logps, lengths = sum_logps(torch.tensor(batch["policy_forget"], dtype=torch.float64), labels)
    ref_logps, _ = sum_logps(torch.tensor(batch["ref_forget"], dtype=torch.float64), labels)
    logps.requires_grad_()
    if case["method"] == "npo":
        loss = npo_loss(logps, ref_logps, case["beta"])
    else:
        loss = simnpo_loss(logps, lengths, case["beta"], case["gamma_code"])
    (weights,) = grad(loss.sum(), logps)
    torch.testing.assert_close(weights, torch.tensor(case["weight"], dtype=torch.float64), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.5])
def test_npo_and_altpo_start_at_two_over_beta_log_two(beta):
    logps, other = torch.tensor([-3.0, -700.0]), torch.tensor([-50.0, -1.0])
    expected = torch.full((2,), 2 / beta * math.log(2))
    torch.testing.assert_close(npo_loss(logps, logps, beta), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(altpo_loss(other, logps, other, logps, beta), expected, rtol=1e-7, atol=0)


def test_npo_tends_to_gradient_ascent():
    logps = torch.tensor([-3.0, -40.0], dtype=torch.float64, requires_grad=True)
    ref_logps = torch.tensor([-5.0, -10.0], dtype=torch.float64)
    distances = []
    for beta in (1e-1, 1e-3, 1e-5):
        (gradient,) = grad(npo_loss(logps, ref_logps, beta).sum(), logps)
        distances.append((gradient - 1).abs().max().item())
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 2e-4


def test_altpo_without_alternate_is_npo_and_simnpo_is_npo_per_token():
    logps, ref_logps, lengths = torch.tensor([-3.0, -40.0]), torch.tensor([-5.0, -10.0]), torch.tensor([4, 7])
    zeros = torch.zeros(2)
    torch.testing.assert_close(altpo_loss(zeros, logps, zeros, ref_logps, 0.3), npo_loss(logps, ref_logps, 0.3))
    torch.testing.assert_close(
        simnpo_loss(logps, lengths, 0.3, gamma=0.5), npo_loss(logps / lengths, torch.full((2,), -0.5), 0.3)
    )


@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_extreme_log_ratios_stay_finite_in_fp32(log_ratio, beta):
    logps, zeros = torch.tensor([log_ratio], requires_grad=True), torch.zeros(1)
    expected = 2 * abs(log_ratio)
    for loss, sign in (
        (npo_loss(logps, zeros, beta), 1),
        (simnpo_loss(logps, torch.ones(1), beta), 1),
        (altpo_loss(zeros, logps, zeros, zeros, beta), 1),
        (altpo_loss(logps, zeros, zeros, zeros, beta), -1),
    ):
        (gradient,) = grad(loss.sum(), logps)
        assert loss.dtype == torch.float32
        grows = sign * log_ratio > 0
        torch.testing.assert_close(loss.item(), expected if grows else 0.0, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient.item(), 2.0 * sign if grows else 0.0, rtol=1e-6, atol=1e-6)
