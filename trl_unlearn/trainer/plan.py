"""What a run will do, before it does it: for `--dry_run`."""

from math import ceil
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data.collator import ROLES
from .publication import base_of, default_repo_name, method_of
from .unlearning_trainer import UnlearningTrainer


def planning(trainer_class: type[UnlearningTrainer]) -> type[UnlearningTrainer]:
    """
    The trainer class without what takes long or changes something elsewhere: it is made to be asked for its plan.

    Args:
        trainer_class (`type[UnlearningTrainer]`):
            Method.

    Returns:
        `type[UnlearningTrainer]`: A subclass that scores no reference and creates no repository, and checks all else.
    """

    class PlanningTrainer(trainer_class):
        def _precompute_ref_logps(self, rows, name):
            pass

        def _cache_ref_hidden_states(self, rows, name):
            pass

        def init_hf_repo(self, token=None, private=None):
            super().init_hf_repo(token, private, create=False)

    return PlanningTrainer


def plan_of(trainer: UnlearningTrainer) -> dict[str, Any]:
    """
    The numbers of a run that has not begun.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer.

    Returns:
        `dict`: `parameters` and `trainable_parameters`; `forget_rows`, `alternate_rows`, `retain_rows` (rows as they are
        trained on: documents in windows); `pairs` an epoch; `pairs_per_step` over all devices; `steps_per_epoch`, `steps`,
        `warmup_steps`, `epochs`; `tokens`, of all rows that are trained on, without padding; and `retain_passes`, how often
        each retain row is seen.
    """
    args, rows = trainer.args, trainer.train_dataset
    parallel = args.per_device_train_batch_size * trainer.accelerator.num_processes
    batches = len(rows) // parallel if args.dataloader_drop_last else ceil(len(rows) / parallel)
    steps_per_epoch = max(ceil(batches / args.gradient_accumulation_steps), 1)
    steps = args.max_steps if args.max_steps > 0 else ceil(args.num_train_epochs * steps_per_epoch)
    epochs = steps / steps_per_epoch
    tokens = sum(
        lengths.mean() * len(rows) for lengths in rows.lengths().values()
    )  # of retain rows, those of the mean
    num_rows = {role: len(getattr(rows, role) or ()) for role in ROLES}
    parameters = list(trainer.model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        **{f"{role}_rows": number for role, number in num_rows.items()},
        "pairs": len(rows),
        "pairs_per_step": parallel * args.gradient_accumulation_steps,
        "steps_per_epoch": steps_per_epoch,
        "steps": steps,
        "warmup_steps": args.get_warmup_steps(steps),
        "epochs": epochs,
        "tokens": round(float(tokens) * epochs),
        "retain_passes": epochs * len(rows) / num_rows["retain"] if num_rows["retain"] else 0,
    }


def print_plan(trainer: UnlearningTrainer) -> None:
    """Prints what [`plan_of`] gives, and what is evaluated, saved and pushed where."""
    if not trainer.is_world_process_zero():
        return
    args, plan, method = trainer.args, plan_of(trainer), method_of(trainer)
    base_model, revision = base_of(trainer)
    share = plan["trainable_parameters"] / plan["parameters"]
    lines = {
        "Method": f"{method['name']}: {method['objective']}",
        "Model": f"{base_model or trainer.model.config.name_or_path}{f' at {revision}' if revision else ''}; "
        f"{plan['parameters']:,} parameters, {plan['trainable_parameters']:,} of them trained ({share:.2%})",
        "Forget": f"{plan['forget_rows']:,} rows"
        + (f", {plan['alternate_rows']:,} alternate answers" if plan["alternate_rows"] else ""),
        "Retain": f"{plan['retain_rows']:,} rows, each seen {plan['retain_passes']:.2g} times"
        if plan["retain_rows"]
        else "none",
        "Reference": _reference(trainer),
        "Batch": f"{plan['pairs_per_step']} pairs a step = {args.per_device_train_batch_size} a device × "
        f"{trainer.accelerator.num_processes} device(s) × {args.gradient_accumulation_steps} accumulated",
        "Steps": f"{plan['steps']:,} = {plan['epochs']:.3g} epochs of {plan['steps_per_epoch']:,}, "
        f"{plan['warmup_steps']:,} of them warm-up to {args.learning_rate:g}",
        "Tokens": f"{plan['tokens']:,} without padding",
        "Evaluation": _evaluation(trainer),
        "Saved to": f"{args.output_dir}; checkpoints: {_moments(args.save_strategy, args.save_steps)}",
        "Pushed to": _push(trainer),
    }
    table = Table(title="Plan", box=None, show_header=False, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, line in lines.items():
        table.add_row(name, Text(line))
    console = Console()
    console.print(table)
    console.print("Nothing was trained, saved or pushed: this was a dry run.")


def _reference(trainer: UnlearningTrainer) -> str:
    if not (trainer._uses_kl or trainer._forget_loss_uses_reference):
        return "none"
    if not trainer._needs_resident:
        return "scored once before training, then gone" + (
            " but for its LM head and what is kept on disk" if trainer.args.cache_ref_hidden_states else ""
        )
    kept = (
        "the model without its adapter" if trainer._adapter_is_new and trainer.ref_model is None else "a frozen copy"
    )
    return f"{kept}, in memory during training"


def _moments(strategy: Any, steps: float) -> str:
    return {"no": "none", "epoch": "every epoch", "best": "the best"}.get(strategy.value, f"every {steps:g} steps")


def _evaluation(trainer: UnlearningTrainer) -> str:
    callback = trainer._evaluation_callback()
    if callback is None:
        return "none: give `eval_benchmark` or `eval_forget_data`"
    during = _moments(trainer.args.eval_strategy, trainer.args.eval_steps or 0)
    compared = callback.arguments.retain_logs or callback.arguments.retain_model or "nothing"
    return (
        f"{callback.arguments.eval_benchmark} {' '.join(callback.arguments.eval_splits)}".strip()
        + f" before and after training; during it: {during}; compared with {compared}"
    )


def _push(trainer: UnlearningTrainer) -> str:
    args = trainer.args
    if not args.push_to_hub:
        return f"nowhere; `--push_to_hub` would push to {args.hub_model_id or default_repo_name(trainer)}"
    visibility = {None: "as public or private as usual", True: "private", False: "public"}[args.hub_private_repo]
    branch = f", branch {args.hub_revision}" if args.hub_revision else ""
    moment = {"end": "at the end", "every_save": "at every checkpoint"}[args.hub_strategy.value]
    return f"{trainer.hub_model_id} ({visibility}{branch}) {moment}: weights, tokenizer, card, results and recipe"
