"""
The comparison of methods on the real TOFU, with a small Llama that is trained from nothing on 40 of its authors.

    OMP_NUM_THREADS=1 python examples/studies/comparison_tofu.py

Forgotten are the last two authors, as in forget01, and the last ten, as in forget05. For each there is a retained model, trained
on the others alone. Options are those of `recipes/tofu/llama-2m`. What has no recipe there takes half the learning rate that was
found on the embedded worlds, as these recipes do. Nothing is searched on TOFU.
"""

from argparse import ArgumentParser
from pathlib import Path

from common import TOFU_MODEL, be_quiet
from comparison import (
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


SPLITS = {2: "2 authors", 10: "10 authors"}
MAX_NEW_TOKENS = 60


def make_data(directory: Path, dataset: str) -> None:
    """A folder for each number of authors to forget. The first and the last 20 have wrong answers; two of five are AltPO's."""
    scored = [
        row
        for config in ("retain_perturbed", "forget10_perturbed")
        for row in load_dataset(dataset, config, split="train")
    ]
    rows = [{"question": row["question"], "answer": row["answer"]} for row in scored]
    alternates = [{"alternates": row["perturbed_answer"][:2]} for row in scored]
    scored = [{**row, "perturbed_answer": row["perturbed_answer"][2:]} for row in scored]
    for number in SPLITS:
        first = len(rows) - 20 * number
        save_world(
            {
                "full": rows,
                "forget": [row | others for row, others in zip(rows[first:], alternates[first:], strict=True)],
                "retain": rows[:first],
                "forget_perturbed": scored[first:],
                "retain_perturbed": scored[340:400],
            },
            directory / f"forget-{number}" / "data",
            title="Forty authors of TOFU (locuslab/TOFU, MIT)",
        )


def make_settings(directory: Path, dataset: str, epochs: int) -> dict[int, Setting]:
    """By number of authors to forget, data and models: one target for all."""
    make_data(directory, dataset)
    flags = (*TOFU_MODEL, f"--num_train_epochs={epochs}")
    evaluated = ("--eval_benchmark=tofu", "--eval_splits=forget", f"--eval_max_new_tokens={MAX_NEW_TOKENS}")
    target = Training(directory / f"forget-{min(SPLITS)}" / "data", "full", directory / "target", flags)
    folders = {number: directory / f"forget-{number}" for number in SPLITS}
    retained = [
        Training(folder / "data", "retain", folder / "retained", (*flags, *evaluated)) for folder in folders.values()
    ]
    train_models([target, *retained], console)
    return {
        number: Setting(
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
        for number, folder in folders.items()
    }


def method_on_tofu(name: str) -> Method:
    """Trainer, recipe and options of a method: those that it has on the worlds, with half the learning rate."""
    trainer, _, options = METHODS[name]
    rate = options.get("learning_rate", 3e-3 if name.endswith("LoRA") else 1e-3)
    options = options | {"learning_rate": rate / 2}
    if name.startswith("G"):
        options |= {"forget_loss_type": "grad_ascent", "retain_weight": float(name.startswith("GradDiff"))}
    return trainer, f"tofu/llama-2m/{trainer.lower()}.yaml", options


def main() -> None:
    parser = ArgumentParser(description="Compare methods on 40 authors of TOFU.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/comparison_tofu"))
    parser.add_argument("--dataset", default="locuslab/TOFU", help="TOFU: Hub id or path")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--authors", type=int, nargs="+", choices=SPLITS, default=list(SPLITS), help="to be forgotten")
    parser.add_argument("--training_epochs", type=int, default=30, help="of the target and the retained models")
    parser.add_argument("--page", type=Path, help="Markdown file with marks, between which the tables are written")
    options = parser.parse_args()
    check_page(parser, options.page, *(f"comparison on TOFU, {title}" for title in SPLITS.values()))
    be_quiet()
    settings = make_settings(options.output_dir, options.dataset, options.training_epochs)
    for number in options.authors:
        run_retained(settings[number], options.output_dir / f"forget-{number}" / "runs" / "retained")
    for number, name in tqdm([(number, name) for number in options.authors for name in options.methods], desc="Runs"):
        output_dir = options.output_dir / f"forget-{number}" / "runs" / slug_of(name, {})
        run(settings[number], name, method_on_tofu(name), {}, output_dir, is_search=False)
    for number, title in SPLITS.items():
        folder = options.output_dir / f"forget-{number}"
        runs = read_runs(path.parent for path in folder.glob("runs/*/run.json"))
        if runs:
            tables = {f"{title}: {name}": columns for name, columns in TABLES.items()}
            methods = {name: method_on_tofu(name) for name in METHODS}
            report(runs, tables, methods, folder, options.page, f"comparison on TOFU, {title}")
            draw(runs, folder / "comparison.png")


if __name__ == "__main__":
    main()
