"""
A fair comparison on the embedded world: every method on the same worlds, with all weights and with LoRA.

    python examples/studies/comparison.py --seeds 3 4 5 6 7

Each seed makes another world, with its target and its retained model. Runs that are done are not run again, so that the command
goes on where it was stopped, and several at once with different `--seeds` share the work. Whenever it ends, the table is
made anew of all that is there.
"""

import json
import subprocess
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import be_quiet, score_of, trainer_of
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from scipy import stats
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from trl_unlearn import load_unlearned
from trl_unlearn.alternates.idk import idk_alternates
from trl_unlearn.attacks.relearn import encode_rows, relearn
from trl_unlearn.attacks.subsets import split_rows
from trl_unlearn.data.loading import load_rows
from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.evaluation.benchmarks import evaluate_as_asked
from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.evaluation.logs import read_log
from trl_unlearn.evaluation.plots import COLORS
from trl_unlearn.evaluation.prompting import Prompting
from trl_unlearn.evaluation.retention import evaluate_at_retention
from trl_unlearn.files import write_json, write_text
from trl_unlearn.hub.load import fold_in
from trl_unlearn.scripts.quickstart import train_models
from trl_unlearn.world import grammar


# Script and recipe of each method, and what differs from the recipe. IdkPO is AltPO with answers that say "I do not know".
METHODS = {
    "GA": ("NPO", "grad_ascent", {}),
    "GradDiff": ("NPO", "grad_diff", {}),
    "NPO": ("NPO", "npo", {}),
    "SimNPO": ("SimNPO", "simnpo", {}),
    "AltPO": ("AltPO", "altpo", {}),
    "IdkPO": ("AltPO", "altpo", {}),
    "GA, LoRA": ("NPO", "grad_ascent", {"learning_rate": 1e-3}),
    "GradDiff, LoRA": ("NPO", "grad_diff", {"learning_rate": 1e-3}),
    "NPO, LoRA": ("NPO", "npo_lora", {}),
    "SimNPO, LoRA": ("SimNPO", "simnpo_lora", {}),
    "AltPO, LoRA": ("AltPO", "altpo_lora", {}),
    "IdkPO, LoRA": ("AltPO", "altpo_lora", {}),
}
LORA = {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear"}
# What is searched for methods without a preset of their own, on worlds that no result is from
_RATES = [{"learning_rate": rate} for rate in (1e-4, 3e-4, 1e-3)]
_LORA_RATES = [{"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)]
_IDK = [{"beta": beta, "forget_weight": weight} for beta in (0.02, 0.1) for weight in (0.1, 1.0)]
SEARCH = {
    "GA": _RATES, "GradDiff": _RATES, "IdkPO": _IDK,
    "GA, LoRA": _LORA_RATES, "GradDiff, LoRA": _LORA_RATES, "IdkPO, LoRA": _IDK,
}  # fmt: skip
SEARCH_SEEDS = (1, 2)
# Column: where it stands in a run's results
COLUMNS = {
    "D ↓": ("forget_quality", "statistic"),
    "Utility ↑": ("summary", "model_utility"),
    "Prob. →": ("summary", "forget_probability"),
    "Formed ↑": ("summary", "well_formed"),
    "Leaked →": ("summary", "leaked"),
    "Score ↑": ("score",),
    "CPU s": ("seconds",),
}
AT_RETENTION = {
    "α": ("at_retention", "alpha"),
    "D ↓": ("at_retention", "statistic"),
    "Utility ↑": ("at_retention", "model_utility"),
    "Prob. →": ("at_retention", "forget_probability"),
    "ES →": ("at_retention", "forget_extraction_strength"),
    "Leaked →": ("at_retention", "leaked"),
}
RELEARNED = {"Leaked →": ("relearned", "leaked"), "Prob. →": ("relearned", "forget_probability")}
TABLES = ((COLUMNS, "As unlearned"), (AT_RETENTION, "At 95 % retention"), (RELEARNED, "A fifth learnt again"))
RETAINED = "Retained model"
console = Console()


def make_world(directory: Path, seed: int) -> Path:
    """The folder of a world with its two models, and its rows with IdkPO's answers."""
    folder = directory / f"world-{seed}"
    train_models(folder, seed, console)
    rows = Dataset.from_list([json.loads(line) for line in (folder / "data" / "forget.json").read_text().splitlines()])
    idk, _ = idk_alternates(rows.remove_columns("alternates"))
    write_text("".join(json.dumps(row) + "\n" for row in idk), folder / "idk.jsonl")
    return folder


def relearn_forgotten(model, tokenizer, folder: Path) -> dict[str, float]:
    """A fifth of the facts is learnt again: the most that is told of the others, and their highest probability."""
    facts = load_rows(str(folder / "data"), "forget_perturbed")
    trained, asked = split_rows(facts, "random", 0.2)
    curve = relearn(
        model,
        tokenizer,
        encode_rows(facts.select(trained), Prompting(tokenizer)),
        lambda model: evaluate_unlearning(
            model,
            tokenizer,
            facts.select(asked),
            grammar=grammar,
            truth_ratio_question="paraphrased_question",
            max_new_tokens=32,
            show_progress=False,
        )["summary"],
        learning_rate=1e-3,
        show_progress=False,
    )
    return {key: max(summary[key] for summary in curve.values()) for key in ("leaked", "forget_probability")}


def run(folder: Path, name: str, changes: dict[str, Any], output_dir: Path, is_search: bool) -> None:
    """Unlearns by a recipe, evaluates, and writes `run.json`, unless it is there."""
    if (output_dir / "run.json").exists():
        return
    method, recipe, of_method = METHODS[name]
    retained_logs = folder / "retained" / "_evaluation" / "evaluation.json"
    options = {
        "model_name_or_path": folder / "target",
        "dataset_name": folder / "data",
        "retain_logs": retained_logs,
        "output_dir": output_dir,
        "eval_strategy": "epoch",
        **(LORA if name.endswith("LoRA") and not recipe.endswith("lora") else {}),
        **of_method,
        **changes,
    }
    if name.startswith("IdkPO"):
        options |= {"alternates_dataset_name": folder / "idk.jsonl", "alternates_column": "alternates"}
    trainer = trainer_of(method, f"world/llama-0.5m/{recipe}.yaml", **options)
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    trainer.save_model()

    arguments = EvaluationArguments(eval_benchmark="world", retain_logs=str(retained_logs))
    retained = read_log(retained_logs) | {"model": {"name": "retained"}}

    def evaluate(model):
        return evaluate_as_asked(
            model,
            trainer.processing_class,
            arguments,
            dataset_name=str(folder / "data"),
            retained=retained,
            show_progress=False,
        )

    trajectory = json.loads((output_dir / "_evaluation" / "evaluations.json").read_text())
    result = {
        "method": name,
        "changes": changes,
        "summary": trajectory[-1]["summary"],
        "forget_quality": trajectory[-1]["forget_quality"],
        "score": score_of(trajectory[-1], trajectory[0]),
        "trajectory": trajectory,
        "seconds": seconds,
    }
    if not is_search:
        model = fold_in(trainer.model) if hasattr(trainer.model, "peft_config") else trainer.model
        original = AutoModelForCausalLM.from_pretrained(folder / "target")
        at_retention = evaluate_at_retention(model, original, evaluate)
        mixed = at_retention.pop("result")
        result["at_retention"] = {**at_retention, **mixed["summary"], **mixed["forget_quality"]}
        result["relearned"] = relearn_forgotten(model, trainer.processing_class, folder)
    write_json(
        {
            **result,
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
            ).stdout.strip(),
        },
        output_dir / "run.json",
    )


def run_retained(folder: Path, output_dir: Path) -> None:
    """The retained model beside the methods: what it tells, before and after it is taught a fifth of the facts."""
    if (output_dir / "run.json").exists():
        return
    log = json.loads((folder / "retained" / "_evaluation" / "evaluation.json").read_text())
    model, tokenizer = load_unlearned(str(folder / "retained"))
    relearned = relearn_forgotten(model, tokenizer, folder)
    write_json(
        {"method": RETAINED, "changes": {}, "summary": log["summary"], "relearned": relearned},
        output_dir / "run.json",
    )


def read_runs(directory: Path, kind: str) -> dict[str, list[dict]]:
    """What is there, by name, of all worlds."""
    runs: dict[str, list[dict]] = {}
    for path in sorted(directory.glob(f"world-*/{kind}/*/run.json")):
        run = json.loads(path.read_text())
        options = "".join(f" {option}={value:g}" for option, value in run["changes"].items())
        runs.setdefault(run["method"] + options, []).append(run)
    order = [RETAINED, *METHODS]
    return dict(sorted(runs.items(), key=lambda item: order.index(item[1][0]["method"])))


def value_of(run: dict, path: tuple[str, ...]) -> float | None:
    """What stands there; the retained model has not all that is measured of methods."""
    for key in path:
        run = run.get(key, {})
    return None if run == {} else float(run)


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """Mean over worlds, and half the width of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def table_of(runs: dict[str, list[dict]], columns: dict[str, tuple[str, ...]], title: str) -> tuple[Table, str]:
    """The same table to look at and in Markdown."""
    table = Table("", "n", title=title, box=None)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    lines = [f"| {title} | n | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    for name, of_name in runs.items():
        cells = [name, str(len(of_name))]
        for path in columns.values():
            values = [value_of(run, path) for run in of_name]
            if None in values:
                cells.append("–")
                continue
            mean, half = mean_and_interval(values)
            digits = 0 if path == ("seconds",) else 2
            cells.append(f"{mean:.{digits}f}" + (f"±{half:.{digits}f}" if len(of_name) > 1 else ""))
        if cells.count("–") == len(columns):
            continue
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    return table, "\n".join(lines)


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    """Mean trajectories, all weights and LoRA beside each other."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharex=True, sharey=True, layout="constrained")
    names = list(dict.fromkeys(name.removesuffix(", LoRA") for name in runs if name != RETAINED))
    for axis, suffix, title in zip(axes, ("", ", LoRA"), ("All weights", "LoRA"), strict=True):
        for name, color in zip(names, COLORS, strict=False):
            trajectories = [run["trajectory"] for run in runs.get(name + suffix, [])]
            if not trajectories:
                continue
            paths = np.array(
                [
                    [
                        (step["forget_quality"]["statistic"], step["summary"]["model_utility"])
                        for step in trajectory[: min(map(len, trajectories))]
                    ]
                    for trajectory in trajectories
                ]
            )
            distance, utility = paths.mean(0).T
            axis.plot(distance, utility, color=color, marker=".", markersize=4, linewidth=1.2, alpha=0.8)
            axis.errorbar(
                distance[-1], utility[-1], xerr=paths[:, -1, 0].std(ddof=0), yerr=paths[:, -1, 1].std(ddof=0),
                color=color, marker="o", markersize=8, capsize=3, label=name,
            )  # fmt: skip
        axis.set_title(title)
        axis.set_xlabel("D: distance of the truth ratios from the retained model's (lower is better)")
    axes[0].set_ylabel("model utility (higher is better)")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = ArgumentParser(description="Compare methods on worlds that their presets were not chosen on.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/comparison"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5, 6, 7], help="Seeds of the worlds.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--search", action="store_true", help=f"Search learning rates on worlds {SEARCH_SEEDS} instead."
    )
    options = parser.parse_args()
    be_quiet()
    kind = "search" if options.search else "runs"
    seeds = SEARCH_SEEDS if options.search else options.seeds
    work = [
        (seed, name, changes)
        for seed in seeds
        for name in options.methods
        for changes in (SEARCH.get(name, []) if options.search else [{}])
    ]
    folders = {seed: make_world(options.output_dir, seed) for seed in seeds}
    if not options.search:
        for folder in folders.values():
            run_retained(folder, folder / kind / "retained")
    for seed, name, changes in tqdm(work, desc="Runs"):
        slug = "-".join([name.lower().replace(", ", "-"), *(f"{value:g}" for value in changes.values())])
        run(folders[seed], name, changes, folders[seed] / kind / slug, options.search)

    runs = read_runs(options.output_dir, kind)
    markdown = []
    for columns, title in ((COLUMNS, "As unlearned"),) if options.search else TABLES:
        table, text = table_of(runs, columns, title)
        console.print(table)
        markdown.append(text)
    console.print("Means over worlds ± the 95 % interval of the mean. →: the nearer to the retained model the better.")
    write_text("\n\n".join(markdown) + "\n", options.output_dir / f"{kind}.md")
    if not options.search:
        draw(runs, options.output_dir / "comparison.png")


if __name__ == "__main__":
    main()
