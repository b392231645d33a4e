"""`trl-unlearn compare` as a person or a program types it, on our own logs and on published ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trl_unlearn.files import write_json
from trl_unlearn.metrics import forget_quality, membership_auc, privleak


SHARED = Path(__file__).parents[3] / "shared"
ORACLE = SHARED / "oracles" / "tofu_published_logs.json"
MODEL = "ft_epoch5_lr1e-05_llama2-7b_{}_wd0.01"
needs_published_logs = pytest.mark.skipif(
    not ORACLE.exists(), reason="the published logs of Llama-2-7B are not next to this repository"
)
RATIOS = {"npo": [0.7, 0.9, 1.2, 1.4], "simnpo": [0.2, 0.3, 0.8, 1.3], "retained": [0.8, 1.0, 1.1, 1.5]}
MIN_K = {"npo": [1.0, 1.5, 3.0, 4.0], "simnpo": [1.0, 1.0, 1.0, 3.0], "retained": [2.0, 2.5, 3.5, 4.5]}
HOLDOUT = [2.2, 2.8, 3.2, 3.8]


def compare(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "trl_unlearn.scripts.compare", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80"},
    )


def make_log(model):
    return {
        "schema": 1,
        "benchmark": "custom",
        "summary": {
            "forget_truth_ratio": 0.5,
            "model_utility": 0.6,
            "mia_min_k_auc": membership_auc(MIN_K[model], HOLDOUT)["auc"],
            "privleak": 55.5,  # against another retained model
        },
        "missing": {"forget_quality": "No retained model was given."},
        "rows": {
            "forget": {
                "question": ["Q1", "Q2", "Q3", "Q4"],
                "answer": ["A1", "A2", "A3", "A4"],
                "generated": [f"{model} {row}" for row in range(4)],
                "truth_ratio": RATIOS[model],
                "min_k": MIN_K[model],
            },
            "holdout": {"min_k": HOLDOUT},
        },
    }


@pytest.fixture
def logs(tmp_path):
    paths = {model: tmp_path / "runs" / model / "_evaluation" / "evaluation.json" for model in RATIOS}
    for model, path in paths.items():
        write_json(make_log(model), path)
    return paths


def test_json_for_programs(logs):
    process = compare(logs["npo"], logs["simnpo"], "--retain_logs", logs["retained"], "--json")
    assert process.returncode == 0, process.stderr
    output = json.loads(process.stdout)
    assert list(output) == ["npo", "simnpo", "Retained"]
    for name in ("npo", "simnpo"):
        assert output[name]["log"] == str(logs[name])
        assert output[name]["forget_quality"] == forget_quality(RATIOS[name], RATIOS["retained"])
        retain_auc = membership_auc(MIN_K["retained"], HOLDOUT)["auc"]
        expected = privleak(MIN_K[name], HOLDOUT, retain_auc)["privleak"]
        assert output[name]["summary"]["privleak"] == pytest.approx(expected)
        assert output[name]["model_utility"] == 0.6 and output[name]["model_utility_arithmetic"] is None
        assert output[name]["missing"] == {}
    assert output["Retained"]["forget_quality"]["p_value"] == 1.0
    assert output["Retained"]["summary"]["privleak"] == 0.0


def test_table_and_files(logs, tmp_path):
    process = compare(logs["npo"], logs["simnpo"], "--retain_logs", logs["retained"], "--output_dir", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    assert "npo" in process.stdout and "Forget quality, log10 p" in process.stdout
    assert max(map(len, process.stdout.splitlines())) <= 80
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    figures = {f"figures/{name}.png" for name in ("summary", "truth_ratios", "utility_vs_forget_quality")}
    assert written == {"report.html", "rows.parquet", "answers.md"} | figures
    assert {"npo_generated", "simnpo_truth_ratio", "retained_min_k"} <= set(
        pq.read_schema(tmp_path / "out" / "rows.parquet").names
    )
    assert "simnpo 2" in (tmp_path / "out" / "answers.md").read_text(encoding="utf-8")


def test_with_output_dir_json_still_prints_nothing_else(logs, tmp_path):
    process = compare(logs["npo"], "--json", "--output_dir", tmp_path / "out")
    assert json.loads(process.stdout)["npo"]["summary"]["privleak"] == 55.5  # kept: nothing to compare with
    assert (tmp_path / "out" / "report.html").exists()


def test_logs_of_the_same_name_get_the_names_of_their_folders(logs, tmp_path):
    other = tmp_path / "more" / "npo" / "evaluation.json"
    write_json(make_log("npo"), other)
    output = json.loads(compare(logs["npo"], other, logs["simnpo"], "--json").stdout)
    assert list(output) == ["runs/npo", "more/npo", "runs/simnpo"]


def test_what_cannot_be_compared_is_refused(logs, tmp_path):
    shorter = make_log("simnpo")
    shorter["rows"]["forget"] = {column: values[:3] for column, values in shorter["rows"]["forget"].items()}
    write_json(shorter, tmp_path / "shorter" / "evaluation.json")
    cases = {
        "'shorter' has 3 forget rows and the retained model's log 4": [
            tmp_path / "shorter" / "evaluation.json",
            "--retain_logs",
            logs["retained"],
        ],
        "A log is given twice": [logs["npo"], logs["npo"]],
        "is not a file": [tmp_path / "nothing.json"],
    }
    for message, arguments in cases.items():
        process = compare(*arguments, "--json")
        assert process.returncode == 1 and process.stdout == ""
        assert message in process.stderr and "Traceback" not in process.stderr


def test_a_log_without_truth_ratios_is_compared_in_what_it_has(logs, tmp_path):
    log = make_log("npo")
    del log["rows"]["forget"]["truth_ratio"], log["summary"]["mia_min_k_auc"]
    write_json(log, tmp_path / "documents" / "evaluation.json")
    process = compare(tmp_path / "documents" / "evaluation.json", "--retain_logs", logs["retained"], "--json")
    output = json.loads(process.stdout)["documents"]
    assert output["forget_quality"] is None and "privleak" not in output["summary"]
    assert set(output["missing"]) == {"forget_quality", "privleak"}


def test_logs_of_different_evaluators_are_compared_with_a_warning(logs):
    write_json({**make_log("npo"), "conventions": {"compat": "open-unlearning"}}, logs["npo"])
    process = compare(logs["npo"], "--retain_logs", logs["retained"], "--json")
    assert json.loads(process.stdout)["npo"]["forget_quality"] == forget_quality(RATIOS["npo"], RATIOS["retained"])
    assert "different evaluators (npo: open-unlearning, Retained: trl-unlearn)" in process.stderr


def test_neither_torch_nor_transformers_is_imported(logs):
    code = (
        "import runpy, sys; sys.argv[0] = 'compare';"
        "runpy.run_module('trl_unlearn.scripts.compare', run_name='__main__');"
        "print([name for name in ('torch', 'transformers', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(logs["npo"]), "--retain_logs", str(logs["retained"])]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert output.splitlines()[-1] == "[]"


@needs_published_logs
def test_published_logs_give_every_published_component():
    directory = SHARED / "data" / "tofu_logs"
    oracle = json.loads(ORACLE.read_text(encoding="utf-8"))
    full, retain90 = MODEL.format("full"), MODEL.format("retain90")
    process = compare(
        directory / f"{full}.json",
        directory / f"{retain90}.json",
        "--retain_logs",
        directory / f"{retain90}.json",
        "--json",
    )
    assert process.returncode == 0, process.stderr
    output = json.loads(process.stdout)
    sets = {"forget": "eval_log_forget", "retain": "eval_log", "real_authors": "eval_real_author_wo_options",
            "world_facts": "eval_real_world_wo_options"}  # fmt: skip
    for model in (full, retain90):
        summary, published = output[model]["summary"], oracle["models"][model]
        for name, file in sets.items():
            component = published["components"][f"{file}.json"]
            keys = {
                "probability": "prob_mean" if name in ("forget", "retain") else "prob_normalised_mean",
                "rougeL_recall": "rougeL_recall_mean",
                "truth_ratio": "closer_to_1_geo" if name == "forget" else "true_better_geo",
            }
            for metric, key in keys.items():
                assert summary[f"{name}_{metric}"] == pytest.approx(component[key], abs=1e-12), (model, name, metric)
        # The two formulas that stand in TOFU's repository
        geometric, arithmetic = (
            published[f"{script}.get_model_utility"]["Model Utility"] for script in ("aggregate_eval_stat", "utils")
        )
        assert output[model]["model_utility"] == pytest.approx(geometric, abs=1e-12)
        assert output[model]["model_utility_arithmetic"] == pytest.approx(arithmetic, abs=1e-12)
    quality = output[full]["forget_quality"]
    expected = oracle["forget_quality"][f"{full} vs {retain90}"]
    assert quality["p_value"] == pytest.approx(1.834066410994743e-21, rel=1e-9)
    assert quality["p_value"] == pytest.approx(expected["open_unlearning_ks_test_pvalue_same_losses"], rel=1e-9)
    assert quality["log10_p_value"] == pytest.approx(expected["log10_p"])
    assert quality["statistic"] == pytest.approx(0.396667, abs=1e-6)
    assert (quality["n"], quality["n_retain"]) == (300, 300)
