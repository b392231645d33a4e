"""The pictures of an unlearning comparison. Matplotlib is drawn to files only."""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ..attacks.report import SUBSETS
from .forgetting import Forgetting
from .report import metric_label


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402


# What is drawn over the steps of a training beside model utility
TRAJECTORY_METRICS = ("forget_probability", "forget_rougeL_recall", "forget_extraction_strength")
# What is drawn over the steps of a relearning attack, of those that there are the first two
RELEARNED_METRICS = (
    "leaked", "forget_verbmem", "forget_rougeL_recall", "forget_probability", "forget_extraction_strength",
)  # fmt: skip
# Okabe and Ito's colours, which stay apart for colour-blind readers; black and grey are the two reference models.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
ORIGINAL, RETAINED = "#777777", "#000000"
REFERENCES = {"original": ORIGINAL, "before": ORIGINAL, "retained": RETAINED}


def plot_utility_against_forget_quality(
    trajectories: dict[str, list[dict]], retained_utility: float | None, path: str | Path
) -> None:
    """
    One line a method, from the original model (ring) to the last step; the retained model is the goal.

    Args:
        trajectories (`dict[str, list[dict]]`):
            By method, evaluations in order of steps, each with `summary` and `forget_quality`. Methods or models with a
            single evaluation are a point.
        retained_utility (`float`, *optional*):
            Model utility of the retained model, whose forget quality is 1. Without it, the goal is not drawn.
        path (`str` or `Path`):
            Picture to write.
    """
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    first, lowest, highest = None, -1.0, retained_utility or 0.0
    for (method, evaluations), color, marker in zip(
        trajectories.items(), _colors(trajectories), cycle(MARKERS), strict=False
    ):
        quality = [evaluation["forget_quality"]["log10_p_value"] for evaluation in evaluations]
        utility = [evaluation["summary"]["model_utility"] for evaluation in evaluations]
        lowest, highest = min(lowest, *quality), max(highest, *utility)
        if len(evaluations) > 1:
            first = quality[0], utility[0]
            axes.plot(quality, utility, color=color, linewidth=1.5, marker=".", markersize=4, alpha=0.8)
        axes.plot(quality[-1], utility[-1], color=color, marker=marker, markersize=9, linestyle="none", label=method)
    if first:
        axes.plot(*first, color=ORIGINAL, marker="o", fillstyle="none", markersize=11, linestyle="none",
                  label="original model")  # fmt: skip
    if retained_utility is not None:
        axes.plot(0, retained_utility, color=RETAINED, marker="*", markersize=17, linestyle="none", zorder=1.5,
                  label="retained model")  # fmt: skip
    axes.set_xscale("symlog", linthresh=2)  # what matters happens near 0
    axes.set_xticks([tick for tick in (-200, -100, -50, -20, -10, -5, -2, -1, 0) if tick >= 1.2 * lowest])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(np.log10(0.05), color=RETAINED, linewidth=0.8, linestyle=":")
    axes.annotate("p = 0.05 ", (np.log10(0.05), 0.03), xycoords=("data", "axes fraction"), ha="right", fontsize=8)
    axes.set(xlabel="forget quality, log10 p (0 is best)", ylabel="model utility", ylim=(-0.03, 1.08 * highest + 0.01))
    axes.set_title("What is kept against what is forgotten" + (", step by step" if first else ""))
    _legend(figure, axes)
    _save(figure, path)


def plot_forget_quality_over_training(trajectories: dict[str, list[dict]], path: str | Path) -> None:
    """
    Forget quality during training: it rises, and falls again where a method goes too far.

    Args:
        trajectories (`dict[str, list[dict]]`):
            By method, evaluations with `forget_quality` and `passes`, the passes over the forget set so far.
        path (`str` or `Path`):
            Picture to write.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for (method, evaluations), color in zip(trajectories.items(), _colors(trajectories), strict=True):
        axes.plot(
            [evaluation["passes"] for evaluation in evaluations],
            [evaluation["forget_quality"]["log10_p_value"] for evaluation in evaluations],
            color=color,
            marker="o",
            markersize=4,
            label=method,
        )
    axes.axhline(0, color=RETAINED, linewidth=0.8)
    axes.axhline(np.log10(0.05), color=RETAINED, linewidth=0.8, linestyle=":")
    axes.annotate("p = 0.05", (0.01, np.log10(0.05)), xycoords=("axes fraction", "data"), va="top", fontsize=8)
    axes.set(xlabel="epochs (passes over the forget set)", ylabel="forget quality, log10 p (0 is best)")
    axes.set_title("Forget quality during training")
    _legend(figure, axes)
    _save(figure, path)


def plot_trajectory(evaluations: list[dict], path: str | Path) -> None:
    """
    What happens during one training: what is kept and what is forgotten, and forget quality below if it is there.

    Args:
        evaluations (`list[dict]`):
            Evaluations in order of `step`, each with `summary` and maybe `forget_quality`.
        path (`str` or `Path`):
            Picture to write.
    """
    steps = [evaluation["step"] for evaluation in evaluations]
    has_quality = "forget_quality" in evaluations[0]
    figure, panels = plt.subplots(
        1 + has_quality, figsize=(7.5, 4 + 2 * has_quality), layout="constrained", sharex=True, squeeze=False
    )
    shown = [
        metric
        for metric in ("model_utility", *TRAJECTORY_METRICS, *evaluations[0]["summary"])
        if metric in evaluations[0]["summary"]
    ]
    for metric, color in zip(dict.fromkeys(shown), COLORS[:4], strict=False):
        values = [evaluation["summary"].get(metric, np.nan) for evaluation in evaluations]
        panels[0, 0].plot(steps, values, color=color, marker="o", markersize=4, label=metric_label(metric)[0])
    panels[0, 0].set_title("Unlearning, step by step")
    panels[0, 0].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    if has_quality:
        quality = [evaluation["forget_quality"]["log10_p_value"] for evaluation in evaluations]
        panels[1, 0].plot(steps, quality, color=RETAINED, marker="o", markersize=4)
        panels[1, 0].axhline(np.log10(0.05), color=RETAINED, linewidth=0.8, linestyle=":", label="p = 0.05")
        panels[1, 0].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        panels[1, 0].set_ylabel("forget quality,\nlog10 p (0 is best)")
    panels[-1, 0].set_xlabel("step")
    _save(figure, path)


def plot_forgetting(forgetting: Forgetting, path: str | Path) -> None:
    """
    Which rows are forgotten when: a heat map of each row's probability, and under it how many are forgotten.

    Rows are sorted by their last probability, the highest on top. The retained model is a column of its own. Without a
    threshold, which is `forget_floor` or the retained model's mean, there is only the heat map.

    Args:
        forgetting ([`Forgetting`]):
            Probabilities of the rows, of at least one evaluation.
        path (`str` or `Path`):
            Picture to write.
    """
    values = np.array(forgetting.probability)
    (number, steps), threshold = values.shape, forgetting.threshold
    order = np.argsort(-values[:, -1], kind="stable")
    every = int(np.ceil(steps / 12))
    ticks, labels = list(range(0, steps, every)), [str(step) for step in forgetting.steps[::every]]
    if forgetting.retained is not None:
        values = np.column_stack([values, forgetting.retained])
        ticks, labels = [*ticks, steps], [*labels, "\nretained"]
    height = float(np.clip(0.12 * number, 2.4, 8))
    heights = [height] if threshold is None else [height, 1.6]
    figure, panels = plt.subplots(
        len(heights), figsize=(7.5, sum(heights) + 1.2), layout="constrained", sharex=True, squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    rows, title = panels[0, 0], "Which forget rows are forgotten, and which resist"
    image = rows.imshow(values[order], aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=1)
    every = int(np.ceil(0.12 * number / height))
    rows.set_yticks(range(0, number, every), order[::every], fontsize=7)
    rows.set_ylabel("row, by last probability")
    bar = figure.colorbar(image, ax=rows, label="probability per token", aspect=30)
    if forgetting.retained is not None:
        rows.axvline(steps - 0.5, color="#FFFFFF", linewidth=5)
    if threshold is not None:
        title += " (above the dashed line)"
        resisting = len(forgetting.resisting([row[-1] for row in forgetting.probability]))
        for axes, position in ((rows, resisting - 0.5), (bar.ax, threshold)):
            axes.axhline(position, color="#FFFFFF", linewidth=2.5)
            axes.axhline(position, color=RETAINED, linewidth=1.2, linestyle="--")
        counts = (values <= threshold).sum(0)
        bars = panels[1, 0].bar(
            range(len(counts)), counts, color=[COLORS[0]] * steps + [RETAINED] * (len(counts) - steps)
        )
        if steps <= 20:
            panels[1, 0].bar_label(bars, fontsize=8)
        panels[1, 0].set(ylim=(0, 1.15 * number), ylabel="forgotten rows")
        panels[1, 0].set_title(f"Rows at or below {threshold:.3g} ({forgetting.threshold_source})", fontsize=10)
        panels[1, 0].spines[["top", "right"]].set_visible(False)
    rows.set_title(title)
    panels[-1, 0].set_xticks(ticks, labels)
    panels[-1, 0].set_xlabel("step")
    _save(figure, path)


def plot_relearning(relearned: dict[str, list[dict[str, Any]]], path: str | Path) -> None:
    """
    How fast a model takes up again what it should have forgotten: a column a subset it is trained on, a row a metric.

    Args:
        relearned (`dict[str, list[dict]]`):
            By model, `"before"`, `"after"` or `"retained"`, measurements of the attack `relearn`, each with `variant` (the
            subset), `step` and `summary`.
        path (`str` or `Path`):
            Picture to write.
    """
    relearned = {model: relearned[model] for model in ("before", "after", "retained") if model in relearned}
    there = {metric for measured in relearned.values() for part in measured for metric in part["summary"]}
    metrics = [metric for metric in RELEARNED_METRICS if metric in there][:2]
    subsets = list(dict.fromkeys(part["variant"] for measured in relearned.values() for part in measured))
    figure, panels = plt.subplots(
        len(metrics), len(subsets), figsize=(1.5 + 2.2 * len(subsets), 0.9 + 2.1 * len(metrics)), layout="constrained",
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    # The retained model's is wide and behind the others, so that what coincides with it is still seen
    styles = {"before": {"linestyle": "--"}, "after": {}, "retained": {"linewidth": 3.5, "zorder": 1.5}}
    for model, color in zip(relearned, _colors(relearned), strict=True):
        for row, metric in enumerate(metrics):
            for column, subset in enumerate(subsets):
                parts = [part for part in relearned[model] if part["variant"] == subset and metric in part["summary"]]
                panels[row, column].plot(
                    [part["step"] for part in parts], [part["summary"][metric] for part in parts],
                    color=color, marker="o", markersize=4, label=model.capitalize() if row == column == 0 else None,
                    **styles[model],
                )  # fmt: skip
    for row, metric in enumerate(metrics):
        panels[row, 0].set_ylabel(metric_label(metric)[0].replace(" ", "\n", 1))
    for column, subset in enumerate(subsets):
        panels[0, column].set_title(SUBSETS[subset], fontsize=10)
        panels[-1, column].set_xlabel("optimizer step")
    panels[0, 0].set_ylim(-0.04, 1.04)
    figure.suptitle("Forget rows that were not trained on,\nwhile the model is fine-tuned")
    _legend(figure, panels[0, 0], beside=False)
    _save(figure, path)


def plot_truth_ratio_distributions(truth_ratios: dict[str, list[float]], path: str | Path) -> None:
    """
    Distribution functions of the forget truth ratios. Forget quality asks whether a method's is the retained model's.

    Args:
        truth_ratios (`dict[str, list[float]]`):
            By model, the truth ratio of each forget row. `"original"` (or `"before"`) and `"retained"`, in whatever case,
            are drawn as references where they are there.
        path (`str` or `Path`):
            Picture to write.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for (model, ratios), color in zip(truth_ratios.items(), _colors(truth_ratios), strict=True):
        style = {ORIGINAL: {"linestyle": "--"}, RETAINED: {"linewidth": 2.5, "zorder": 1.5}}.get(color, {})
        axes.ecdf(np.log10(np.maximum(ratios, 1e-30)), label=model, color=color, **style)
    axes.axvline(0, color=ORIGINAL, linewidth=0.8, linestyle=":")
    references = [ratios for model, ratios in truth_ratios.items() if model.lower() in REFERENCES]
    shown = references if len(references) > 1 else list(truth_ratios.values())
    # A few extreme rows would squeeze all others together
    low, high = np.quantile(np.log10(np.maximum(np.concatenate(shown), 1e-30)), [0.05, 0.9])
    margin = max(high - low, 0.1)
    axes.set_xlim(low - 0.5 * margin, high + 0.8 * margin)
    axes.set(
        xlabel="log10 truth ratio (below 0, the true answer is preferred to wrong ones)", ylabel="share of forget rows"
    )
    axes.set_title("Truth ratios of the forgotten facts")
    _legend(figure, axes)
    _save(figure, path)


def plot_summary_bars(results: dict[str, dict[str, Any]], path: str | Path) -> None:
    """
    One group of bars a metric, one bar a model, with 95 % intervals where the results have them.

    Args:
        results (`dict[str, dict]`):
            By display name, for example `"Before"`, `"After"` and `"Retained"`, results with `summary` and maybe
            `intervals`. Metrics that are not from 0 to 1, as PrivLeak, are left out.
        path (`str` or `Path`):
            Picture to write.
    """
    values = {name: result["summary"] for name, result in results.items()}
    metrics = [
        metric
        for metric in dict.fromkeys(metric for summary in values.values() for metric in summary)
        if all(0 <= summary.get(metric, 0) <= 1 for summary in values.values())
    ]
    height = 0.8 / len(results)
    figure, axes = plt.subplots(figsize=(7.5, 1.1 + len(metrics) * (0.14 + 0.1 * len(results))), layout="constrained")
    for position, (name, color) in enumerate(zip(results, _colors(results), strict=True)):
        shown = [(row, metric) for row, metric in enumerate(metrics) if metric in values[name]]
        centers = [row + (position + 0.5) * height - 0.4 for row, _ in shown]
        axes.barh(
            centers,
            [values[name][metric] for _, metric in shown],
            0.85 * height,
            color=color,
            label=name,
            edgecolor=color,
            linewidth=1,
        )  # the edge shows where a value is 0 and not left out
        for center, (_, metric) in zip(centers, shown, strict=True):
            if interval := results[name].get("intervals", {}).get(metric):
                axes.plot([interval["low"], interval["high"]], [center, center], color="white", linewidth=3)
                axes.plot([interval["low"], interval["high"]], [center, center], color="#444444", linewidth=1.2)
    axes.set_yticks(range(len(metrics)), [" ".join(metric_label(metric)) for metric in metrics])
    axes.set(xlim=(-0.005, 1.005), ylim=(len(metrics) - 0.4, -0.6))
    axes.xaxis.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _legend(figure, axes, beside=False)
    _save(figure, path)


def _legend(figure, axes, beside: bool = True) -> None:
    """Right of the picture, or under it where names are so long that they would leave too little of the picture."""
    handles, names = axes.get_legend_handles_labels()
    names = [name if len(name) <= 70 else f"…{name[-69:]}" for name in names]
    short = max(map(len, names)) <= 20
    if short and beside:
        figure.legend(handles, names, loc="outside right center", frameon=False)
    else:
        columns = min(len(names), 3) if short else 1
        figure.set_figheight(figure.get_figheight() + 0.25 * len(names) / columns)
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)


def _colors(models: Iterable[str]) -> list[str]:
    """A colour a model: the references have theirs, whatever else is drawn."""
    colors = cycle(COLORS)
    return [REFERENCES.get(model.lower()) or next(colors) for model in models]


def _save(figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
