"""Evaluates while a trainer trains, and keeps the trajectory."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..files import write_json
from .arguments import EvaluationArguments, evaluate_as_asked
from .batching import evaluation_mode


# The leading underscore keeps what is in it, forget-set text, out of a push to the Hub.
EVALUATION_DIR = "_evaluation"


class UnlearningEvalCallback(TrainerCallback):
    """
    Evaluates before training, whenever `eval_strategy` says so, and after the last step.

    Writes into `_evaluation/` of the output directory, on the main process: `evaluations.json`, a list of the summaries
    with their steps, and `evaluation.json`, the latest result with all rows. A resumed run goes on with the list.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer whose model is evaluated.
        dataset_name (`str`):
            Data set to evaluate on.
        arguments ([`EvaluationArguments`]):
            What to evaluate.
    """

    def __init__(self, trainer: "UnlearningTrainer", dataset_name: str, arguments: EvaluationArguments):  # noqa: F821
        self.trainer = trainer
        self.dataset_name = dataset_name
        self.arguments = arguments
        self.directory = Path(trainer.args.output_dir) / EVALUATION_DIR
        self.evaluations: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        file = self.directory / "evaluations.json"
        if state.global_step > 0 and file.exists():
            evaluations = json.loads(file.read_text(encoding="utf-8"))
            self.evaluations = [entry for entry in evaluations if entry["step"] <= state.global_step]
        else:
            self._evaluate(state)

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate:
            self._evaluate(state)

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_evaluate:
            self._evaluate(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._evaluate(state)

    def _evaluate(self, state) -> None:
        if self.evaluations and self.evaluations[-1]["step"] == state.global_step:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with evaluation_mode(model):
            if self.trainer.is_world_process_zero():
                result = evaluate_as_asked(
                    model,
                    self.trainer.processing_class,
                    self.dataset_name,
                    self.arguments,
                    show_progress=not self.trainer.args.disable_tqdm,
                )
                quality = result.get("forget_quality")
                entry = {
                    "step": state.global_step,
                    "epoch": state.epoch or 0,
                    "summary": result["summary"],
                    **({"forget_quality": quality} if quality else {}),
                }
                write_json(result, self.directory / "evaluation.json")
                write_json([*self.evaluations, entry], self.directory / "evaluations.json")
                metrics = {
                    **result["summary"],
                    **({"log10_forget_quality": quality["log10_p_value"]} if quality else {}),
                }
            else:
                entry, metrics = {"step": state.global_step}, {}
            self.trainer.log({f"eval_{name}": value for name, value in metrics.items()})
        self.evaluations.append(entry)
        self.trainer.accelerator.wait_for_everyone()
