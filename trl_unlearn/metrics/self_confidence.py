"""How sure the model is of what it answers, whatever that is."""

import numpy as np
from numpy.typing import ArrayLike

from .probability import probability


def self_confidence(nll: ArrayLike, num_tokens: ArrayLike) -> dict[str, float | list[float]]:
    """
    Probability of the model's own greedy answers, by token and as a whole, and the means.

    A model that suppresses one answer after another spreads its probability and loses confidence in all it says. Defined
    in [Alternate Preference Optimization](https://huggingface.co/papers/2409.13474).

    Args:
        nll (`array-like` of shape `(n,)`):
            Summed negative log-likelihood of the tokens of each greedy answer, the final EOS included.
        num_tokens (`array-like` of shape `(n,)`):
            Number of those tokens.

    Returns:
        `dict`: `self_confidence` (mean of the length-normalised `exp(-nll / num_tokens)`), `self_confidence_unnormalized`
        (mean of `exp(-nll)`), `per_row` and `per_row_unnormalized`.

    Example:

    ```python
    >>> self_confidence(nll=[2.0], num_tokens=[4])["per_row"]
    [0.6065306597126334]
    ```
    """
    normalized = probability(nll, num_tokens)
    unnormalized = probability(nll, np.ones(len(nll)))
    return {
        "self_confidence": normalized["probability"],
        "self_confidence_unnormalized": unnormalized["probability"],
        "per_row": normalized["per_row"],
        "per_row_unnormalized": unnormalized["per_row"],
    }
