"""Whether the unlearned model can be told from one that never saw the forget set, by their truth ratios."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln


def forget_quality(truth_ratios: ArrayLike, retain_truth_ratios: ArrayLike) -> dict[str, float | int]:
    """
    Two-sided two-sample Kolmogorov–Smirnov test between the forget truth ratios of two models.

    The p-value falls with the number of rows for one and the same pair of models (1e-3 with 40 rows, 2e-21 with 300), so
    never compare it across sizes of the forget set; the statistic can be compared.

    Args:
        truth_ratios (`array-like` of shape `(n,)`):
            Truth ratio of each forget row under the unlearned model.
        retain_truth_ratios (`array-like` of shape `(m,)`):
            The same under the retained model, trained without the forget set.

    Returns:
        `dict`: `p_value`, `log10_p_value` (finite also where `p_value` underflows to 0), `statistic` (the largest
        distance between the two distribution functions), `n` and `n_retain`.

    Example:

    ```python
    >>> forget_quality([0.1, 0.2, 0.3], [0.9, 1.0, 1.1])["statistic"]
    1.0
    ```
    """
    from scipy.stats import ks_2samp  # half a second at the start of every command

    truth_ratios, retain_truth_ratios = np.asarray(truth_ratios), np.asarray(retain_truth_ratios)
    test = ks_2samp(truth_ratios, retain_truth_ratios)
    n, n_retain = len(truth_ratios), len(retain_truth_ratios)
    p_value, statistic = float(test.pvalue), float(test.statistic)
    if p_value < np.finfo(np.float64).tiny:
        log10_p_value = _log_exact_p_value(n, n_retain, statistic) / math.log(10)
    else:
        log10_p_value = float(np.log10(p_value))
    return {
        "p_value": p_value,
        "log10_p_value": log10_p_value,
        "statistic": statistic,
        "n": n,
        "n_retain": n_retain,
    }


def _log_exact_p_value(n: int, m: int, statistic: float) -> float:
    """
    Natural logarithm of the exact p-value, which is what SciPy computes for up to 10,000 rows while it can be held in a
    double.

    Under the null hypothesis every order of the two samples is equally likely. An order is a lattice path from (0, 0)
    to (n, m), and the p-value is the share of the paths which leave the band `|i/n - j/m| < statistic`. Each of those is
    counted at the point where it first leaves, so that only positive terms are added and nothing cancels.
    """
    threshold = round(statistic * n * m)
    j = np.arange(m + 1)
    log_leaving = [-np.inf]
    log_inside = np.where(j == 0, 0.0, -np.inf)  # by j: number of paths inside so far, about to step into row i
    for i in range(n + 1):
        in_band = np.abs(i * m - j * n) < threshold
        log_completions = gammaln(n - i + m - j + 1) - gammaln(n - i + 1) - gammaln(m - j + 1)
        left_band = ~in_band
        log_leaving.extend((log_inside + log_completions)[left_band])
        log_inside = np.logaddexp.accumulate(np.where(in_band, log_inside, -np.inf))
        first_right = np.flatnonzero(in_band)[-1] + 1  # what a path from the left meets first outside the band
        if first_right <= m:
            log_leaving.append(log_inside[first_right] + log_completions[first_right])
        log_inside[left_band] = -np.inf
    log_paths = gammaln(n + m + 1) - gammaln(n + 1) - gammaln(m + 1)
    return float(np.logaddexp.reduce(log_leaving) - log_paths)
