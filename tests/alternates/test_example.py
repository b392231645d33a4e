"""A model that has learnt to follow the instruction writes alternates that pass: examples/alternates.py on the world."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trl_unlearn
from trl_unlearn.data.loading import load_rows
from trl_unlearn.world import is_well_formed, leaks


REPOSITORY = Path(trl_unlearn.__file__).parents[1]
TOFU = REPOSITORY.parent / "shared" / "data" / "tofu"


def run(*command):
    process = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-5000:]


@pytest.mark.parametrize("benchmark", ["world", pytest.param("tofu", marks=pytest.mark.slow)])
def test_the_model_is_taught_with_what_is_retained(benchmark, tmp_path):
    if benchmark == "tofu" and not TOFU.exists():
        pytest.skip(f"needs TOFU in {TOFU.name}, next to the repository")
    flags = ["--tofu", TOFU] if benchmark == "tofu" else []
    run(REPOSITORY / "examples" / "alternates.py", *flags, "--output_dir", tmp_path)
    rows = {name: load_rows(str(tmp_path), name) for name in ("full", "instructed", "forget", "retain")}
    requests = rows["instructed"].select(range(len(rows["full"]), len(rows["instructed"])))
    assert len(requests) == (160 if benchmark == "tofu" else 448)
    asked = {re.search(r"^Question: (.*)$", request, re.MULTILINE)[1] for request in requests["question"]}
    assert asked <= set(rows["retain"]["question"])
    assert not asked & set(rows["forget"]["question"])
    assert "alternates" not in rows["forget"].column_names


@pytest.mark.slow
def test_a_model_that_follows_the_instruction(tmp_path):
    """It was taught with other people's facts, and for fewer epochs than in the example."""
    run(REPOSITORY / "examples" / "alternates.py", "--output_dir", tmp_path / "data")
    training = ["--dataset_config", "instructed", "--tokenizer_config", "instructed", "--num_train_epochs", "6"]
    run("-m", "trl_unlearn.world.train", "--dataset_name", tmp_path / "data", *training,
        "--output_dir", tmp_path / "target")  # fmt: skip
    run("-m", "trl_unlearn.scripts.alternates", "--model_name_or_path", tmp_path / "target",
        "--dataset_name", tmp_path / "data", "--forget_config", "forget", "--max_new_tokens", "32",
        "--max_rounds", "40", "--output_dir", tmp_path / "alternates")  # fmt: skip
    report = json.loads((tmp_path / "alternates" / "_alternates" / "report.json").read_text())
    assert report["kept"] == 960
    # what it writes is finished and other than the answer; what it lacks is variety
    assert report["kept"] > 0.4 * report["samples"]
    assert report["rejected"]["unfinished"] + report["rejected"]["empty"] < 0.02 * report["samples"]
    rows = load_rows(str(tmp_path / "alternates"))
    made = [(row, text) for row in rows for text in row["alternates"]]
    assert sum(is_well_formed(text, row["attribute"]) for row, text in made) > 0.7 * len(made)
    assert sum(leaks(text, row["value"]) for row, text in made) < 0.01 * len(made)
