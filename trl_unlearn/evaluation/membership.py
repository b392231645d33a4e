"""Membership inference between the forget set and a holdout set, from scores that a plan has computed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..metrics import (
    gradnorm_score,
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    reference_score,
    zlib_score,
)
from .plan import Plan
from .sets import EvaluationSet, nll_of


def membership_inference(
    plan: Plan,
    forget: EvaluationSet,
    holdout: EvaluationSet,
    retained: dict[str, Any] | None = None,
    extra_metrics: Sequence[str] = (),
) -> dict[str, Any]:
    """
    The attacks that the plan allows, and PrivLeak.

    Args:
        plan ([`Plan`]):
            Plan that has run.
        forget ([`EvaluationSet`]):
            Forget set.
        holdout ([`EvaluationSet`]):
            Rows like it that no model has seen.
        retained (`dict`, *optional*):
            Result of the retained model on the same sets: its losses make the reference attack, its AUC PrivLeak.
        extra_metrics (`list[str]`, *optional*):
            `"min_k_plus_plus"` and `"gradnorm"`, if the plan has computed what they take.

    Returns:
        `dict`: `summary` with `mia_*_auc` and `privleak`, `missing` with what is left out and why, and `rows` with the
        scores of the sets `forget` and `holdout`.
    """
    rows: dict[str, dict[str, list]] = {}
    for name, data in (("forget", forget), ("holdout", holdout)):
        nll, num_tokens = nll_of(plan, data.answers)
        log_probabilities = data.content(plan, "log_probabilities")
        scores = {
            "loss": loss_score(nll, num_tokens),
            "zlib": zlib_score(nll, num_tokens, data.scored_texts()),
            "min_k": min_k_score(log_probabilities),
        }
        if "min_k_plus_plus" in extra_metrics:
            moments = (data.content(plan, moment) for moment in ("mu", "sigma"))
            scores["min_k_plus_plus"] = min_k_plus_plus_score(log_probabilities, *moments)
        if "gradnorm" in extra_metrics:
            scores["gradnorm"] = gradnorm_score([plan.gradient_norms[answer] for answer in data.answers_without_end()])
        theirs = (retained or {"rows": {}})["rows"].get(name, {}).get("loss", [])
        if len(theirs) == len(nll):
            scores["reference"] = reference_score(nll, np.array(theirs) * num_tokens, num_tokens)
        rows[name] = {attack: score["per_row"] for attack, score in scores.items()}

    missing = {}
    if not all("reference" in columns for columns in rows.values()):
        missing["mia_reference_auc"] = "it takes the retained model's losses on the forget and the holdout set"
        for columns in rows.values():
            columns.pop("reference", None)
    summary = {
        f"mia_{attack}_auc": membership_auc(rows["forget"][attack], rows["holdout"][attack])["auc"]
        for attack in rows["forget"]
    }
    convention = forget.prompting.convention
    retain_auc = (retained or {"summary": {}})["summary"].get("mia_min_k_auc")
    if retain_auc is None:
        missing["privleak"] = "it takes the AUC of min-k under the retained model"
    elif retain_auc == 1 and convention == "exact":
        missing["privleak"] = "no relative distance can be taken from the retained model's AUC of min-k, which is 1"
    else:
        scores = rows["forget"]["min_k"], rows["holdout"]["min_k"]
        summary["privleak"] = privleak(*scores, retain_auc, convention=convention)["privleak"]
    rows["holdout"] |= holdout.columns_of_texts()
    return {"summary": summary, "missing": missing, "rows": rows}
