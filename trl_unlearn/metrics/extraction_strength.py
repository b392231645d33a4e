"""How little of the answer the model must be shown to type the rest of it word for word."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike


def extraction_strength(
    matches: Sequence[ArrayLike], convention: Literal["exact", "open-unlearning"] = "exact"
) -> dict[str, float | list[float | None]]:
    """
    Share of each answer that follows from the rest before it, `1 - k / num_tokens`, and its mean.

    `k` is the first token from which greedy decoding under teacher forcing is right to the end. Proposed in [Extracting
    Training Data from Large Language Models](https://huggingface.co/papers/2012.07805).

    Args:
        matches (sequence of `n` `array-like` of shape `(num_tokens,)`):
            For each token of each answer, whether it is the model's most probable one after the true tokens before it.
            The final EOS is left out.
        convention (`str`, *optional*, defaults to `"exact"`):
            `"exact"` gives 0 where the last token is wrong, and `None`, left out of the mean, for a row without tokens.
            `"open-unlearning"` gives `1 / num_tokens` where the last token is wrong, so that a wrong answer of one token
            counts as extracted in full, and 0 for a row without tokens.

    Returns:
        `dict`: `extraction_strength` (the mean) and `per_row`.

    Example:

    ```python
    >>> extraction_strength([[True, False, True, True], [True, False]])
    {'extraction_strength': 0.25, 'per_row': [0.5, 0.0]}
    ```
    """
    if convention not in ("exact", "open-unlearning"):
        raise ValueError(f"`convention` is {convention!r}; expected 'exact' or 'open-unlearning'.")
    per_row = []
    for row in matches:
        row = np.asarray(row, dtype=bool)
        suffix = int(np.logical_and.accumulate(row[::-1]).sum())
        if convention == "open-unlearning":
            # Their search for k ends at the last token, whether it is right or not.
            per_row.append(max(suffix, 1) / len(row) if len(row) else 0.0)
        else:
            per_row.append(suffix / len(row) if len(row) else None)
    return {
        "extraction_strength": float(np.mean([score for score in per_row if score is not None])),
        "per_row": per_row,
    }
