"""Relearning: fine-tunes an unlearned model on a little, and asks it for the rest of what it should have forgotten."""

from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ..data.encoding import encode_dataset
from ..data.formats import infer_format
from ..evaluation.generate import pad_token_id
from ..evaluation.plan import Plan
from ..evaluation.prompting import Prompting
from ..evaluation.sets import EvaluationSet
from ..hub.load import fold_in


_DOCUMENT_WINDOW = 512  # tokens of a document that are one row


def relearn(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    rows: Dataset,
    evaluate: Callable[[PreTrainedModel], dict[str, Any]],
    steps: Sequence[int] = (5, 10, 20, 50),
    learning_rate: float = 1e-5,
    batch_size: int = 16,
    lora_r: int = 0,
    seed: int = 0,
    description: str = "Relearning",
    show_progress: bool = True,
) -> dict[int, dict[str, Any]]:
    """
    Fine-tunes a model, and evaluates it before the first step and after some of the others.

    An adapter is merged into its base first, so that what is trained is one model as everybody else has it. Training is
    [`~transformers.Trainer`]'s own: AdamW with a constant learning rate, no weight decay, gradients clipped at norm 1,
    the loss a mean over the tokens of the completions. Without `lora_r`, weights are in fp32 from here on, because in bf16
    most updates of 1e-5 round to nothing, and the attack would look weaker than it is; a GPU computes in bf16 (autocast).

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Whole model or adapter, on its device. It is changed in place.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        rows ([`~datasets.Dataset`]):
            What [`encode_rows`] gives.
        evaluate (`Callable`):
            From the model to what is to be known of it.
        steps (`Sequence[int]`, *optional*, defaults to `(5, 10, 20, 50)`):
            Optimizer steps after which to evaluate. The last one is the end.
        learning_rate (`float`, *optional*, defaults to `1e-5`):
            Learning rate.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows of an optimizer step, over all processes.
        lora_r (`int`, *optional*, defaults to `0`):
            Rank of a new LoRA adapter on all linear layers (alpha twice the rank). With 0, all weights are trained.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order of the rows and of the adapter's first weights.
        description (`str`, *optional*, defaults to `"Relearning"`):
            What stands before the progress bar.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict[int, dict]`: By step, 0 included, what `evaluate` returned.

    Example:

    ```python
    >>> rows = encode_rows(forget.select(range(80)), Prompting(tokenizer))
    >>> relearn(model, tokenizer, rows, lambda model: evaluate_unlearning(model, tokenizer, forget.select(range(80, 400))))
    ```
    """
    state = PartialState()
    if isinstance(model, PeftModel):
        model = fold_in(model)
    torch.manual_seed(seed)
    if lora_r == 0:
        model = model.float().requires_grad_(True)  # what was an adapter's base is frozen
    else:
        lora = LoraConfig(r=lora_r, lora_alpha=2 * lora_r, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    with TemporaryDirectory() as directory:
        trainer = Trainer(
            model,
            TrainingArguments(
                directory,
                max_steps=max(steps),
                per_device_train_batch_size=-(-batch_size // state.num_processes),
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                bf16=model.device.type == "cuda" and torch.cuda.is_bf16_supported(),
                seed=seed,
                dataloader_pin_memory=model.device.type == "cuda",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(pad_token_id(processing_class)),
        )
        trainer.remove_callback(PrinterCallback)
        with tqdm(
            total=max(steps), desc=description, unit=" steps", leave=False,
            disable=not (show_progress and state.is_main_process),
        ) as bar:  # fmt: skip
            curve = _Curve(lambda: evaluate(model), set(steps), bar)
            trainer.add_callback(curve)
            trainer.train()
    return curve.results


class _Curve(TrainerCallback):
    """Evaluates before training and after each of `steps`."""

    def __init__(self, evaluate: Callable[[], dict[str, Any]], steps: set[int], bar: tqdm):
        self.evaluate = evaluate
        self.steps = steps
        self.bar = bar
        self.results: dict[int, dict[str, Any]] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.results[0] = self.evaluate()

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        if state.global_step in self.steps:
            self.results[state.global_step] = self.evaluate()


def encode_rows(dataset: Dataset, prompting: Prompting, max_length: int = _DOCUMENT_WINDOW) -> Dataset:
    """
    Rows to fine-tune on, as the tokens that the evaluation scores.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows in any format that the trainers accept.
        prompting ([`Prompting`]):
            How the evaluation asks, and the tokenizer.
        max_length (`int`, *optional*, defaults to `512`):
            Documents are cut in windows of so many tokens.

    Returns:
        [`~datasets.Dataset`]: `input_ids` and `labels` (-100 on the prompt).
    """
    if infer_format(dataset, "attacker's") == "text":
        rows = encode_dataset(dataset, prompting.processing_class, "attacker's", max_length)
        return rows.select_columns(["input_ids", "labels"])
    asked = EvaluationSet("attacker's", dataset, prompting, "question")
    asked.ask(Plan(), max_new_tokens=1, answers_only=True)
    return Dataset.from_list(
        [
            {"input_ids": [*prompt_ids, *completion_ids], "labels": [-100] * len(prompt_ids) + list(completion_ids)}
            for prompt_ids, completion_ids in asked.answers
        ]
    )
