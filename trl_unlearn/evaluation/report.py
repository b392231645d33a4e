"""What a person sees of evaluations: a table, a page with pictures, every answer side by side, and every row as data."""

import base64
import html
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..attacks.report import attack_notes, attack_rows, left_out
from ..files import write_text
from .forgetting import FORGETTING_FILE, Forgetting


# Display name of the model that never saw the forget set, which the others are held against.
RETAINED = "Retained"

# Label and direction of each metric: ↑ higher, ↓ lower, → nearer to the retained model, → 0 nearer to 0 is better.
METRICS = {
    "forget_quality": ("Forget quality, log10 p", "↑"),
    "forget_quality_statistic": ("Forget quality, D", "↓"),
    "model_utility": ("Model utility", "↑"),
    "model_utility_arithmetic": ("Model utility, arithmetic", "↑"),
    "well_formed": ("Well-formed answers", "↑"),
    "leaked": ("Leaked answers", "→"),
    "forget_verbmem": ("Forget VerbMem", "→"),
    "forget_knowmem": ("Forget KnowMem", "→"),
    "retain_knowmem": ("Retain KnowMem", "↑"),
    "privleak": ("PrivLeak, %", "→ 0"),
    "mia_loss_auc": ("MIA AUC, loss", "→"),
    "mia_zlib_auc": ("MIA AUC, zlib", "→"),
    "mia_min_k_auc": ("MIA AUC, Min-K%", "→"),
    "mia_min_k_plus_plus_auc": ("MIA AUC, Min-K%++", "→"),
    "mia_reference_auc": ("MIA AUC, reference", "→"),
    "mia_gradnorm_auc": ("MIA AUC, gradient norm", "→"),
    "self_confidence": ("Self-confidence", "↑"),
    "self_confidence_unnormalized": ("Self-confidence, whole", "↑"),
    "text_cleanness": ("Text cleanness", "↑"),
    "text_cleanness_log10_p": ("Text cleanness, log10 p", "↑"),
    "wmdp_bio": ("WMDP biology", "↓"),
    "wmdp_cyber": ("WMDP cybersecurity", "↓"),
    "wmdp_chem": ("WMDP chemistry", "↓"),
    "mmlu": ("MMLU", "↑"),
}
# Metrics of a set, named "{set}_{metric}": → for the forget set and ↑ for every other.
SET_METRICS = {
    "truth_ratio_probability": "truth ratio, prob.",
    "probability": "probability",
    "rouge1_recall": "ROUGE-1 recall",
    "rougeL_recall": "ROUGE-L recall",
    "rougeL_f1": "ROUGE-L F1",
    "truth_ratio": "truth ratio",
    "exact_memorization": "exact memorization",
    "extraction_strength": "extraction strength",
    "loss": "loss",
}
DIRECTIONS = {
    "↑": "higher is better",
    "↓": "lower is better",
    "→": "the nearer to the retained model the better",
    "→ 0": "the nearer to 0 the better",
}

# Columns from 0 to 1 that say how much of the true answer a model gives.
KNOWLEDGE = ("extraction_strength", "rougeL_recall", "score", "probability")

SETTINGS = {
    "model": "Model",
    "retain_reference": "Retained reference",
    "conventions": "Conventions",
    "generation": "Generation",
    "prompt": "Prompt",
    "data": "Data",
    "versions": "Versions",
    "cost": "Cost",
}


def metric_label(metric: str) -> tuple[str, str]:
    """
    How a metric is called in tables and pictures, and where it is better.

    Args:
        metric (`str`):
            Name in a result's `summary`.

    Returns:
        `tuple[str, str]`: Label and direction. A metric that is in neither table here is called by its own name.

    Example:

    ```python
    >>> metric_label("real_authors_rougeL_recall")
    ('Real authors ROUGE-L recall', '↑')
    ```
    """
    if metric in METRICS:
        return METRICS[metric]
    direction = "→" if metric.startswith("forget") else "↑"
    for suffix, label in SET_METRICS.items():
        if metric.endswith(f"_{suffix}"):
            return f"{_readable(metric.removesuffix(f'_{suffix}'))} {label}", direction
    return _readable(metric), direction if metric.startswith(("forget", "retain")) else ""


def summary_rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """
    The lines of the summary table, as texts.

    Args:
        results (`dict[str, dict]`):
            By display name, results of evaluations.

    Returns:
        `list[dict]`: Per metric `metric`, `label`, `direction`, `n` (number of rows, `"300/200"` where the models differ),
        and `cells`: per model the value and its 95 % interval, each `""` where there is none.
    """
    summaries = {
        name: {
            **({"forget_quality": quality["log10_p_value"], "forget_quality_statistic": quality["statistic"]}
               if (quality := result.get("forget_quality")) else {}),
            **result["summary"],
        }
        for name, result in results.items()
    }  # fmt: skip
    lines = []
    metrics = dict.fromkeys(metric for summary in summaries.values() for metric in summary)
    for metric in sorted(metrics, key=lambda metric: not metric.startswith("forget_quality")):  # whoever has it, first
        label, direction = metric_label(metric)
        cells = []
        for name, result in results.items():
            interval = result.get("intervals", {}).get(metric)
            cells.append(
                (
                    _format(metric, summaries[name].get(metric)),
                    f"[{_format(metric, interval['low'], 2)}, {_format(metric, interval['high'], 2)}]"
                    if interval
                    else "",
                )
            )
        counts = [count for result in results.values() if (count := _number_of_rows(result, metric))]
        lines.append(
            {
                "metric": metric,
                "label": label,
                "direction": direction,
                "n": "/".join(str(count) for count in dict.fromkeys(counts)),
                "cells": cells,
            }
        )
    return lines


def missing_metrics(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """
    What was left out, and why.

    Args:
        results (`dict[str, dict]`):
            By display name, results of evaluations.

    Returns:
        `list[tuple[str, str]]`: Label of the metric and the reason, with the models it concerns where these are not all.
    """
    models: dict[tuple[str, str], list[str]] = {}
    for name, result in results.items():
        for metric, reason in result.get("missing", {}).items():
            models.setdefault((metric, reason), []).append(name)
    return [
        (
            "Forget quality" if metric == "forget_quality" else metric_label(metric)[0],
            reason if len(names) == len(results) else f"{', '.join(names)}: {reason}",
        )
        for (metric, reason), names in models.items()
    ]


def summary_table(results: dict[str, dict[str, Any]]) -> Table:
    """
    One row a metric and one column a model, for a terminal. With up to three models it is at most 80 columns wide.

    Args:
        results (`dict[str, dict]`):
            By display name, for example `"Before"`, `"After"` and `"Retained"`, results of evaluations.

    Returns:
        [`~rich.table.Table`]: The table, with 95 % intervals under the values, and what was left out under the table.

    Example:

    ```python
    >>> Console().print(summary_table({"Before": before, "After": after, "Retained": retained}))
    ```
    """
    rows = summary_rows(results)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), caption_justify="left", caption_style="")
    table.add_column("Metric", max_width=29)
    table.add_column("", no_wrap=True)
    table.add_column("n", justify="right", max_width=7, overflow="fold")
    for name in results:
        table.add_column(Text(name, overflow="fold"), justify="right", max_width=13, overflow="fold")
    for row in rows:
        cells = [
            Text.assemble(value, (f"\n{interval}" if interval else "", "dim")) for value, interval in row["cells"]
        ]
        table.add_row(Text(row["label"]), row["direction"], row["n"], *cells)
    used = {row["direction"] for row in rows}
    legend = [f"{sign} {meaning}" for sign, meaning in DIRECTIONS.items() if sign in used]
    if any(result.get("intervals") for result in results.values()):
        legend.append("[ ] 95 % interval over the rows")
    caption = Text("\n" + "\n".join(legend), style="dim")
    for label, reason in missing_metrics(results):
        caption.append(f"\nLeft out: {label}. {reason}", style="not dim")
    table.caption = caption
    return table


def worst_first(results: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """
    The rows of each set with what every model made of them, those that need a look first.

    "The last model" is the last in `results` that is not `"Retained"`.

    - Rows of a forget set, with a retained model: first where the last model is farthest from it, by the mean absolute
      difference of `extraction_strength`, `rougeL_recall`, `score` and `probability`, of those that both have.
    - Rows of a forget set, without: the highest `extraction_strength` of the true answer under the last model first, among
      equals the highest `rougeL_recall`, then `score`, then `probability`.
    - Rows of other sets: the lowest `rougeL_recall` first, then `score`, then `probability`.
    - Rows without a value come after those with one. Equal rows, and the rows of a holdout set, are in the order of the
      data.

    Args:
        results (`dict[str, dict]`):
            By display name, results of evaluations on the same rows.

    Returns:
        `dict[str, list[dict]]`: By set, for each row `index`, `question`, `prompt`, `answer` (`None` where the data have
        none) and `models`: by display name its other columns.

    Raises:
        ValueError: If most questions or answers of a set differ between two results.
    """
    last = _last_model(results)
    sets = {}
    for set_name in dict.fromkeys(name for result in results.values() for name in result["rows"]):
        columns = {name: result["rows"].get(set_name, {}) for name, result in results.items()}
        _check_same_texts(set_name, columns)
        length = max((len(values) for model in columns.values() for values in model.values()), default=0)
        rows = [
            {
                "index": index,
                **{
                    text: next((model[text][index] for model in columns.values() if index < len(model.get(text, []))), None)
                    for text in ("question", "prompt", "answer")
                },
                "models": {
                    name: {
                        column: values[index] if index < len(values) else None
                        for column, values in model.items()
                        if column not in ("question", "prompt", "answer")
                    }
                    for name, model in columns.items()
                },
            }
            for index in range(length)
        ]  # fmt: skip
        shared = [column for column in KNOWLEDGE if column in columns[last] and column in columns.get(RETAINED, {})]
        if set_name == "holdout":
            sets[set_name] = rows
        elif not set_name.startswith("forget"):
            sets[set_name] = sorted(rows, key=lambda row: _descending(row["models"][last], KNOWLEDGE[1:], -1))
        elif shared and last != RETAINED:
            sets[set_name] = sorted(rows, key=lambda row, shared=shared: -_distance(row["models"], last, shared))
        else:
            sets[set_name] = sorted(rows, key=lambda row: _descending(row["models"][last], KNOWLEDGE, 1))
    return sets


def write_rows(results: dict[str, dict[str, Any]], path: str | Path) -> None:
    """
    Writes every row of every set as a Parquet file.

    Its columns are `set`, `index` (in the data), `question`, `prompt`, `answer`, and for each model its own, such as
    `after_probability`. The sets follow each other, and within a set the worst rows come first, as [`worst_first`]
    defines them: of a forget set those where the last model is farthest from the retained one or, without one, extracts
    most of the true answer; of other sets those with the lowest ROUGE-L recall.

    Args:
        results (`dict[str, dict]`):
            By display name, results of evaluations on the same rows.
        path (`str` or `Path`):
            File to write.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    prefixes = {name: re.sub(r"\W+", "_", name).strip("_").lower() for name in results}
    if len(set(prefixes.values())) < len(prefixes):  # "NPO" and "npo"
        prefixes = {name: name for name in results}
    rows = [
        {
            "set": set_name,
            **{key: value for key, value in row.items() if key != "models"},
            **{
                f"{prefixes[name]}_{column}": value
                for name, values in row["models"].items()
                for column, value in values.items()
            },
        }
        for set_name, rows in worst_first(results).items()
        for row in rows
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, unfinished)
    unfinished.replace(path)


def write_answers(results: dict[str, dict[str, Any]], path: str | Path) -> None:
    """
    Writes every question with the true answer and each model's answer side by side, as Markdown.

    The worst rows of each set come first, as [`worst_first`] defines them. What was generated is escaped, so that it is
    shown as it is and never as a link, a picture or HTML.

    Args:
        results (`dict[str, dict]`):
            By display name, results of evaluations on the same rows. Sets without generated answers are left out.
        path (`str` or `Path`):
            File to write.
    """
    parts = ["# Answers\n\nThis file holds forget-set text. It is for local use.\n"]
    for set_name, rows in worst_first(results).items():
        models = [name for name in results if "generated" in results[name]["rows"].get(set_name, {})]
        if not models:
            continue
        header = " | ".join(_escape_markdown(name) for name in ["True answer", *models])
        parts.append(f"## {_readable(set_name)}, {len(rows)} rows, worst first\n")
        for row in rows:
            texts = [row["answer"], *(row["models"][name]["generated"] for name in models)]
            parts.append(
                f"**{row['index']}.** {_escape_markdown(row['question'] or row['prompt'])}\n\n"
                f"| {header} |\n|{' --- |' * len(texts)}\n| {' | '.join(_escape_markdown(text) for text in texts)} |\n"
            )
    if len(parts) == 1:
        parts.append("No model generated answers: the data have no questions or prompts to answer.\n")
    write_text("\n".join(parts), path)


def write_report(results: dict[str, dict[str, Any]], directory: str | Path) -> None:
    """
    Writes `report.html`, one file that needs no other and no network, and its pictures as `figures/*.png` too.

    Args:
        results (`dict[str, dict]`):
            By display name, for example `"Before"`, `"After"` and `"Retained"`, results of evaluations on the same rows.
        directory (`str` or `Path`):
            Folder to write into.

    Example:

    ```python
    >>> write_report({"Before": before, "After": after, "Retained": retained}, "outputs/npo/_evaluation")
    ```
    """
    from jinja2 import Environment, StrictUndefined

    directory = Path(directory)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["readable"] = _readable
    template = files("trl_unlearn").joinpath("templates/evaluation_report.html").read_text(encoding="utf-8")
    rows = summary_rows(results)
    used = {row["direction"] for row in rows}
    page = environment.from_string(template).render(
        title=_title(results),
        headlines=_headlines(results) + _resisting_rows(results[_last_model(results)], directory / FORGETTING_FILE),
        models=list(results),
        rows=rows,
        directions={sign: meaning for sign, meaning in DIRECTIONS.items() if sign in used},
        intervals=any(result.get("intervals") for result in results.values()),
        missing=missing_metrics(results),
        attacks=_attacks(results),
        figures=[
            (alt, base64.b64encode(path.read_bytes()).decode())
            for alt, path in _draw_figures(results, directory / "figures") + _figures_of_training(directory)
        ],
        sets={
            name: {"total": len(rows), "rows": [_with_scores(row) for row in rows[:10]]}
            for name, rows in worst_first(results).items()
            if name != "holdout"
        },
        has_retained=RETAINED in results,
        last=_last_model(results),
        settings=_settings(results),
    )
    write_text(page, directory / "report.html")


def _draw_figures(results: dict[str, dict[str, Any]], directory: Path) -> list[tuple[str, Path]]:
    from .plots import (
        plot_relearning,
        plot_summary_bars,
        plot_truth_ratio_distributions,
        plot_utility_against_forget_quality,
    )

    plot_summary_bars(results, directory / "summary.png")
    figures = [("The metrics of the summary from 0 to 1, as bars", directory / "summary.png")]
    points = {
        name: [result]
        for name, result in results.items()
        if name != RETAINED
        and result.get("forget_quality", {}).get("log10_p_value") is not None
        and "model_utility" in result["summary"]
    }
    if points:
        utility = results.get(RETAINED, {"summary": {}})["summary"].get("model_utility")
        plot_utility_against_forget_quality(points, utility, directory / "utility_vs_forget_quality.png")
        figures.append(("Model utility against forget quality", directory / "utility_vs_forget_quality.png"))
    ratios = {
        name: forget["truth_ratio"]
        for name, result in results.items()
        if "truth_ratio" in (forget := result["rows"].get("forget", {}))
    }
    if ratios:
        plot_truth_ratio_distributions(ratios, directory / "truth_ratios.png")
        figures.append(("Distribution functions of the forget truth ratios", directory / "truth_ratios.png"))
    relearned = results[_last_model(results)].get("attacks", {}).get("relearn", {}).get("results")
    if relearned:
        plot_relearning(relearned, directory / "relearning.png")
        figures.append(("What comes back when the models are fine-tuned", directory / "relearning.png"))
    return figures


def _figures_of_training(directory: Path) -> list[tuple[str, Path]]:
    """What [`UnlearningEvalCallback`] has drawn, where the evaluation is of a model that was trained into this folder."""
    figures = [
        ("What is kept and what is forgotten during the training, step by step", directory / "figures/trajectory.png"),
    ]
    if (directory / FORGETTING_FILE).exists():
        alt = "Probability of each forget row at each evaluation during the training, as a heat map"
        figures.append((alt, directory / "figures/forgetting.png"))
    return [(alt, path) for alt, path in figures if path.exists()]


def _attacks(results: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The table of the attacks on the last model, if there were any."""
    after = results[_last_model(results)]
    attacks = after.get("attacks")
    if not attacks:
        return None
    evaluations = {"before": results.get("Before"), "after": after, "retained": results.get(RETAINED)}
    headings, rows = attack_rows(attacks, {name: result for name, result in evaluations.items() if result})
    return {"headings": headings, "rows": rows, "notes": attack_notes(attacks), "missing": left_out(attacks)}


def _title(results: dict[str, dict[str, Any]]) -> str:
    result = results[_last_model(results)]
    benchmark = {"tofu": "TOFU", "muse": "MUSE", "wmdp": "WMDP", "world": "embedded world", "custom": "own data"}
    what = [benchmark.get(result.get("benchmark"), result.get("benchmark")), result.get("split")]
    return "Unlearning evaluation" + "".join(f", {part}" for part in what if part)


def _headlines(results: dict[str, dict[str, Any]]) -> list[str]:
    """What was evaluated, on how many rows, and the two numbers that most readers look for."""
    last = _last_model(results)
    result = results[last]
    model = result.get("model", {}).get("name")
    counts = [
        f"{len(next(iter(columns.values())))} {_readable(name).lower()} rows"
        for name, columns in result["rows"].items()
        if columns
    ]
    lines = [
        f"{last}{f': {model}' if model and model != last else ''}" + (f". {', '.join(counts)}." if counts else "")
    ]
    if quality := result.get("forget_quality"):
        verdict = (
            "the truth ratios can be told from the retained model's"
            if quality["p_value"] < 0.05
            else "the truth ratios cannot be told from the retained model's at this n"
        )
        lines.append(
            f"Forget quality: log10 p = {_format('forget_quality', quality['log10_p_value'])}, "
            f"D = {_format('', quality['statistic'])}, n = {_setting(quality['n'])} and {_setting(quality['n_retain'])}: "
            f"{verdict}."
        )
    if "model_utility" in result["summary"]:
        others = [
            f"{name} {other['summary']['model_utility']:.3f}"
            for name, other in results.items()
            if name != last and "model_utility" in other["summary"]
        ]
        compared = f" ({', '.join(others)})" if others else ""
        lines.append(f"Model utility: {result['summary']['model_utility']:.3f}{compared}.")
    return lines


def _resisting_rows(result: dict[str, Any], path: Path) -> list[str]:
    """How many forget rows are above the threshold of the training, if there was a training and it has a threshold."""
    probability = result["rows"].get("forget", {}).get("probability", [])
    forgetting = Forgetting.read(path) if path.exists() else Forgetting()
    if forgetting.threshold is None or len(probability) != len(forgetting.probability):
        return []
    rows = forgetting.resisting(probability)
    first = f" (row {', '.join(map(str, rows[:5]))}{', …' if len(rows) > 5 else ''})" if rows else ""
    compared = (
        f"; under the retained model {len(forgetting.resisting(forgetting.retained))}" if forgetting.retained else ""
    )
    return [
        f"Forget rows that resist, with a probability above {forgetting.threshold:.3g} ({forgetting.threshold_source}): "
        f"{len(rows)} of {len(probability)}{first}{compared}."
    ]


def _settings(results: dict[str, dict[str, Any]]) -> dict[str, list[tuple[str, list[str]]]]:
    """By section, each setting with one value if all models have the same, and with one a model otherwise."""
    sections = {}
    for key, title in SETTINGS.items():
        parts = [result.get(key) or {} for result in results.values()]
        lines = []
        for name in dict.fromkeys(name for part in parts for name in part):
            values = [_setting(part.get(name)) for part in parts]
            lines.append((name, values if len(set(values)) > 1 else values[:1]))
        if lines:
            sections[title] = lines
    return sections


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(part)}" for name, part in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "–" if value is None else str(value)


def _with_scores(row: dict[str, Any]) -> dict[str, Any]:
    """A row with each model's scores as texts, by their labels."""
    labels = {**SET_METRICS, "score": "score", "leaked": "leaked", "well_formed": "well-formed", "min_k": "Min-K%"}
    return {
        **row,
        "scores": {
            name: {
                label: _setting(value) if isinstance(value, bool) else format(value, ".3g")
                for column, label in labels.items()
                if (value := values.get(column)) is not None
            }
            for name, values in row["models"].items()
        },
    }


def _last_model(results: dict[str, dict[str, Any]]) -> str:
    return [name for name in results if name != RETAINED][-1] if set(results) != {RETAINED} else RETAINED


def _check_same_texts(set_name: str, columns: dict[str, dict[str, list]]) -> None:
    """Raises if most questions or answers differ. Evaluators may write some differently: cut, or with other spaces."""
    for text in ("question", "answer"):
        models = [name for name in columns if text in columns[name]]
        for other in models[1:]:
            pairs = list(zip(columns[models[0]][text], columns[other][text], strict=False))
            different = [index for index, (a, b) in enumerate(pairs) if _gist(a) != _gist(b)]
            if len(different) > len(pairs) / 2:
                a, b = pairs[different[0]]
                raise ValueError(
                    f"{len(different)} of {len(pairs)} rows of the set '{set_name}' have another {text} in '{models[0]}' than "
                    f"in '{other}', row {different[0]} for example {a[:80]!r} and {b[:80]!r}. Evaluate all models on the "
                    "same data."
                )


def _gist(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())[:40]


def _distance(models: dict[str, dict[str, Any]], last: str, columns: list[str]) -> float:
    pairs = [(models[last][column], models[RETAINED][column]) for column in columns]
    distances = [abs(value - reference) for value, reference in pairs if value is not None and reference is not None]
    return sum(distances) / len(distances) if distances else -1.0


def _descending(values: dict[str, Any], columns: tuple[str, ...], sign: int) -> list[float]:
    scores = [values.get(column) for column in columns]
    return [float("inf") if score is None else -sign * score for score in scores]


def _number_of_rows(result: dict[str, Any], metric: str) -> int | None:
    if metric in ("forget_quality", "forget_quality_statistic"):
        return result.get("forget_quality", {}).get("n")
    if metric not in result["summary"]:
        return None
    if metric in result.get("intervals", {}):
        return result["intervals"][metric]["n"]
    for name, columns in result["rows"].items():
        if metric == name and "score" in columns:
            return len(columns["score"])
        column = metric.removeprefix(f"{name}_").removesuffix("_probability")  # of the truth ratio
        if column in columns:
            return sum(value is not None for value in columns[column])
    return None


def _format(metric: str, value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.{1 if metric == 'privleak' else 2 if metric == 'forget_quality' else digits}f}"


def _readable(name: str) -> str:
    return (name[:1].upper() + name[1:]).replace("_", " ")


def _escape_markdown(text: str | None) -> str:
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", html.escape(text or "", quote=False))
    escaped = escaped.replace("://", "&#58;//").replace("www.", "www&#46;")  # else GitHub makes links of them
    return "<br>".join(escaped.splitlines())
