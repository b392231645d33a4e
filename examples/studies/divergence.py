"""
How fast gradient ascent and NPO leave the model they start from, on a model that answers questions.

    OMP_NUM_THREADS=1 python examples/studies/divergence.py

The theorem of [Negative Preference Optimization](https://huggingface.co/papers/2404.05868) on the speed of divergence is
about a logistic model and gradient descent: gradient ascent moves away in proportion to the steps, NPO as their logarithm.
Here, the targets of the embedded world unlearn by the forget loss alone, at one constant learning rate, with gradient
descent (SGD) and with AdamW, and how far they have gone is measured on the way.
"""

from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from common import (
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
from tqdm import tqdm
from transformers import AutoTokenizer, TrainerCallback

from trl_unlearn.data.loading import load_rows
from trl_unlearn.evaluation.plots import COLORS, RETAINED, plt


OPTIMIZERS = {"sgd": "SGD", "adamw_torch": "AdamW"}
NUM_MEASURED = 24  # of the steps, at about equal ratios
FAR = 200.0  # nats: gradient ascent gets here and beyond, and a run ends


class Divergence(TrainerCallback):
    """
    Measures how far the model has gone from where it started, before the first step and after some others.

    Args:
        sets (`dict[str, Completions]`):
            Rows to measure on, by name; `forget` is one of them.
        steps (`set[int]`):
            After which steps.
        progress (`tqdm`):
            Bar that counts steps.
    """

    def __init__(self, sets: dict[str, Completions], steps: set[int], progress: tqdm):
        self.sets, self.steps, self.progress = sets, steps, progress
        self.curve: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.start = {name: rows.log_probs(model) for name, rows in self.sets.items()}
        self.weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        self.measure(0, model)

    def on_step_end(self, args, state, control, model, **kwargs):
        self.progress.update()
        if state.global_step in self.steps:
            self.measure(state.global_step, model)
            if not self.curve[-1]["forget"] < FAR:
                control.should_training_stop = True
                self.progress.update(state.max_steps - state.global_step)

    @torch.no_grad()
    def measure(self, step: int, model) -> None:
        point: dict[str, float] = {"step": step}
        for name, rows in self.sets.items():
            start, log_probs = self.start[name], rows.log_probs(model)
            point[name] = (start.exp() * (start - log_probs)).sum(dim=1).mean().item()
            if name == "forget":
                risen = rows.nll(log_probs) - rows.nll(start)
                point["nll_risen"] = risen.mean().item()
        weights = torch.nn.utils.parameters_to_vector(model.parameters())
        point["moved"] = (weights - self.weights).norm().item()
        self.curve.append(point)


def title_of(beta: float | None) -> str:
    return "Gradient ascent" if beta is None else f"NPO, β {beta:g}"


def learning_rate_of(optimizer: str, options) -> float:
    return options.sgd_learning_rate if optimizer == "sgd" else options.adamw_learning_rate


def unlearn(folder: Path, optimizer: str, beta: float | None, sets: dict[str, Completions], options, progress: tqdm):
    """Unlearns by the forget loss alone; what was measured on the way."""
    # Gradient ascent is averaged over tokens; times the mean length, it is what NPO tends to as β goes to 0
    loss = (
        {"forget_loss_type": "grad_ascent", "forget_weight": sets["forget"].lengths.float().mean().item()}
        if beta is None
        else {"beta": beta, "forget_weight": 1.0}
    )
    trainer = trainer_of(
        "NPO",
        "world/llama-0.5m/npo.yaml",
        **loss,
        model_name_or_path=folder / "target",
        dataset_name=folder / "data",
        output_dir=folder / "unlearned",
        retain_weight=0.0,
        optim=optimizer,
        learning_rate=learning_rate_of(optimizer, options),
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_steps=options.steps,
        eval_strategy="no",
        eval_benchmark=None,
        retain_logs=None,
    )
    steps = {*np.geomspace(1, options.steps, NUM_MEASURED).round().astype(int).tolist(), options.steps // 2}
    callback = Divergence(sets, steps, progress)
    trainer.add_callback(callback)
    trainer.train()
    return callback.curve


def measured_sets(folder: Path, num_rows: int = 96) -> dict[str, Completions]:
    """Rows across what is forgotten, and across what is not."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    sets = {name: load_rows(str(folder / "data"), name) for name in ("forget", "retain")}
    return {
        name: Completions(rows.select(np.linspace(0, len(rows) - 1, min(num_rows, len(rows))).astype(int)), tokenizer)
        for name, rows in sets.items()
    }


def run_seed(seed: int, options, progress: tqdm) -> list[dict]:
    """All runs on one world; one row a run."""
    folder = Path(options.worlds_dir) / f"world-{seed}"
    sets = measured_sets(folder)
    rows = []
    for optimizer in OPTIMIZERS:
        for beta in (None, *options.betas):
            progress.set_description(f"World {seed}, {OPTIMIZERS[optimizer]}, {title_of(beta)}")
            run = {"seed": seed, "optimizer": optimizer, "beta": beta}
            path = Path(options.output_dir) / "runs" / f"{seed}-{optimizer}-{beta}.json"
            asked = run | {
                "learning_rate": learning_rate_of(optimizer, options),
                **{name: getattr(options, name) for name in ("steps", "num_people", "training_epochs")},
            }
            done = progress.n + options.steps
            curve = once(path, asked, lambda o=optimizer, b=beta: unlearn(folder, o, b, sets, options, progress))
            progress.update(done - progress.n)  # of runs that were there, or ended before
            rows.append(run | {"curve": curve})
    return rows


def crossing(curve: list[dict[str, float]], name: str, level: float) -> float | None:
    """
    The step at which a divergence reached a level; `None` if it never did.

    Between two measured steps it is taken to have grown exponentially, as it does where it grows fast.
    """
    for before, after in zip(curve, curve[1:], strict=False):
        if after[name] >= level:
            if before[name] <= 0:
                return after["step"]
            share = np.log(level / before[name]) / np.log(after[name] / before[name])
            return float(before["step"] + share * (after["step"] - before["step"]))
    return None


def value_at(curve: list[dict[str, float]], name: str, step: int) -> float | None:
    """What was measured after a step, or `None` if the run ended before."""
    return next((point[name] for point in curve if point["step"] == step), None)


def curves_of(rows: list[dict], optimizer: str, beta: float | None) -> list[list[dict[str, float]]]:
    return [row["curve"] for row in rows if (row["optimizer"], row["beta"]) == (optimizer, beta)]


def cell(values: list[float | None], digits: int, missing: str = "–") -> str:
    """Mean over worlds; `missing` if it has not happened in one of them."""
    return missing if None in values else f"{np.mean(values):.{digits}f}"


def summary_table(rows: list[dict], options, caption: str) -> Table:
    """When each run is one nat away from its start, where it ends, and how much of that came in the second half."""
    table = Table(title="KL(start ‖ model) in nats a token", caption=caption, box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for column in ("Steps to 1\nforget", "\nretain", "At end\nforget", "\nretain", "2nd half\nforget", "\nweights"):
        table.add_column(column, justify="right", no_wrap=True)
    for optimizer, title in OPTIMIZERS.items():
        table.add_row(f"{title}, rate {learning_rate_of(optimizer, options):g}", style="bold")
        for beta in (None, *options.betas):
            curves = curves_of(rows, optimizer, beta)
            reached = [[crossing(curve, name, 1.0) for curve in curves] for name in ("forget", "retain")]
            ends = [[value_at(curve, name, options.steps) for curve in curves] for name in ("forget", "retain")]
            grown = [[growth(curve, name, options.steps) for curve in curves] for name in ("forget", "moved")]
            table.add_row(
                title_of(beta),
                *(cell(values, 0) for values in reached),
                *(cell(values, 2, missing=f"> {FAR:g}") for values in ends),
                *(cell(values, 2) for values in grown),
            )
    return table


def growth(curve: list[dict[str, float]], name: str, steps: int) -> float | None:
    """The factor by which a divergence grew in the second half of the steps: 2 for a line."""
    half, end = (value_at(curve, name, step) for step in (steps // 2, steps))
    return None if end is None else end / half


def plot(rows: list[dict], options, path: Path) -> None:
    """One line a world: divergences and the change of the weights over steps, both on log axes."""
    figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout="constrained", sharex=True)
    columns = {
        "forget": "KL(start ‖ model), forget, nats a token",
        "retain": "KL(start ‖ model), retain, nats a token",
        "moved": "norm of the change of the weights",
    }
    for line, (optimizer, title) in zip(panels, OPTIMIZERS.items(), strict=True):
        for axes, (name, label) in zip(line, columns.items(), strict=True):
            for beta, color in zip((None, *options.betas), (COLORS[1], *COLORS[:1], *COLORS[2:]), strict=False):
                for index, curve in enumerate(curves_of(rows, optimizer, beta)):
                    points = [(point["step"], point[name]) for point in curve if point["step"] > 0]
                    axes.plot(*zip(*points, strict=True), color=color, linewidth=1.2, alpha=0.8,
                              label=title_of(beta) if index == 0 else None)  # fmt: skip
            if name != "moved":
                axes.axhline(1, color=RETAINED, linewidth=0.8, linestyle=":")
                axes.set_ylim(1e-5, 3 * FAR)
            axes.set(xscale="log", yscale="log", ylabel=label)
            axes.set_title(f"{title}, rate {learning_rate_of(optimizer, options):g}", fontsize=11)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("steps")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def main() -> None:
    parser = ArgumentParser(description="The speed at which gradient ascent and NPO diverge, on the embedded world.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the worlds")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.02, 0.1, 0.5, 2.0], help="of NPO")
    parser.add_argument("--steps", type=int, default=400, help="of unlearning, of 16 rows")
    parser.add_argument("--sgd_learning_rate", type=float, default=0.03)
    parser.add_argument("--adamw_learning_rate", type=float, default=1e-4)
    add_world_arguments(parser)
    parser.add_argument("--output_dir", default="outputs/studies/divergence")
    options = parser.parse_args()
    check_lowest(parser, options, {"steps": 2, "num_people": 8, "training_epochs": 1})
    for beta in options.betas:
        if beta <= 0:
            parser.error(f"--betas must be positive, got {beta:g}")

    be_quiet()
    start, console = perf_counter(), Console()
    make_worlds(options.worlds_dir, options.seeds, options.num_people, options.training_epochs, console)
    rows = []
    with tqdm(total=len(options.seeds) * len(OPTIMIZERS) * (1 + len(options.betas)) * options.steps) as progress:
        for seed in options.seeds:
            rows += run_seed(seed, options, progress)
    directory = Path(options.output_dir)
    seconds = write_results(directory, options, start, rows)
    plot(rows, options, directory / "divergence.png")
    caption = (
        f"Means over {len(options.seeds)} worlds. A run ends beyond {FAR:g} nats. 2nd half: the factor by which it grew. "
        f"{seconds:.0f} s. Results and picture: {directory}"
    )
    console.print(summary_table(rows, options, caption))


if __name__ == "__main__":
    main()
