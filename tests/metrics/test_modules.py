"""The `evaluate` modules: loaded offline by the real client, each gives what the pure function gives."""

import json
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import evaluate
import numpy as np
import pytest
from huggingface_hub import SpaceCard

import trl_unlearn
from trl_unlearn import metrics


FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics.json").read_text(encoding="utf-8"))
NAMES = [
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "model_utility",
    "privleak",
    "rougeL_recall",
    "truth_ratio",
]
PREDICTED, TRUE = [[5, 6, 7, 9], [3, 4], [8]], [[1, 6, 7, 9], [3, 5], [8]]


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(trl_unlearn.metric_path(name), cache_dir=str(tmp_path))


def test_forget_quality(load):
    ratios = FIXTURE["tofu"]["forget_truth_ratios"]
    result = load("forget_quality").compute(predictions=ratios["full"], retain_truth_ratios=ratios["retain95"])
    assert result == metrics.forget_quality(ratios["full"], ratios["retain95"])
    assert (result["n"], result["n_retain"]) == (300, 200)


def test_forget_quality_keeps_double_precision(load):
    ratios = 1 + np.arange(5) * 1e-12  # all equal in single precision
    assert load("forget_quality").compute(predictions=ratios, retain_truth_ratios=ratios + 1e-11)["statistic"] == 1.0


def test_model_utility(load):
    values = FIXTURE["harmonic_mean"]["values"]
    assert load("model_utility").compute(predictions=values) == metrics.model_utility(values)


@pytest.mark.parametrize(
    "options", [{}, {"aggregation": "retain", "perturbed_mean": "arithmetic"}, {"convention": "open-unlearning"}]
)
def test_truth_ratio(load, options):
    case = FIXTURE["truth_ratio"]
    inputs = case["paraphrased_loss"], case["perturbed_loss"]
    result = load("truth_ratio").compute(predictions=inputs[0], references=inputs[1], **options)
    assert result == metrics.truth_ratio(*inputs, **options)


@pytest.mark.parametrize("name", ["exact_memorization", "extraction_strength"])
def test_memorization(load, name):
    result = load(name).compute(predictions=PREDICTED, references=TRUE)
    assert result == getattr(metrics, name)([[False, True, True, True], [True, False], [True]])
    with pytest.raises(ValueError, match="shorter|longer"):
        load(name).compute(predictions=[[1, 2]], references=[[1]])


def test_extraction_strength_convention(load):
    result = load("extraction_strength").compute(predictions=[[1]], references=[[2]], convention="open-unlearning")
    assert result["extraction_strength"] == 1.0


@pytest.mark.parametrize("convention", ["open-unlearning", "muse"])
def test_privleak(load, convention):
    case = FIXTURE["privleak"]
    options = {"retain_auc": 0.4772, "auc_convention": convention}
    holdout = case["holdout_scores"][:5]
    result = load("privleak").compute(predictions=case["forget_scores"], holdout_scores=holdout, **options)
    assert result == metrics.privleak(case["forget_scores"], holdout, **options)


@pytest.mark.parametrize("use_stemmer", [True, False])
def test_rouge_recall(load, use_stemmer):
    texts = [[row[key] for row in FIXTURE["rouge"]] for key in ("generation", "ground_truth")]
    metric = load("rougeL_recall")
    result = metric.compute(predictions=texts[0], references=texts[1], use_stemmer=use_stemmer)
    expected = metrics.rouge_l(*texts, use_stemmer=use_stemmer)
    assert result == {"rougeL_recall": expected["rougeL_recall"], "per_row": expected["per_row_recall"]}


def test_rows_can_be_added_in_batches(load):
    metric = load("exact_memorization")
    for predicted, true in zip(PREDICTED, TRUE, strict=True):
        metric.add(prediction=predicted, reference=true)
    assert metric.compute() == load("exact_memorization").compute(predictions=PREDICTED, references=TRUE)


def test_combine_and_save(tmp_path):
    names = ["exact_memorization", "extraction_strength"]
    combined = evaluate.combine([trl_unlearn.metric_path(name) for name in names])
    result = combined.compute(predictions=PREDICTED, references=TRUE)
    assert (result["exact_memorization"], result["extraction_strength"]) == pytest.approx((2.25 / 3, 1.75 / 3))
    assert result["exact_memorization_per_row"] == [0.75, 0.5, 1.0]
    path = evaluate.save(tmp_path / "result.json", **result)
    assert json.loads(Path(path).read_text(encoding="utf-8")).items() >= result.items()


@pytest.mark.parametrize("name", NAMES)
def test_module_is_a_space(name, load):
    folder = Path(trl_unlearn.metric_path(name))
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        f"{name}.py",
        "README.md",
        "requirements.txt",
        "app.py",
    }
    readme = (folder / "README.md").read_text(encoding="utf-8")
    version = load(name).VERSION
    assert re.fullmatch(r"\d+\.\d+\.\d+", version) and f"Version {version}." in readme
    card = SpaceCard(readme).data
    assert (card.sdk, card.app_file) == ("gradio", "app.py")
    assert {"evaluate", "metric"} <= set(card.tags)
    # What the page shows, and the app's example, run and agree.
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1].replace("metric.compute", "result = metric.compute")
    exec(code, namespace := {})
    example = re.search(r"^EXAMPLE = (.*)$", (folder / "app.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert load(name).compute(**literal_eval(example)) == namespace["result"]


def test_metric_path():
    assert trl_unlearn.metric_path is metrics.metric_path
    with pytest.raises(ValueError, match="no metric 'rouge'; available are " + ", ".join(map(repr, NAMES))):
        trl_unlearn.metric_path("rouge")


def test_metric_path_needs_no_torch():
    code = "import sys, trl_unlearn; trl_unlearn.metric_path('privleak'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
