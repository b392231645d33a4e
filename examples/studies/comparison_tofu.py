"""
The comparison of methods on the real TOFU, with a small Llama that is trained from nothing on 40 of its authors.

    OMP_NUM_THREADS=1 python examples/studies/comparison_tofu.py

Forgotten are the last two authors, as in forget01, and the last ten, as in forget05. For each there is a retained model, trained
on the others alone. Recipes are those of `recipes/tofu/llama-2m`, with options that `--search` found by forgetting two authors
who are kept in both.
"""

from argparse import ArgumentParser
from itertools import product
from pathlib import Path

from common import TOFU_MODEL, be_quiet
from comparison import (
    COLUMNS,
    EVALUATION,
    METHODS,
    TABLES,
    Method,
    Setting,
    check_page,
    console,
    draw,
    read_runs,
    report,
    run,
    run_retained,
    slug_of,
)
from datasets import load_dataset
from tqdm import tqdm

from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.scripts.jobs import Training, train_models
from trl_unlearn.world import save_world


# By folder, which rows are forgotten: 20 an author
SPLITS = {"forget-2": range(760, 800), "forget-10": range(600, 800)}
SEARCH_SPLIT = {"search": range(400, 440)}
MAX_NEW_TOKENS = 60
# What differs from the recipes, of those below that which scored highest
CHOSEN = {
    "GA": {"learning_rate": 1e-4},
    "GradDiff": {"learning_rate": 2e-4},
    "NPO": {"learning_rate": 1e-3},
    "SimNPO": {"learning_rate": 5e-4},
    "AltPO": {"beta": 0.03, "learning_rate": 1e-3},
    "IdkPO": {"beta": 0.03, "learning_rate": 1e-3},
    "GA, LoRA": {"learning_rate": 6e-4},
    "GradDiff, LoRA": {"learning_rate": 6e-4},
    "NPO, LoRA": {"learning_rate": 1.5e-3},
    "SimNPO, LoRA": {"learning_rate": 3e-3},
    "AltPO, LoRA": {"beta": 0.03, "learning_rate": 3e-3},
    "IdkPO, LoRA": {"beta": 0.03, "learning_rate": 3e-3},
}
RATES = {"full": (2.5e-4, 5e-4, 1e-3, 2e-3), "LoRA": (7.5e-4, 1.5e-3, 3e-3, 6e-3)}
ASCENT_RATES = {"full": (5e-5, 1e-4, 2e-4, 4e-4), "LoRA": (1.5e-4, 3e-4, 6e-4, 1.2e-3)}
ALTERNATES_RATES = {"full": (3e-4, 1e-3), "LoRA": (1e-3, 3e-3)}
BETAS = (0.01, 0.03)


def make_data(directory: Path, dataset: str) -> None:
    """A folder for each split. The first and the last 20 authors have wrong answers; two of five are AltPO's."""
    scored = [
        row
        for config in ("retain_perturbed", "forget10_perturbed")
        for row in load_dataset(dataset, config, split="train")
    ]
    rows = [{"question": row["question"], "answer": row["answer"]} for row in scored]
    alternates = [{"alternates": row["perturbed_answer"][:2]} for row in scored]
    scored = [{**row, "perturbed_answer": row["perturbed_answer"][2:]} for row in scored]
    for name, forgotten in (SPLITS | SEARCH_SPLIT).items():
        save_world(
            {
                "full": rows,
                "forget": [rows[index] | alternates[index] for index in forgotten],
                "retain": [row for index, row in enumerate(rows) if index not in forgotten],
                "forget_perturbed": [scored[index] for index in forgotten],
                "retain_perturbed": scored[340:400],
            },
            directory / name / "data",
            title="Forty authors of TOFU (locuslab/TOFU, MIT)",
        )


def make_settings(directory: Path, dataset: str, epochs: int, splits: list[str]) -> dict[str, Setting]:
    """By split, data and models: one target for all."""
    make_data(directory, dataset)
    flags = (*TOFU_MODEL, f"--num_train_epochs={epochs}")
    evaluated = ("--eval_benchmark=tofu", "--eval_splits=forget", f"--eval_max_new_tokens={MAX_NEW_TOKENS}")
    target = Training(directory / "forget-2" / "data", "full", directory / "target", flags)
    folders = {name: directory / name for name in splits}
    retained = [
        Training(folder / "data", "retain", folder / "retained", (*flags, *evaluated)) for folder in folders.values()
    ]
    train_models([target, *retained], console)
    return {
        name: Setting(
            folder / "data",
            target.directory,
            folder / "retained",
            EvaluationArguments(
                eval_benchmark="tofu",
                eval_splits=["forget"],
                eval_max_new_tokens=MAX_NEW_TOKENS,
                retain_logs=str(folder / "retained" / EVALUATION),
            ),
            {"eval_max_new_tokens": MAX_NEW_TOKENS, "eval_steps": 0.5},
        )
        for name, folder in folders.items()
    }


def method_on_tofu(name: str) -> Method:
    """Trainer, recipe and options of a method."""
    trainer = METHODS[name][0]
    baseline = {}
    if name.startswith("G"):
        baseline = {"forget_loss_type": "grad_ascent", "retain_weight": float(name.startswith("GradDiff"))}
    return trainer, f"tofu/llama-2m/{trainer.lower()}.yaml", baseline | CHOSEN[name]


def options_to_search(name: str) -> list[dict[str, float]]:
    """Learning rates, and β of the methods with alternates: with the recipe's, learning these is enough for the loss."""
    weights = "LoRA" if name.endswith("LoRA") else "full"
    if METHODS[name][0] == "AltPO":
        return [{"beta": beta, "learning_rate": rate} for beta, rate in product(BETAS, ALTERNATES_RATES[weights])]
    rates = (ASCENT_RATES if name.startswith("G") else RATES)[weights]
    return [{"learning_rate": rate} for rate in rates]


def main() -> None:
    parser = ArgumentParser(description="Compare methods on 40 authors of TOFU.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/comparison_tofu"))
    parser.add_argument("--dataset", default="locuslab/TOFU", help="TOFU: Hub id or path")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--search", action="store_true", help="Search options on two other authors instead.")
    parser.add_argument("--training_epochs", type=int, default=30, help="of the target and the retained models")
    parser.add_argument("--page", type=Path, help="Markdown file with marks, between which the tables are written")
    options = parser.parse_args()
    numbers = {split: f"{len(rows) // 20} authors" for split, rows in SPLITS.items()}
    titles = {split: f"comparison on TOFU, {number}" for split, number in numbers.items()}
    if options.search:
        titles = {"search": "search on TOFU"}
    check_page(parser, options.page, *titles.values())
    be_quiet()
    splits = list(SEARCH_SPLIT) if options.search else options.splits
    settings = make_settings(options.output_dir, options.dataset, options.training_epochs, splits)
    work = [
        (split, name, changes)
        for split in splits
        for name in options.methods
        for changes in (options_to_search(name) if options.search else [{}])
    ]
    folders = {name: options.output_dir / name for name in titles}
    if not options.search:
        for split in splits:
            run_retained(settings[split], folders[split] / "runs" / "retained")
    for split, name, changes in tqdm(work, desc="Runs"):
        output_dir = folders[split] / "runs" / slug_of(name, changes)
        run(settings[split], name, method_on_tofu(name), changes, output_dir, options.search)
    for split, title in titles.items():
        runs = read_runs(path.parent for path in folders[split].glob("runs/*/run.json"))
        if not runs:
            continue
        if options.search:
            report(runs, {"As unlearned": COLUMNS}, {}, folders[split], options.page, title)
        else:
            tables = {f"{numbers[split]}: {name}": columns for name, columns in TABLES.items()}
            methods = {name: method_on_tofu(name) for name in METHODS}
            report(runs, tables, methods, folders[split], options.page, title)
            draw(runs, folders[split] / "comparison.png")


if __name__ == "__main__":
    main()
