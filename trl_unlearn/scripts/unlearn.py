"""What the training commands share: arguments for data and evaluation, and the run from model to saved result."""

import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ..evaluation.arguments import EvaluationArguments
from .help import CONFIG_CLASSES, shows_help


if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from ..ledger.training import RequestTraining
    from ..trainer.unlearning_config import UnlearningConfig
    from ..trainer.unlearning_trainer import UnlearningTrainer


@dataclass
class UnlearningScriptArguments(EvaluationArguments):
    r"""
    Arguments of the training commands beside those of the config and the model.

    Parameters:
        > Parameters that control the training data

        dataset_name (`str`):
            Data set with the forget set, and the retain set unless `retain_dataset_name` is given: an id on the Hub or a
            path.
        forget_config (`str`, *optional*):
            Configuration of the forget set, for example `"forget10"`.
        forget_split (`str`, *optional*, defaults to `"train"`):
            Split of the forget set.
        retain_dataset_name (`str`, *optional*):
            Data set with the retain set. Defaults to `dataset_name`.
        retain_config (`str`, *optional*):
            Configuration of the retain set, for example `"retain90"`.
        retain_split (`str`, *optional*, defaults to `"train"`):
            Split of the retain set.
        forget_mixture (`list[str]`, *optional*):
            Further forget sets, whose rows are appended: `id[:config[:split]]` on the Hub, folders, or files (`.jsonl`,
            `.csv`, `.parquet`), with columns of the same kind.
        retain_mixture (`list[str]`, *optional*):
            The same for the retain set.
        alternates_dataset_name (`str`, *optional*):
            Data set with the alternate answers, as `trl-unlearn alternates` makes it: its column `alternates` is joined to
            the forget rows with the same question and answer. For AltPO, if the forget set has no alternates of its own.
        alternates_config (`str`, *optional*):
            Configuration of that data set.
        alternates_split (`str`, *optional*, defaults to `"train"`):
            Split of that data set.
        alternates_column (`str`, *optional*):
            Column of the forget set with the alternate answers (lists of texts), if it is not called `alternates`.

        min_document_length (`int`, *optional*, defaults to `0`):
            Leave out documents (`text` rows) with fewer characters than this. WikiText has headings and empty rows, which
            are no documents.
        tokenizer_name_or_path (`str`, *optional*):
            Tokenizer, if the model's repository has none, as those of MUSE's targets: an id on the Hub or a path.

        > Parameters that control what is done

        dry_run (`bool`, *optional*, defaults to `False`):
            Load model and data, check them, print the plan (steps, tokens, what will be pushed where), and stop. Nothing is
            trained, saved or changed on the Hub.

        > Parameters that control the ledger of requests

        ledger (`str`, *optional*):
            Folder of a ledger of deletion requests, made by the first. The model is then the base with the adapters of all
            requests that are applied, the output goes into the request's folder there, and rows of earlier requests are left
            out of the retain set. Needs `use_peft`.
        request (`str`, *optional*):
            Name of the request, as `"customer 17"`. It stays in the ledger and is published only if asked for.
        ledger_mode (`str`, *optional*, defaults to `"own"`):
            `"own"`: a new adapter for the request, which can be undone. `"continued"`: the last request's adapter is trained
            on, with its rank and modules; only the last of such requests can be undone.
        ledger_rehearsal (`float`, *optional*, defaults to `0.0`):
            How many rows of earlier requests are trained again for each row of this one, drawn at random from all that are
            applied, since they would otherwise partly come back. With `1.0`, training takes twice as many steps. Give a
            `forget_floor` with it, so that what is still forgotten is not pushed further. Their sets must still be where
            they were.

        > Parameters that control what is made of the evaluations during training

        eval_select (`str`, *optional*):
            Load the best checkpoint at the end, by [`~evaluation.selection.selection_score`]: the highest harmonic mean of
            model utility and of how near the forget rows' truth ratios are to the retained model's (`"retained"`), or to
            those of the holdout set (`"unseen"`). Where there are none, the highest utility of those whose forget
            probability is at or below the retained model's, or what the model gives to the holdout set or else to the
            paraphrased answers. Takes checkpoints, so that `save_strategy` must be `eval_strategy`.
        eval_stop (`bool`, *optional*, defaults to `False`):
            Stop at the first evaluation at which the forget probability is that low.
        eval_max_utility_drop (`float`, *optional*):
            Raise `retain_weight` at each evaluation at which model utility has fallen by more than this since before
            training, and lower it again, not below what is given, where it has fallen by less: dual ascent on the constraint.

    See [`~evaluation.arguments.EvaluationArguments`] for those that control the evaluation.
    """

    dataset_name: str = field(
        kw_only=True, metadata={"help": "Data set with the forget set: an id on the Hub or a path."}
    )
    forget_config: str | None = field(default=None, metadata={"help": "Configuration of the forget set."})
    forget_split: str = field(default="train", metadata={"help": "Split of the forget set."})
    retain_dataset_name: str | None = field(
        default=None, metadata={"help": "Data set with the retain set. Defaults to `dataset_name`."}
    )
    retain_config: str | None = field(default=None, metadata={"help": "Configuration of the retain set."})
    retain_split: str = field(default="train", metadata={"help": "Split of the retain set."})
    forget_mixture: list[str] = field(
        default_factory=list,
        metadata={"help": "Further forget sets, appended: id[:config[:split]], folders or files."},
    )
    retain_mixture: list[str] = field(
        default_factory=list,
        metadata={"help": "Further retain sets, appended: id[:config[:split]], folders or files."},
    )
    alternates_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Data set made by `trl-unlearn alternates`, joined to the forget rows by question and answer."
        },
    )
    alternates_config: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    alternates_split: str = field(default="train", metadata={"help": "Split of that data set."})
    alternates_column: str | None = field(
        default=None, metadata={"help": "Column of the forget set with the alternate answers, if not `alternates`."}
    )
    min_document_length: int = field(
        default=0, metadata={"help": "Leave out documents (text rows) with fewer characters than this."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Tokenizer, if the model's repository has none: an id on the Hub or a path."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Load and check everything, print the plan, and stop before training."}
    )
    ledger: str | None = field(
        default=None, metadata={"help": "Folder of a ledger of deletion requests, to which this one is added."}
    )
    request: str | None = field(default=None, metadata={"help": "Name of the request in the ledger."})
    ledger_mode: Literal["own", "continued"] = field(
        default="own",
        metadata={"help": "A new adapter for the request, or the last request's, trained on."},
    )
    ledger_rehearsal: float = field(
        default=0.0, metadata={"help": "Rows of earlier requests that are trained again for each row of this one."}
    )
    eval_select: Literal["retained", "unseen"] | None = field(
        default=None, metadata={"help": "Load the checkpoint at the end that is the best by this rule."}
    )
    eval_stop: bool = field(default=False, metadata={"help": "Stop as soon as the rule of eval_select is met."})
    eval_max_utility_drop: float | None = field(
        default=None,
        metadata={
            "help": "How far model utility may fall: the weight of the retain loss is raised where it falls more."
        },
    )


def load_training_sets(
    script_args: UnlearningScriptArguments, with_retain: bool = True
) -> "tuple[Dataset, Dataset | None]":
    """
    The forget set, with alternates if they are named, and the retain set.

    Args:
        script_args ([`UnlearningScriptArguments`]):
            Where they are.
        with_retain (`bool`, *optional*, defaults to `True`):
            Whether a retain set is wanted.

    Returns:
        `tuple[Dataset, Dataset | None]`: Forget and retain rows.

    Raises:
        ValueError: If a part of a mixture has columns of another kind, or a forget row finds no alternates.
        OSError: If a set is not there.
    """
    from ..data.loading import load_mixture, load_rows

    forget = load_mixture(
        (script_args.dataset_name, script_args.forget_config, script_args.forget_split),
        script_args.forget_mixture,
        "forget",
    )
    if script_args.alternates_column not in (None, "alternates"):
        forget = forget.rename_column(script_args.alternates_column, "alternates")
    if script_args.alternates_dataset_name is not None:
        from ..data.joining import join_alternates

        alternates = load_rows(
            script_args.alternates_dataset_name, script_args.alternates_config, script_args.alternates_split
        )
        forget = join_alternates(forget, alternates)
    forget = _without_short_documents(forget, script_args.min_document_length)
    if not with_retain:
        return forget, None
    retain = load_mixture(
        (
            script_args.retain_dataset_name or script_args.dataset_name,
            script_args.retain_config,
            script_args.retain_split,
        ),
        script_args.retain_mixture,
        "retain",
    )
    return forget, _without_short_documents(retain, script_args.min_document_length)


def _without_short_documents(rows: "Dataset", min_document_length: int) -> "Dataset":
    if min_document_length == 0 or "text" not in rows.column_names:
        return rows
    return rows.filter(lambda text: len(text or "") >= min_document_length, input_columns="text")


def make_trainer(
    trainer_class: "type[UnlearningTrainer]",
    script_args: UnlearningScriptArguments,
    training_args: "UnlearningConfig",
    model_args: "ModelConfig",
    request: "RequestTraining | None" = None,
) -> "UnlearningTrainer":
    """
    Loads model and data and checks them.

    Args:
        trainer_class (`type[UnlearningTrainer]`):
            Method.
        script_args ([`UnlearningScriptArguments`]):
            Data and evaluation.
        training_args ([`UnlearningConfig`]):
            Configuration of the trainer.
        model_args ([`~trl.ModelConfig`]):
            Model, quantization and adapter.
        request ([`~ledger.training.RequestTraining`], *optional*):
            Request of a ledger that is trained.

    Returns:
        [`UnlearningTrainer`]: Ready to train, with its evaluation and its recipe.
    """
    from transformers import AutoTokenizer
    from trl import get_quantization_config

    from ..hub.recipe import build_recipe
    from ..trainer.publication import base_of, without_private_names

    if model_args.model_name_or_path is None:
        raise ValueError("There is no model to unlearn: give `model_name_or_path`, an id on the Hub or a path.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    forget, retain = load_training_sets(script_args, with_retain=training_args.retain_weight > 0)
    model, peft_config = model_args.model_name_or_path, adapter_of(model_args)
    if request is not None:
        forget, retain = request.take_rows(forget, retain)
        model, peft_config = request.load_model(training_args, peft_config)

    if script_args.eval_select is not None and not script_args.eval_stop:
        if training_args.save_strategy != training_args.eval_strategy:
            raise ValueError(
                f"`eval_select` chooses among checkpoints, so that each evaluation needs one: `eval_strategy` is "
                f"{training_args.eval_strategy.value!r} and `save_strategy` {training_args.save_strategy.value!r}. Give both "
                "the same, and `save_steps` the value of `eval_steps`."
            )
        training_args.load_best_model_at_end = True
        training_args.metric_for_best_model = "eval_selection"
        training_args.greater_is_better = True
    # `Trainer` wants a set of its own to evaluate
    eval_dataset = {"forget": forget} if training_args.eval_strategy != "no" else None

    trainer = trainer_class(
        model=model,
        args=training_args,
        train_dataset=forget,
        retain_dataset=retain,
        eval_dataset=eval_dataset,
        processing_class=script_args.tokenizer_name_or_path
        and AutoTokenizer.from_pretrained(script_args.tokenizer_name_or_path),
        quantization_config=get_quantization_config(model_args),
        peft_config=peft_config,
    )
    if request is not None:
        request.check_adapter(trainer.model)
    if script_args.eval_benchmark is not None:
        from ..evaluation.callback import UnlearningEvalCallback

        trainer.add_callback(
            UnlearningEvalCallback(
                trainer,
                script_args,
                script_args.dataset_name,
                script_args.eval_select,
                script_args.eval_stop,
                script_args.eval_max_utility_drop,
            )
        )

    revision = base_of(trainer)[1] or model_args.model_revision
    trainer.recipe = build_recipe(
        without_private_names(script_args), training_args, replace(model_args, model_revision=revision)
    )
    return trainer


def run(
    trainer_class: "type[UnlearningTrainer]",
    script_args: UnlearningScriptArguments,
    training_args: "UnlearningConfig",
    model_args: "ModelConfig",
    request: "RequestTraining | None" = None,
) -> None:
    """
    Trains, evaluates, saves, and then pushes if `push_to_hub` is set; with `dry_run`, only says what that would be.

    Args:
        trainer_class (`type[UnlearningTrainer]`):
            Method.
        script_args ([`UnlearningScriptArguments`]):
            Data and evaluation.
        training_args ([`UnlearningConfig`]):
            Configuration of the trainer.
        model_args ([`~trl.ModelConfig`]):
            Model, quantization and adapter.
        request ([`~ledger.training.RequestTraining`], *optional*):
            Request of a ledger that is trained, and added to it at the end.
    """
    from ..hub.push import PushError
    from ..trainer.plan import planning, print_plan

    if script_args.dry_run:
        trainer_class = planning(trainer_class)
    try:
        trainer = make_trainer(trainer_class, script_args, training_args, model_args, request)
    except (ImportError, OSError, PushError, TypeError, ValueError) as error:
        sys.exit(f"trl-unlearn: {error}")
    if script_args.dry_run:
        print_plan(trainer)
        end(trainer)
        return

    resume = training_args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume in ("true", "True") else resume)
    trainer.save_state()
    if training_args.push_to_hub:
        trainer.push_to_hub()  # which saves first
    else:
        trainer.save_model()
    if request is not None:
        request.record(trainer)
    if trainer.is_world_process_zero():
        show_result(trainer)
    end(trainer)


def show_result(trainer: "UnlearningTrainer") -> None:
    """Prints the table of the evaluations before and after, and where everything lies."""
    from rich.console import Console

    from ..evaluation.report import summary_table

    console, callback = Console(), trainer._evaluation_callback()
    if callback is not None:
        console.print(summary_table(callback.results()))
    console.print(f"Model, card, results and recipe: {trainer.args.output_dir}", highlight=False, markup=False)
    if callback is not None:
        console.print(
            f"To look at: {callback.directory / 'report.html'} (may hold forget-set text)",
            highlight=False,
            markup=False,
        )


def end(trainer: "UnlearningTrainer") -> None:
    """
    Closes trackers and the process group, without which processes on CPU abort at exit now and then.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer that has done its work.
    """
    trainer.accelerator.end_training()
    let_gloo_finish(trainer.accelerator.num_processes)


def let_gloo_finish(num_processes: int) -> None:
    """Waits a moment between the end of the process group and that of the process."""
    if num_processes > 1:
        # Gloo's thread needs the interpreter to free the last collective, and is joined by whoever frees the group: if
        # that comes at once, each waits for the other for ever (seen with torch 2.13, one run in fifteen).
        time.sleep(0.5)


def adapter_of(model_args: "ModelConfig") -> "PeftConfig | None":  # noqa: F821
    """The adapter that is asked for. TRL hands on a single module as text, which PEFT would read as a regular expression."""
    from trl import get_peft_config

    modules = model_args.lora_target_modules
    if isinstance(modules, str) and modules != "all-linear" and modules.isidentifier():
        model_args = replace(model_args)  # whose `__post_init__` would undo this
        model_args.lora_target_modules = [modules]
    return get_peft_config(model_args)


def sources_of(method: str | None) -> dict[str, list[tuple[str, str]]]:
    """Where the options of a training command are written down, for its help; without a method, those that all have."""
    own = [(f"trl_unlearn.trainer.{method.lower()}_config", f"{method}Config")] if method is not None else []
    return {
        "Training": [
            ("trl_unlearn.scripts.unlearn", "UnlearningScriptArguments"),
            ("trl_unlearn.evaluation.arguments", "EvaluationArguments"),
        ],
        "Model and adapter": [("trl.trainer.model_config", "ModelConfig")],
        "Other options": [*own, *CONFIG_CLASSES],
    }


def main(method: str) -> None:
    """Parses the command line (`--config file.yaml`, flags win) and runs the trainer of `method`, as `"NPO"`."""
    description = (
        f"Unlearns with {method}: trains a model or an adapter, evaluates it, saves it, and pushes it if asked."
    )
    if shows_help(method.lower(), description, sources_of(method)):
        return
    from trl import ModelConfig

    import trl_unlearn

    from .parsing import RecipeParser

    parser = RecipeParser((UnlearningScriptArguments, getattr(trl_unlearn, f"{method}Config"), ModelConfig))
    trainer_class, arguments = getattr(trl_unlearn, f"{method}Trainer"), parser.parse()
    if arguments[0].ledger is None:
        run(trainer_class, *arguments)
    else:
        from ..ledger.training import train_request

        train_request(trainer_class, *arguments)
