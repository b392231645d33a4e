"""When a model has forgotten enough, and which of those that have is the best: named rules for choosing a checkpoint."""

from typing import Any, Literal

import numpy as np


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


def selection_score(rule: SelectionRule, result: dict[str, Any], retained: dict[str, Any] | None = None) -> float:
    """
    How good a checkpoint is: of those that have forgotten the one with the highest utility, before all that have not.

    Args:
        rule (`str`):
            What counts as having forgotten, see [`forget_threshold`].
        result (`dict`):
            Evaluation of the checkpoint.
        retained (`dict`, *optional*):
            Evaluation of the retained model.

    Returns:
        `float`: Model utility, at least 0, of a model that has forgotten; else minus the forget probability above the
        threshold.

    Example:

    ```python
    >>> result = {"summary": {"forget_probability": 0.2, "model_utility": 0.7}}
    >>> selection_score("retained", result, {"summary": {"forget_probability": 0.3}})
    0.7
    ```
    """
    above = result["summary"]["forget_probability"] - forget_threshold(rule, result, retained)
    return result["summary"].get("model_utility", 0.0) if above <= 0 else -above
