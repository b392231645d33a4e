"""What the training commands share: arguments for data and evaluation, and the run from model to saved result."""

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ..evaluation.arguments import EvaluationArguments


if TYPE_CHECKING:
    from trl import ModelConfig

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
        alternates_column (`str`, *optional*):
            Column of the forget set with the alternate answers (lists of texts), if it is not called `alternates`.

        > Parameters that control what is made of the evaluations during training

        eval_select (`str`, *optional*):
            Load the best checkpoint at the end: the highest model utility of those whose forget probability is at or below
            the retained model's (`"retained"`), or at or below what the model gives to what it was not trained on, the
            holdout set or else the paraphrased answers (`"unseen"`). Takes checkpoints, so that `save_strategy` must be
            `eval_strategy`.
        eval_stop (`bool`, *optional*, defaults to `False`):
            Stop at the first evaluation at which the forget probability is that low.

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
    alternates_column: str | None = field(
        default=None, metadata={"help": "Column of the forget set with the alternate answers, if not `alternates`."}
    )
    eval_select: Literal["retained", "unseen"] | None = field(
        default=None, metadata={"help": "Load the checkpoint at the end that is the best by this rule."}
    )
    eval_stop: bool = field(default=False, metadata={"help": "Stop as soon as the rule of eval_select is met."})


def run(
    trainer_class: "type[UnlearningTrainer]",
    script_args: UnlearningScriptArguments,
    training_args: "UnlearningConfig",
    model_args: "ModelConfig",
) -> None:
    """
    Loads model and data, trains, evaluates, saves, and then pushes if `push_to_hub` is set.

    Args:
        trainer_class (`type[UnlearningTrainer]`):
            Method.
        script_args ([`UnlearningScriptArguments`]):
            Data and evaluation.
        training_args ([`UnlearningConfig`]):
            Configuration of the trainer.
        model_args ([`~trl.ModelConfig`]):
            Model, quantization and adapter.
    """
    from trl import get_peft_config, get_quantization_config

    from ..data.loading import load_rows
    from ..hub.recipe import build_recipe
    from ..trainer.publication import base_of, without_private_names

    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    forget = load_rows(script_args.dataset_name, script_args.forget_config, script_args.forget_split)
    if script_args.alternates_column not in (None, "alternates"):
        forget = forget.rename_column(script_args.alternates_column, "alternates")
    retain = None
    if training_args.retain_weight > 0:
        retain = load_rows(
            script_args.retain_dataset_name or script_args.dataset_name,
            script_args.retain_config,
            script_args.retain_split,
        )

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
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=forget,
        retain_dataset=retain,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if script_args.eval_benchmark is not None:
        from ..evaluation.callback import UnlearningEvalCallback

        trainer.add_callback(
            UnlearningEvalCallback(
                trainer, script_args, script_args.dataset_name, script_args.eval_select, script_args.eval_stop
            )
        )

    revision = base_of(trainer)[1] or model_args.model_revision
    trainer.recipe = build_recipe(
        without_private_names(script_args, trainer), training_args, replace(model_args, model_revision=revision)
    )

    resume = training_args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume in ("true", "True") else resume)
    trainer.save_state()
    if training_args.push_to_hub:
        trainer.push_to_hub()  # which saves first
    else:
        trainer.save_model()
    end(trainer)


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


def main(trainer_name: str, config_name: str) -> None:
    """Parses the command line (`--config file.yaml`, flags win) and runs the trainer of that name."""
    from trl import ModelConfig, TrlParser

    import trl_unlearn

    parser = TrlParser((UnlearningScriptArguments, getattr(trl_unlearn, config_name), ModelConfig))
    script_args, training_args, model_args = parser.parse_args_and_config(fail_with_unknown_args=True)
    run(getattr(trl_unlearn, trainer_name), script_args, training_args, model_args)
