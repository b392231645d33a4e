"""The study of relearning after plain and sharpness-aware forgetting, by its command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "examples" / "studies" / "hardening.py"


def harden(*options):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, options)], capture_output=True, text=True, timeout=1800
    )


@pytest.mark.slow  # it trains a world's two models, and unlearns four times
def test_plain_and_sharp_runs_are_compared_world_by_world(tmp_path):
    process = harden("--output_dir", tmp_path, "--seeds", 0)
    assert process.returncode == 0, process.stderr[-4000:]
    world = tmp_path / "world-0"
    markdown = (tmp_path / "hardening" / "runs.md").read_text(encoding="utf-8")
    for name, slug, sharpness in (("NPO", "npo", 0.08), ("SimNPO", "simnpo", 0.01)):
        plain, sharp = (
            json.loads((world / folder / "run.json").read_text())
            for folder in (f"runs/{slug}", f"hardening/{slug}-{sharpness}")
        )
        assert (plain["changes"], sharp["changes"]) == ({}, {"forget_sharpness": sharpness})
        assert sharp["trajectory"][0] == plain["trajectory"][0]  # the same target
        assert sharp["summary"]["forget_probability"] < 0.6 < sharp["trajectory"][0]["summary"]["forget_probability"]
        assert sharp["summary"] != plain["summary"]
        brought_back = [run["relearned"]["forget_probability"] for run in (plain, sharp)]
        (_, row) = (line for line in markdown.splitlines() if line.startswith(f"| {name}, plain − sharp | 1 |"))
        assert f"| 1 | {brought_back[0] - brought_back[1]:z.2f} |" in row
    assert (tmp_path / "hardening" / "pairs.png").stat().st_size > 10_000
