"""
When to stop, and which checkpoint to keep, without a retained model: one run against a grid that has one.

    OMP_NUM_THREADS=1 python examples/studies/stopping.py --seeds 3 4 5 6 7 8 9 10 11 12 --grid_seeds 3 4 5 6 7 8

One run of SimNPO's recipe, and one with three times its forget weight, keep the checkpoint that `--eval_select unseen` chooses:
it sees the forget set, the retain set, and facts of people whom no model was trained on, but nothing of the retained model.
Against them stands a grid of learning rates, β and forget weights, of which every checkpoint is judged by the retained model.
Runs that are done are not run again.
"""

from argparse import ArgumentParser
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from common import be_quiet, interval_of_mean, once, score_of, trainer_of, write_results
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from trl_unlearn.evaluation.plots import COLORS, ORIGINAL, plt
from trl_unlearn.scripts.quickstart import EVALUATION, make_models, read_json
from trl_unlearn.world import generate_world, save_world


GRID = [
    {"learning_rate": rate, "beta": beta, "forget_weight": weight}
    for rate, beta, weight in product((3e-4, 1e-3, 3e-3), (1.0, 2.5, 5.0), (0.05, 0.1375, 0.4))
]
# The recipe's options, found on worlds 1 and 2 for the last checkpoint, and three times its forget weight
SINGLE = {
    "recipe": {"learning_rate": 1e-3, "beta": 2.5, "forget_weight": 0.1375},
    "stronger": {"learning_rate": 1e-3, "beta": 2.5, "forget_weight": 0.4},
}
NUM_HOLDOUT = 16  # people, twice as many as are forgotten
console = Console()


def slug_of(options: dict[str, float]) -> str:
    return "-".join(f"{value:g}" for value in options.values())


def unlearn(folder: Path, options: dict[str, float]) -> dict[str, Any]:
    """Every checkpoint of a run, with what it is selected by and how the retained model judges it."""
    started = process_time()
    trainer = trainer_of(
        "SimNPO",
        "world/llama-0.5m/simnpo.yaml",
        model_name_or_path=folder / "target",
        dataset_name=folder / "holdout",
        retain_logs=folder / "retained" / EVALUATION,
        output_dir=folder / "unlearned",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        save_total_limit=1,
        eval_select="unseen",
        **options,
    )
    trainer.train()
    checkpoints = read_json(folder / "unlearned" / "_evaluation" / "evaluations.json")
    retained = read_json(folder / "retained" / EVALUATION)["summary"]["forget_truth_ratio_probability"]
    for checkpoint in checkpoints:
        told_apart = checkpoint["forget_quality"]["p_value"] < 0.05
        checkpoint["score"] = score_of(checkpoint, checkpoints[0])
        checkpoint["over_forgotten"] = (
            told_apart and checkpoint["summary"]["forget_truth_ratio_probability"] < retained
        )
    return {
        "checkpoints": checkpoints,
        "selected_step": trainer.state.best_global_step,
        "seconds": process_time() - started,
    }


def selected(run: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint that is kept."""
    return next(one for one in run["checkpoints"] if one["step"] == run["selected_step"])


def best(run: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint that the retained model would choose."""
    return max(run["checkpoints"], key=lambda one: one["score"])


def told_of(of_seed: dict[str, dict], options: dict[str, float]) -> dict[str, float | bool]:
    """A single run by column: what it keeps and ends with, and the best of the grid, where there is one."""
    run, has_grid = of_seed[slug_of(options)], len(of_seed) == len(GRID)
    kept, last = selected(run), run["checkpoints"][-1]
    of_grid = max(best(one)["score"] for one in of_seed.values()) if has_grid else np.nan
    return {
        "kept": kept["score"],
        "D": kept["forget_quality"]["statistic"],
        "util.": kept["summary"]["model_utility"],
        "over-\nforg.": kept["over_forgotten"],
        "last": last["score"],
        "over-\nforg. ": last["over_forgotten"],
        "best,\nrun": best(run)["score"],
        "best,\ngrid": of_grid,
        "kept /\ngrid": kept["score"] / of_grid,
        "cost /\ngrid": run["seconds"] / sum(one["seconds"] for one in of_seed.values()) if has_grid else np.nan,
    }


def cell_of(values: tuple[float | bool, ...]) -> str:
    """What stands in a column: of one world, or of all with the 95 % interval of their mean."""
    if isinstance(values[0], bool):
        return f"{sum(values)} of {len(values)}"
    values = [value for value in values if not np.isnan(value)]
    if len(values) > 2:
        return f"{np.mean(values):.2f}\n±{interval_of_mean(values):.2f}"
    return f"{np.mean(values):.2f}" if values else ""


def table_of_seeds(runs: dict[int, dict[str, dict]]) -> Table:
    """What is told of each single run, per world and of all worlds."""
    table = Table(title="One run against the grid", box=None, title_justify="left", padding=(0, 1, 0, 0))
    for name, options in SINGLE.items():
        rows = [told_of(of_seed, options) for of_seed in runs.values()]
        if not table.columns:
            for heading in ("world", *rows[0]):
                table.add_column(heading, justify="right", no_wrap=True)
        table.add_row(name, style="bold")
        for seed, row in zip(runs, rows, strict=True):
            table.add_row(str(seed), *(cell_of((value,)) for value in row.values()))
        columns = zip(*(row.values() for row in rows), strict=True)
        table.add_row("all", *map(cell_of, columns))
    return table


def table_of_grid(runs: dict[int, dict[str, dict]]) -> Table:
    """Per point of the grid, mean over worlds: what is lost by keeping the last checkpoint, and by the selected one."""
    table = Table(title="Every run of the grid", box=None, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("rate", "β", "weight", "last\nscore", "over-\nforgotten", "kept\nscore", "over-\nforgotten",
                    "best\nof run"):  # fmt: skip
        table.add_column(heading, justify="right")
    grids = [of_seed for of_seed in runs.values() if len(of_seed) == len(GRID)]
    for options in GRID:
        of_options = [of_seed[slug_of(options)] for of_seed in grids]
        cells = [f"{value:g}" for value in options.values()]
        for choose in (lambda run: run["checkpoints"][-1], selected):
            chosen = [choose(run) for run in of_options]
            cells.append(f"{np.mean([one['score'] for one in chosen]):.2f}")
            cells.append(f"{sum(one['over_forgotten'] for one in chosen)} of {len(chosen)}")
        table.add_row(*cells, f"{np.mean([best(run)['score'] for run in of_options]):.2f}")
    return table


def draw(runs: dict[int, dict[str, dict]], path: Path) -> None:
    """Score along the stronger runs with what is kept, and for every run what is kept against its best."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(runs)))
    for (seed, of_seed), color in zip(runs.items(), colors, strict=True):
        run = of_seed[slug_of(SINGLE["stronger"])]
        epochs = [one["epoch"] for one in run["checkpoints"]]
        left.plot(epochs, [one["score"] for one in run["checkpoints"]], color=color, linewidth=1, alpha=0.8)
        left.plot(selected(run)["epoch"], selected(run)["score"], "o", color=color, label=f"world {seed}")
    left.set(
        xlabel="epochs",
        ylabel="score by the retained model",
        title="Stronger runs, and what is kept of them",
        ylim=(0, 1),
    )
    left.legend(ncols=2, fontsize=8, loc="lower right")
    everything = [run for of_seed in runs.values() for run in of_seed.values()]
    for choose, label, color in (
        (lambda run: run["checkpoints"][-1], "the last checkpoint", COLORS[1]),
        (selected, "the selected one", COLORS[0]),
    ):
        points = [(best(run)["score"], choose(run)["score"]) for run in everything]
        right.plot(
            *zip(*points, strict=True), linestyle="none", marker="o", markersize=4, alpha=0.6, color=color, label=label
        )
    right.plot((0, 1), (0, 1), color=ORIGINAL, linewidth=0.8)
    right.set(
        xlabel="score of the run's best checkpoint",
        ylabel="score of what is kept",
        title="Every run",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    right.legend(loc="upper left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = ArgumentParser(
        description="A checkpoint that is chosen without a retained model, against a grid with one."
    )
    parser.add_argument("--output_dir", default="outputs/studies/stopping")
    parser.add_argument("--worlds_dir", default="outputs/comparison", help="shared with comparison.py")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(3, 13)), help="of worlds with the recipe's run"
    )
    parser.add_argument(
        "--grid_seeds", type=int, nargs="*", default=list(range(3, 9)), help="of those with the whole grid"
    )
    options = parser.parse_args()
    if missing := set(options.grid_seeds) - set(options.seeds):
        parser.error(f"--grid_seeds has {sorted(missing)}, which --seeds has not.")
    be_quiet()
    start, directory = perf_counter(), Path(options.output_dir)
    folders = {seed: Path(options.worlds_dir) / f"world-{seed}" for seed in options.seeds}
    for seed, folder in folders.items():
        make_models(folder, seed, console)
        save_world(generate_world(seed, num_holdout=NUM_HOLDOUT), folder / "holdout")
    work = [(seed, one) for seed in options.seeds for one in (GRID if seed in options.grid_seeds else SINGLE.values())]
    runs: dict[int, dict[str, dict]] = {seed: {} for seed in options.seeds}
    for seed, one in tqdm(work, desc="Runs"):
        path = directory / "runs" / f"{seed}-{slug_of(one)}.json"
        runs[seed][slug_of(one)] = once(path, one, lambda s=seed, o=one: unlearn(folders[s], o))
    rows = [{"seed": seed, "runs": of_seed} for seed, of_seed in runs.items()]
    seconds = write_results(directory, options, start, rows)
    draw(runs, directory / "stopping.png")
    console.print(table_of_seeds(runs))
    if options.grid_seeds:
        console.print(table_of_grid(runs))
    console.print(
        "Score: harmonic mean of 1 − D and of the share of utility that is kept, by the retained model, which what is kept "
        "is not chosen by. Over-forgotten: D has p < 0.05, and the truth is less likely than to the retained model. "
        f"{seconds:.0f} s. Results and picture: {directory}"
    )


if __name__ == "__main__":
    main()
