"""Retained models' logs in three formats give the same truth ratios, and a log that does not fit is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from trl_unlearn.evaluation.logs import read_forget_truth_ratios
from trl_unlearn.metrics import forget_quality


PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "tofu_logs"
PARAPHRASED = [1.5, 2.0, 0.3] * 4
PERTURBED = [[1.0, 2.5], [3.0, 2.0], [0.9, 0.1]] * 4
RATIOS = [float(np.exp(para - np.mean(pert))) for para, pert in zip(PARAPHRASED, PERTURBED, strict=True)]


def by_index(values):
    # as JSON objects, whose order of keys is not that of the rows
    return {str(index): value for index, value in sorted(enumerate(values), key=lambda item: str(item[0]))}


LOGS = {
    "trl-unlearn": {"summary": {}, "rows": {"forget": {"truth_ratio": RATIOS}}},
    "open-unlearning": {
        "forget_truth_ratio": {"agg_value": 0.1, "value_by_index": by_index([{"score": r} for r in RATIOS])}
    },
    "TOFU": {
        "eval_log_forget.json": {
            "avg_paraphrased_loss": by_index(PARAPHRASED),
            "average_perturb_loss": by_index(PERTURBED),
        }
    },
}


@pytest.mark.parametrize("log", LOGS)
def test_three_formats_give_the_same(log, tmp_path):
    (tmp_path / "log.json").write_text(json.dumps(LOGS[log]))
    assert read_forget_truth_ratios(tmp_path / "log.json", expected_rows=12) == pytest.approx(RATIOS, rel=1e-12)


def test_other_files_and_other_splits_are_refused(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps(LOGS["TOFU"]))
    with pytest.raises(ValueError, match="has 12 forget rows and this evaluation 40.*cannot be compared"):
        read_forget_truth_ratios(tmp_path / "log.json", expected_rows=40)
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"not an evaluation log: it has the keys \['a'\].*TOFU_EVAL.json"):
        read_forget_truth_ratios(tmp_path / "other.json")


@pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the logs that TOFU's authors published are not next to this repository"
)
def test_published_logs():
    full, retained = (
        read_forget_truth_ratios(PUBLISHED / f"ft_epoch5_lr1e-05_llama2-7b_{name}_wd0.01.json")
        for name in ("full", "retain90")
    )
    quality = forget_quality(full, retained)
    assert quality["p_value"] == pytest.approx(1.834066e-21, rel=1e-6)
    assert quality["statistic"] == pytest.approx(0.396667, abs=1e-6)
    assert quality["n"] == quality["n_retain"] == 300
