"""What a person sees of attacks: a table with a row a model, and the reasons for what was left out."""

from itertools import zip_longest
from typing import Any

from rich.table import Table
from rich.text import Text


# Columns of the table, of those metrics that there are
COLUMNS = {
    "forget_quality": "Forget quality, log10\u00a0p",
    "model_utility": "Model utility",
    "forget_probability": "Forget prob.",
    "forget_rougeL_recall": "Forget ROUGE-L",
    "forget_extraction_strength": "Extr. strength",
    "leaked": "Leaked",
    "forget_verbmem": "Forget VerbMem",
    "forget_knowmem": "Forget KnowMem",
    "retain_knowmem": "Retain KnowMem",
    "privleak": "PrivLeak, %",
    "wmdp_bio": "WMDP biology",
    "wmdp_cyber": "WMDP cyber",
    "mmlu": "MMLU",
}
# What relearning trains on
SUBSETS = {
    "random": "on random forget rows",
    "shortest": "on the shortest answers",
    "held_out": "on other people or groups",
    "retain": "on the retain set",
}
_MODELS = ("before", "after", "retained")


def attack_rows(
    attacks: dict[str, dict[str, Any]], evaluations: dict[str, dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """
    The lines of the table of attacks, as texts.

    Args:
        attacks (`dict[str, dict]`):
            By name, what [`run_attacks`] found.
        evaluations (`dict[str, dict]`):
            Evaluations without attack, by `"before"`, `"after"`, `"retained"`.

    Returns:
        `tuple[list, list]`: Headings of the columns of numbers, and for each attack `attack` and `models`, a line a model:
        `model` and `cells`, `"–"` where there is no number. Of relearning, the highest of each forget metric after any of
        the steps: an attacker stops when it is best to.
    """
    groups: dict[str, dict[str, dict[str, Any]]] = {"No attack": evaluations}
    for name, attack in attacks.items():
        for model in _MODELS:
            parts = attack["results"].get(model, [])
            for part in _worst_of_steps(parts) if name == "relearn" else parts:
                groups.setdefault(_title(name, part), {})[model] = part
    numbers = {
        title: {model: _numbers(group[model]) for model in _MODELS if model in group}
        for title, group in groups.items()
    }
    there = {metric for group in numbers.values() for values in group.values() for metric in values}
    metrics = [metric for metric in COLUMNS if metric in there]
    rows = [
        {
            "attack": title,
            "models": [
                {"model": model.capitalize(), "cells": [_format(metric, values.get(metric)) for metric in metrics]}
                for model, values in group.items()
            ],
        }
        for title, group in numbers.items()
    ]
    return [COLUMNS[metric] for metric in metrics], rows


def attack_notes(attacks: dict[str, dict[str, Any]]) -> list[str]:
    """How to read the table, and what the numbers of some attacks are of."""
    notes = ["The nearer a model is to the retained one under the same attack, the better. –: not measured."]
    if "relearn" in attacks and attacks["relearn"]["results"]:
        steps = ", ".join(map(str, attacks["relearn"]["settings"]["steps"]))
        parts = [part for measured in attacks["relearn"]["results"].values() for part in measured]
        subsets = [
            f"{SUBSETS[name]} ({_readable(name)})" for name in SUBSETS if name in {part["variant"] for part in parts}
        ]
        notes.append(
            f"Relearn: fine-tuned {', '.join(subsets)}. The highest after {steps} optimizer steps, of the forget rows that "
            "were not trained on."
        )
    if "sample" in attacks and attacks["sample"]["results"]:
        notes.append("Sample: of each row, the worst of k answers drawn at temperature 1.")
    return notes


def left_out(attacks: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """The parts of attacks that were left out, and why."""
    parts: dict[tuple[str, str], list[str]] = {}
    for name, attack in attacks.items():
        for variant, reason in attack["missing"].items():
            parts.setdefault((name, reason), []).append(_readable(variant))
    return [(f"{name} ({', '.join(variants)})", reason) for (name, reason), variants in parts.items()]


def attack_table(attacks: dict[str, dict[str, Any]], evaluations: dict[str, dict[str, Any]]) -> Table:
    """
    The table of attacks for a terminal.

    Args:
        attacks (`dict[str, dict]`):
            As for [`attack_rows`].
        evaluations (`dict[str, dict]`):
            As for [`attack_rows`].

    Returns:
        [`~rich.table.Table`]: A row a model, attack by attack.
    """
    headings, rows = attack_rows(attacks, evaluations)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), caption_justify="left", caption_style="")
    table.add_column("Attack", min_width=21, max_width=22)
    table.add_column("Model")
    for heading in headings:
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for number, row in enumerate(rows):
        if number > 0:
            table.add_row()
        for title, line in zip_longest([row["attack"]], row["models"], fillvalue=""):
            table.add_row(title, line["model"], *line["cells"])
    caption = Text("\n" + "\n".join(attack_notes(attacks)), style="dim")
    for label, reason in left_out(attacks):
        caption.append(f"\nLeft out: {label}. {reason[:1].upper()}{reason[1:]}.", style="not dim")
    table.caption = caption
    return table


def _worst_of_steps(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One part a subset, with the highest of each forget metric after training has begun."""
    worst: dict[str, dict[str, float]] = {}
    for part in parts:
        summary = worst.setdefault(part["variant"], {})
        for metric, value in part["summary"].items() if part["step"] > 0 else ():
            if metric.startswith("forget_") or metric == "leaked":
                summary[metric] = max(value, summary.get(metric, value))
    return [{"variant": variant, "summary": summary} for variant, summary in worst.items()]


def _title(name: str, part: dict[str, Any]) -> str:
    variant = _readable(part["variant"])
    title = variant if name == "paraphrase" else f"{name}, {variant}"
    return title[:1].upper() + title[1:]


def _readable(variant: str) -> str:
    return variant.replace("_", " ")


def _numbers(part: dict[str, Any]) -> dict[str, float]:
    quality = part.get("forget_quality")
    return {**({"forget_quality": quality["log10_p_value"]} if quality else {}), **part["summary"]}


def _format(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    digits = 1 if metric in ("privleak", "forget_quality") else 3
    return f"{round(value, digits) + 0:.{digits}f}"  # and no -0.0
