"""Confidence intervals, and the two metrics of AltPO, which no published numbers cover."""

import warnings

import numpy as np
import pytest

from trl_unlearn.metrics import bootstrap_interval, forget_quality, self_confidence, text_cleanness


def test_bootstrap_interval_of_a_mean():
    values = np.random.default_rng(0).normal(loc=0.5, scale=0.2, size=400)
    result = bootstrap_interval(values)
    error = values.std() / np.sqrt(400)
    assert result["mean"] == pytest.approx(values.mean())
    assert result["low"] == pytest.approx(values.mean() - 1.96 * error, abs=error / 5)
    assert result["high"] == pytest.approx(values.mean() + 1.96 * error, abs=error / 5)
    assert (result["confidence"], result["n"]) == (0.95, 400)
    assert bootstrap_interval(values) == result
    assert bootstrap_interval(values, seed=1) != result
    narrow = bootstrap_interval(values, confidence=0.5)
    assert result["low"] < narrow["low"] < narrow["high"] < result["high"]


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1, 0.1], [0, 0]])
def test_bootstrap_interval_without_spread(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = bootstrap_interval(values)
    assert result["low"] == result["high"] == result["mean"] == pytest.approx(values[0])
    assert result["n"] == len(values)


def test_bootstrap_interval_of_nothing():
    with pytest.raises(ValueError, match="`values` is empty"):
        bootstrap_interval([])


def test_self_confidence():
    result = self_confidence(nll=[2.0, 0.0], num_tokens=[4, 3])
    assert result["per_row"] == pytest.approx([np.exp(-0.5), 1.0])
    assert result["per_row_unnormalized"] == pytest.approx([np.exp(-2.0), 1.0])
    assert result["self_confidence"] == pytest.approx((np.exp(-0.5) + 1) / 2)
    assert result["self_confidence_unnormalized"] == pytest.approx((np.exp(-2.0) + 1) / 2)


def test_text_cleanness():
    scores, retain_scores = [0.2, 0.4, 0.3], [0.9, 0.95, 1.0, 0.85]
    result = text_cleanness(scores, retain_scores)
    assert result["text_cleanness"] == pytest.approx(0.3)
    assert result["retain_text_cleanness"] == pytest.approx(0.925)
    test = forget_quality(scores, retain_scores)
    assert {key: result[key] for key in test} == test
    assert (result["statistic"], result["n"], result["n_retain"]) == (1.0, 3, 4)
