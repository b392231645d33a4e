"""Forgetting at the same retention: where between two models it is evaluated, and what is left of them."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from trl_unlearn import evaluate_unlearning
from trl_unlearn.evaluation.retention import evaluate_at_retention


METRIC = "retain_probability"


@pytest.fixture
def original(model_dir):
    return AutoModelForCausalLM.from_pretrained(model_dir)


@pytest.fixture
def evaluate(tokenizer, forget_rows, retain_rows):
    rows = forget_rows.select(range(3)), retain_rows.select(range(6))
    return lambda model: evaluate_unlearning(model, tokenizer, *rows, max_new_tokens=1, show_progress=False)


@pytest.fixture
def damaged(model_dir):
    """The same model with noise on all its weights, which costs it what it knows."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def mixed(original, unlearned, alpha):
    model = AutoModelForCausalLM.from_pretrained(original.config._name_or_path)
    with torch.no_grad():
        for parameter, a, b in zip(model.parameters(), original.parameters(), unlearned.parameters(), strict=True):
            parameter.copy_(a + alpha * (b - a))
    return model


def test_the_mixture_keeps_what_is_asked_and_the_next_one_does_not(original, damaged, evaluate):
    before, after = (evaluate(model)["summary"][METRIC] for model in (original, damaged))
    assert after < 0.8 * before
    weights = [parameter.clone() for parameter in damaged.parameters()]
    found = evaluate_at_retention(damaged, original, evaluate, 0.9, METRIC, num_halvings=5)
    assert 0 < found["alpha"] < 1 and (32 * found["alpha"]).is_integer()
    assert found["retention"] == pytest.approx(found["result"]["summary"][METRIC] / before)
    for alpha, keeps in ((found["alpha"], True), (found["alpha"] + 1 / 32, False)):
        kept = evaluate(mixed(original, damaged, alpha))["summary"][METRIC]
        assert (kept >= 0.9 * before) == keeps
    assert all(map(torch.equal, weights, damaged.parameters()))


def test_a_model_that_has_kept_enough_is_taken_as_it_is(original, damaged, evaluate):
    found = evaluate_at_retention(damaged, original, evaluate, 0.01, METRIC)
    assert found["alpha"] == 1.0
    assert found["result"]["summary"] == evaluate(damaged)["summary"]


def test_the_weights_come_back_when_an_evaluation_fails(original, damaged):
    weights = [parameter.clone() for parameter in damaged.parameters()]
    with pytest.raises(KeyError):
        evaluate_at_retention(damaged, original, lambda model: {"summary": {}})
    assert all(map(torch.equal, weights, damaged.parameters()))
