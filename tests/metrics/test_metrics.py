"""The metrics give what the field's own evaluators gave, on small numbers and on the published logs of Llama-2-7B."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from trl_unlearn.metrics import (
    forget_quality,
    model_utility,
    normalized_probability,
    probability,
    rouge_l,
    truth_ratio,
)
from trl_unlearn.metrics.forget_quality import _log_exact_p_value


FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics.json").read_text(encoding="utf-8"))
SHARED = Path(__file__).parents[3] / "shared"
PUBLISHED_LOGS = SHARED / "oracles" / "tofu_published_logs.json"
needs_published_logs = pytest.mark.skipif(
    not PUBLISHED_LOGS.exists(), reason="the published logs of Llama-2-7B are not next to this repository"
)


def test_probability():
    result = probability(nll=[2.0, 3.0, 0.0], num_tokens=[2, 6, 4])
    assert result["per_row"] == pytest.approx([math.exp(-1.0), math.exp(-0.5), 1.0])
    assert result["probability"] == pytest.approx((math.exp(-1.0) + math.exp(-0.5) + 1.0) / 3)


def test_normalized_probability_equals_open_unlearning():
    losses, case = FIXTURE["truth_ratio"], FIXTURE["normalized_probability"]
    # Token-mean losses are what the case was made with: one token each.
    result = normalized_probability(
        losses["paraphrased_loss"], np.ones(6), losses["perturbed_loss"], np.ones((6, 5), dtype=int)
    )
    assert result["per_row"][:5] == pytest.approx(case["per_row"][:5], rel=1e-6)
    # The last row's probabilities are near 1e-11, where their 1e-10 in the denominator decides.
    exact = np.exp(-np.array(losses["perturbed_loss"][5]) + losses["paraphrased_loss"][5]).sum()
    assert result["per_row"][5] == pytest.approx(1 / (1 + exact))


def test_normalized_probability_of_a_collapsed_model():
    result = normalized_probability([5000.0, 9000.0], [1, 1], [[5000.0], [1000.0]], [[1], [1]])
    assert result["per_row"] == [0.5, 0.0]


def test_rouge_equals_tofu():
    samples = FIXTURE["rouge"]
    result = rouge_l([row["generation"] for row in samples], [row["ground_truth"] for row in samples])
    assert result["per_row_recall"] == pytest.approx([row["rougeL_recall"] for row in samples], abs=1e-12)
    assert result["per_row_f1"] == pytest.approx([row["rougeL_f1"] for row in samples], abs=1e-12)
    assert result["rougeL_recall"] == pytest.approx(np.mean(result["per_row_recall"]))
    assert result["rougeL_f1"] == pytest.approx(np.mean(result["per_row_f1"]))


def test_truth_ratio_equals_open_unlearning():
    case = FIXTURE["truth_ratio"]
    forget = truth_ratio(case["paraphrased_loss"], case["perturbed_loss"], aggregation="forget")
    retain = truth_ratio(case["paraphrased_loss"], case["perturbed_loss"], aggregation="retain")
    # The last row's probabilities are near 1e-11, where their added 1e-10 shows.
    assert forget["per_row"][:5] == pytest.approx(case["per_row"][:5], rel=1e-6)
    assert forget["per_row"][5] == pytest.approx(math.exp(25.0 - 25.6))
    last_row = (math.exp(-0.6) - case["per_row"][5]) / 6
    assert forget["truth_ratio"] == pytest.approx(case["forget"] + last_row, abs=1e-7)
    assert retain["truth_ratio"] == pytest.approx(case["retain"] - last_row, abs=1e-7)


def test_truth_ratio_means_differ():
    losses = [[0.0, math.log(4.0)]]
    assert truth_ratio([0.0], losses)["per_row"] == pytest.approx([0.5])
    assert truth_ratio([0.0], losses, perturbed_mean="arithmetic")["per_row"] == pytest.approx([0.625])


def test_truth_ratio_of_a_collapsed_model_stays_json():
    result = truth_ratio([9000.0, 0.0], [[1.0, 2.0], [9000.0, 9000.0]])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["truth_ratio"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbed_loss": [1.0, 2.0]}, r"shape \(2,\); expected \(2, k\)"),
        ({"perturbed_loss": [[1.0], [2.0], [3.0]]}, r"shape \(3, 1\); expected \(2, k\)"),
        ({"aggregation": "closer"}, "'closer'; expected 'forget' or 'retain'"),
        ({"perturbed_mean": "harmonic"}, "'harmonic'; expected 'geometric' or 'arithmetic'"),
    ],
)
def test_truth_ratio_says_what_it_expects(arguments, message):
    with pytest.raises(ValueError, match=message):
        truth_ratio(**{"paraphrased_loss": [1.0, 2.0], "perturbed_loss": [[1.0], [2.0]]} | arguments)


def test_model_utility():
    case = FIXTURE["harmonic_mean"]
    assert model_utility(case["values"])["model_utility"] == pytest.approx(case["hmean"], abs=1e-12)
    assert model_utility([*case["values"], 0.0]) == {"model_utility": 0.0}
    with pytest.raises(ValueError, match="negative number, -0.1"):
        model_utility([0.5, -0.1])


@pytest.mark.parametrize("convention", ["geometric", "arithmetic"])
def test_model_utility_of_published_scores(convention):
    case = FIXTURE["tofu"]["utility"][convention]
    assert model_utility(case["scores"])["model_utility"] == pytest.approx(case["model_utility"], abs=1e-12)


def test_forget_quality_of_small_samples():
    case = FIXTURE["ks"]
    result = forget_quality(case["unlearned"], case["retain"])
    assert result["p_value"] == pytest.approx(case["p"], rel=1e-12)
    assert result["log10_p_value"] == pytest.approx(math.log10(case["p"]))
    assert (result["n"], result["n_retain"]) == (10, 10)


def test_forget_quality_of_a_collapsed_model_adds_no_epsilon():
    case = FIXTURE["ks_collapsed"]
    ratios = truth_ratio(case["paraphrased_loss"], [[loss] for loss in case["perturbed_mean_loss"]])["per_row"]
    result = forget_quality(ratios, case["retain"])
    assert result["p_value"] == pytest.approx(case["p_without_epsilon"], rel=1e-12)
    assert result["p_value"] != pytest.approx(case["p_with_epsilon"], rel=0.1)


@pytest.mark.parametrize(("retain", "n_retain"), [("retain90", 300), ("retain95", 200)])
def test_forget_quality_of_the_published_target(retain, n_retain):
    ratios, expected = FIXTURE["tofu"]["forget_truth_ratios"], FIXTURE["tofu"][f"full_against_{retain}"]
    result = forget_quality(ratios["full"], ratios[retain])
    assert result["p_value"] == pytest.approx(expected["p_value"], rel=1e-9)
    assert result["log10_p_value"] == pytest.approx(math.log10(expected["p_value"]))
    assert result["statistic"] == pytest.approx(expected["statistic"])
    assert (result["n"], result["n_retain"]) == (300, n_retain)
    assert forget_quality(ratios[retain], ratios[retain])["p_value"] == 1.0


def test_forget_quality_stays_finite_where_the_p_value_underflows():
    n = 2000
    result = forget_quality(np.arange(n), np.arange(n) + 1e6)
    # Only 2 of the C(2n, n) orders of two separated samples separate them so.
    exact = math.log10(2) - math.log10(math.comb(2 * n, n))
    assert result["p_value"] == 0.0
    assert result["log10_p_value"] == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (6, 10), (300, 200), (97, 31)])
@pytest.mark.parametrize("shift", [0.3, 1.0, 5.0])
def test_log_p_value_continues_scipy(n, m, shift):
    generator = np.random.default_rng(0)
    test = ks_2samp(generator.normal(size=n), generator.normal(size=m) + shift)
    assert _log_exact_p_value(n, m, test.statistic) == pytest.approx(math.log(test.pvalue), abs=1e-9)


@needs_published_logs
@pytest.mark.parametrize("retain", ["retain90", "retain95"])
def test_every_component_of_the_published_logs(retain):
    """From the losses and texts in the logs to TOFU's own components, both utilities and forget quality."""

    def read(name):
        return json.loads((SHARED / "data" / "tofu_logs" / f"{name}.json").read_text(encoding="utf-8"))

    def column(log, key):
        return [log[key][str(index)] for index in range(len(log[key]))]

    name, retain_name = (f"ft_epoch5_lr1e-05_llama2-7b_{which}_wd0.01" for which in ("full", retain))
    logs, retain_logs = read(name), read(retain_name)
    published = json.loads(PUBLISHED_LOGS.read_text(encoding="utf-8"))
    expected = published["models"][name]

    for convention, key in (
        ("geometric", "aggregate_eval_stat.get_model_utility"),
        ("arithmetic", "utils.get_model_utility"),
    ):
        scores = []
        for file in ("eval_log.json", "eval_real_author_wo_options.json", "eval_real_world_wo_options.json"):
            log, components = logs[file], expected["components"][file]
            losses, counts = column(log, "avg_gt_loss"), np.ones(len(log["avg_gt_loss"]))
            perturbed = np.array(column(log, "average_perturb_loss"))
            if file == "eval_log.json":
                prob = probability(losses, counts)["probability"]
                assert prob == pytest.approx(components["prob_mean"], abs=1e-9)
            else:
                prob = normalized_probability(losses, counts, perturbed, np.ones_like(perturbed))
                prob = prob["normalized_probability"]
                assert prob == pytest.approx(components["prob_normalised_mean"], abs=1e-6)
            rouge = np.mean(column(log, "rougeL_recall"))
            ratio = truth_ratio(column(log, "avg_paraphrased_loss"), perturbed, "retain", convention)["truth_ratio"]
            short = {"geometric": "geo", "arithmetic": "arith"}[convention]
            assert ratio == pytest.approx(components[f"true_better_{short}"], abs=1e-6)
            scores += [prob, rouge, ratio]
        assert model_utility(scores)["model_utility"] == pytest.approx(expected[key]["Model Utility"], abs=1e-6)

    def forget_ratios(log):
        losses = column(log["eval_log_forget.json"], "avg_paraphrased_loss")
        return truth_ratio(losses, column(log["eval_log_forget.json"], "average_perturb_loss"))["per_row"]

    result = forget_quality(forget_ratios(logs), forget_ratios(retain_logs))
    expected = published["forget_quality"][f"{name} vs {retain_name}"]["aggregate_eval_stat.get_forget_quality"]
    assert result["p_value"] == pytest.approx(expected["Forget Quality"], rel=1e-9)
    assert result["statistic"] == pytest.approx(expected["KS Test Forget"])
