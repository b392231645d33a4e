"""
How strongly NPO and SimNPO push each answer: by its length, and by how well it was known.

    OMP_NUM_THREADS=1 python examples/studies/gradient_weights.py

The gradient of a forget loss is a sum over answers: each one's own gradient of the log-probability, times a weight.
[Simplicity Prevails](https://huggingface.co/papers/2410.07163) says of NPO's that they are all the same at first, whatever an
answer's difficulty, and that answers of different lengths get uneven shares, and sets SimNPO against that. Here the weights
are followed through the recipes' trainings, on the embedded world, and on TOFU's last two authors with a small Llama that
was trained from nothing on the last twenty (see `examples/tofu_from_scratch.py`).
"""

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from common import (
    TOFU_MODEL,
    Completions,
    add_world_arguments,
    be_quiet,
    check_lowest,
    make_worlds,
    once,
    trainer_of,
    write_results,
)
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from tqdm import tqdm
from transformers import AutoTokenizer, TrainerCallback

from trl_unlearn import UnlearningTrainer
from trl_unlearn.data.loading import load_rows
from trl_unlearn.evaluation.plots import COLORS, ORIGINAL, plt
from trl_unlearn.scripts.jobs import Training, train_models
from trl_unlearn.trainer.unlearning_trainer import RowScores


METHODS = ("NPO", "SimNPO")
DATA = {"world": ("Embedded world", "world/llama-0.5m"), "tofu": ("TOFU, 2 authors", "tofu/llama-2m")}
# Of the table: heading, what [`describe`] calls it, digits
COLUMNS = (
    ("Weight\nmean", "mean", 3),
    ("\nCV", "spread", 2),
    ("– 1/n\nCV", "smoothing_spread", 2),
    ("ρ\nlength", "length", 2),
    ("ρ\ndiff.", "difficulty", 2),
    ("Risen\nmean", "risen", 2),
    ("ρ\nlength", "risen_length", 2),
    ("ρ\ndiff.", "risen_difficulty", 2),
)
SHOWN_EPOCHS = (0, 1, 2, 5, 10)


class Weights(TrainerCallback):
    """
    Scores the forget answers before the first step and after every few, and takes their weights from the trainer's loss.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer that is called back from.
        completions ([`Completions`]):
            Its forget rows.
        eval_steps (`int`):
            After how many steps.
        progress (`tqdm`):
            Bar that counts steps.
    """

    def __init__(self, trainer: UnlearningTrainer, completions: Completions, eval_steps: int, progress: tqdm):
        self.trainer, self.completions, self.eval_steps, self.progress = trainer, completions, eval_steps, progress
        self.curve: list[dict] = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.ref_logps = -self.completions.nll(self.completions.log_probs(model))
        self.score(state, model)

    def on_step_end(self, args, state, control, model, **kwargs):
        self.progress.update(1 / state.max_steps)
        if state.global_step % self.eval_steps == 0 or state.global_step == state.max_steps:
            self.score(state, model)

    def score(self, state, model) -> None:
        logps = -self.completions.nll(self.completions.log_probs(model))
        weights = weights_of(self.trainer, logps, self.completions.lengths, self.ref_logps)
        self.curve.append({
            "step": state.global_step, "epoch": state.epoch or 0.0, "nll": (-logps).tolist(), "weights": weights.tolist(),
        })  # fmt: skip


def weights_of(
    trainer: UnlearningTrainer, logps: torch.Tensor, lengths: torch.Tensor, ref_logps: torch.Tensor
) -> torch.Tensor:
    """|dℓ / d log π| of each answer, of shape `(rows,)`, before the forget loss is multiplied by its weight."""
    with torch.enable_grad():
        logps = logps.detach().requires_grad_()
        loss = trainer.forget_loss(RowScores(logps, lengths, ref_logps), None).sum()
        return torch.autograd.grad(loss, logps)[0].abs()


def make_tofu(directory: Path, dataset: str, epochs: int, console: Console) -> None:
    """The last 20 authors of TOFU, of whom two are to be forgotten, and the model that knows all."""
    if not (directory / "data" / "README.md").exists():
        script = Path(__file__).parents[1] / "tofu_from_scratch.py"
        subprocess.run([sys.executable, script, "--dataset", dataset, "--output_dir", directory / "data"], check=True)
    flags = (*TOFU_MODEL, f"--num_train_epochs={epochs}")
    train_models([Training(directory / "data", "full", directory / "target", flags)], console)


def unlearn(folder: Path, data: str, method: str, seed: int, options, progress: tqdm) -> dict:
    """Unlearns by the recipe; lengths in tokens, and log-likelihoods and weights of the forget answers on the way."""
    completions = Completions(
        load_rows(str(folder / "data"), "forget"), AutoTokenizer.from_pretrained(folder / "target")
    )
    trainer = trainer_of(
        method,
        f"{DATA[data][1]}/{method.lower()}.yaml",
        model_name_or_path=folder / "target",
        dataset_name=folder / "data",
        output_dir=folder / "unlearned",
        seed=seed,
        num_train_epochs=options.epochs,
        eval_strategy="no",
        eval_benchmark=None,
        retain_logs=None,
    )
    callback = Weights(trainer, completions, options.eval_steps, progress)
    trainer.add_callback(callback)
    trainer.train()
    return {"lengths": completions.lengths.tolist(), "curve": callback.curve}


def correlation(values: np.ndarray, others: np.ndarray) -> float | None:
    """Spearman's ρ, or `None` where all values are the same but for rounding."""
    if np.ptp(values) <= 1e-4 * np.abs(values).max():
        return None
    return float(spearmanr(values, others).statistic)


def point_at(run: dict, epoch: float) -> dict:
    """What was measured first at an epoch or later, or else last."""
    return next((point for point in run["curve"] if point["epoch"] >= epoch - 1e-6), run["curve"][-1])


def variation(values: np.ndarray) -> float:
    """Coefficient of variation: the standard deviation over the mean."""
    return float(values.std() / values.mean())


def describe(run: dict, point: dict) -> dict[str, float | None]:
    """The weights at one moment, against lengths (tokens) and difficulty (NLL a token before unlearning)."""
    lengths, weights = np.array(run["lengths"]), np.array(point["weights"])
    difficulty = np.array(run["curve"][0]["nll"]) / lengths
    risen = np.array(point["nll"]) / lengths - difficulty
    return {
        "mean": weights.mean(),
        "spread": variation(weights),
        "smoothing_spread": variation(weights * lengths if run["method"] == "SimNPO" else weights),
        "length": correlation(weights, lengths),
        "difficulty": correlation(weights, difficulty),
        "risen": risen.mean(),
        "risen_length": correlation(risen, lengths),
        "risen_difficulty": correlation(risen, difficulty),
    }


def mean_of(values: list[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.{digits}f}" if len(known) == len(values) else "–"


def summary_table(rows: list[dict], options, caption: str) -> Table:
    table = Table(title="The weight of an answer in the gradient of the forget loss", caption=caption, box=None,
                  padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("", no_wrap=True)
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for data, (title, _) in DATA.items():
        for method in METHODS:
            runs = [row for row in rows if (row["data"], row["method"]) == (data, method)]
            if not runs:
                continue
            table.add_row(f"{title}, {method}", style="bold")
            for epoch in (epoch for epoch in SHOWN_EPOCHS if epoch <= options.epochs):
                described = [describe(run, point_at(run, epoch)) for run in runs]
                cells = [mean_of([one[name] for one in described], digits) for _, name, digits in COLUMNS]
                table.add_row(f"  epoch {epoch:g}", *cells)
    return table


def plot(rows: list[dict], path: Path) -> None:
    """Above, the weights at three moments against length and difficulty, first seed; below, their correlations on the way."""
    shown = [(data, method) for data in DATA for method in METHODS if any(row["data"] == data for row in rows)]
    figure, panels = plt.subplots(3, len(shown), figsize=(3 * len(shown), 8), layout="constrained", squeeze=False)
    for column, (data, method) in zip(panels.T, shown, strict=True):
        runs = [row for row in rows if (row["data"], row["method"]) == (data, method)]
        first, end = runs[0], runs[0]["curve"][-1]["epoch"]
        lengths = np.array(first["lengths"])
        difficulty = np.array(first["curve"][0]["nll"]) / lengths
        for epoch, color in ((0, ORIGINAL), (0.1 * end, COLORS[4]), (end, COLORS[0])):
            point = point_at(first, epoch)
            jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(lengths)) if data == "world" else 0.0
            for axes, places in ((column[0], lengths + jitter), (column[1], difficulty)):
                axes.plot(places, point["weights"], linestyle="none", marker=".", markersize=4, color=color, alpha=0.6,
                          label=f"epoch {point['epoch']:.3g}")  # fmt: skip
        column[0].set(yscale="log", xlabel="tokens of the answer")
        column[0].set_title(f"{DATA[data][0]}, {method}", fontsize=11)
        column[1].set(yscale="log", xlabel="NLL a token before unlearning")
        for name, color in (("length", COLORS[1]), ("difficulty", COLORS[2])):
            for index, run in enumerate(runs):
                line = [(point["epoch"], describe(run, point)[name]) for point in run["curve"]]
                line = [(epoch, value) for epoch, value in line if value is not None]
                column[2].plot(*zip(*line, strict=True), color=color, linewidth=1.2, alpha=0.8,
                               label=f"with {name}" if index == 0 else None)  # fmt: skip
        column[2].axhline(0, color=ORIGINAL, linewidth=0.8)
        column[2].set(ylim=(-1.05, 1.05), xlabel="epoch")
        for axes in column:
            axes.spines[["top", "right"]].set_visible(False)
    for axes, label in zip(panels[:, 0], ("weight", "weight", "Spearman's ρ of the weight"), strict=True):
        axes.set_ylabel(label)
    handles, labels = (
        sum(both, []) for both in zip(*(panels[row, 0].get_legend_handles_labels() for row in (0, 2)), strict=True)
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, markerscale=2)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def main() -> None:
    parser = ArgumentParser(description="The weights of answers in the gradients of NPO and SimNPO.")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the worlds; on TOFU, of unlearning"
    )
    parser.add_argument("--epochs", type=int, default=10, help="of unlearning")
    parser.add_argument("--eval_steps", type=int, default=3, help="measure after every so many steps")
    parser.add_argument("--dataset", default="locuslab/TOFU", help="TOFU: Hub id or path")
    parser.add_argument("--tofu_dir", default="outputs/studies/tofu", help="where TOFU's rows and the target are kept")
    parser.add_argument("--tofu_epochs", type=int, default=30, help="of the target on TOFU")
    add_world_arguments(parser)
    parser.add_argument("--output_dir", default="outputs/studies/gradient_weights")
    options = parser.parse_args()
    lowest = {"epochs": 1, "eval_steps": 1, "tofu_epochs": 1, "training_epochs": 1, "num_people": 8}
    check_lowest(parser, options, lowest)

    be_quiet()
    start, console, directory = perf_counter(), Console(), Path(options.output_dir)
    if "world" in options.data:
        make_worlds(options.worlds_dir, options.seeds, options.num_people, options.training_epochs, console)
    if "tofu" in options.data:
        make_tofu(Path(options.tofu_dir), options.dataset, options.tofu_epochs, console)
    folders = {
        (data, seed): Path(options.worlds_dir) / f"world-{seed}" if data == "world" else Path(options.tofu_dir)
        for data in options.data
        for seed in options.seeds
    }

    rows = []
    with tqdm(
        total=len(folders) * len(METHODS), bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    ) as progress:
        for (data, seed), folder in folders.items():
            for method in METHODS:
                progress.set_description(f"{DATA[data][0]}, seed {seed}, {method}")
                run = {"data": data, "seed": seed, "method": method}
                asked = run | {
                    name: getattr(options, name)
                    for name in ("epochs", "eval_steps", "tofu_epochs", "num_people", "training_epochs")
                }
                path = directory / "runs" / f"{data}-{seed}-{method.lower()}.json"
                result = once(
                    path, asked, lambda f=folder, d=data, m=method, s=seed: unlearn(f, d, m, s, options, progress)
                )
                rows.append(run | result)
                progress.update(len(rows) - progress.n)  # of a run that was there
    seconds = write_results(directory, options, start, rows)
    plot(rows, directory / "gradient_weights.png")
    caption = (
        "Of the weights: mean; CV, the standard deviation over the mean, also of SimNPO's without its 1/n; Spearman's ρ with "
        "length and difficulty (NLL a token before unlearning). Risen: NLL a token, in nats, since then. –: all the same. "
        f"Means over {len(options.seeds)} seeds. {seconds:.0f} s. Results and picture: {directory}"
    )
    console.print(summary_table(rows, options, caption))


if __name__ == "__main__":
    main()
