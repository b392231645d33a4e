"""Whether the model still writes clean text about what it forgot, as a gibberish classifier sees it."""

import numpy as np
from numpy.typing import ArrayLike

from .forget_quality import forget_quality


def text_cleanness(scores: ArrayLike, retain_scores: ArrayLike) -> dict[str, float | int]:
    """
    Mean probability of clean text, and a Kolmogorov–Smirnov test of the probabilities against the retained model's.

    Defined in [Alternate Preference Optimization](https://huggingface.co/papers/2409.13474), with the classifier
    `madhurjindal/autonlp-Gibberish-Detector-492513457`.

    Args:
        scores (`array-like` of shape `(n,)`):
            Probability of the class "clean" of each greedy answer to the forget questions.
        retain_scores (`array-like` of shape `(m,)`):
            The same for the answers of the retained model, trained without the forget set.

    Returns:
        `dict`: `text_cleanness` and `retain_text_cleanness` (the means), and `p_value`, `log10_p_value`, `statistic`, `n`
        and `n_retain` as in [`forget_quality`].

    Example:

    ```python
    >>> text_cleanness([0.5, 1.0], [0.5, 1.0])["text_cleanness"]
    0.75
    ```
    """
    return {
        "text_cleanness": float(np.mean(scores)),
        "retain_text_cleanness": float(np.mean(retain_scores)),
        **forget_quality(scores, retain_scores),
    }
