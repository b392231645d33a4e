"""The comparison of methods, by its command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "examples" / "studies" / "comparison.py"


def compare(*options):
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


@pytest.mark.slow  # it trains a world's two models
def test_methods_are_compared_and_a_second_command_adds_to_the_first(tmp_path):
    options = ("--output_dir", tmp_path, "--seeds", 0, "--methods")
    compare(*options, "GradDiff")
    first = tmp_path / "world-0" / "runs" / "graddiff" / "run.json"
    written = first.stat().st_mtime_ns
    table = compare(*options, "GradDiff", "SimNPO, LoRA")
    assert first.stat().st_mtime_ns == written
    assert "GradDiff" in table and "SimNPO, LoRA" in table
    markdown = (tmp_path / "runs.md").read_text(encoding="utf-8")
    for name in ("graddiff", "simnpo-lora"):
        run = json.loads((tmp_path / "world-0" / "runs" / name / "run.json").read_text(encoding="utf-8"))
        assert f"| {run['method']} | 1 |" in markdown
        before, after = run["trajectory"][0]["summary"], run["summary"]
        assert after["forget_probability"] < 0.6 < before["forget_probability"]
        mixed = run["at_retention"]
        assert mixed["retention"] >= 0.95 and 0 < mixed["alpha"] <= 1
        assert mixed["forget_probability"] >= after["forget_probability"] - 0.05
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_an_unknown_method_is_an_error_before_any_work(tmp_path):
    process = subprocess.run(
        [sys.executable, str(SCRIPT), "--output_dir", str(tmp_path / "out"), "--methods", "DPO"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2 and "invalid choice: 'DPO'" in process.stderr
    assert not (tmp_path / "out").exists()
