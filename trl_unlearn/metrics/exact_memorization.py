"""How much of the answer the model would type word for word, given the true words before each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def exact_memorization(matches: Sequence[ArrayLike]) -> dict[str, float | list[float | None]]:
    """
    Share of each answer's tokens that greedy decoding under teacher forcing gets right, and its mean.

    Defined in [Memorization Without Overfitting](https://huggingface.co/papers/2205.10770).

    Args:
        matches (sequence of `n` `array-like` of shape `(num_tokens,)`):
            For each token of each answer, whether it is the model's most probable one after the true tokens before it.
            The final EOS is left out: it ends every answer and says nothing of this one.

    Returns:
        `dict`: `exact_memorization` (the mean) and `per_row`. A row without tokens is `None` and left out of the mean.

    Example:

    ```python
    >>> exact_memorization([[True, False, True, True], [False, False]])
    {'exact_memorization': 0.375, 'per_row': [0.75, 0.0]}
    ```
    """
    per_row = [float(np.mean(row)) if len(row) else None for row in matches]
    return {
        "exact_memorization": float(np.mean([score for score in per_row if score is not None])),
        "per_row": per_row,
    }
