"""The metrics give what the field's own evaluators gave, on small numbers and on the published logs of Llama-2-7B."""

import json
import math
from functools import partial
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
    inputs = losses["paraphrased_loss"], np.ones(6), losses["perturbed_loss"], np.ones((6, 5), dtype=int)
    result = normalized_probability(*inputs)
    assert result["per_row"][:5] == pytest.approx(case["per_row"][:5], rel=1e-6)
    # The last row's probabilities are near 1e-11, where their 1e-10 in the denominator decides.
    exact = np.exp(-np.array(losses["perturbed_loss"][5]) + losses["paraphrased_loss"][5]).sum()
    assert result["per_row"][5] == pytest.approx(1 / (1 + exact))

    theirs = normalized_probability(*inputs, convention="open-unlearning")
    assert theirs["per_row"] == pytest.approx(case["per_row"], abs=1e-12)
    assert theirs["normalized_probability"] == pytest.approx(case["mean"], abs=1e-12)
    with pytest.raises(ValueError, match="'tofu'; expected 'exact' or 'open-unlearning'"):
        normalized_probability(*inputs, convention="tofu")


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
    unstemmed = rouge_l(*([row[key] for row in samples] for key in ("generation", "ground_truth")), use_stemmer=False)
    assert unstemmed["per_row_f1"] == pytest.approx([row["rougeL_f1_no_stemmer"] for row in samples], abs=1e-12)


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


@pytest.mark.parametrize("aggregation", ["forget", "retain", "probability"])
def test_truth_ratio_in_the_convention_of_open_unlearning(aggregation):
    case = FIXTURE["truth_ratio"]
    result = truth_ratio(case["paraphrased_loss"], case["perturbed_loss"], aggregation, convention="open-unlearning")
    assert result["per_row"] == pytest.approx(case["per_row"], abs=1e-12)
    assert result["truth_ratio"] == pytest.approx(case[aggregation], abs=1e-12)


def test_truth_ratio_as_a_probability():
    case = FIXTURE["truth_ratio"]
    for row, (paraphrased, perturbed) in enumerate(zip(case["paraphrased_loss"], case["perturbed_loss"], strict=True)):
        result = truth_ratio([paraphrased], [perturbed], aggregation="probability")
        assert result["truth_ratio"] == pytest.approx(1 / (1 + result["per_row"][0]))
        theirs = truth_ratio([paraphrased], [perturbed], aggregation="probability", convention="open-unlearning")
        assert theirs["truth_ratio"] == pytest.approx(case["probability_per_row"][row], abs=1e-12)


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
        ({"aggregation": "closer"}, "'closer'; expected 'forget', 'retain' or 'probability'"),
        ({"perturbed_mean": "harmonic"}, "'harmonic'; expected 'geometric' or 'arithmetic'"),
        ({"convention": "tofu"}, "'tofu'; expected 'exact' or 'open-unlearning'"),
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


@pytest.mark.parametrize(("convention", "key"), [("exact", "without"), ("open-unlearning", "with")])
def test_forget_quality_of_a_collapsed_model_depends_on_their_epsilon(convention, key):
    case = FIXTURE["ks_collapsed"]
    losses = case["paraphrased_loss"], [[loss] for loss in case["perturbed_mean_loss"]]
    ratios = truth_ratio(*losses, convention=convention)["per_row"]
    assert ratios == pytest.approx(case[f"per_row_{key}_epsilon"], rel=1e-12)
    result = forget_quality(ratios, case["retain"])
    assert result["p_value"] == pytest.approx(case[f"p_{key}_epsilon"], rel=1e-12)


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


FULL, RETAIN90, RETAIN95 = (
    f"ft_epoch5_lr1e-05_llama2-7b_{which}_wd0.01" for which in ("full", "retain90", "retain95")
)


def read_log(name):
    """TOFU's log with each column as a list, in the order of the rows."""
    logs = json.loads((SHARED / "data" / "tofu_logs" / f"{name}.json").read_text(encoding="utf-8"))
    return {
        file: {key: [column[str(row)] for row in range(len(column))] for key, column in log.items()}
        for file, log in logs.items()
    }


@needs_published_logs
@pytest.mark.parametrize("name", [FULL, RETAIN90, RETAIN95])
def test_every_component_of_the_published_logs(name):
    """From the losses and texts in a log to TOFU's own components and both utilities."""
    exact = partial(pytest.approx, rel=0, abs=1e-12)
    expected = json.loads(PUBLISHED_LOGS.read_text(encoding="utf-8"))["models"][name]
    logs = read_log(name)
    utility_scores = {"geometric": [], "arithmetic": [], "open_unlearning": []}
    for file, log in logs.items():
        components = expected["components"][file]
        losses, perturbed = np.array(log["avg_gt_loss"]), np.array(log["average_perturb_loss"])
        paraphrased = log["avg_paraphrased_loss"]
        assert losses.shape + perturbed.shape[1:] == (components["n"], components["n_perturbed"])
        counts = np.ones(len(losses))

        plain = probability(losses, counts)["probability"]
        assert plain == exact(components["prob_mean"])
        assert probability(paraphrased, counts)["probability"] == exact(components["prob_paraphrase_mean"])
        perturbed_probability = probability(perturbed.ravel(), np.ones(perturbed.size))["probability"]
        assert perturbed_probability == exact(components["prob_perturbed_mean"])

        # TOFU took the recall of the same texts; computing it again from them gives what it logged.
        generations = [generation for _, generation, _ in log["generated_text"]]
        rouge = rouge_l(generations, [truth for _, _, truth in log["generated_text"]])
        assert rouge["per_row_recall"] == exact(log["rougeL_recall"])
        assert rouge["rougeL_recall"] == exact(components["rougeL_recall_mean"])

        for label, suffix, perturbed_mean, convention in (
            ("geometric", "geo", "geometric", "exact"),
            ("arithmetic", "arith", "arithmetic", "exact"),
            ("open_unlearning", "open_unlearning", "geometric", "open-unlearning"),
        ):
            forget, retain, share = (
                truth_ratio(paraphrased, perturbed, aggregation, perturbed_mean, convention)
                for aggregation in ("forget", "retain", "probability")
            )
            assert forget["truth_ratio"] == exact(components[f"closer_to_1_{suffix}"])
            assert retain["truth_ratio"] == exact(components[f"true_better_{suffix}"])
            if convention == "exact":
                assert np.mean(forget["per_row"]) == exact(components[f"mean_{suffix}_ratio"])
            else:
                assert share["truth_ratio"] == exact(components["prob_mean_open_unlearning"])
            answer_probability = plain
            if "prob_normalised_mean" in components:
                key = "prob_normalised_mean" + ("" if convention == "exact" else "_open_unlearning")
                result = normalized_probability(losses, counts, perturbed, np.ones_like(perturbed), convention)
                answer_probability = result["normalized_probability"]
                assert answer_probability == exact(components[key])
            if file != "eval_log_forget.json":
                utility_scores[label] += [answer_probability, rouge["rougeL_recall"], retain["truth_ratio"]]

    published = {
        "geometric": expected["aggregate_eval_stat.get_model_utility"]["Model Utility"],
        "arithmetic": expected["utils.get_model_utility"]["Model Utility"],
        "open_unlearning": expected["open_unlearning_model_utility_from_same_losses"]["hmean"],
    }
    for label, scores in utility_scores.items():
        assert len(scores) == 9
        assert model_utility(scores)["model_utility"] == exact(published[label])


@needs_published_logs
def test_every_forget_quality_of_the_published_logs():
    ratios = {}
    for name in (FULL, RETAIN90, RETAIN95):
        log = read_log(name)["eval_log_forget.json"]
        ratios[name] = truth_ratio(log["avg_paraphrased_loss"], log["average_perturb_loss"])["per_row"]
    for pair, expected in json.loads(PUBLISHED_LOGS.read_text(encoding="utf-8"))["forget_quality"].items():
        unlearned, retained = pair.split(" vs ")
        result = forget_quality(ratios[unlearned], ratios[retained])
        published = expected["aggregate_eval_stat.get_forget_quality"]
        assert result["p_value"] == pytest.approx(published["Forget Quality"], rel=1e-12)
        assert result["statistic"] == pytest.approx(published["KS Test Forget"], abs=1e-12)
        assert result["log10_p_value"] == pytest.approx(expected["log10_p"], abs=1e-12)
        assert (result["n"], result["n_retain"]) == (expected["n_unlearned"], expected["n_retain"])
