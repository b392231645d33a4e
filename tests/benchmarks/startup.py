"""
Where the time goes from a command to its first training step.

    make quickstart    # once: makes the world that the recipe trains on
    python tests/benchmarks/startup.py

The recipe's own command is run, without the evaluation before training, and stopped after its first step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table


# What TRL's own trainer imports: the floor
SFT_TRAINER = """
import time, psutil, peft
from trl import SFTConfig, SFTTrainer
print(time.time() - psutil.Process().create_time())
"""
GOALS = {"imports": 5.0, "first step": 8.0}


def child(recipe: str) -> None:
    """Prints, as JSON, the seconds since this process began at which each part was done."""
    started = psutil.Process().create_time()
    marks = {}

    def mark(name: str) -> None:
        marks[name] = time.time() - started

    import trl_unlearn
    from trl_unlearn.scripts import unlearn

    trainer_class, _ = trl_unlearn.NPOTrainer, trl_unlearn.NPOConfig
    mark("imports")

    class Timed(trainer_class):
        def __init__(self, *args, **kwargs):
            mark("recipe and data")
            super().__init__(*args, **kwargs)
            mark("model, tokens, reference")

        def training_step(self, *args, **kwargs):
            super().training_step(*args, **kwargs)
            mark("first step")
            sys.stdout.write(f"\n{json.dumps(marks)}\n")
            sys.stdout.flush()
            os._exit(0)

    trl_unlearn.NPOTrainer = Timed
    sys.argv = ["npo", "--config", recipe, "--eval_benchmark", "none", "--disable_tqdm", "true"]
    with tempfile.TemporaryDirectory() as output_dir:
        sys.argv += ["--output_dir", output_dir]
        unlearn.main("NPO")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="recipes/world/llama-0.5m/npo.yaml")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.recipe)
        return
    if not Path("outputs/quickstart/world-0/target").is_dir():
        sys.exit("Run `make quickstart` once, here: it makes the model and the world that the recipe trains on.")
    runs = []
    for number in range(arguments.runs + 1):
        command = [sys.executable, str(Path(__file__)), "--child", "--recipe", arguments.recipe]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode != 0:
            sys.exit(process.stderr[-4000:])
        if number > 0:  # the first one fills the caches
            floor = subprocess.run([sys.executable, "-c", SFT_TRAINER], capture_output=True, text=True, check=True)
            marks = json.loads(process.stdout.split("\n")[-2])
            runs.append({"TRL's SFTTrainer alone, imports": float(floor.stdout.split()[-1]), **marks})
    table = Table("Done", "Seconds since the command", "Goal", title=f"{arguments.recipe}, median of {len(runs)}")
    for name in runs[0]:
        seconds = [run[name] for run in runs]
        table.add_row(
            name,
            f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
            f"{GOALS[name]:.1f}" if name in GOALS else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
