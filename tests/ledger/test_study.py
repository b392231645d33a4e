"""The study of ten requests, with fewer of them and untrained models in place of those that it would train."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trl_unlearn


STUDY = Path(trl_unlearn.__file__).parents[1] / "examples" / "studies" / "deletion_requests.py"


@pytest.mark.slow
def test_study(model_dir, tmp_path):
    for name in ("target", "retained"):
        shutil.copytree(model_dir, tmp_path / "seed-0-3" / name)
    command = [
        sys.executable,
        str(STUDY),
        "--num_requests",
        "3",
        "--num_train_epochs",
        "1",
        "--forget_floor",
        "1e-9",
        "--output_dir",
        str(tmp_path),
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    ledger = json.loads((tmp_path / "seed-0-3" / "own" / "unlearn_ledger.json").read_text())
    assert [len(request["rows"]) for request in ledger["requests"]] == [24, 48, 24] == results["own"]["num_rows"]
    for row, request in enumerate(ledger["requests"]):
        path = results["own"]["probabilities"][row]
        assert path[:row] == [None] * row
        assert path[row + 1] == request["results"]["after"]["forget_probability"]
        assert path[-1] == (request["results"]["later"].get("3") or request["results"]["after"])["forget_probability"]
    # the first request has none before it, and nothing is below the floor
    assert results["own-rehearsed"]["probabilities"][0][1] == results["own"]["probabilities"][0][1]
    assert results["own-rehearsed"]["probabilities"][0][3] != results["own"]["probabilities"][0][3]
    log = (tmp_path / "seed-0-3" / "training.log").read_text()
    for drawn in ("24 of 24", "24 of 72"):
        assert log.count(f"Trained again with this request: {drawn} rows") == 2
    # without the last request, what there was before it
    before = [row[2] for row in results["own"]["probabilities"][:2]]
    assert results["own"]["undone"]["probabilities"][:2] == pytest.approx(before, rel=1e-4)
    third = results["own"]["probabilities"][2][2]
    assert results["own"]["undone"]["probabilities"][2] == pytest.approx(third, rel=1e-4)
    assert results["own"]["undone"]["utility"] == pytest.approx(results["own"]["utility"][2], rel=1e-4)
    assert results["continued"]["undone"]["utility"] == pytest.approx(results["continued"]["utility"][2], rel=1e-4)
    assert (tmp_path / "requests.png").stat().st_size > 10_000
    assert "Utility of the retained model" in process.stdout
