"""Reads the forget truth ratios of a retained model from a log, whoever's evaluator wrote it."""

import json
from pathlib import Path

from ..metrics import truth_ratio


def read_forget_truth_ratios(path: str | Path, expected_rows: int | None = None) -> list[float]:
    """
    The forget truth ratio of each row, which forget quality compares.

    Args:
        path (`str` or `Path`):
            `evaluation.json` of this package, `TOFU_EVAL.json` of open-unlearning, or `eval_log_aggregated.json` of TOFU.
        expected_rows (`int`, *optional*):
            Number of rows that the log is compared with. A log of another number of rows is of another split or
            evaluator, and its p-value would mean nothing.

    Returns:
        `list[float]`: Truth ratios, geometric over the perturbed answers, in the order of the rows.

    Raises:
        ValueError: If the file is none of these, or has another number of rows than `expected_rows`.
    """
    log = json.loads(Path(path).read_text(encoding="utf-8"))
    if "rows" in log:
        ratios = log["rows"]["forget"]["truth_ratio"]
    elif "forget_truth_ratio" in log:
        scores = log["forget_truth_ratio"]["value_by_index"]
        ratios = [scores[index]["score"] for index in sorted(scores, key=int)]
    elif "eval_log_forget.json" in log:
        losses = log["eval_log_forget.json"]
        indices = sorted(losses["avg_paraphrased_loss"], key=int)
        paraphrased, perturbed = (
            [losses[name][index] for index in indices] for name in ("avg_paraphrased_loss", "average_perturb_loss")
        )
        ratios = truth_ratio(paraphrased, perturbed, aggregation="forget")["per_row"]
    else:
        raise ValueError(
            f"{path} is not an evaluation log: it has the keys {sorted(log)[:5]}. Accepted are evaluation.json of "
            "trl-unlearn, TOFU_EVAL.json of open-unlearning and eval_log_aggregated.json of TOFU."
        )
    if expected_rows is not None and len(ratios) != expected_rows:
        raise ValueError(
            f"{path} has {len(ratios)} forget rows and this evaluation {expected_rows}: they are of different splits or "
            "evaluators, and cannot be compared. Evaluate the retained model on the same forget set."
        )
    return ratios
