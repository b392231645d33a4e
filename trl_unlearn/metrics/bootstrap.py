"""How far the mean of a metric could have fallen otherwise, with other rows of the same kind."""

import math

import numpy as np
from numpy.typing import ArrayLike


_BLOCK = 100  # resamples at a time: few enough to stay in the processor's cache


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> dict[str, float | int]:
    """
    Percentile bootstrap confidence interval of a mean.

    Args:
        values (`array-like` of shape `(n,)`):
            The metric of each row.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the resampled means that lie in the interval.
        n_resamples (`int`, *optional*, defaults to `10_000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling. Same values and seed, same interval.

    Returns:
        `dict`: `mean`, `low`, `high`, `confidence` and `n`. One row, or rows that are all equal, give an interval of width
        0, which then says nothing of the uncertainty.

    Example:

    ```python
    >>> bootstrap_interval([0.0, 1.0, 1.0, 1.0])
    {'mean': 0.75, 'low': 0.25, 'high': 1.0, 'confidence': 0.95, 'n': 4}
    ```
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("`values` is empty; a mean needs at least one row.")
    low = high = mean = float(values.mean())
    if np.ptp(values) > 0:
        generator = np.random.default_rng(seed)
        blocks = [
            values[generator.integers(n, size=(_BLOCK, n))].mean(axis=1)
            for _ in range(math.ceil(n_resamples / _BLOCK))
        ]
        means = np.concatenate(blocks)[:n_resamples]
        low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return {"mean": mean, "low": low, "high": high, "confidence": confidence, "n": n}
