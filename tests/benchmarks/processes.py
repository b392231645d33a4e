"""
How the time of a step falls with processes, each on one core of this machine.

    python tests/benchmarks/processes.py --processes 1 2

The same rows a step, divided between the processes of an `accelerate launch`; NPO with its retain loss, on a Llama with new
weights. The losses must agree. On the clock, so that nothing else may run on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from training import Case, make_model, make_rows, make_tokenizer


STEPS = 24
ROWS = 8  # of each kind, a step
MAX_LOSS_DIFFERENCE = 1e-4


def run(directory: Path, processes: int, number: int) -> tuple[float, list[float]]:
    """Seconds a step, and the losses."""
    output_dir = directory / f"run-{processes}-{number}"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", "1", "-m", "trl_unlearn.scripts.npo"]
    options = {
        "model_name_or_path": directory / "model",
        "dataset_name": directory / "forget.jsonl",
        "retain_dataset_name": directory / "retain.jsonl",
        "output_dir": output_dir,
        "per_device_train_batch_size": ROWS // processes,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "warmup_epochs": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if process.returncode != 0:
        sys.exit(process.stderr[-4000:])
    results = json.loads((output_dir / "unlearn_results.json").read_text())
    return results["run"]["seconds"] / STEPS, [entry["loss"] for entry in results["history"] if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    case = Case(rows=ROWS)
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        torch.manual_seed(0)
        make_model(case, torch.device("cpu")).save_pretrained(directory / "model")
        make_tokenizer(case.vocabulary).save_pretrained(directory / "model")
        for seed, name in enumerate(("forget", "retain")):
            rows = [row for part in range(STEPS) for row in make_rows(case, seed + 2 * part)]
            Dataset.from_list(rows).remove_columns("alternate").to_json(directory / f"{name}.jsonl")
        seconds: dict[int, list[float]] = {processes: [] for processes in arguments.processes}
        losses: list[list[float]] = []
        for number in tqdm(range(arguments.rounds), desc="Rounds"):
            for processes in arguments.processes:
                of_run, its_losses = run(directory, processes, number)
                seconds[processes].append(of_run)
                losses.append(its_losses)
    difference = max(abs(a - b) / abs(b) for each in losses for a, b in zip(each, losses[0], strict=True))
    if difference > MAX_LOSS_DIFFERENCE:
        sys.exit(f"Not the same work: the losses differ by {difference:.1e}, relatively.")
    table = Table("Processes", "Seconds a step", "Over the first line", title=f"{2 * ROWS} rows a step, median")
    for processes, of_runs in seconds.items():
        ratios = [a / b for a, b in zip(of_runs, seconds[arguments.processes[0]], strict=True)]
        table.add_row(
            f"{processes}",
            f"{statistics.median(of_runs):.3f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
