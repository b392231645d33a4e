"""
Makes a small world, trains a model on it, unlearns a part of it with every method, and compares the results.

```bash
trl-unlearn quickstart
```

Everything runs for real, through the recipes in `recipes/world` and `accelerate launch`; only the model is small. The
target and the retained model are kept and used again by the next run.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from trl_unlearn.files import write_json, write_text
from trl_unlearn.recipes import recipe_path
from trl_unlearn.scripts.jobs import Job, Training, run_jobs, train_models
from trl_unlearn.world import generate_world, save_world


# Title, script and recipe of each method, baselines first
METHODS = {
    "Gradient ascent": ("npo", "grad_ascent"),
    "GradDiff": ("npo", "grad_diff"),
    "NPO": ("npo", "npo"),
    "SimNPO": ("simnpo", "simnpo"),
    "AltPO": ("altpo", "altpo"),
}
EVALUATION = Path("_evaluation/evaluation.json")


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def make_models(directory: Path, seed: int, console: Console) -> None:
    """Makes the world and its two models in `directory`, unless they are there from an earlier run."""
    save_world(generate_world(seed), directory / "data")
    trainings = [
        Training(directory / "data", config, directory / name, ("--eval_benchmark=world",))
        for name, config in (("target", "full"), ("retained", "retained_model"))
    ]
    if all(training.is_done for training in trainings):
        console.print(f"\nThe target and the retained model of an earlier run are used again ({directory}).")
    else:
        console.print(
            "\nTraining the target (knows everyone) and the retained model (never saw those to be forgotten)."
        )
    train_models(trainings, console)


def unlearn(directory: Path, methods: list[str], console: Console) -> None:
    """Runs the recipe of each method through `accelerate launch`."""
    console.print("\nUnlearning, with an evaluation after each pass over the forget set.")
    jobs = []
    for title in methods:
        script, recipe = METHODS[title]
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(recipe_path("accelerate/single.yaml")), "-m", f"trl_unlearn.scripts.{script}"]
        command += ["--config", str(recipe_path(f"world/llama-0.5m/{recipe}.yaml"))]
        command += [f"--model_name_or_path={directory / 'target'}", f"--dataset_name={directory / 'data'}"]
        command += [
            f"--output_dir={directory / 'runs' / recipe}",
            f"--retain_logs={directory / 'retained' / EVALUATION}",
        ]
        jobs.append(Job(title, command, directory / "logs" / f"{recipe}.log"))
    run_jobs(jobs, console)


def results_table(rows: dict[str, dict], caption: str) -> Table:
    """One row a model: how well it forgot, what it kept, and how it speaks."""
    table = Table(
        title="Unlearning 8 of 64 people",
        caption=caption,
        caption_justify="left",
        header_style="bold",
        box=None,
        collapse_padding=True,
    )
    table.add_column("Model", no_wrap=True)
    for header in (
        "Forget\nquality\nlog10 p ↑",
        "D\n\n↓",
        "Model\nutility\n↑",
        "Forget\nROUGE-L\n→",
        "Forget\nprob.\n→",
        "Truth\nratio\n→",
        "Well-\nformed\n↑",
        "Leaked\n\n→",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for name, result in rows.items():
        summary, quality = result["summary"], result["forget_quality"]
        table.add_row(
            name,
            f"{quality['log10_p_value']:.1f}",
            f"{quality['statistic']:.2f}",
            *(
                f"{summary[key]:.2f}"
                for key in (
                    "model_utility",
                    "forget_rougeL_recall",
                    "forget_probability",
                    "forget_truth_ratio",
                    "well_formed",
                    "leaked",
                )
            ),
            style="dim" if name in ("Original", "Retained") else None,
        )
    return table


def show_answers(directory: Path, rows: dict[str, dict], console: Console) -> None:
    """What each model says to three forget and three retain questions."""
    for name, config in (("forget", "forget_perturbed"), ("retain", "retain_perturbed")):
        questions = [json.loads(line) for line in (directory / "data" / f"{config}.json").read_text().splitlines()]
        console.print(f"\n[bold]{'To be forgotten' if name == 'forget' else 'To be kept'}[/]")
        for index in range(0, len(questions), len(questions) // 3)[:3]:
            table = Table(box=None, show_header=False, padding=(0, 1))
            for model, result in rows.items():
                table.add_row(f"  {model}", result["rows"][name]["generated"][index])
            console.print(f"{questions[index]['question']}  [dim](true: {questions[index]['answer']})[/]")
            console.print(table)


def write_readme(output_dir: Path, tables: str, answers: str) -> None:
    write_text(
        f"""# A first run of trl-unlearn

Made by `trl-unlearn quickstart`. Run it again to make these files again; the trained models are kept.

```text
{tables}
```

![Utility against forget quality](figures/utility_vs_forget_quality.png)

![Forget quality during training](figures/forget_quality.png)

![Truth ratios](figures/truth_ratios.png)

## Files

- [results.json](results.json): every number of the table, and the trajectories
- [figures/](figures): the pictures
- `world-*/data`: the forget set, the retain set and the questions; `world-*/target`, `world-*/retained`: the models
- `world-*/runs/`: the unlearned models, each with its model card; `world-*/logs/`: what each process printed

## What the models say

```text
{answers}
```
""",
        output_dir / "README.md",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="trl-unlearn quickstart", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"), help="Folder for all results.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the world. The presets were chosen on 1 and 2.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="Methods to run.")
    arguments = parser.parse_args()
    output_dir, directory = arguments.output_dir, arguments.output_dir / f"world-{arguments.seed}"
    console, start = Console(), time.time()

    make_models(directory, arguments.seed, console)
    unlearn(directory, arguments.methods, console)

    from trl_unlearn.evaluation.plots import (
        plot_forget_quality_over_training,
        plot_truth_ratio_distributions,
        plot_utility_against_forget_quality,
    )
    from trl_unlearn.metrics import forget_quality

    rows = {
        "Original": read_json(directory / "target" / EVALUATION),
        "Retained": read_json(directory / "retained" / EVALUATION),
    }
    trajectories = {}
    for title in arguments.methods:
        _, recipe = METHODS[title]
        run = directory / "runs" / recipe
        rows[title] = read_json(run / EVALUATION)
        trajectories[title] = read_json(run / "_evaluation" / "evaluations.json")
        batch_size = yaml.safe_load(recipe_path(f"world/llama-0.5m/{recipe}.yaml").read_text())[
            "per_device_train_batch_size"
        ]
        num_forget = len((directory / "data" / "forget.json").read_text().splitlines())
        for evaluation in trajectories[title]:
            evaluation["passes"] = evaluation["step"] * batch_size / num_forget
    retained_ratios = rows["Retained"]["rows"]["forget"]["truth_ratio"]
    for result in rows.values():
        result["forget_quality"] = forget_quality(result["rows"]["forget"]["truth_ratio"], retained_ratios)

    figures = output_dir / "figures"
    plot_utility_against_forget_quality(
        trajectories, rows["Retained"]["summary"]["model_utility"], figures / "utility_vs_forget_quality.png"
    )
    plot_forget_quality_over_training(trajectories, figures / "forget_quality.png")
    plot_truth_ratio_distributions(
        {
            "original": rows["Original"]["rows"]["forget"]["truth_ratio"],
            "retained": retained_ratios,
            **{title: rows[title]["rows"]["forget"]["truth_ratio"] for title in arguments.methods},
        },
        figures / "truth_ratios.png",
    )
    results = {
        name: {"summary": row["summary"], "forget_quality": row["forget_quality"]} for name, row in rows.items()
    }
    write_json({"seed": arguments.seed, "results": results, "trajectories": trajectories}, output_dir / "results.json")

    quality = rows["Original"]["forget_quality"]
    table = results_table(
        rows,
        f"One run a method: world seed {arguments.seed}, training seed 42. Forget quality: KS test of the truth ratios of "
        f"{quality['n']} forgotten facts against those of the retained model (n = {quality['n']} and "
        f"{quality['n_retain']}); p above 0.05 (log10 p above −1.3) means that they cannot be told apart, and differences "
        "above that are noise. → : the nearer to the retained model the better. ↑ ↓ : higher, lower is better.",
    )
    recorder = Console(record=True, width=118, file=open(os.devnull, "w"))
    for target in (console, recorder):
        target.print()
        target.print(table)
    tables = recorder.export_text()
    for target in (console, recorder):
        show_answers(directory, rows, target)
    write_readme(output_dir, tables.strip("\n"), recorder.export_text().strip("\n"))
    minutes, seconds = divmod(round(time.time() - start), 60)
    console.print(
        f"\nDone in {minutes} min {seconds:02d} s. Table and answers: {output_dir / 'README.md'}. Pictures: {figures}"
    )


if __name__ == "__main__":
    main()
