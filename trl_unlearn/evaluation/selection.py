"""When a model has forgotten enough, and which of those that have is the best: named rules for choosing a checkpoint."""

from typing import Any, Literal

import numpy as np

from ..metrics import forget_quality, model_utility


SelectionRule = Literal["retained", "unseen"]


def forget_threshold(rule: SelectionRule, result: dict[str, Any], retained: dict[str, Any] | None) -> float:
    """
    The forget probability at or below which a model counts as having forgotten.

    Args:
        rule (`str`):
            `"retained"`: the retained model's forget probability. `"unseen"`, which needs no retained model: what the
            same model gives to rows that it was not trained on, the holdout set, or without one to the paraphrases of
            the forget answers.
        result (`dict`):
            Evaluation of the model, with rows.
        retained (`dict`, *optional*):
            Evaluation of the retained model.

    Returns:
        `float`: Mean length-normalised probability.

    Raises:
        ValueError: If the evaluation has no such rows.
    """
    if rule == "retained":
        if "forget_probability" not in retained["summary"]:
            raise ValueError("The rule 'retained' takes the retained model's forget probability, which its log lacks.")
        return retained["summary"]["forget_probability"]
    unseen = result["rows"].get("holdout", {}).get("loss") or result["rows"]["forget"].get("paraphrased_loss")
    if unseen is None:
        raise ValueError(
            "The rule 'unseen' takes a holdout set, or forget rows with wrong and paraphrased answers "
            "(`perturbed_answer`, `paraphrased_answer`)."
        )
    return float(np.exp(-np.array(unseen)).mean())


def has_forgotten(rule: SelectionRule, result: dict[str, Any], retained: dict[str, Any] | None = None) -> bool:
    """Whether the forget probability is at or below [`forget_threshold`], whose arguments these are."""
    return result["summary"]["forget_probability"] <= forget_threshold(rule, result, retained)


def selection_score(rule: SelectionRule, result: dict[str, Any], retained: dict[str, Any] | None = None) -> float:
    """
    How good a checkpoint is, by what it has forgotten and what it keeps.

    With truth ratios it is the harmonic mean of model utility and 1 − D, where D is the Kolmogorov–Smirnov distance of the
    forget rows' truth ratios from those of the rule, so that what is over-forgotten counts like what is not forgotten.
    Without, only the probabilities are known, and it is the utility of a checkpoint that has forgotten, before all that have
    not.

    Args:
        rule (`str`):
            What to compare with. `"retained"`: the retained model's truth ratios of the forget rows, which is the result's
            `forget_quality`. `"unseen"`: the same model's of the holdout set, where that has wrong answers. For the
            probabilities see [`forget_threshold`].
        result (`dict`):
            Evaluation of the checkpoint.
        retained (`dict`, *optional*):
            Evaluation of the retained model.

    Returns:
        `float`: Between 0 and 1, the higher the better; without truth ratios, minus the forget probability above the
        threshold for a model that has not forgotten.

    Example:

    ```python
    >>> result = {"summary": {"forget_probability": 0.2, "model_utility": 0.7}}
    >>> selection_score("retained", result, {"summary": {"forget_probability": 0.3}})
    0.7
    ```
    """
    utility = result["summary"].get("model_utility", 0.0)
    quality = result.get("forget_quality") if rule == "retained" else _unseen_quality(result["rows"])
    if quality is not None and "model_utility" in result["summary"]:
        return model_utility([utility, 1 - quality["statistic"]])["model_utility"]
    above = result["summary"]["forget_probability"] - forget_threshold(rule, result, retained)
    return utility if above <= 0 else -above


def _unseen_quality(rows: dict[str, dict[str, list]]) -> dict[str, Any] | None:
    """Forget quality with the holdout set in the place of the retained model."""
    ratios = [rows.get(name, {}).get("truth_ratio") for name in ("forget", "holdout")]
    return None if None in ratios else forget_quality(*ratios)
