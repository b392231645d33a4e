"""The three pictures of an unlearning comparison. Matplotlib is drawn to files only."""

from pathlib import Path

import matplotlib
import numpy as np


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402


# Okabe and Ito's colours, which stay apart for colour-blind readers; black and grey are the two reference models.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
ORIGINAL, RETAINED = "#777777", "#000000"


def plot_utility_against_forget_quality(
    trajectories: dict[str, list[dict]], retained_utility: float, path: str | Path
) -> None:
    """
    One line a method, from the original model (ring) to the last step (dot); the retained model is the goal.

    Args:
        trajectories (`dict[str, list[dict]]`):
            By method, evaluations in order of steps, each with `summary` and `forget_quality`.
        retained_utility (`float`):
            Model utility of the retained model, whose forget quality is 1.
        path (`str` or `Path`):
            Picture to write.
    """
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for (method, evaluations), color in zip(trajectories.items(), COLORS, strict=False):
        quality = [evaluation["forget_quality"]["log10_p_value"] for evaluation in evaluations]
        utility = [evaluation["summary"]["model_utility"] for evaluation in evaluations]
        axes.plot(quality, utility, color=color, linewidth=1.5, marker=".", markersize=4, alpha=0.8)
        axes.plot(quality[-1], utility[-1], color=color, marker="o", markersize=9, linestyle="none", label=method)
    axes.plot(quality[0], utility[0], color=ORIGINAL, marker="o", fillstyle="none", markersize=11, linestyle="none",
              label="original model")  # fmt: skip
    axes.plot(0, retained_utility, color=RETAINED, marker="*", markersize=15, linestyle="none", label="retained model")
    axes.set_xscale("symlog", linthresh=2)  # what matters happens near 0
    axes.set_xticks([tick for tick in (-200, -100, -50, -20, -10, -5, -2, -1, 0) if tick >= 1.2 * min(quality[0], -1)])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(np.log10(0.05), color=RETAINED, linewidth=0.8, linestyle=":")
    axes.annotate("p = 0.05 ", (np.log10(0.05), 0.03), xycoords=("data", "axes fraction"), ha="right", fontsize=8)
    axes.set(xlabel="forget quality, log10 p (0 is best)", ylabel="model utility", ylim=(-0.03, None))
    axes.set_title("What is kept against what is forgotten, step by step")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
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
    for (method, evaluations), color in zip(trajectories.items(), COLORS, strict=False):
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
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path)


def plot_truth_ratio_distributions(truth_ratios: dict[str, list[float]], path: str | Path) -> None:
    """
    Distribution functions of the forget truth ratios. Forget quality asks whether a method's is the retained model's.

    Args:
        truth_ratios (`dict[str, list[float]]`):
            By model, the truth ratio of each forget row. The models `"original"` and `"retained"` are drawn as references.
        path (`str` or `Path`):
            Picture to write.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    colors = iter(COLORS)
    for model, ratios in truth_ratios.items():
        style = {
            "original": {"color": ORIGINAL, "linestyle": "--"},
            "retained": {"color": RETAINED, "linewidth": 2.5},
        }.get(model) or {"color": next(colors)}
        axes.ecdf(np.log10(np.maximum(ratios, 1e-30)), label=model, **style)
    axes.axvline(0, color=ORIGINAL, linewidth=0.8, linestyle=":")
    reference = np.log10(np.maximum(np.concatenate([truth_ratios["original"], truth_ratios["retained"]]), 1e-30))
    low, high = np.quantile(reference, [0.05, 0.9])  # a few extreme rows would squeeze all others together
    axes.set_xlim(low - 0.5 * (high - low), high + 0.8 * (high - low))
    axes.set(
        xlabel="log10 truth ratio (below 0, the true answer is preferred to wrong ones)", ylabel="share of forget rows"
    )
    axes.set_title("Truth ratios of the forgotten facts")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path)


def _save(figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
