"""
How much can be forgotten: from one person to half of the embedded world.

    OMP_NUM_THREADS=1 python examples/studies/sizes.py

Of one world of 64 people, the first 1, 3, 6, 16 and 32 of the same 32 are forgotten. So the target, which knows everyone, is
trained once, and what is asked of the people that are kept in every case is the same; each size has its own retained model.
All methods run by the world's recipes, whose values were chosen for 8 people: ten passes over what is to be forgotten
(AltPO: three over five alternates), so that more steps are made where there is more to forget.
"""

from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from common import be_quiet, once, trainer_of, write_results
from rich.console import Console
from rich.table import Table
from scipy.stats import ks_2samp
from tqdm import tqdm

from trl_unlearn.evaluation.plots import COLORS, MARKERS, RETAINED, plt
from trl_unlearn.scripts.jobs import Training, train_models
from trl_unlearn.scripts.quickstart import EVALUATION, read_json
from trl_unlearn.world import generate_world, save_world


METHODS = {
    "GA": ("NPO", "grad_ascent"),
    "GradDiff": ("NPO", "grad_diff"),
    "NPO": ("NPO", "npo"),
    "SimNPO": ("SimNPO", "simnpo"),
    "AltPO": ("AltPO", "altpo"),
}
# In the table, by where it stands in a run's results
COLUMNS = {
    "D ↓": ("forget_quality", "statistic", 2),
    "log10 p ↑": ("forget_quality", "log10_p_value", 1),
    "Utility ↑": ("summary", "model_utility", 2),
    "Prob. →": ("summary", "forget_probability", 2),
    "Leaked →": ("summary", "leaked", 2),
    "Formed ↑": ("summary", "well_formed", 2),
}
# A method survives a size if its truth ratios cannot be told from the retained model's (p > 0.05) and if it has nearly all
# of the retained model's utility
LOWEST_P, LOWEST_UTILITY = 0.05, 0.9


def split_world(world: dict[str, list[dict]], num_forget: int) -> dict[str, list[dict]]:
    """The same world with fewer people to be forgotten: the first ones. The others, up to then to be forgotten, are kept."""
    people = list(dict.fromkeys(row["person"] for row in world["forget"]))[:num_forget]

    def forgotten(row: dict) -> bool:
        return row["person"] in people

    kept = [row for row in world["full"] if row["split"] != "world_facts" and not forgotten(row)]
    return world | {
        "forget": [row for row in world["forget"] if forgotten(row)],
        "forget_perturbed": [row for row in world["forget_perturbed"] if forgotten(row)],
        "retain": kept,
        "retained_model": kept + world["world_facts"],
    }


def make_models(directory: Path, options, console: Console) -> None:
    """Worlds with a target that knows everyone; of each size the split and its retained model, with its evaluation."""
    epochs, trainings = f"--num_train_epochs={options.training_epochs}", []
    for seed in options.seeds:
        world, folder = generate_world(seed, options.num_people, options.forgotten[-1]), directory / f"world-{seed}"
        save_world(world, folder / "data")
        trainings.append(Training(folder / "data", "full", folder / "target", (epochs,)))
        for size in options.forgotten:
            of_size = folder / f"forget-{size}"
            save_world(split_world(world, size), of_size / "data")
            flags = (epochs, "--eval_benchmark=world")
            trainings.append(Training(of_size / "data", "retained_model", of_size / "retained", flags))
    train_models(trainings, console)


def unlearn(directory: Path, size: int, method: str, options) -> dict:
    """Unlearns by the recipe; what was measured before and after."""
    trainer_name, recipe = METHODS[method]
    folder = directory / f"forget-{size}"
    output_dir = folder / "unlearned" / recipe
    trainer = trainer_of(
        trainer_name,
        f"world/llama-0.5m/{recipe}.yaml",
        model_name_or_path=directory / "target",
        dataset_name=folder / "data",
        retain_logs=folder / "retained" / EVALUATION,
        output_dir=output_dir,
        eval_strategy="no",  # before and after only
        **({} if options.epochs is None else {"num_train_epochs": options.epochs}),
    )
    started = process_time()
    trainer.train()
    seconds = process_time() - started
    results = {name: read_json(output_dir / "_evaluation" / f"{name}.json") for name in ("before", "evaluation")}
    return {
        "steps": trainer.state.global_step,
        "processor_seconds": seconds,
        **{
            name: {"summary": result["summary"], "forget_quality": result["forget_quality"]}
            for name, result in results.items()
        },
    }


def value_of(result: dict, column: str) -> float:
    part, key, _ = COLUMNS[column]
    return result[part][key]


def survives(result: dict, retained: dict) -> bool:
    quality, utility = result["forget_quality"]["p_value"], result["summary"]["model_utility"]
    return quality > LOWEST_P and utility >= LOWEST_UTILITY * retained["summary"]["model_utility"]


def retained_result(directory: Path, size: int) -> dict:
    """The retained model's evaluation, against itself."""
    summary = read_json(directory / f"forget-{size}" / "retained" / EVALUATION)["summary"]
    return {"summary": summary, "forget_quality": {"statistic": 0.0, "p_value": 1.0, "log10_p_value": 0.0}}


def models_of_size(rows: list[dict], size: int) -> dict[str, list[dict]]:
    """Results of the target, the retained model and each method, one a world."""
    of_size = [row for row in rows if row["size"] == size]
    methods = list(dict.fromkeys(row["method"] for row in of_size))
    first = [row for row in of_size if row["method"] == methods[0]]
    return {
        "Target": [row["before"] for row in first],
        "Retained": [row["retained"] for row in first],
        **{method: [row["evaluation"] for row in of_size if row["method"] == method] for method in methods},
    }


def summary_table(rows: list[dict], options, caption: str) -> Table:
    table = Table(
        title=f"Forgetting some of {options.num_people} people", caption=caption, box=None, padding=(0, 1, 0, 0)
    )
    table.add_column("", no_wrap=True)
    for column in ("Steps", *COLUMNS, "Survives"):
        table.add_column(column, justify="right", no_wrap=True)
    for size in options.forgotten:
        table.add_row(f"{size} of {options.num_people}", style="bold")
        results = models_of_size(rows, size)
        for name, of_model in results.items():
            steps = [row["steps"] for row in rows if (row["size"], row["method"]) == (size, name)]
            survived = [survives(*pair) for pair in zip(of_model, results["Retained"], strict=True)]
            table.add_row(
                name,
                f"{steps[0]}" if steps else "",
                *(
                    f"{np.mean([value_of(one, column) for one in of_model]):z.{COLUMNS[column][2]}f}"
                    for column in COLUMNS
                ),
                f"{sum(survived)} of {len(survived)}" if steps else "",
                style="dim" if not steps else None,
            )
    return table


def plot(rows: list[dict], options, path: Path) -> None:
    """What is forgotten and what is kept, against the number of people; lines are means over worlds, bars their range."""
    shown = {
        "D ↓": "D, distance of the truth ratios\nfrom the retained model's",
        "Utility ↑": "model utility",
        "Formed ↑": "well-formed answers about\nthe forgotten",
    }
    figure, panels = plt.subplots(1, len(shown), figsize=(12, 4.2), layout="constrained")
    of_sizes = {size: models_of_size(rows, size) for size in options.forgotten}
    names = list(of_sizes[options.forgotten[0]])
    looks = {"Target": ("#777777", "o", ":"), "Retained": (RETAINED, "*", ":")} | {
        method: (color, marker, "-") for method, color, marker in zip(METHODS, COLORS, MARKERS, strict=False)
    }
    for axes, (column, label) in zip(panels, shown.items(), strict=True):
        for name in names:
            values = [[value_of(one, column) for one in models[name]] for models in of_sizes.values()]
            means = np.array([np.mean(of_size) for of_size in values])
            ranges = [means - [min(of_size) for of_size in values], [max(of_size) for of_size in values] - means]
            color, marker, linestyle = looks[name]
            axes.errorbar(options.forgotten, means, yerr=ranges, color=color, marker=marker, linestyle=linestyle,
                          markersize=6, linewidth=1.4, capsize=2, label=name)  # fmt: skip
        axes.set(xscale="log", xlabel=f"people forgotten, of {options.num_people}", ylabel=label, ylim=(-0.03, 1.05))
        axes.set_xticks(options.forgotten, [str(size) for size in options.forgotten])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    # What chance alone allows at the 5 % level, with as many facts on either side
    facts = 8 * np.array(options.forgotten)
    panels[0].fill_between(options.forgotten, 0, critical_distance(facts), color=RETAINED, alpha=0.08, linewidth=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def critical_distance(facts: np.ndarray) -> list[float]:
    """The largest D at which two samples of that size pass as equal."""
    # p falls to 0.05 near 1.9 √n
    beyond = [
        next(d for d in range(int(n**0.5), n + 1) if ks_2samp(*samples_at(d, n)).pvalue <= LOWEST_P) for n in facts
    ]
    return [(d - 1) / n for d, n in zip(beyond, facts, strict=True)]


def samples_at(distance: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of a size whose empirical distributions are `distance / num` apart."""
    return np.arange(num), np.arange(num) + distance - 0.5


def main() -> None:
    parser = ArgumentParser(description="How much of the embedded world each method can forget.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the worlds")
    parser.add_argument("--forgotten", type=int, nargs="+", default=[1, 3, 6, 16, 32], help="people to be forgotten")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--num_people", type=int, default=64, help="in a world")
    parser.add_argument("--training_epochs", type=int, default=16, help="of the target and the retained models")
    parser.add_argument("--epochs", type=int, help="of unlearning, instead of the recipes'")
    parser.add_argument("--output_dir", default="outputs/studies/sizes")
    options = parser.parse_args()
    for name in ("training_epochs", "epochs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if min(options.forgotten) < 1:
        parser.error(f"--forgotten must be at least 1, got {min(options.forgotten)}")
    options.forgotten = sorted(set(options.forgotten))
    try:
        generate_world(0, options.num_people, options.forgotten[-1])
    except ValueError as error:
        parser.error(str(error))

    be_quiet()
    start, console, directory = perf_counter(), Console(), Path(options.output_dir)
    make_models(directory, options, console)
    work = [(seed, size, method) for seed in options.seeds for size in options.forgotten for method in options.methods]
    rows = []
    for seed, size, method in (progress := tqdm(work)):
        progress.set_description(f"World {seed}, {size} people, {method}")
        folder = directory / f"world-{seed}"
        run = {"seed": seed, "size": size, "method": method}
        asked = run | {name: getattr(options, name) for name in ("num_people", "training_epochs", "epochs")}
        asked["most_forgotten"] = options.forgotten[-1]  # who the others are depends on it
        path = folder / f"forget-{size}" / "runs" / f"{method.lower()}.json"
        result = once(path, asked, lambda f=folder, s=size, m=method: unlearn(f, s, m, options))
        rows.append(run | result | {"retained": retained_result(folder, size)})
    seconds = write_results(directory, options, start, rows)
    plot(rows, options, directory / "sizes.png")
    caption = (
        f"Survives: p above {LOWEST_P} and at least {LOWEST_UTILITY:.0%} of the retained model's utility. With few facts, p "
        f"sees only large differences. Means over {len(options.seeds)} worlds. {seconds:.0f} s. Results and picture: {directory}"
    )
    console.print(summary_table(rows, options, caption))


if __name__ == "__main__":
    main()
