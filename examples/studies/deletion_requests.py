"""
Ten deletion requests, one after another: an adapter for each, against one that is trained on; with and without
rows of earlier requests among those of a later one.

    OMP_NUM_THREADS=1 python examples/studies/deletion_requests.py

The people of the embedded world ask to be forgotten, one to three at a time, and are unlearned with SimNPO and LoRA,
by the training command and into a ledger. After each request all earlier ones are measured again, and the utility on
people who never ask. At the end request 3 is undone. A command that was stopped goes on where it was.
"""

import random
import shutil
import time
from argparse import ArgumentParser, Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import datasets
import matplotlib.pyplot as plt
import numpy as np
import transformers
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from trl import ModelConfig

from trl_unlearn import SimNPOConfig, SimNPOTrainer, load_ledger, load_unlearned
from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.evaluation.benchmarks import evaluate_as_asked
from trl_unlearn.files import write_json
from trl_unlearn.ledger.ledger import Ledger
from trl_unlearn.ledger.training import measure_requests, train_request
from trl_unlearn.recipes import recipe_path
from trl_unlearn.scripts.jobs import Training, train_models
from trl_unlearn.scripts.parsing import RecipeParser
from trl_unlearn.scripts.unlearn import UnlearningScriptArguments
from trl_unlearn.world import generate_world, save_world


MODES = {
    "own": "Own adapters",
    "own-rehearsed": "Own adapters, with rehearsal",
    "continued": "One adapter, continued",
    "continued-rehearsed": "One adapter, continued, with rehearsal",
}
SIZES = (1, 2, 1, 3, 1, 2, 1, 1, 2, 1)  # people a request
NUM_KEPT = 96  # facts of people who never ask, which utility is measured on
UNDONE = 3
console = Console()


def make_world(directory: Path, seed: int, num_requests: int) -> None:
    """
    The rows of each request, to train on and to evaluate on, and two models: one knows all people, one those who never
    ask.
    """
    world = generate_world(seed, max_retain_perturbed=None)
    rng = random.Random(seed)
    sizes = SIZES[:num_requests]
    people = rng.sample(sorted({row["person"] for row in world["retain"]}), sum(sizes))
    data = {
        "full": world["full"],
        "retained_model": [row for row in world["full"] if row["person"] not in people],
        "kept": rng.sample([row for row in world["retain_perturbed"] if row["person"] not in people], NUM_KEPT),
    }
    for number, size in enumerate(sizes, start=1):
        asking, people = people[:size], people[size:]
        data[f"forget_{number}"] = [row for row in world["full"] if row["person"] in asking]
        data[f"perturbed_{number}"] = [row for row in world["retain_perturbed"] if row["person"] in asking]
    save_world(data, directory / "data")
    models = (("target", "full"), ("retained", "retained_model"))
    flags = (f"--seed={seed}",)
    train_models([Training(directory / "data", config, directory / name, flags) for name, config in models], console)


def request(directory: Path, mode: str, number: int, options: Namespace) -> None:
    """Trains a request as `accelerate launch -m trl_unlearn.scripts.simnpo` does, with these flags."""
    data = directory / "data"
    flags = {
        "config": recipe_path("world/llama-0.5m/simnpo_lora.yaml"),
        "model_name_or_path": directory / "target",
        "dataset_name": data,
        "forget_config": f"forget_{number}",
        "retain_config": "full",  # from which the ledger leaves out what this and earlier requests are about
        "eval_benchmark": "custom",
        "eval_forget_data": f"{data}:perturbed_{number}",
        "eval_retain_data": f"{data}:kept",
        "eval_truth_ratio_question": "paraphrased_question",
        "eval_max_new_tokens": 32,
        "eval_strategy": "no",
        "retain_logs": "none",
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.num_train_epochs,
        "per_device_train_batch_size": 8,
        "seed": options.seed,
        "disable_tqdm": "true",
        "ledger": directory / mode,
        "request": f"request {number}",
        "ledger_mode": mode.removesuffix("-rehearsed"),
    }
    if mode.endswith("-rehearsed"):
        flags |= {"ledger_rehearsal": options.ledger_rehearsal, "forget_floor": options.forget_floor}
    parser = RecipeParser((UnlearningScriptArguments, SimNPOConfig, ModelConfig))
    parsed = parser.parse([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    train_request(SimNPOTrainer, *parsed)


def evaluate(model, tokenizer, directory: Path) -> float:
    """Utility on people who never ask."""
    data = directory / "data"
    arguments = EvaluationArguments(
        eval_forget_data=f"{data}:perturbed_1",
        eval_retain_data=f"{data}:kept",
        eval_truth_ratio_question="paraphrased_question",
        eval_max_new_tokens=32,
    )
    return evaluate_as_asked(model, tokenizer, arguments, show_progress=False)["summary"]["model_utility"]


def probabilities(model, tokenizer, ledger: Ledger) -> list[float]:
    """What a model gives to the answers of each request."""
    measured = measure_requests(model, tokenizer, ledger.requests, show_progress=False)
    return [measured[request.number]["forget_probability"] for request in ledger.requests]


def undo(directory: Path, mode: str) -> dict[str, Any] | str:
    """What undoing a request gives, in a copy of the ledger; or why it cannot be undone."""
    copy = directory / f"{mode}-undone"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory / mode, copy)
    ledger = Ledger.read(copy)
    try:
        ledger.undo(UNDONE)
    except ValueError as error:
        return str(error).replace(str(copy), str(directory / mode))
    model = load_ledger(copy)
    return {"probabilities": probabilities(*model, ledger), "utility": evaluate(*model, directory)}


def results_of(directory: Path, modes: list[str]) -> dict[str, Any]:
    """By mode, the forget probability of every request after every request, from the ledgers."""
    ledgers = {mode: Ledger.read(directory / mode) for mode in modes}
    retained = load_unlearned(str(directory / "retained"))
    first = next(iter(ledgers.values()))
    results: dict[str, Any] = {
        "retained": {"probabilities": probabilities(*retained, first), "utility": evaluate(*retained, directory)}
    }
    for mode, ledger in ledgers.items():
        # Row: request. Column: number of requests applied. Nothing is measured before a request's own turn
        paths = np.full((len(ledger.requests), len(ledger.requests) + 1), np.nan)
        for request in ledger.requests:
            row, path = request.number - 1, request.results
            paths[row, row] = path["before"]["forget_probability"]
            paths[row, row + 1] = path["after"]["forget_probability"]
            for number, summary in path["later"].items():
                paths[row, int(number)] = summary["forget_probability"]
        utility = [first.requests[0].results["before"], *(request.results["after"] for request in ledger.requests)]
        results[mode] = {
            "probabilities": [[None if np.isnan(value) else float(value) for value in row] for row in paths],
            "utility": [summary["model_utility"] for summary in utility],
            "num_rows": [len(request.rows) for request in ledger.requests],
            "undone": undo(directory, mode) if len(ledger.requests) >= UNDONE else None,
        }
    return results


def table_of(results: dict[str, Any], mode: str) -> Table:
    """The forget probability of each request at several moments, and after each the earlier ones and utility."""
    table = Table(title=MODES[mode], box=None, title_justify="left", padding=(0, 1, 0, 0))
    headings = ("Request", "rows", "before", "after", "end", f"{UNDONE}\nundone", "retained")
    for heading in (*headings, "earlier\nmean", "earlier\nhighest", "utility"):
        table.add_column(heading, justify="right")
    result = results[mode]
    undone = result["undone"] if isinstance(result["undone"], dict) else None
    for number, row in enumerate(result["probabilities"], start=1):
        earlier = [other[number] for other in result["probabilities"][: number - 1]]
        cells = (
            row[number - 1],
            row[number],
            row[-1],
            undone and undone["probabilities"][number - 1],
            results["retained"]["probabilities"][number - 1],
            np.mean(earlier) if earlier else None,
            max(earlier, default=None),
            result["utility"][number],
        )
        table.add_row(str(number), str(result["num_rows"][number - 1]), *map(shown, cells))
    return table


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def draw(results: dict[str, Any], modes: list[str], path: Path) -> None:
    """The course of every request, and of utility, for each mode."""
    num_columns = min(2, len(modes))
    num_rows = -(-len(modes) // num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=(6 * num_columns, 4.8 * num_rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(modes) :]:
        axis.remove()
    for axis, mode in zip(axes.flat, modes, strict=False):
        result = results[mode]
        num_requests = len(result["probabilities"])
        colors = plt.get_cmap("viridis")(np.linspace(0, 0.92, num_requests))
        undone = result["undone"] if isinstance(result["undone"], dict) else None
        for row, color in zip(range(num_requests), colors, strict=True):
            values = [np.nan if value is None else value for value in result["probabilities"][row]]
            axis.plot(values, color=color, marker="o", markersize=3, linewidth=1.2)
            axis.annotate(
                str(row + 1), (row, values[row]), xytext=(0, 4), textcoords="offset points", ha="center", color=color
            )
            if undone:
                last = (num_requests, num_requests + 1)
                axis.plot(last, (values[-1], undone["probabilities"][row]), ":", color=color, marker="o", markersize=3)
        axis.plot(result["utility"], color="black", linewidth=2, label="utility")
        if undone:
            axis.plot(last, (result["utility"][-1], undone["utility"]), ":", color="black", linewidth=2)
        axis.axhline(
            np.mean(results["retained"]["probabilities"]),
            color="#777777",
            linestyle="--",
            label="forget probability, retained model",
        )
        ticks = [*range(num_requests + 1)]
        axis.set_xticks(
            [*ticks, num_requests + 1] if undone else ticks,
            [*map(str, ticks), f"{UNDONE}\nundone"] if undone else None,
        )
        axis.set_title(MODES[mode])
        axis.set_xlabel("requests applied")
    figure.supylabel("forget probability (each request), utility")
    axes[0, 0].set_ylim(0, 1.06)
    axes[0, 0].legend(loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = ArgumentParser(
        description="Deletion requests one after another: an adapter for each, against a continued one."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/studies/deletion_requests"))
    parser.add_argument("--seed", type=int, default=0, help="Seed of the world, its models and the training.")
    parser.add_argument(
        "--num_requests", type=int, default=len(SIZES), choices=range(1, len(SIZES) + 1), metavar="1..10"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--num_train_epochs", type=float, default=10)
    parser.add_argument("--ledger_rehearsal", type=float, default=1.0, help="Of the modes with rehearsal.")
    parser.add_argument("--forget_floor", type=float, default=0.3, help="Of the modes with rehearsal.")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    started = time.time()

    directory = options.output_dir / f"seed-{options.seed}-{options.num_requests}"
    make_world(directory, options.seed, options.num_requests)
    work = [(mode, number) for mode in options.modes for number in range(1, options.num_requests + 1)]
    bar = tqdm(work, desc="Requests")
    with (directory / "training.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        for mode, number in bar:
            if number >= Ledger.read(directory / mode, new=True).next_number:
                request(directory, mode, number, options)
        results = results_of(directory, options.modes)
    for mode in options.modes:
        console.print(table_of(results, mode))
        undone = results[mode]["undone"]
        if isinstance(undone, dict):
            console.print(f"Utility with request {UNDONE} undone: {undone['utility']:.2f}.")
        elif undone is not None:
            console.print(undone)
    console.print(
        f"Utility of the retained model {results['retained']['utility']:.2f}. Seed {options.seed}; "
        f"{time.time() - started:.0f} s."
    )
    write_json(results, options.output_dir / "results.json")
    draw(results, options.modes, options.output_dir / "requests.png")


if __name__ == "__main__":
    main()
