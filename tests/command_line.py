"""Training commands as the tests give them, in this process or launched on several, and whether they did the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

import trl_unlearn
from trl_unlearn.scripts import unlearn


REPOSITORY = Path(trl_unlearn.__file__).parents[1]
OPTIONS = {
    "forget_config": "forget",
    "retain_config": "retain",
    "dtype": "float32",
    "beta": 0.3,
    "learning_rate": 5e-3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
    "retain_normalization": "optimizer_batch",
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
LORA = {
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj", "down_proj"],
}
METRICS = ("loss", "grad_norm", "forget_loss", "logps/forget", "logps/retain")


def flags_of(output_dir, **options) -> list[str]:
    """The command line of options, with those that all tests share."""
    flags = []
    for name, value in {**OPTIONS, "output_dir": output_dir, **options}.items():
        flags += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return flags


def train(method, output_dir, **options):
    """Runs a training command in this process; returns what it logged, which is nothing in a dry run."""
    command, argv, end = f"trl_unlearn.scripts.{method.lower()}", sys.argv, unlearn.end
    sys.argv = [command, *flags_of(output_dir, **options)]
    unlearn.end = lambda trainer: trainer.accelerator.end_training()
    try:
        unlearn.main(method)
    finally:
        sys.argv, unlearn.end = argv, end
    return [] if options.get("dry_run") else logs_of(output_dir)


def launch(strategy, *command, processes=2, on_accelerator=False, check=True):
    """Runs a command under `accelerate launch` with one of the shipped configurations, on CPU processes."""
    config = REPOSITORY / "recipes" / "accelerate" / f"{strategy}.yaml"
    parts = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", processes]
    parts += ["--main_process_port", 0, *command]
    environment = dict(os.environ)
    if on_accelerator:  # else accelerate would shard nothing
        del environment["ACCELERATE_USE_CPU"]
        environment |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    process = subprocess.run(
        [sys.executable, *map(str, parts)], capture_output=True, text=True, timeout=900, env=environment
    )
    assert not check or process.returncode == 0, process.stderr[-9000:]
    return process


def logs_of(output_dir) -> list[dict]:
    return json.loads(Path(output_dir, "trainer_state.json").read_text())["log_history"]


def weights_of(directory) -> dict:
    (file,) = Path(directory).glob("*.safetensors")
    return load_file(file)


def trajectory(logs, metric) -> list[float]:
    return [entry[metric] for entry in logs if metric in entry]


def differences(found, expected) -> np.ndarray:
    """Differences of two series, in units of the second one's mean size."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert found.shape == expected.shape, f"{len(found)} values instead of {len(expected)}"
    return (found - expected) / max(np.abs(expected).mean(), 1e-12)


def assert_same_series(found, expected, largest: float, drift: float, name: str = "") -> None:
    """
    Fails if two series differ by more than rounding does.

    Rounding errs to both sides. So no value may be further off than `largest`, and the mean of all differences, signs
    kept, not further than `drift`, which is smaller: a change that always points to one side fails though each of its
    steps would pass.
    """
    errors = differences(found, expected)
    assert np.abs(errors).max() <= largest, f"{name}: off by up to {np.abs(errors).max():.1e}"
    assert abs(errors.mean()) <= drift, f"{name}: drifts to one side, by {errors.mean():.1e} on average"


def assert_same_logs(found, expected, metrics=METRICS, largest=2e-5, drift=4e-6) -> None:
    for metric in metrics:
        assert_same_series(trajectory(found, metric), trajectory(expected, metric), largest, drift, metric)
