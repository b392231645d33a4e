"""Runs that must be the same are: any split of a batch into micro-batches and processes, and a run killed and resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


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


def run(method, model_dir, data, output_dir, processes=1, lora=False, kill_at=None, check=True, **options):
    """Trains in new processes; returns what they logged."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += [
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
        ]
    command += [str(Path(__file__).with_name("run_trainer.py")), "--method", method, "--model", model_dir]
    command += ["--data", str(data), "--options", json.dumps({**OPTIONS, "output_dir": str(output_dir), **options})]
    command += ["--expect_processes", str(processes), *(["--lora"] if lora else [])]
    command += ["--kill_at", str(kill_at)] if kill_at else []
    process = subprocess.run(
        command, env={**os.environ, "ACCELERATE_USE_CPU": "1"}, capture_output=True, text=True, timeout=300
    )
    if check:
        assert process.returncode == 0, process.stderr[-9000:]
        return json.loads((output_dir / "result.json").read_text())
    return process


def trajectory(result, name):
    return [entry[name] for entry in result["logs"] if name in entry]


def weights(directory):
    return {
        name: tensor
        for file in sorted(Path(directory).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(
    ("method", "lora", "options"),
    [
        pytest.param("NPO", False, {}, id="npo", marks=pytest.mark.slow),
        pytest.param("SimNPO", False, {}, id="simnpo", marks=pytest.mark.slow),
        pytest.param("AltPO", False, {}, id="altpo"),
        pytest.param(
            "NPO", False, {"retain_loss_type": "kl", "precompute_ref_log_probs": False}, id="npo-kl-resident"
        ),
        pytest.param("AltPO", True, {"retain_loss_type": "kl"}, id="altpo-kl-lora", marks=pytest.mark.slow),
    ],
)
def test_accumulation_and_processes_give_the_same_trajectory(method, lora, options, model_dir, data, tmp_path):
    """8 x 1, 1 x 8 accumulated, and 2 processes x 4: equal losses, gradients and weights."""
    splits = {
        "8x1": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        "1x8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        "2 processes": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "processes": 2},
    }
    if method == "AltPO":
        splits = {name: {**split, "num_train_epochs": 1} for name, split in splits.items()}
    results = {
        name: run(
            method,
            model_dir,
            data,
            tmp_path / name,
            lora=lora,
            retain_normalization="optimizer_batch",
            **options,
            **split,
        )
        for name, split in splits.items()
    }
    reference = results.pop("8x1")
    assert trajectory(reference, "forget_loss")[0] != pytest.approx(trajectory(reference, "forget_loss")[-1], rel=1e-2)
    for name, result in results.items():
        for metric in ("forget_loss", "logps/forget", "logps/retain", "loss", "grad_norm", "num_tokens"):
            tolerance = 0.15 if metric == "num_tokens" else 1e-4  # micro-batches are padded to other lengths
            assert trajectory(result, metric) == pytest.approx(trajectory(reference, metric), rel=tolerance), metric
        for key, tensor in weights(tmp_path / "8x1").items():
            torch.testing.assert_close(
                weights(tmp_path / name)[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}"
            )
        for role, logps in reference["ref_logps"].items():
            assert result["ref_logps"][role] == pytest.approx(logps, rel=1e-5)


def test_micro_batch_normalization_depends_on_the_split(model_dir, data, tmp_path):
    """The papers' convention, so that the test above is known to be able to fail."""
    splits = {"8x1": (8, 1), "1x8": (1, 8)}
    results = [
        run(
            "SimNPO",
            model_dir,
            data,
            tmp_path / name,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps,
            max_steps=1,
        )  # fmt: skip
        for name, (rows, steps) in splits.items()
    ]
    first, second = (result["logs"][0] for result in results)
    assert first["forget_loss"] == pytest.approx(second["forget_loss"], rel=1e-5)
    assert first["retain_loss"] != pytest.approx(second["retain_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("method", "lora"),
    [
        pytest.param("NPO", False, id="NPO-full", marks=pytest.mark.slow),
        pytest.param("NPO", True, id="NPO-lora"),
        pytest.param("AltPO", False, id="AltPO-full"),
        pytest.param("AltPO", True, id="AltPO-lora", marks=pytest.mark.slow),
    ],
)
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
        assert trajectory(result, metric) == trajectory(expected, metric), metric
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
