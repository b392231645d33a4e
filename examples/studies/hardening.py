"""
Is what was forgotten with `forget_sharpness` harder to bring back?

    python examples/studies/hardening.py --seeds 5 6 7 8 9

NPO and SimNPO by their recipes, plain and with `forget_sharpness`, on the worlds of the comparison, whose runs are used if they
are there. A random fifth of the forgotten facts is then learnt again, and the others are asked. Runs that are done are not
run again.
"""

from argparse import ArgumentParser
from itertools import product
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


HARDENED = ("NPO", "SimNPO")
TABLES = {
    "As unlearned": {column: COLUMNS[column] for column in ("D ↓", "Utility ↑", "Prob. →", "Leaked →")},
    "A fifth learnt again": RELEARNED,
}


def sharp(method: str) -> str:
    return f"{method}, sharp"


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
    for axis, column in zip(axes, RELEARNED, strict=True):
        for place, (method, color) in enumerate(zip(HARDENED, COLORS, strict=False)):
            for pair in zip(runs[method], runs[sharp(method)], strict=True):
                values = [value_of(of_run, RELEARNED[column]) for of_run in pair]
                axis.plot((2 * place, 2 * place + 1), values, color=color, marker="o", markersize=4, linewidth=1)
        for of_world in runs[RETAINED]:
            axis.axhline(value_of(of_world, RELEARNED[column]), color="gray", linewidth=0.8, linestyle=":")
        names = [name for method in HARDENED for name in (method, sharp(method))]
        axis.set_xticks(range(len(names)), names, rotation=15)
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        axis.set_title(column.removesuffix(" →"))
    figure.suptitle("The facts that were not learnt again: a line for each world; dotted, its retained model")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = ArgumentParser(description="Compare what is learnt again after plain and sharpness-aware forgetting.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/comparison"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7, 8, 9], help="Seeds of the worlds.")
    parser.add_argument("--sharpness", type=float, default=0.01, help="`forget_sharpness` of the sharp runs.")
    options = parser.parse_args()
    if not options.sharpness > 0:
        parser.error(f"--sharpness must be positive, got {options.sharpness}")
    be_quiet()
    settings = {seed: make_world(options.output_dir, seed) for seed in options.seeds}
    changes = {"forget_sharpness": options.sharpness}
    variants = {}
    for method in HARDENED:
        variants[method] = (method, {}, f"runs/{slug_of(method, {})}")
        variants[sharp(method)] = (method, changes, f"hardening/{slug_of(method, changes)}")
    folders = {seed: options.output_dir / f"world-{seed}" for seed in settings}
    for seed, setting in settings.items():
        run_retained(setting, folders[seed] / "runs/retained")
    for seed, (method, changed, place) in tqdm([*product(settings, variants.values())], desc="Runs"):
        run(settings[seed], method, METHODS[method], changed, folders[seed] / place, is_search=False)

    places = {RETAINED: "runs/retained"} | {name: place for name, (_, _, place) in variants.items()}
    runs = {
        name: [read_json(folder / place / "run.json") for folder in folders.values()] for name, place in places.items()
    }
    rows = {RETAINED: runs[RETAINED]}
    for method in HARDENED:
        rows |= {name: runs[name] for name in (method, sharp(method))}
        pairs = zip(runs[method], runs[sharp(method)], strict=True)
        rows[f"{method}, plain − sharp"] = [difference(*pair) for pair in pairs]
    methods = {}
    for method in HARDENED:
        trainer, recipe, of_method = METHODS[method]
        methods |= {method: METHODS[method], sharp(method): (trainer, recipe, of_method | changes)}
    report(rows, TABLES, methods, options.output_dir / "hardening", None, "hardening")
    console.print(f"Sharp: forget_sharpness {options.sharpness:g}. Differences are taken world by world.")
    draw(runs, options.output_dir / "hardening" / "pairs.png")


if __name__ == "__main__":
    main()
