"""Whether the model still prefers the truth, in words it was not trained on, to falsehoods in the same words."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .probability import OPEN_UNLEARNING_EPSILON


# exp(±700) is close to the ends of double precision. A ratio beyond them would be 0 or infinite: equal for rows that
# differ, and infinite is not JSON.
_MAX_LOG_RATIO = 700.0


def truth_ratio(
    paraphrased_loss: ArrayLike,
    perturbed_loss: ArrayLike,
    aggregation: Literal["forget", "retain", "probability"] = "forget",
    perturbed_mean: Literal["geometric", "arithmetic"] = "geometric",
    convention: Literal["exact", "open-unlearning"] = "exact",
) -> dict[str, float | list[float]]:
    """
    Truth ratio of each row and its mean.

    `R = mean_j(p_perturbed_j) / p_paraphrased`, where `p = exp(-loss)` is the length-normalised probability of an
    answer. A model that knows the fact has `R` near 0, one that never saw it about 1, and one that was pushed away from
    it above 1.

    Two means over the perturbed answers are in use, both in TOFU's own repository. The geometric mean is the one which
    TOFU's leaderboard, NPO, SimNPO, AltPO and open-unlearning report; the same log of Llama-2-7B has a model utility of
    0.6227 with it and of 0.5859 with the arithmetic one.

    Args:
        paraphrased_loss (`array-like` of shape `(n,)`):
            Token-mean negative log-likelihood of each paraphrased true answer.
        perturbed_loss (`array-like` of shape `(n, k)`):
            The same for the `k` perturbed answers of each row.
        aggregation (`str`, *optional*, defaults to `"forget"`):
            `"forget"` averages `min(R, 1/R)`, highest where the model is indifferent; `"retain"` averages
            `max(0, 1 - R)`, highest where the model knows the truth; `"probability"` averages
            `p_paraphrased / (p_paraphrased + p_perturbed)`, which is `1 / (1 + R)`, one half where the model is
            indifferent.
        perturbed_mean (`str`, *optional*, defaults to `"geometric"`):
            Mean over the perturbed answers' probabilities: `"geometric"` or `"arithmetic"`.
        convention (`str`, *optional*, defaults to `"exact"`):
            `"open-unlearning"` adds 1e-10 to each denominator, as that evaluator does. It changes the ratios, and with
            them forget quality, of a model that finds all answers impossible.

    Returns:
        `dict`: `truth_ratio` (the mean), `per_row` (the `R` of each row, as forget quality compares them) and
        `per_row_aggregated` (what the mean is taken of).

    Example:

    ```python
    >>> truth_ratio([1.0], [[1.0, 3.0]])["per_row"]
    [0.36787944117144233]
    ```
    """
    paraphrased = np.asarray(paraphrased_loss, dtype=np.float64)
    perturbed = np.asarray(perturbed_loss, dtype=np.float64)
    if perturbed.ndim != 2 or len(perturbed) != len(paraphrased):
        raise ValueError(
            f"`perturbed_loss` has the shape {perturbed.shape}; expected ({len(paraphrased)}, k): one row of k perturbed "
            "answers for each paraphrased answer."
        )
    if perturbed_mean == "geometric":
        log_perturbed = -perturbed.mean(axis=1)
    elif perturbed_mean == "arithmetic":
        log_perturbed = np.logaddexp.reduce(-perturbed, axis=1) - np.log(perturbed.shape[1])
    else:
        raise ValueError(f"`perturbed_mean` is {perturbed_mean!r}; expected 'geometric' or 'arithmetic'.")
    if convention == "exact":
        log_epsilon = -np.inf
    elif convention == "open-unlearning":
        log_epsilon = np.log(OPEN_UNLEARNING_EPSILON)
    else:
        raise ValueError(f"`convention` is {convention!r}; expected 'exact' or 'open-unlearning'.")
    log_paraphrased = -paraphrased
    log_ratio = log_perturbed - np.logaddexp(log_paraphrased, log_epsilon)
    log_ratio = np.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    if aggregation == "forget":
        aggregated = np.exp(np.minimum(log_ratio, -np.logaddexp(log_ratio, log_epsilon)))
    elif aggregation == "retain":
        aggregated = np.maximum(0.0, -np.expm1(log_ratio))
    elif aggregation == "probability":
        log_sum = np.logaddexp(np.logaddexp(log_paraphrased, log_perturbed), log_epsilon)
        aggregated = np.exp(log_paraphrased - log_sum)
    else:
        raise ValueError(f"`aggregation` is {aggregation!r}; expected 'forget', 'retain' or 'probability'.")
    return {
        "truth_ratio": float(aggregated.mean()),
        "per_row": np.exp(log_ratio).tolist(),
        "per_row_aggregated": aggregated.tolist(),
    }
