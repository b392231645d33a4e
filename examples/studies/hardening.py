"""
Is what was forgotten with `forget_sharpness` harder to bring back?

    python examples/studies/hardening.py --seeds 5 6 7 8 9 10 11 12 13 14

NPO and SimNPO by their recipes, plain and with `forget_sharpness`, on the worlds of the comparison, whose runs are used if they
are there. A random fifth of the forgotten facts is then learnt again, and the others are asked. Runs that are done are not
run again. `--search` compares several values of it on worlds that no result is from.
"""

from argparse import ArgumentParser
from pathlib import Path

import matplotlib.pyplot as plt
from common import be_quiet
from comparison import (
    COLUMNS,
    METHODS,
    RELEARNED,
    RETAINED,
    console,
    make_world,
    report,
    run,
    run_retained,
    slug_of,
    value_of,
)
from tqdm import tqdm

from trl_unlearn.evaluation.plots import COLORS
from trl_unlearn.scripts.quickstart import read_json


# `forget_sharpness` by method, found by `--search`
SHARPNESS = {"NPO": 0.08, "SimNPO": 0.01}
SEARCH = (0.01, 0.02, 0.04, 0.08)
SEARCH_SEEDS = (3, 4)
TABLES = {
    "As unlearned": {column: COLUMNS[column] for column in ("D ↓", "Utility ↑", "Prob. →", "Formed ↑", "Leaked →")},
    "A fifth learnt again": RELEARNED,
}


def sharp(method: str, sharpness: float) -> str:
    return f"{method}, ρ {sharpness:g}"


def difference(plain: dict, other: dict) -> dict:
    """What stands in the columns, of a pair of runs on the same world: plain − sharp."""
    result: dict = {"intervals": {}}  # of one world, there is none of the difference
    for columns in TABLES.values():
        for part, name in columns.values():
            result.setdefault(part, {})[name] = value_of(plain, (part, name)) - value_of(other, (part, name))
    return result


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    """What relearning brings back, a line for each world, from plain to sharp."""
    figure, axes = plt.subplots(1, len(RELEARNED), figsize=(12, 4), layout="constrained")
    names = [name for name in runs if name != RETAINED]
    for axis, column in zip(axes, RELEARNED, strict=True):
        for place, color in zip(range(0, len(names), 2), COLORS, strict=False):
            for pair in zip(*(runs[name] for name in names[place : place + 2]), strict=True):
                values = [value_of(of_run, RELEARNED[column]) for of_run in pair]
                axis.plot((place, place + 1), values, color=color, marker="o", markersize=4, linewidth=1)
        for of_world in runs[RETAINED]:
            axis.axhline(value_of(of_world, RELEARNED[column]), color="gray", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(names)), names, rotation=15)
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        axis.set_title(column.removesuffix(" →"))
    figure.suptitle("The facts that were not learnt again: a line for each world; dotted, its retained model")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = ArgumentParser(description="Compare what is learnt again after plain and sharpness-aware forgetting.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/comparison"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5, 15)), help="Seeds of the worlds.")
    parser.add_argument(
        "--search", action="store_true", help=f"Compare values of it on worlds {SEARCH_SEEDS} instead."
    )
    options = parser.parse_args()
    be_quiet()
    seeds = SEARCH_SEEDS if options.search else options.seeds
    # Name in the tables: method, what differs from its recipe, and the folder of a world's run
    variants = {}
    for method, sharpness in SHARPNESS.items():
        variants[method] = (method, {}, f"runs/{slug_of(method, {})}")
        for value in SEARCH if options.search else (sharpness,):
            changes = {"forget_sharpness": value}
            variants[sharp(method, value)] = (method, changes, f"hardening/{slug_of(method, changes)}")
    settings = {seed: make_world(options.output_dir, seed) for seed in seeds}
    folders = {seed: options.output_dir / f"world-{seed}" for seed in seeds}
    for seed, setting in settings.items():
        run_retained(setting, folders[seed] / "runs/retained")
    for seed, (method, changes, place) in tqdm(
        [(seed, variant) for seed in seeds for variant in variants.values()], desc="Runs"
    ):
        run(settings[seed], method, METHODS[method], changes, folders[seed] / place, is_search=False)

    places = {RETAINED: "runs/retained"} | {name: place for name, (_, _, place) in variants.items()}
    runs = {
        name: [read_json(folder / place / "run.json") for folder in folders.values()] for name, place in places.items()
    }
    methods = {}
    for name, (method, changes, _) in variants.items():
        trainer, recipe, of_method = METHODS[method]
        methods[name] = (trainer, recipe, of_method | changes)
    if options.search:
        report(runs, TABLES, methods, options.output_dir / "hardening_search", None, "hardening")
        return
    rows = {RETAINED: runs[RETAINED]}
    for method, sharpness in SHARPNESS.items():
        pair = (method, sharp(method, sharpness))
        rows |= {name: runs[name] for name in pair}
        rows[f"{method}, plain − sharp"] = [
            difference(*of_world) for of_world in zip(*(runs[name] for name in pair), strict=True)
        ]
    report(rows, TABLES, methods, options.output_dir / "hardening", None, "hardening")
    console.print("Differences are taken world by world.")
    draw(runs, options.output_dir / "hardening" / "pairs.png")


if __name__ == "__main__":
    main()
