"""A run that is killed in the middle of an epoch and resumed ends with the same bits."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import trajectory, weights_of


OPTIONS = {
    "beta": 0.3,
    "learning_rate": 5e-3,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def data(forget_rows, retain_rows, tmp_path_factory) -> Path:
    """16 forget rows and 30 retain rows of different lengths."""
    directory = tmp_path_factory.mktemp("data")
    forget = [*forget_rows, *forget_rows.select(range(4))]
    (directory / "forget.json").write_text(json.dumps(forget))
    (directory / "retain.json").write_text(json.dumps(list(retain_rows)))
    return directory


def run(method, model_dir, data, output_dir, lora=False, kill_at=None, check=True, **options):
    """Trains in a new process; returns what it logged."""
    command = [sys.executable, str(Path(__file__).with_name("run_trainer.py")), "--method", method]
    command += ["--model", model_dir, "--data", str(data)]
    command += ["--options", json.dumps({**OPTIONS, "output_dir": str(output_dir), **options})]
    command += [*(["--lora"] if lora else []), *(["--kill_at", str(kill_at)] if kill_at else [])]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if check:
        assert process.returncode == 0, process.stderr[-9000:]
        return json.loads((output_dir / "result.json").read_text())
    return process


@pytest.mark.slow  # `test_trajectories.py` resumes one that was not killed
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["NPO", "AltPO"])
def test_killed_and_resumed_ends_with_the_same_weights(method, lora, model_dir, data, tmp_path):
    options = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 1,
        "lora": lora,
        "save_strategy": "steps",
        "save_steps": 2,
        "num_train_epochs": 2 if method == "NPO" else 1,
    }
    expected = run(method, model_dir, data, tmp_path / "whole", **options)
    killed = run(method, model_dir, data, tmp_path / "killed", kill_at=9, check=False, **options)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.json").exists()
    assert (tmp_path / "killed" / "checkpoint-8").exists()
    result = run(
        method,
        model_dir,
        data,
        tmp_path / "killed",
        resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-8"),
        **options,
    )
    for metric in ("loss", "forget_loss", "num_tokens"):
        assert trajectory(result["logs"], metric) == trajectory(expected["logs"], metric), metric
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
