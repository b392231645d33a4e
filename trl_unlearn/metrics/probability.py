"""How probable the model finds an answer per token, by itself or against wrong answers to the same question."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike


# What open-unlearning adds to each denominator. It decides where the probabilities themselves are no larger.
OPEN_UNLEARNING_EPSILON = 1e-10


def probability(nll: ArrayLike, num_tokens: ArrayLike) -> dict[str, float | list[float]]:
    """
    Length-normalised probability of each answer, `exp(-nll / num_tokens)`, and its mean.

    Args:
        nll (`array-like` of shape `(n,)`):
            Summed negative log-likelihood of each answer's tokens, the final EOS included.
        num_tokens (`array-like` of shape `(n,)`):
            Number of those tokens.

    Returns:
        `dict`: `probability` (the mean) and `per_row`.

    Example:

    ```python
    >>> probability(nll=[0.0, 2.0], num_tokens=[4, 2])["per_row"]
    [1.0, 0.36787944117144233]
    ```
    """
    per_row = np.exp(-np.asarray(nll, dtype=np.float64) / np.asarray(num_tokens))
    return {"probability": float(per_row.mean()), "per_row": per_row.tolist()}


def normalized_probability(
    nll: ArrayLike,
    num_tokens: ArrayLike,
    perturbed_nll: ArrayLike,
    perturbed_num_tokens: ArrayLike,
    convention: Literal["exact", "open-unlearning"] = "exact",
) -> dict[str, float | list[float]]:
    """
    Share of the true answer in the length-normalised probabilities of the true and the perturbed answers.

    TOFU asks this way about real authors and world facts, which a model may know without giving the one reference
    answer much probability.

    Args:
        nll (`array-like` of shape `(n,)`):
            Summed negative log-likelihood of each true answer's tokens.
        num_tokens (`array-like` of shape `(n,)`):
            Number of those tokens.
        perturbed_nll (`array-like` of shape `(n, k)`):
            The same for the `k` perturbed answers of each question.
        perturbed_num_tokens (`array-like` of shape `(n, k)`):
            Number of those tokens.
        convention (`str`, *optional*, defaults to `"exact"`):
            `"open-unlearning"` adds 1e-10 to the denominator, as that evaluator does. It changes the share where the
            model finds all answers impossible.

    Returns:
        `dict`: `normalized_probability` (the mean) and `per_row`.

    Example:

    ```python
    >>> normalized_probability([1.0], [2], perturbed_nll=[[1.0]], perturbed_num_tokens=[[2]])["per_row"]
    [0.5]
    ```
    """
    true = -np.asarray(nll, dtype=np.float64) / np.asarray(num_tokens)
    perturbed = -np.asarray(perturbed_nll, dtype=np.float64) / np.asarray(perturbed_num_tokens)
    # Relative to the true answer, so that a collapsed model, to which all answers are impossible, gives no 0/0.
    with np.errstate(over="ignore"):
        others = np.exp(perturbed - true[:, None]).sum(axis=1)
        if convention == "open-unlearning":
            others += np.exp(np.log(OPEN_UNLEARNING_EPSILON) - true)
        elif convention != "exact":
            raise ValueError(f"`convention` is {convention!r}; expected 'exact' or 'open-unlearning'.")
        per_row = 1 / (1 + others)
    return {"normalized_probability": float(per_row.mean()), "per_row": per_row.tolist()}
