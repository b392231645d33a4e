"""The comparison of trajectories itself: rounding passes, and a drift does not, however small its steps."""

import numpy as np
import pytest
from command_line import assert_same_series


EXPECTED = np.linspace(4.0, 1.0, 12)
SIGNS = np.tile([1.0, -1.0], 6)


def test_rounding_passes():
    assert_same_series(EXPECTED + 1.5e-5 * SIGNS, EXPECTED, largest=2e-5, drift=4e-6)


@pytest.mark.parametrize("side", [1, -1])
def test_a_drift_within_each_steps_tolerance_does_not(side):
    found = EXPECTED + side * 1.5e-5 * np.abs(SIGNS)
    assert_same_series(found[:1], EXPECTED[:1], largest=2e-5, drift=2e-5)  # each step would pass
    with pytest.raises(AssertionError, match="drifts to one side"):
        assert_same_series(found, EXPECTED, largest=2e-5, drift=4e-6)


def test_a_drift_under_the_rounding_of_single_steps_does_not():
    found = EXPECTED + 1e-5 * SIGNS + 1.2e-5 * (np.arange(12) / 6 > 0.9)
    with pytest.raises(AssertionError):
        assert_same_series(found, EXPECTED, largest=2e-4, drift=2e-6)


def test_one_step_that_is_off_does_not():
    found = EXPECTED.copy()
    found[5] += 1e-4
    with pytest.raises(AssertionError, match="off by up to"):
        assert_same_series(found, EXPECTED, largest=2e-5, drift=4e-5)


def test_a_missing_step_does_not():
    with pytest.raises(AssertionError, match="11 values instead of 12"):
        assert_same_series(EXPECTED[1:], EXPECTED, largest=1.0, drift=1.0)
