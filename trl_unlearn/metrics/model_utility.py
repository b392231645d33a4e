"""One number for what a model can still do: the harmonic mean of what it scores on everything it should keep."""

import numpy as np
from numpy.typing import ArrayLike


def model_utility(scores: ArrayLike) -> dict[str, float]:
    """
    Harmonic mean of the scores on what should be kept.

    TOFU's are nine: probability, ROUGE-L recall and truth ratio on the retain set, the real authors and the world facts.

    Args:
        scores (`array-like` of shape `(n,)`):
            Scores, none of them negative. A single zero makes the utility zero.

    Returns:
        `dict`: `model_utility`.

    Example:

    ```python
    >>> model_utility([0.5, 1.0])
    {'model_utility': 0.6666666666666666}
    ```
    """
    scores = np.asarray(scores, dtype=np.float64)
    if (scores < 0).any():
        raise ValueError(f"`scores` holds a negative number, {scores.min()}; a harmonic mean needs scores from 0 up.")
    if (scores == 0).any():
        return {"model_utility": 0.0}
    return {"model_utility": float(len(scores) / (1 / scores).sum())}
