"""
NPO's logistic model: how fast gradient ascent and NPO leave the model they start from, and how near to the retrained one
they come.

    OMP_NUM_THREADS=1 python examples/studies/logistic.py

Two classes, inputs in 16 dimensions around -1 (retain) and +1 (forget), 128 random ReLU features that stay fixed, and an
output layer that is trained by full-batch gradient descent in float64. After
[Negative Preference Optimization](https://huggingface.co/papers/2404.05868), with α = 1 of its code; the losses are those
of `trl_unlearn.losses`.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from trl_unlearn.evaluation.plots import COLORS, plt
from trl_unlearn.files import write_json
from trl_unlearn.losses import npo_loss


DIMENSIONS, FEATURES = 16, 128
NUM_RETAIN, NUM_FORGET, NUM_TEST = 1000, 200, 1000
TRAINING_LEARNING_RATE = 0.05
# Loss, β and learning rate of the authors' file for α = 1; with its own rate, each method moves by about as much
METHODS = {
    "Gradient ascent": ("grad_ascent", None, 5e-4),
    "NPO": ("npo", 1.0, 5e-3),
    "NPO + retain": ("npo_retain", 1.0, 5e-3),
}
# At one rate, so that only the losses differ
DIVERGENCE = {
    "Gradient ascent": ("grad_ascent", None, 5e-3),
    "NPO, β = 0.1": ("npo", 0.1, 5e-3),
    "NPO, β = 1": ("npo", 1.0, 5e-3),
}
STYLES = {
    "Gradient ascent": (COLORS[1], "-"),
    "NPO": (COLORS[0], "-"),
    "NPO + retain": (COLORS[2], "-"),
    "NPO, β = 0.1": (COLORS[5], "--"),
    "NPO, β = 1": (COLORS[0], "-"),
}

Rows = tuple[torch.Tensor, torch.Tensor]


def draw_rows(num_rows: int, forget: bool, projection: torch.Tensor, generator: torch.Generator) -> Rows:
    """Features of shape `(rows, 128)` and labels, 1 for the first class and -1 for the second, of shape `(rows,)`."""
    noise = torch.randn(num_rows, DIMENSIONS, dtype=torch.float64, generator=generator)
    inputs = noise + (1 if forget else -1)
    # The set's own class is the likelier one, by a logit of mean and variance 1
    own = torch.rand(num_rows, dtype=torch.float64, generator=generator) < torch.sigmoid(
        noise.sum(dim=1) / DIMENSIONS**0.5 + 1
    )
    return torch.relu(inputs @ projection.T), torch.where(own ^ forget, 1.0, -1.0).double()


def log_probs(weights: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Log-probabilities of the labels, of shape `(rows,)`."""
    features, labels = rows
    return F.logsigmoid(labels * (features @ weights))


def divergence(reference: torch.Tensor, weights: torch.Tensor, features: torch.Tensor) -> float:
    """KL(reference ‖ model) of the two classes, averaged over inputs, in nats."""
    logits, reference_logits = features @ weights, features @ reference
    p = torch.sigmoid(reference_logits)
    kl = p * (F.logsigmoid(reference_logits) - F.logsigmoid(logits))
    return (kl + (1 - p) * (F.logsigmoid(-reference_logits) - F.logsigmoid(-logits))).mean().item()


def descend(
    weights: torch.Tensor,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    learning_rate: float,
    num_steps: int,
    progress: tqdm,
    measure: Callable[[torch.Tensor], dict[str, float]] | None = None,
    measured_steps: set[int] = frozenset(),
) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Gradient descent from `weights`; the last weights, and what `measure` said of those after `measured_steps`."""
    weights, measured = weights.clone().requires_grad_(), []
    for step in range(num_steps + 1):
        if step in measured_steps:
            with torch.no_grad():
                measured.append({"step": step, **measure(weights)})
        if step < num_steps:
            (gradient,) = torch.autograd.grad(loss_of(weights), weights)
            with torch.no_grad():
                weights -= learning_rate * gradient
            progress.update()
    return weights.detach(), measured


def forget_loss(name: str, beta: float | None, start: torch.Tensor, forget: Rows, retain: Rows) -> Callable:
    """The loss to descend, as a function of the weights."""
    if name == "grad_ascent":
        return lambda weights: log_probs(weights, forget).mean()
    ref_logps = log_probs(start, forget)
    retain_weight = float(name == "npo_retain")

    def loss_of(weights: torch.Tensor) -> torch.Tensor:
        loss = npo_loss(log_probs(weights, forget), ref_logps, beta).mean()
        return loss - retain_weight * log_probs(weights, retain).mean() if retain_weight else loss

    return loss_of


def run_seed(seed: int, options, progress: tqdm) -> list[dict]:
    """Trains a target and a retrained model, then unlearns by each method; one row a method."""
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(FEATURES, DIMENSIONS, dtype=torch.float64, generator=generator) / DIMENSIONS**0.5
    retain = draw_rows(NUM_RETAIN, False, projection, generator)
    forget = draw_rows(NUM_FORGET, True, projection, generator)
    tests = {
        "forget": draw_rows(NUM_TEST, True, projection, generator)[0],
        "retain": draw_rows(NUM_TEST, False, projection, generator)[0],
    }

    def train(rows: Rows) -> torch.Tensor:
        def loss_of(weights: torch.Tensor) -> torch.Tensor:
            return -log_probs(weights, rows).mean()

        zeros = torch.zeros(FEATURES, dtype=torch.float64)
        return descend(zeros, loss_of, TRAINING_LEARNING_RATE, options.training_steps, progress)[0]

    progress.set_description(f"Seed {seed}, retrained model and target")
    retrained = train(retain)
    target = train(tuple(map(torch.cat, zip(retain, forget, strict=True))))

    def measure(weights: torch.Tensor) -> dict[str, float]:
        return {
            **{name: divergence(retrained, weights, features) for name, features in tests.items()},
            "moved": (weights - target).norm().item(),
        }

    rows = []
    for study, methods, num_steps in (
        ("retrained", METHODS, options.steps),
        ("divergence", DIVERGENCE, options.divergence_steps),
    ):
        steps = set(np.geomspace(1, num_steps, 60).round().astype(int)) | set(
            np.linspace(0, num_steps, 41).astype(int)
        )
        for method, (loss, beta, learning_rate) in methods.items():
            progress.set_description(f"Seed {seed}, {method}")
            loss_of = forget_loss(loss, beta, target, forget, retain)
            _, curve = descend(target, loss_of, learning_rate, num_steps, progress, measure, set(map(int, steps)))
            rows.append({"study": study, "method": method, "seed": seed, "beta": beta,
                         "learning_rate": learning_rate, "curve": curve})  # fmt: skip
    return rows


def values_of(rows: list[dict], study: str, method: str, name: str) -> np.ndarray:
    """What was measured over the steps, of shape `(seeds, steps)`."""
    return np.array([
        [point[name] for point in row["curve"]] for row in rows if (row["study"], row["method"]) == (study, method)
    ])  # fmt: skip


def plot(rows: list[dict], path: Path) -> None:
    """Left, the distances to the retrained model; right, the distance to the model before unlearning, at one rate."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for axes, (study, methods, name, title) in zip(
        panels,
        (
            ("retrained", METHODS, "forget", "To the retrained model, forget"),
            ("retrained", METHODS, "retain", "To the retrained model, retain"),
            ("divergence", DIVERGENCE, "moved", "To the start, at one learning rate"),
        ),
        strict=True,
    ):
        for method in methods:
            steps, values = values_of(rows, study, method, "step")[0], values_of(rows, study, method, name)
            color, linestyle = STYLES[method]
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
            axes.plot(steps, np.median(values, axis=0), color=color, linestyle=linestyle, label=method)
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="steps of gradient descent", yscale="log", ylabel="KL(retrained ‖ model), nats")
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[2].set(ylabel="norm of the change of the weights", xscale="log")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def summary_table(rows: list[dict], title: str, caption: str) -> Table:
    """The distances at the end. One odd seed may make a mean, so the median and the extremes stand beside it."""
    table = Table(title=title, caption=caption, box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in ("Forget", "Retain"):
        for statistic in ("mean", "median", "range"):
            table.add_column(f"{name}\n{statistic}", justify="right")

    def cells(method: str, point: int) -> list[str]:
        columns = []
        for name in ("forget", "retain"):
            values = values_of(rows, "retrained", method, name)[:, point]
            columns += [f"{values.mean():.3f}", f"{np.median(values):.3f}", f"{values.min():.3f}–{values.max():.3f}"]
        return columns

    table.add_row("Target", *cells("NPO", 0))
    for method in METHODS:
        table.add_row(method, *cells(method, -1))
    return table


def main() -> None:
    parser = ArgumentParser(description="Gradient ascent and NPO on a logistic model with random features.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--training_steps", type=int, default=20_000, help="of the target and the retrained model")
    parser.add_argument("--steps", type=int, default=2_000, help="of unlearning")
    parser.add_argument(
        "--divergence_steps", type=int, default=10_000, help="of unlearning at one learning rate for all"
    )
    parser.add_argument("--output_dir", default="outputs/studies/logistic")
    options = parser.parse_args()
    for name, lowest in (("training_steps", 1), ("steps", 1), ("divergence_steps", 2)):
        if getattr(options, name) < lowest:
            parser.error(f"--{name} must be at least {lowest}, got {getattr(options, name)}")

    start, rows = perf_counter(), []
    steps = 2 * options.training_steps + len(METHODS) * options.steps + len(DIVERGENCE) * options.divergence_steps
    with tqdm(total=len(options.seeds) * steps, unit_scale=True) as progress:
        for seed in options.seeds:
            rows += run_seed(seed, options, progress)
    seconds = perf_counter() - start
    directory = Path(options.output_dir)
    results = {"options": vars(options), "seconds": seconds, "processor_seconds": process_time(), "rows": rows}
    write_json(results, directory / "results.json")
    plot(rows, directory / "logistic.png")

    grown = []
    for method in DIVERGENCE:
        steps, moved = (values_of(rows, "divergence", method, name) for name in ("step", "moved"))
        half = moved[steps == options.divergence_steps // 2]
        grown.append(f"{method} {np.mean(moved[:, -1] / half):.2f}×")
    table = summary_table(
        rows,
        f"KL(retrained ‖ model) in nats after {options.steps} steps, over {len(options.seeds)} seeds",
        f"At one learning rate, the distance from the target grew in the second half of {options.divergence_steps} steps: "
        f"{'; '.join(grown)}. {seconds:.0f} s. Results and picture: {directory}",
    )
    Console().print(table)


if __name__ == "__main__":
    main()
