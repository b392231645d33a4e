"""Whether membership inference betrays the forget set, either way, as measured against a model that never saw it."""

from typing import Literal

from numpy.typing import ArrayLike

from .membership_inference import membership_auc
from .probability import OPEN_UNLEARNING_EPSILON


# AUC of Min-40% of the models which MUSE's authors retrained without the forget set, in MUSE's direction.
MUSE_RETAIN_AUC = {"News": 0.4772, "Books": 0.5393}


def privleak(
    forget_scores: ArrayLike,
    holdout_scores: ArrayLike,
    retain_auc: float,
    auc_convention: Literal["open-unlearning", "muse"] = "open-unlearning",
    convention: Literal["exact", "open-unlearning"] = "exact",
) -> dict[str, float | int]:
    """
    PrivLeak, in per cent: how far the AUC of Min-40% lies from that of the retained model.

    0 is best. Below 0 the model still knows the forget texts as members, above 0 it knows them too little. Defined in
    [MUSE](https://huggingface.co/papers/2407.06460).

    Args:
        forget_scores (`array-like` of shape `(n,)`):
            [`min_k_score`] with `k=0.4` of each forget text.
        holdout_scores (`array-like` of shape `(m,)`):
            The same of texts that never were in the training data.
        retain_auc (`float`):
            AUC of the same texts under the retained model, trained without the forget set. `MUSE_RETAIN_AUC` has those of
            MUSE's own retrained models, which go with `auc_convention="muse"`.
        auc_convention (`str`, *optional*, defaults to `"open-unlearning"`):
            Direction of `retain_auc` and of the `auc` that is returned. `"open-unlearning"`: probability that a holdout
            text scores above a forget text, as in [`membership_auc`]. `"muse"`: one minus that. `privleak` is the same.
        convention (`str`, *optional*, defaults to `"exact"`):
            `"open-unlearning"` adds 1e-10 to the denominator, as that evaluator does.

    Returns:
        `dict`: `privleak`, `auc`, `retain_auc`, `n_forget` and `n_holdout`.

    Example:

    ```python
    >>> privleak([1.0, 3.0], [2.0, 4.0], retain_auc=0.5)["privleak"]
    -50.0
    ```
    """
    if auc_convention not in ("open-unlearning", "muse"):
        raise ValueError(f"`auc_convention` is {auc_convention!r}; expected 'open-unlearning' or 'muse'.")
    if convention not in ("exact", "open-unlearning"):
        raise ValueError(f"`convention` is {convention!r}; expected 'exact' or 'open-unlearning'.")
    epsilon = OPEN_UNLEARNING_EPSILON if convention == "open-unlearning" else 0.0
    result = membership_auc(forget_scores, holdout_scores)
    auc = 1 - result["auc"]
    muse_retain_auc = retain_auc if auc_convention == "muse" else 1 - retain_auc
    if not 0 < muse_retain_auc + epsilon <= 1 + epsilon:
        raise ValueError(
            f"`retain_auc` is {retain_auc}, from which no relative distance can be taken; expected a number between 0 and 1."
        )
    return {
        "privleak": float((auc - muse_retain_auc) / (muse_retain_auc + epsilon) * 100),
        "auc": auc if auc_convention == "muse" else result["auc"],
        "retain_auc": float(retain_auc),
        "n_forget": result["n_forget"],
        "n_holdout": result["n_holdout"],
    }
