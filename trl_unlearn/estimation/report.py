"""The estimate as a table."""

from rich.console import Console
from rich.table import Table

from .estimate import Estimate
from .memory import GIB


PARTS = {
    "weights": "Weights",
    "gradients": "Gradients",
    "optimizer": "Optimizer",
    "reference": "Reference model",
    "activations": "Activations of a micro-batch",
    "lm_head": "LM head, in chunks",
    "dequantized": "Matrix that is dequantized",
    "communication": "Buffers between devices",
    "overhead": "Libraries and allocator",
    "not_at_once": "Not held at once",
}


def report(estimate: Estimate, console: Console) -> None:
    """
    Prints memory, time, verdict and assumptions.

    Args:
        estimate ([`~estimation.estimate.Estimate`]):
            What was found.
        console ([`~rich.console.Console`]):
            Where to.
    """
    run = estimate.run
    table = Table(title="Memory per device", box=None, title_justify="left", show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for part, name in PARTS.items():
        if round(abs(estimate.memory[part]) / 2**20) > 0:
            table.add_row(name, size(estimate.memory[part]))
    table.add_row("Total", size(estimate.memory["total"]), style="bold")
    table.add_row("at its most in", estimate.peak_moment, style="dim")
    console.print(table)

    table = Table(title="\nRun", box=None, title_justify="left", show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    share = run["trainable_parameters"] / run["parameters"]
    table.add_row("Parameters", f"{run['parameters']:,}, {share:.2%} of them trained")
    table.add_row(
        "Micro-batch",
        f"{run['mean_tokens_per_micro_batch']:,.0f} tokens with padding, {run['most_tokens_per_micro_batch']:,} at most; "
        f"{run['flops_per_micro_batch'] / 1e12:,.3g} TFLOP",
    )
    table.add_row("Step", f"{run['pairs_per_step']:,} pairs on {run['devices']} device(s)")
    if "steps" in run:
        epochs = f" = {run['epochs']:.3g} epochs of {run['pairs']:,} pairs" if "epochs" in run else ""
        table.add_row("Steps", f"{run['steps']:,}{epochs}")
    if "tokens" in run:
        table.add_row("Tokens", f"{run['tokens']:,} without padding")
    seconds = estimate.time or {}
    if "step" in seconds:
        table.add_row(
            "Time of a step", f"{duration(seconds['step'])}, {duration(seconds['optimizer'])} of it the optimizer"
        )
    if seconds.get("reference"):
        table.add_row("Time of the reference", f"{duration(seconds['reference'])}, once before training")
    if "total" in seconds:
        table.add_row("Time in all", duration(seconds["total"]), style="bold")
    console.print(table)

    if estimate.verdict is not None:
        console.print(f"\n{verdict(estimate)}", style="bold green" if estimate.verdict["fits"] else "bold red")
    console.print("\nAssumed:")
    for line in estimate.assumptions:
        console.print(f"- {line}", highlight=False, markup=False)


def verdict(estimate: Estimate) -> str:
    """Whether it fits, in a sentence, and which batch is the largest that does."""
    found, total = estimate.verdict, estimate.memory["total"]
    batch, accumulated = found["per_device_train_batch_size"], found["gradient_accumulation_steps"]
    sentence = f"{'Fits' if found['fits'] else 'Does not fit'}: {size(total)} of {size(found['device_memory'])}."
    if batch is None:
        return f"{sentence} No batch does: use an adapter (`use_peft`), gradient checkpointing, or more devices with FSDP."
    return (
        f"{sentence} The largest batch that does: per_device_train_batch_size {batch} with gradient_accumulation_steps "
        f"{accumulated}, for the same effective batch."
    )


def size(num_bytes: float) -> str:
    """GiB, and MiB below one."""
    return f"{num_bytes / GIB:,.2f} GiB" if abs(num_bytes) >= GIB else f"{num_bytes / 2**20:,.0f} MiB"


def duration(seconds: float) -> str:
    """Hours, minutes or seconds."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.3g} s"
