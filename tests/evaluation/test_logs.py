"""Evaluation files of three evaluators say the same, and what is written in open-unlearning's format is what it wrote."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import hmean

from trl_unlearn.evaluation.logs import read_log, write_muse_logs, write_tofu_logs
from trl_unlearn.metrics import forget_quality


SHARED = Path(__file__).parents[3] / "shared"
PUBLISHED = SHARED / "data" / "tofu_logs"
PUBLISHED_NUMBERS = SHARED / "oracles" / "tofu_published_logs.json"
THEIRS = [SHARED / "oracles" / "e2e" / f"logs_llama2_{name}" for name in ("full", "retain")]
needs_published = pytest.mark.skipif(
    not (PUBLISHED.exists() and PUBLISHED_NUMBERS.exists()),
    reason="the logs that TOFU's authors published are not next to this repository",
)
needs_theirs = pytest.mark.skipif(
    not all(folder.exists() for folder in THEIRS),
    reason="the logs of open-unlearning's evaluator are not next to this repository",
)
PARAPHRASED = [1.5, 2.0, 0.3] * 4
PERTURBED = [[1.0, 2.5], [3.0, 2.0], [0.9, 0.1]] * 4
RATIOS = [float(np.exp(para - np.mean(pert))) for para, pert in zip(PARAPHRASED, PERTURBED, strict=True)]


def forget_truth_ratios(path):
    return read_log(path)["rows"]["forget"]["truth_ratio"]


def by_index(values):
    # as JSON objects, whose order of keys is not that of the rows
    return {str(index): value for index, value in sorted(enumerate(values), key=lambda item: str(item[0]))}


def entry(aggregate, **columns):
    rows = zip(*columns.values(), strict=True)
    return {"agg_value": aggregate, "value_by_index": by_index([dict(zip(columns, row, strict=True)) for row in rows])}


def losses(values):
    return entry(float(np.exp(-np.array(values)).mean()), prob=np.exp(-np.array(values)).tolist(), avg_loss=values)


LOGS = {
    "trl-unlearn": {"summary": {}, "rows": {"forget": {"truth_ratio": RATIOS}}},
    "open-unlearning": {"forget_truth_ratio": entry(0.1, score=RATIOS)},
    "TOFU": {
        "eval_log_forget.json": {
            "avg_paraphrased_loss": by_index(PARAPHRASED),
            "average_perturb_loss": by_index(PERTURBED),
        }
    },
}


@pytest.fixture
def write(tmp_path):
    def write(content, name="log.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / name

    return write


def assert_same(given, expected, path="", **tolerance):
    """Equal up to floats, and without the limit of `pytest.approx` to one level."""
    assert type(given) is type(expected), path
    if isinstance(expected, dict):
        assert set(given) == set(expected), path
        for key in expected:
            assert_same(given[key], expected[key], f"{path}/{key}", **tolerance)
    elif isinstance(expected, list):
        assert len(given) == len(expected), path
        for index, pair in enumerate(zip(given, expected, strict=True)):
            assert_same(*pair, f"{path}/{index}", **tolerance)
    elif isinstance(expected, float):
        assert given == pytest.approx(expected, **tolerance), path
    else:
        assert given == expected, path


@pytest.mark.parametrize("log", LOGS)
def test_three_formats_give_the_same(log, write):
    assert forget_truth_ratios(write(LOGS[log])) == pytest.approx(RATIOS, rel=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', r"not an evaluation log: it has the keys \['a'\].*TOFU_EVAL.json"),
        ("{}", r"it has the keys \[\].*Accepted are evaluation.json of trl-unlearn"),
        ("[1, 2]", "it holds a JSON list. Accepted are"),
        ('{"summary": {}, "rows": {"for', "not a JSON file, or not a complete one.*eval_log_aggregated.json of TOFU"),
        ("\x00", "not a JSON file"),
        ('{"summary": {}, "rows": {}, "schema": 2}', "newer version of trl-unlearn: its schema is 2.*Upgrade"),
        ('{"summary": {"model_utility": 0.5}}', "has a summary and no rows. Give evaluation.json"),
        (
            '{"forget_quality": 0.1, "model_utility": 0.5}',
            "is a summary.*no rows. Give TOFU_EVAL.json or MUSE_EVAL.json",
        ),
    ],
)
def test_other_files_are_refused(content, message, write):
    with pytest.raises(ValueError, match=message):
        read_log(write(content))


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(FileNotFoundError, match="is not a file. Accepted are evaluation.json"):
            read_log(path)


def test_own_results_are_taken_as_they_are(write):
    result = {"summary": {"forget_probability": 0.5}, "rows": {}, "forget_quality": {"p_value": 0.1}}
    assert read_log(write(result)) == result
    assert read_log(write(result | {"schema": 1})) == result | {"schema": 1}


def open_unlearning_log():
    """All that their TOFU evaluation can log, on a few rows each."""
    ratios = (np.exp(-np.mean(PERTURBED, axis=1)) / (np.exp(-np.array(PARAPHRASED)) + 1e-10)).tolist()
    texts = {"input": ["Q?"] * 12, "ground_truth": ["a b"] * 12, "generation": ["a c"] * 12}
    rouge = {"rouge1_recall": [0.5] * 12, "rougeL_f1": [0.5] * 12, "rougeL_recall": [0.5, 0.25, 0.75] * 4}
    log = {
        "forget_truth_ratio": entry(float(np.mean(np.minimum(ratios, 1 / (np.array(ratios) + 1e-10)))), score=ratios),
        "exact_memorization": entry(0.5, score=[0.25, 0.75, None] * 4),
        "extraction_strength": entry(0.25, score=[0.25] * 12),
        "forget_quality": {"agg_value": 0.001},
        "forget_Q_A_gibberish": {"agg_value": 0.9},
        "privleak": {"agg_value": -12.5},
        "forget_Q_A_PARA_ROUGE": entry(0.4, rougeL_recall=[0.4] * 12),  # of no interest here
    }
    for attack, auc in (("loss", 0.75), ("reference", 0.75)):
        log[f"mia_{attack}"] = {
            "forget": entry(1.5, score=[1.0, 2.0]),
            "holdout": entry(2.5, score=[1.5, 3.5]),
            "auc": auc,
            "agg_value": auc,
        }
    del log["mia_loss"]["forget"], log["mia_loss"]["holdout"]
    kept = []
    for prefix in ("forget", "retain", "ra", "wf"):
        log[f"{prefix}_Q_A_PERT_Prob"] = losses(PERTURBED)
        log[f"{prefix}_Q_A_ROUGE"] = entry(0.5, **rouge, **texts)
        if prefix in ("forget", "retain"):
            log[f"{prefix}_Q_A_Prob"] = losses([0.5, 0.25, 0.125] * 4)
            log[f"{prefix}_Q_A_PARA_Prob"] = losses(PARAPHRASED)
            probability = log[f"{prefix}_Q_A_Prob"]
        else:
            log[f"{prefix}_Q_A_Prob"] = losses(PARAPHRASED)
            true = np.exp(-np.array(PARAPHRASED))
            share = true / (true + np.exp(-np.array(PERTURBED)).sum(axis=1) + 1e-10)
            probability = log[f"{prefix}_Q_A_Prob_normalised"] = entry(float(share.mean()), prob=share.tolist())
        if prefix != "forget":
            ratio = float(np.maximum(0, 1 - np.array(ratios)).mean())
            log[f"{prefix}_Truth_Ratio"] = entry(ratio, score=ratios)
            kept += [probability["agg_value"], 0.5, ratio]
    log["model_utility"] = {"agg_value": float(hmean(kept))}
    return log


def test_log_of_open_unlearning(write):
    log = open_unlearning_log()
    result = read_log(write(log))
    summary, rows = result["summary"], result["rows"]
    assert (result["schema"], result["benchmark"]) == (1, "tofu")
    assert result["conventions"] == {"compat": "open-unlearning"}

    expected = {
        "forget_probability": log["forget_Q_A_Prob"]["agg_value"],
        "forget_rougeL_recall": 0.5,
        "forget_truth_ratio": log["forget_truth_ratio"]["agg_value"],
        "retain_probability": log["retain_Q_A_Prob"]["agg_value"],
        "retain_truth_ratio": log["retain_Truth_Ratio"]["agg_value"],
        "real_authors_probability": log["ra_Q_A_Prob_normalised"]["agg_value"],
        "world_facts_truth_ratio": log["wf_Truth_Ratio"]["agg_value"],
        "forget_exact_memorization": 0.5,
        "forget_extraction_strength": 0.25,
        "model_utility": log["model_utility"]["agg_value"],
        "mia_loss_auc": 0.75,
        "mia_reference_auc": 0.75,
        "privleak": -12.5,
        "text_cleanness": 0.9,
    }
    assert {metric: summary[metric] for metric in expected} == pytest.approx(expected, abs=1e-12)
    # They log neither the share of the truth nor TOFU's other mean; both follow from the losses.
    share = np.mean([1 / (1 + ratio) for ratio in RATIOS])
    assert summary["forget_truth_ratio_probability"] == pytest.approx(share, abs=1e-9)
    arithmetic = np.exp(-np.array(PERTURBED)).mean(axis=1) / np.exp(-np.array(PARAPHRASED))
    kept = ("retain", "real_authors", "world_facts")
    other = [summary[f"{name}_{metric}"] for name in kept for metric in ("probability", "rougeL_recall")]
    other += [np.maximum(0, 1 - arithmetic).mean()] * 3
    assert summary["model_utility_arithmetic"] == pytest.approx(hmean(other), abs=1e-9)

    assert rows["forget"]["loss"] == [0.5, 0.25, 0.125] * 4  # by index, not in the order of the file
    assert rows["forget"]["exact_memorization"] == [0.25, 0.75, None] * 4
    assert rows["real_authors"]["paraphrased_loss"] == PARAPHRASED  # the answer stands for its paraphrase
    assert rows["retain"]["prompt"][0] == "Q?" and rows["retain"]["generated"][0] == "a c"
    assert rows["holdout"] == {"reference": [1.5, 3.5]}
    assert result["forget_quality"] == {
        "p_value": 0.001,
        "log10_p_value": pytest.approx(-3),
        "statistic": None,
        "n": 12,
        "n_retain": None,
    }


def test_log_of_open_unlearning_comes_back(write, tmp_path):
    log = open_unlearning_log()
    result = read_log(write(log))
    write_tofu_logs(result, tmp_path / "new" / "folder")
    written = tmp_path / "new" / "folder" / "TOFU_EVAL.json"
    assert read_log(written) == result
    del log["forget_Q_A_PARA_ROUGE"]
    assert_same(json.loads(written.read_text()), log, abs=1e-9)
    summary = json.loads(written.with_name("TOFU_SUMMARY.json").read_text())
    shown = "forget_Q_A_Prob forget_Q_A_ROUGE forget_Q_A_gibberish forget_quality forget_truth_ratio model_utility"
    shown += " privleak exact_memorization extraction_strength mia_loss mia_reference"
    assert summary == pytest.approx({metric: log[metric]["agg_value"] for metric in shown.split()})
    assert list(summary) == sorted(summary)


def test_what_has_no_rows_is_taken_over(write):
    log = {
        "forget_Q_A_Prob": {"agg_value": 0.5},
        "mia_zlib": {"agg_value": 0.6, "auc": 0.6},
        "model_utility": {"agg_value": 0.4},
        "forget_quality": {"agg_value": None},  # without a retained model
    }
    result = read_log(write(log))
    assert result["summary"] == {"forget_probability": 0.5, "mia_zlib_auc": 0.6, "model_utility": 0.4}
    assert result["rows"] == {} and "forget_quality" not in result
    underflown = read_log(write({"forget_quality": {"agg_value": 0.0}}))["forget_quality"]
    assert (underflown["p_value"], underflown["log10_p_value"], underflown["n"]) == (0.0, None, None)


def test_truth_ratios_are_from_the_losses_where_theirs_is_the_probability(write):
    """With their aggregator `prob_mean`, `forget_truth_ratio` is another metric."""
    log = open_unlearning_log()
    log["forget_truth_ratio"] = entry(0.5, score=[1 / (1 + ratio) for ratio in RATIOS])
    assert forget_truth_ratios(write(log)) == pytest.approx(RATIOS, abs=1e-8)


def test_answers_do_not_stand_for_forget_paraphrases(write):
    log = open_unlearning_log()
    del log["forget_Q_A_PARA_Prob"]
    log["forget_truth_ratio"] = entry(0.5, score=RATIOS)
    result = read_log(write(log))
    assert result["rows"]["forget"]["truth_ratio"] == RATIOS
    assert result["summary"]["forget_truth_ratio"] == 0.5


def test_muse_logs(write, tmp_path):
    texts = {"input": ["x", "y"], "ground_truth": ["a", "b"], "generation": ["a", "c"]}
    rouge = {"rouge1_recall": [0.1, 0.2], "rougeL_f1": [0.3, 0.4], "rougeL_recall": [0.5, 0.6]}
    log = {
        **{f"{name}_ROUGE": entry(0.35, **rouge, **texts) for name in ("forget_verbmem", "forget_knowmem")},
        "retain_knowmem_ROUGE": {"agg_value": 0.6},
        "extraction_strength": entry(0.15, score=[0.1, 0.2]),
        "exact_memorization": entry(0.75, score=[0.5, 1.0]),
        "mia_min_k": {
            "forget": entry(1.5, score=[1.0, 2.0]),
            "holdout": entry(2.5, score=[1.5, 3.5]),
            "auc": 0.75,
            "agg_value": 0.75,
        },
        "privleak": {"agg_value": -50.0},
        "forget_gibberish": {"agg_value": 0.9},
    }
    result = read_log(write(log))
    assert result["benchmark"] == "muse"
    assert result["summary"] == pytest.approx(
        {
            "forget_verbmem": 0.35,
            "forget_knowmem": 0.35,
            "forget_exact_memorization": 0.75,
            "forget_extraction_strength": 0.15,
            "mia_min_k_auc": 0.75,
            "retain_knowmem": 0.6,
            "privleak": -50.0,
            "text_cleanness": 0.9,
        }
    )
    assert result["rows"]["forget_verbmem"]["score"] == [0.3, 0.4]
    assert result["rows"]["forget"] == {"min_k": [1.0, 2.0]}
    write_muse_logs(result, tmp_path)
    assert_same(json.loads((tmp_path / "MUSE_EVAL.json").read_text()), log, abs=1e-12)
    assert read_log(tmp_path / "MUSE_EVAL.json") == result
    assert set(json.loads((tmp_path / "MUSE_SUMMARY.json").read_text())) == set(log)


def test_own_results_in_their_format(tmp_path):
    rows = {"probability": [0.5, 0.25], "truth_ratio": [0.5, 1.5], "generated": ["a", "b"]}
    quality = {"p_value": 0.25, "log10_p_value": math.log10(0.25), "statistic": 0.5, "n": 2, "n_retain": 2}
    result = {
        "benchmark": "world",
        "summary": {"forget_probability": 0.375, "forget_truth_ratio": 0.58, "model_utility": 0.7, "well_formed": 1.0},
        "forget_quality": quality,
        "rows": {"forget": rows, "retain": {"loss": [1.0]}, "world_facts": {"loss": [0.0], "perturbed_loss": [[1.0]]}},
    }
    write_tofu_logs(result, tmp_path)
    log = json.loads((tmp_path / "TOFU_EVAL.json").read_text())
    assert log["forget_truth_ratio"] == {
        "agg_value": 0.58,
        "value_by_index": {"0": {"score": 0.5}, "1": {"score": 1.5}},
    }
    assert log["wf_Q_A_Prob"] == {"agg_value": 1.0, "value_by_index": {"0": {"prob": 1.0, "avg_loss": 0.0}}}
    assert log["wf_Q_A_PERT_Prob"]["value_by_index"]["0"]["prob"] == pytest.approx([math.exp(-1)])
    assert log["forget_quality"] == {"agg_value": 0.25}
    assert "model_utility" not in log  # averaged over other sets than theirs
    assert "forget_Q_A_PARA_Prob" not in log
    summary = {"forget_Q_A_Prob": 0.375, "forget_truth_ratio": 0.58, "forget_quality": 0.25}
    assert json.loads((tmp_path / "TOFU_SUMMARY.json").read_text()) == summary


def test_log_of_tofu(write):
    columns = {
        "avg_gt_loss": [0.5] * 12,
        "num_token_gt": [7] * 12,
        "rougeL_recall": [0.25, 0.75] * 6,
        "generated_text": [["[INST] Q? [/INST]", f"said {row}", f"true {row}"] for row in range(12)],
        "avg_paraphrased_loss": PARAPHRASED,
        "average_perturb_loss": PERTURBED,
    }
    files = ("eval_log.json", "eval_real_author_wo_options.json", "eval_real_world_wo_options.json")
    log = {file: {key: by_index(values) for key, values in columns.items()} for file in files} | LOGS["TOFU"]
    result = read_log(write(log))
    assert set(result["rows"]) == {"forget", "retain", "real_authors", "world_facts"}
    retain = result["rows"]["retain"]
    assert retain["answer"][10] == "true 10" and retain["generated"][10] == "said 10"
    assert retain["prompt"][0] == "[INST] Q? [/INST]" and retain["num_tokens"][0] == 7
    summary = result["summary"]
    share = np.mean(math.exp(-0.5) / (math.exp(-0.5) + np.exp(-np.array(PERTURBED)).sum(axis=1)))
    ratio = np.maximum(0, 1 - np.array(RATIOS)).mean()
    assert summary["retain_probability"] == pytest.approx(math.exp(-0.5))
    assert summary["real_authors_probability"] == pytest.approx(share)
    assert summary["forget_truth_ratio"] == pytest.approx(np.minimum(RATIOS, 1 / np.array(RATIOS)).mean())
    scores = [math.exp(-0.5), 0.5, ratio] + [share, 0.5, ratio] * 2
    assert summary["model_utility"] == pytest.approx(hmean(scores), abs=1e-12)
    assert summary["model_utility_arithmetic"] < summary["model_utility"]


@needs_theirs
@pytest.mark.parametrize("folder", THEIRS, ids=lambda folder: folder.name)
def test_their_evaluator(folder, tmp_path):
    log = json.loads((folder / "TOFU_EVAL.json").read_text())
    result = read_log(folder / "TOFU_EVAL.json")
    for metric, name in (
        ("forget_Q_A_Prob", "forget_probability"),
        ("forget_truth_ratio", "forget_truth_ratio"),
        ("ra_Truth_Ratio", "real_authors_truth_ratio"),
        ("wf_Q_A_Prob_normalised", "world_facts_probability"),
        ("model_utility", "model_utility"),
        ("mia_min_k", "mia_min_k_auc"),
        ("mia_zlib", "mia_zlib_auc"),
        ("extraction_strength", "forget_extraction_strength"),
    ):
        assert result["summary"][name] == pytest.approx(log[metric]["agg_value"], abs=1e-12)

    write_tofu_logs(result, tmp_path)
    assert read_log(tmp_path / "TOFU_EVAL.json") == result
    written = json.loads((tmp_path / "TOFU_EVAL.json").read_text())
    summary = json.loads((folder / "TOFU_SUMMARY.json").read_text())
    if log["forget_quality"]["agg_value"] is None:
        del log["forget_quality"]  # not computed: left out here
    for attack in ("mia_min_k", "mia_min_k_plus_plus"):
        for name in ("forget", "holdout"):  # a mean over all rows that they take in single precision and do not use
            theirs = log[attack][name].pop("agg_value")
            assert written[attack][name].pop("agg_value") == pytest.approx(theirs, rel=1e-6)
    assert_same(written, log, abs=1e-9)
    assert_same(json.loads((tmp_path / "TOFU_SUMMARY.json").read_text()), summary, abs=1e-9)


@needs_published
def test_every_component_of_the_published_logs(tmp_path):
    sets = {
        "eval_log.json": "retain",
        "eval_log_forget.json": "forget",
        "eval_real_author_wo_options.json": "real_authors",
        "eval_real_world_wo_options.json": "world_facts",
    }
    for name, expected in json.loads(PUBLISHED_NUMBERS.read_text())["models"].items():
        result = read_log(PUBLISHED / f"{name}.json")
        summary, rows = result["summary"], result["rows"]
        assert result["conventions"] == {"compat": "tofu"}
        numbers = {
            "model_utility": expected["aggregate_eval_stat.get_model_utility"]["Model Utility"],
            "model_utility_arithmetic": expected["utils.get_model_utility"]["Model Utility"],
        }
        for file, components in expected["components"].items():
            kept = "closer_to_1_geo" if sets[file] == "forget" else "true_better_geo"
            plain = "prob_normalised_mean" if "prob_normalised_mean" in components else "prob_mean"
            numbers |= {
                f"{sets[file]}_probability": components[plain],
                f"{sets[file]}_rougeL_recall": components["rougeL_recall_mean"],
                f"{sets[file]}_truth_ratio": components[kept],
            }
            columns = rows[sets[file]]
            assert np.mean(columns["truth_ratio"]) == pytest.approx(components["mean_geo_ratio"], abs=1e-12)
            assert np.mean(columns["rouge1_recall"]) == pytest.approx(components["rouge1_recall_mean"], abs=1e-12)
            assert {len(column) for column in columns.values()} == {components["n"]}
        assert {metric: summary[metric] for metric in numbers} == pytest.approx(numbers, rel=0, abs=1e-12)
        assert rows["forget"]["prompt"][0].startswith("[INST]") and not rows["forget"]["answer"][0].startswith(
            "[INST]"
        )

        # Some of TOFU's real authors have a paraphrase, so it is written even though open-unlearning has no name for it.
        write_tofu_logs(result, tmp_path)
        again = read_log(tmp_path / "TOFU_EVAL.json")["summary"]
        assert again == pytest.approx(summary, abs=1e-6)


@needs_published
def test_published_forget_quality():
    full, retained = (
        forget_truth_ratios(PUBLISHED / f"ft_epoch5_lr1e-05_llama2-7b_{name}_wd0.01.json")
        for name in ("full", "retain90")
    )
    quality = forget_quality(full, retained)
    assert quality["p_value"] == pytest.approx(1.834066e-21, rel=1e-6)
    assert quality["statistic"] == pytest.approx(0.396667, abs=1e-6)
    assert quality["n"] == quality["n_retain"] == 300


def test_logs_are_read_without_torch(write):
    code = "import sys; from trl_unlearn.evaluation.logs import read_log; read_log(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(write(open_unlearning_log()))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
