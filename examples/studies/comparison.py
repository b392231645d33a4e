"""
A fair comparison on the embedded world: every method on the same worlds, with all weights and with LoRA.

    python examples/studies/comparison.py --seeds 3 4 5 6 7

Each seed makes another world, with its target and its retained model. Runs that are done are not run again, so that the command
goes on where it was stopped, and several at once with different `--seeds` share the work. The table is of the worlds that are
named, with all methods that have been run there.
"""

import json
import subprocess
import time
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import be_quiet, interval_of_mean, score_of, trainer_of
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from trl_unlearn import load_unlearned
from trl_unlearn.alternates.idk import idk_alternates
from trl_unlearn.attacks.relearn import encode_rows, relearn
from trl_unlearn.attacks.subsets import split_rows
from trl_unlearn.data.loading import load_rows
from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.evaluation.benchmarks import evaluate_as_asked, evaluate_sets, splits_of
from trl_unlearn.evaluation.logs import read_log
from trl_unlearn.evaluation.plots import COLORS
from trl_unlearn.evaluation.prompting import Prompting
from trl_unlearn.evaluation.retention import evaluate_at_retention
from trl_unlearn.files import write_json, write_text
from trl_unlearn.hub.load import fold_in
from trl_unlearn.scripts.quickstart import EVALUATION, make_models, read_json


# Script and recipe of each method, and what differs from the recipe. IdkPO is AltPO with answers that say "I do not know".
METHODS = {
    "GA": ("NPO", "world/llama-0.5m/grad_ascent.yaml", {"learning_rate": 1e-4}),
    "GradDiff": ("NPO", "world/llama-0.5m/grad_diff.yaml", {"learning_rate": 1e-4}),
    "NPO": ("NPO", "world/llama-0.5m/npo.yaml", {}),
    "SimNPO": ("SimNPO", "world/llama-0.5m/simnpo.yaml", {}),
    "AltPO": ("AltPO", "world/llama-0.5m/altpo.yaml", {}),
    "IdkPO": ("AltPO", "world/llama-0.5m/altpo.yaml", {"beta": 0.02, "forget_weight": 1.0}),
    "GA, LoRA": ("NPO", "world/llama-0.5m/grad_ascent.yaml", {"learning_rate": 3e-4}),
    "GradDiff, LoRA": ("NPO", "world/llama-0.5m/grad_diff.yaml", {"learning_rate": 3e-4}),
    "NPO, LoRA": ("NPO", "world/llama-0.5m/npo_lora.yaml", {}),
    "SimNPO, LoRA": ("SimNPO", "world/llama-0.5m/simnpo_lora.yaml", {}),
    "AltPO, LoRA": ("AltPO", "world/llama-0.5m/altpo_lora.yaml", {}),
    "IdkPO, LoRA": ("AltPO", "world/llama-0.5m/altpo_lora.yaml", {"beta": 0.02, "forget_weight": 0.1}),
}
LORA = {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear"}
# What is searched for methods without a preset of their own, on worlds that no result is from
_RATES = [{"learning_rate": rate} for rate in (3e-5, 1e-4, 3e-4, 1e-3)]
_LORA_RATES = [{"learning_rate": rate} for rate in (1e-4, 3e-4, 1e-3, 3e-3)]
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
    "ROUGE →": ("summary", "forget_rougeL_recall"),
    "Formed ↑": ("summary", "well_formed"),
    "Leaked →": ("summary", "leaked"),
    "Score ↑": ("score",),
    "CPU s": ("seconds",),
    "Commit": ("commit",),
}
AT_RETENTION = {
    "α": ("at_retention", "alpha"),
    "D ↓": ("at_retention", "statistic"),
    "Utility ↑": ("at_retention", "model_utility"),
    "Prob. →": ("at_retention", "forget_probability"),
    "ES →": ("at_retention", "forget_extraction_strength"),
    "Leaked →": ("at_retention", "leaked"),
}
RELEARNED = {
    "Prob. →": ("relearned", "forget_probability"),
    "ROUGE →": ("relearned", "forget_rougeL_recall"),
    "Leaked →": ("relearned", "leaked"),
}
TABLES = {"As unlearned": COLUMNS, "At 95 % retention": AT_RETENTION, "A fifth learnt again": RELEARNED}
# Trainer, recipe, and what differs from it
Method = tuple[str, str, dict[str, Any]]
RETAINED = "Retained model"
console = Console()


@dataclass
class Setting:
    """
    Models and data that methods are compared on.

    Args:
        data (`Path`):
            Folder of a data set that `trl_unlearn.world.save_world` wrote, with the configurations that the recipes name.
        target (`Path`):
            Model that knows all.
        retained (`Path`):
            Model that never saw the forget set, with its evaluation.
        evaluation ([`EvaluationArguments`]):
            How the recipes evaluate.
        options (`dict`):
            What differs from the recipes.
    """

    data: Path
    target: Path
    retained: Path
    evaluation: EvaluationArguments
    options: dict[str, Any]

    @property
    def idk(self) -> Path:
        """The forget rows with IdkPO's answers, in a file that is made by the first who asks."""
        path = self.data.with_name("idk.jsonl")
        if not path.exists():
            idk, _ = idk_alternates(load_rows(str(self.data), "forget").remove_columns("alternates"))
            write_text("".join(json.dumps(row) + "\n" for row in idk), path)
        return path


def make_world(directory: Path, seed: int) -> Setting:
    """A world with its two models."""
    folder = directory / f"world-{seed}"
    make_models(folder, seed, console)
    retained = folder / "retained"
    evaluation = EvaluationArguments(eval_benchmark="world", retain_logs=str(retained / EVALUATION))
    return Setting(folder / "data", folder / "target", retained, evaluation, {"eval_strategy": "epoch"})


def relearn_forgotten(model, tokenizer, setting: Setting) -> dict[str, float]:
    """A fifth of the facts is learnt again, at most 50 steps: the highest of what is then measured of the others."""
    facts = load_rows(str(setting.data), "forget_perturbed")
    trained, asked = split_rows(facts, "random", 0.2)
    curve = relearn(
        model,
        tokenizer,
        encode_rows(facts.select(trained), Prompting(tokenizer)),
        lambda model: evaluate_sets(
            model, tokenizer, setting.evaluation, {"forget": facts.select(asked)}, show_progress=False
        )["summary"],
        learning_rate=1e-3,
        show_progress=False,
    )
    return {key: max(summary[key] for summary in curve.values()) for key in curve[0]}


def flags_of(name: str, method: Method, idk: Path | None) -> dict[str, Any]:
    """What a method is given beside its recipe, with the file of IdkPO's answers."""
    _, recipe, options = method
    return {
        **(LORA if name.endswith("LoRA") and "lora" not in recipe else {}),
        **options,
        **({"alternates_dataset_name": idk, "alternates_column": "alternates"} if idk is not None else {}),
    }


def run(
    setting: Setting, name: str, method: Method, changes: dict[str, Any], output_dir: Path, is_search: bool
) -> None:
    """Unlearns by a recipe, evaluates, and writes `run.json`, unless it is there."""
    if (output_dir / "run.json").exists():
        return
    trainer_name, recipe, _ = method
    options = {
        "model_name_or_path": setting.target,
        "dataset_name": setting.data,
        "retain_logs": setting.evaluation.retain_logs,
        "output_dir": output_dir,
        **setting.options,
        **flags_of(name, method, setting.idk if name.startswith("IdkPO") else None),
        **changes,
    }
    trainer = trainer_of(trainer_name, recipe, **options)
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    trainer.save_model()

    retained = read_log(setting.evaluation.retain_logs) | {"model": {"name": "retained"}}

    def evaluate(model):
        return evaluate_as_asked(
            model,
            trainer.processing_class,
            setting.evaluation,
            split=splits_of(setting.evaluation)[0],
            dataset_name=str(setting.data),
            retained=retained,
            show_progress=False,
        )

    trajectory = read_json(output_dir / "_evaluation" / "evaluations.json")
    result = {
        "method": name,
        "changes": changes,
        "summary": trajectory[-1]["summary"],
        "intervals": read_json(output_dir / EVALUATION)["intervals"],
        "forget_quality": trajectory[-1]["forget_quality"],
        "score": score_of(trajectory[-1], trajectory[0]),
        "trajectory": trajectory,
        "seconds": seconds,
    }
    if not is_search:
        model = fold_in(trainer.model) if hasattr(trainer.model, "peft_config") else trainer.model
        original = AutoModelForCausalLM.from_pretrained(setting.target)
        at_retention = evaluate_at_retention(model, original, evaluate)
        mixed = at_retention.pop("result")
        result["at_retention"] = {**at_retention, **mixed["summary"], **mixed["forget_quality"]}
        result["relearned"] = relearn_forgotten(model, trainer.processing_class, setting)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    write_json({**result, "commit": commit}, output_dir / "run.json")


def run_retained(setting: Setting, output_dir: Path) -> None:
    """The retained model beside the methods: what it tells, before and after it is taught a fifth of the facts."""
    if (output_dir / "run.json").exists():
        return
    log = read_json(setting.retained / EVALUATION)
    relearned = relearn_forgotten(*load_unlearned(str(setting.retained)), setting)
    result = {"method": RETAINED, "changes": {}, "summary": log["summary"], "intervals": log["intervals"]}
    write_json({**result, "relearned": relearned}, output_dir / "run.json")


def slug_of(name: str, changes: dict[str, Any]) -> str:
    """Folder of a run."""
    return "-".join([name.lower().replace(", ", "-"), *(f"{value:g}" for value in changes.values())])


def read_runs(paths: Iterable[Path]) -> dict[str, list[dict]]:
    """The runs of these folders, by name, in the order of the methods."""
    runs: dict[str, list[dict]] = {}
    for path in sorted(paths):
        run = read_json(path / "run.json")
        options = "".join(f" {option}={value:g}" for option, value in run["changes"].items())
        runs.setdefault(run["method"] + options, []).append(run)
    order = [RETAINED, *METHODS]
    return dict(sorted(runs.items(), key=lambda item: order.index(item[1][0]["method"])))


def value_of(run: dict, path: tuple[str, ...]) -> float | None:
    """What stands there; the retained model has not all that is measured of methods."""
    for key in path:
        run = run.get(key, {})
    return None if run == {} else float(run)


def cell_of(runs: list[dict], path: tuple[str, ...]) -> str:
    """Mean over runs ± half its 95 % interval: by Student's t, or of a single run by bootstrap over rows."""
    if path == ("commit",):
        return ", ".join(sorted({run["commit"] for run in runs if "commit" in run})) or "–"
    values = [value_of(run, path) for run in runs]
    if None in values:
        return "–"
    if path == ("seconds",):
        return f"{np.mean(values):.0f}"
    if len(values) == 2:  # of which an interval says nothing
        return f"{np.mean(values):z.2f}"
    if len(values) > 2:
        return f"{np.mean(values):z.2f}±{interval_of_mean(values):.2f}"
    interval = runs[0]["intervals"].get(path[1]) if path[0] == "summary" else None
    return f"{values[0]:z.2f}" + (f"±{(interval['high'] - interval['low']) / 2:.2f}" if interval else "")


def table_of(runs: dict[str, list[dict]], columns: dict[str, tuple[str, ...]], title: str) -> tuple[Table, str]:
    """The same table to look at and in Markdown, without columns and rows that have nothing."""
    cells = {name: [cell_of(of_name, path) for path in columns.values()] for name, of_name in runs.items()}
    cells = {name: row for name, row in cells.items() if set(row) != {"–"}}
    shown = [index for index in range(len(columns)) if any(row[index] != "–" for row in cells.values())]
    headings = [list(columns)[index] for index in shown]
    table = Table("", "n", title=title, box=None, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    lines = [f"| {title} | n | {' | '.join(headings)} |", f"|{'---|' * (len(headings) + 2)}"]
    for name, row in cells.items():
        row = [name, str(len(runs[name])), *(row[index] for index in shown)]
        table.add_row(*(cell.replace("±", "\n±") for cell in row))
        lines.append(f"| {' | '.join(row)} |")
    return table, "\n".join(lines)


def check_page(parser: ArgumentParser, page: Path | None, *titles: str) -> None:
    """Ends the program if a page lacks the marks of a title."""
    text = page.read_text(encoding="utf-8") if page is not None else ""
    for mark in (mark for title in titles for mark in (f"<!-- {title} -->\n", f"<!-- end of {title} -->")):
        if page is not None and mark not in text:
            parser.error(f"--page {page} has no line {mark.strip()}")


def command_of(name: str, method: Method) -> str:
    """The training command of a method, without model, data and output."""
    trainer, recipe, _ = method
    options = flags_of(name, method, Path("idk.jsonl") if name.startswith("IdkPO") else None)
    flags = "".join(f" --{option} {value}" for option, value in options.items())
    return f"trl-unlearn {trainer.lower()} --config recipes/{recipe}{flags}"


def report(
    runs: dict[str, list[dict]],
    tables: dict[str, dict[str, tuple[str, ...]]],
    methods: dict[str, Method],
    directory: Path,
    page: Path | None,
    title: str,
) -> None:
    """Prints the tables, writes them in Markdown, and if there is a page, between the marks that it has for this title."""
    parts = []
    for heading, columns in tables.items():
        table, text = table_of(runs, columns, heading)
        console.print(table)
        parts.append(text)
    console.print("Means ± the 95 % interval of the mean. →: the nearer to the retained model the better.")
    commands = "\n".join(f"{name + ':':<17}{command_of(name, methods[name])}" for name in methods if name in runs)
    if commands:
        parts.append(f"```text\n{commands}\n```")
    text = "\n\n".join(parts) + "\n"
    write_text(text, directory / "runs.md")
    if page is not None:
        start, end = f"<!-- {title} -->\n", f"<!-- end of {title} -->"
        before, _, rest = page.read_text(encoding="utf-8").partition(start)
        _, _, after = rest.partition(end)
        write_text(f"{before}{start}\n{text}\n{end}{after}", page)


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
    parser.add_argument("--page", type=Path, help="Markdown file with marks, between which the tables are written.")
    options = parser.parse_args()
    check_page(parser, options.page, "search" if options.search else "comparison")
    be_quiet()
    kind = "search" if options.search else "runs"
    seeds = SEARCH_SEEDS if options.search else options.seeds
    work = [
        (seed, name, changes)
        for seed in seeds
        for name in options.methods
        for changes in (SEARCH.get(name, []) if options.search else [{}])
    ]
    settings = {seed: make_world(options.output_dir, seed) for seed in seeds}
    folders = {seed: options.output_dir / f"world-{seed}" / kind for seed in seeds}
    if not options.search:
        for seed, setting in settings.items():
            run_retained(setting, folders[seed] / "retained")
    for seed, name, changes in tqdm(work, desc="Runs"):
        output_dir = folders[seed] / slug_of(name, changes)
        run(settings[seed], name, METHODS[name], changes, output_dir, options.search)

    runs = read_runs(path.parent for folder in folders.values() for path in folder.glob("*/run.json"))
    if options.search:
        report(runs, {"As unlearned": COLUMNS}, {}, options.output_dir / "search", options.page, "search")
    else:
        report(runs, TABLES, METHODS, options.output_dir, options.page, "comparison")
        draw(runs, options.output_dir / "comparison.png")


if __name__ == "__main__":
    main()
