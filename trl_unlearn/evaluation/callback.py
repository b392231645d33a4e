"""Evaluates while a trainer trains, keeps the trajectory, and says which checkpoint is the best or when to stop."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..files import write_json
from .arguments import EvaluationArguments
from .benchmarks import evaluate_as_asked, evaluate_retained
from .forgetting import FORGETTING_FILE, Forgetting
from .plots import plot_forgetting, plot_trajectory
from .results import EVALUATION_DIR, write_results
from .selection import has_forgotten, selection_score


class UnlearningEvalCallback(TrainerCallback):
    """
    Evaluates before training, whenever `eval_strategy` says so, and after the last step, on all processes.

    The numbers are logged as `eval_*`, to the trackers as well, and are among the metrics of the trainer's evaluation, so
    that `metric_for_best_model` can name any of them. With `eval_select`, there is `eval_selection`, see
    [`selection_score`]; with `eval_stop`, training ends at the first evaluation at which [`has_forgotten`].

    Writes into `_evaluation/` of the output directory: `evaluations.json`, a list of the summaries with their steps, and
    its picture; where forget rows have a probability, `forgetting.json` with that of each row at each evaluation, see
    [`Forgetting`], and its picture, which shows the rows that resist; `before.json`, the model before training, which a
    resumed run reads instead of evaluating it again; and for the latest model what `trl-unlearn evaluate` writes.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer whose model is evaluated.
        arguments ([`EvaluationArguments`]):
            What to evaluate.
        dataset_name (`str`, *optional*):
            Data set to evaluate on where `arguments.eval_dataset` is not given.
        eval_select (`str`, *optional*):
            Rule of [`selection_score`]: `"retained"` or `"unseen"`.
        eval_stop (`bool`, *optional*, defaults to `False`):
            Whether to stop at the first evaluation at which the model has forgotten by this rule.
        max_utility_drop (`float`, *optional*):
            How far model utility may fall below that before training. The trainer's `retain_weight` is the given one plus a
            multiplier of this constraint, which starts at 0 and moves at each evaluation, in proportion to how far the
            constraint is exceeded or kept (dual ascent).

    Example:

    ```python
    >>> trainer.add_callback(UnlearningEvalCallback(trainer, EvaluationArguments(eval_benchmark="tofu")))
    ```
    """

    def __init__(
        self,
        trainer: "UnlearningTrainer",  # noqa: F821
        arguments: EvaluationArguments,
        dataset_name: str | None = None,
        eval_select: str | None = None,
        eval_stop: bool = False,
        max_utility_drop: float | None = None,
    ):
        if eval_stop and eval_select is None:
            raise ValueError("`eval_stop` takes a rule that says when a model has forgotten: give `eval_select`.")
        if eval_select is not None and arguments.eval_benchmark in ("muse", "wmdp"):
            raise ValueError(
                f"`eval_select` takes forget probabilities, which {arguments.eval_benchmark} does not have."
            )
        if eval_select == "retained" and arguments.retain_logs is None and arguments.retain_model is None:
            raise ValueError(
                "The rule 'retained' takes the retained model's results: give `retain_logs` or `retain_model`, or choose "
                "the rule 'unseen'."
            )
        if max_utility_drop is not None and (not max_utility_drop > 0 or trainer.args.retain_weight == 0):
            raise ValueError(
                f"`eval_max_utility_drop` is {max_utility_drop} and `retain_weight` {trainer.args.retain_weight}; both must be "
                "positive: the weight of the retain loss is what holds utility."
            )
        self.max_utility_drop = max_utility_drop
        self.trainer = trainer
        self.arguments = arguments
        self.dataset_name = dataset_name
        self.eval_select = eval_select
        self.eval_stop = eval_stop
        self.directory = Path(trainer.args.output_dir) / EVALUATION_DIR
        self.evaluations: list[dict[str, Any]] = []
        self.retained: dict[str, Any] | None = None
        self.before: dict[str, Any] | None = None
        self.latest: dict[str, Any] | None = None
        self.metrics: dict[str, float] = {}
        self.forgetting: Forgetting | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.retained = evaluate_retained(
            self.arguments,
            model_name=self._model_name(),
            dataset_name=self.dataset_name,
            cache_dir=self.directory / "rows",
            show_progress=not args.disable_tqdm,
        )
        self.forgetting = Forgetting(_forget_probability(self.retained), args.forget_floor)
        evaluations, before = self.directory / "evaluations.json", self.directory / "before.json"
        forgetting = self.directory / FORGETTING_FILE
        if state.global_step > 0 and evaluations.exists() and before.exists():
            entries = json.loads(evaluations.read_text(encoding="utf-8"))
            self.evaluations = [entry for entry in entries if entry["step"] <= state.global_step]
            self.before = json.loads(before.read_text(encoding="utf-8"))
            self.latest = json.loads((self.directory / "evaluation.json").read_text(encoding="utf-8"))
            self.trainer.retain_weight = self.evaluations[-1].get("retain_weight", args.retain_weight)
            if forgetting.exists():
                self.forgetting.go_on_from(forgetting, state.global_step)
        else:
            if self.trainer.is_world_process_zero():
                forgetting.unlink(missing_ok=True)  # of an earlier training, maybe on another benchmark
            self._evaluate(state, control)
            self.before = self.latest
            self._write(self.before, before)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        # once a step, though the trainer evaluates each of its sets apart
        metrics |= {f"eval_{name}": value for name, value in self._evaluate(state, control).items()}

    def on_train_end(self, args, state, control, **kwargs):
        if not args.load_best_model_at_end:
            self._evaluate(state, control)
        elif state.best_global_step not in (None, self.evaluations[-1]["step"]):
            # the trainer has loaded the best checkpoint again, so that this is the model that is saved
            self.latest = self._result(state) | {"selected_step": state.best_global_step}
        if self.trainer.is_world_process_zero():
            plot_trajectory(self.evaluations, self.directory / "figures" / "trajectory.png")
            if self.forgetting.steps:
                plot_forgetting(self.forgetting, self.directory / "figures" / "forgetting.png")
            write_results(self.latest, self.results(), self.directory)
        self.trainer.accelerator.wait_for_everyone()

    def results(self) -> dict[str, dict[str, Any]]:
        """What there is of the evaluations before training, after it, and of the retained model."""
        results = {"Before": self.before, "After": self.latest, "Retained": self.retained}
        return {name: result for name, result in results.items() if result is not None}

    def _evaluate(self, state, control) -> dict[str, float]:
        if not self.evaluations or self.evaluations[-1]["step"] != state.global_step:
            self.latest = self._result(state)
            quality = self.latest.get("forget_quality")
            self.metrics = {
                **self.latest["summary"],
                **({"log10_forget_quality": quality["log10_p_value"]} if quality else {}),
            }
            if self.eval_select is not None:
                self.metrics["selection"] = selection_score(self.eval_select, self.latest, self.retained)
            if self.max_utility_drop is not None:
                self._move_retain_weight()
                self.metrics["retain_weight"] = self.trainer.retain_weight
            self.evaluations.append(
                {
                    "step": state.global_step,
                    "epoch": state.epoch or 0,
                    "summary": self.latest["summary"],
                    **({"forget_quality": quality} if quality else {}),
                    **{name: self.metrics[name] for name in ("selection", "retain_weight") if name in self.metrics},
                }
            )
            if probability := _forget_probability(self.latest):
                self.forgetting.add(state.global_step, probability)
                self._write(vars(self.forgetting), self.directory / FORGETTING_FILE)
            self._write(self.latest, self.directory / "evaluation.json")
            self._write(self.evaluations, self.directory / "evaluations.json")
            self.trainer.log({f"eval_{name}": value for name, value in self.metrics.items()})
            if self.eval_stop and has_forgotten(self.eval_select, self.latest, self.retained):
                control.should_training_stop = True
        return self.metrics

    def _move_retain_weight(self) -> None:
        if "model_utility" not in self.latest["summary"]:
            raise ValueError("`eval_max_utility_drop` takes an evaluation with model utility, which this one lacks.")
        if self.before is None:  # this is the evaluation before training
            return
        drop = self.before["summary"]["model_utility"] - self.latest["summary"]["model_utility"]
        given = self.trainer.args.retain_weight
        step = given * (drop / self.max_utility_drop - 1)
        self.trainer.retain_weight = max(given, self.trainer.retain_weight + step)

    def _result(self, state) -> dict[str, Any]:
        return evaluate_as_asked(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            self.trainer.processing_class,
            self.arguments,
            model_name=self._model_name(),
            dataset_name=self.dataset_name,
            retained=self.retained,
            cache_dir=self.directory / "rows" if state.global_step == 0 else None,
            show_progress=not self.trainer.args.disable_tqdm,
        )

    def _write(self, content: Any, path: Path) -> None:
        if self.trainer.is_world_process_zero():
            write_json(content, path)
        self.trainer.accelerator.wait_for_everyone()

    def _model_name(self) -> str:
        return self.trainer.model.config.name_or_path


def _forget_probability(result: dict[str, Any] | None) -> list[float] | None:
    return result["rows"].get("forget", {}).get("probability") if result is not None else None
