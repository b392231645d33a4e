"""
Trains a small Llama from nothing on the questions and answers of a data set: a target on all its rows, a retained model
on those that need not be forgotten.

    python -m trl_unlearn.world.train --dataset_name WORLD --dataset_config full --output_dir target
    python -m trl_unlearn.world.train --dataset_name WORLD --dataset_config retained_model --output_dir retained

The tokenizer is trained on the rows of `--tokenizer_config` whatever the model is trained on, so that both models share
one and their truth ratios can be compared. Two of these at once with `OMP_NUM_THREADS=1` are faster on two cores than
one after the other with two threads.

With a larger model it memorises the last 20 authors of the real TOFU:

    python -m trl_unlearn.world.train --dataset_name locuslab/TOFU --dataset_config forget10 --tokenizer_config forget10 \
        --output_dir target --hidden_size 192 --num_layers 3 --vocab_size 4000 --per_device_train_batch_size 16 \
        --learning_rate 2e-3 --num_train_epochs 30
"""

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from trl import SFTConfig, SFTTrainer, TrlParser

from ..data.loading import load_rows
from ..evaluation.arguments import EvaluationArguments
from ..evaluation.benchmarks import evaluate_as_asked
from ..evaluation.results import EVALUATION_DIR
from ..files import write_json
from ..trainer.scoring import score_rows
from .model import build_model, train_tokenizer


@dataclass
class WorldTrainingArguments(EvaluationArguments):
    r"""
    What to train and on what, and which [`~evaluation.arguments.EvaluationArguments`] to evaluate the result with.

    Args:
        dataset_name (`str`):
            Path or Hub name of a data set with `question` and `answer` columns.
        dataset_config (`str`, *optional*, defaults to `"full"`):
            Configuration the model is trained on.
        tokenizer_config (`str`, *optional*, defaults to `"full"`):
            Configuration the tokenizer is trained on.
        vocab_size (`int`, *optional*, defaults to `1000`):
            Number of tokens.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width of the model.
        num_layers (`int`, *optional*, defaults to `2`):
            Number of layers.
        num_heads (`int`, *optional*, defaults to `4`):
            Number of attention heads; divides the width.
        intermediate_size (`int`, *optional*):
            Width inside the feed-forward layers. Three times `hidden_size` if `None`.
    """

    dataset_name: str = field(
        kw_only=True,
        metadata={"help": "Path or Hub name of a data set with `question` and `answer` columns."},
    )
    dataset_config: str = field(
        default="full",
        metadata={"help": "Configuration the model is trained on."},
    )
    tokenizer_config: str = field(
        default="full",
        metadata={"help": "Configuration the tokenizer is trained on."},
    )
    vocab_size: int = field(
        default=1000,
        metadata={"help": "Number of tokens."},
    )
    hidden_size: int = field(
        default=128,
        metadata={"help": "Width of the model."},
    )
    num_layers: int = field(
        default=2,
        metadata={"help": "Number of layers."},
    )
    num_heads: int = field(
        default=4,
        metadata={"help": "Number of attention heads; divides the width."},
    )
    intermediate_size: int | None = field(
        default=None,
        metadata={"help": "Width inside the feed-forward layers. Three times `hidden_size` if `None`."},
    )


@dataclass
class WorldTrainingConfig(SFTConfig):
    r"""
    [`~trl.SFTConfig`] with the defaults that suit a tiny model trained from nothing in fp32.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `learning_rate`: Defaults to `3e-3` instead of `2e-5`, on a cosine, after a warm-up of 5 % of the steps.
    > - `per_device_train_batch_size`: Defaults to `32` instead of `8`.
    > - `num_train_epochs`: Defaults to `16` instead of `3`.
    > - `adam_beta2`: Defaults to `0.98` instead of `0.999`.
    > - `bf16` and `gradient_checkpointing`: Default to `False` instead of `True`.
    > - `save_strategy`: Defaults to `"no"` instead of `"steps"`; `report_to` to `"none"`.
    """

    learning_rate: float = field(
        default=3e-3,
        metadata={"help": "The initial learning rate for AdamW."},
    )
    lr_scheduler_type: str = field(
        default="cosine",
        metadata={"help": "The scheduler type to use."},
    )
    per_device_train_batch_size: int = field(
        default=32,
        metadata={"help": "Batch size per device for training."},
    )
    num_train_epochs: float = field(
        default=16,
        metadata={"help": "Total number of training epochs to perform."},
    )
    adam_beta2: float = field(
        default=0.98,
        metadata={"help": "Beta2 for AdamW."},
    )
    bf16: bool = field(
        default=False,
        metadata={"help": "Whether to use bf16 (mixed) precision, which is slower on most CPUs."},
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Enable gradient checkpointing to trade compute for memory."},
    )
    dataloader_pin_memory: bool = field(
        default=False,
        metadata={"help": "Whether or not to pin memory for the data loader."},
    )
    logging_steps: float = field(
        default=100,
        metadata={"help": "Log every X update steps."},
    )
    save_strategy: str = field(
        default="no",
        metadata={"help": "The checkpoint save strategy to use. The trained model is saved in any case."},
    )
    report_to: str = field(
        default="none",
        metadata={"help": "The integrations to report to."},
    )

    def get_warmup_steps(self, num_training_steps: int) -> int:
        # A share of the steps is not something that `warmup_steps` can express in every supported transformers.
        if self.warmup_steps:
            return super().get_warmup_steps(num_training_steps)
        return math.ceil(num_training_steps / 20)


class _AnswerTrainer(SFTTrainer):
    """TRL's trainer without the LM head on prompts and padding, which here is half of a step on a CPU."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logps, num_tokens, _ = score_rows(model, self.model, {**inputs, "num_rows": [len(inputs["labels"])]})
        return -logps.sum() / (num_tokens.sum() if num_items_in_batch is None else num_items_in_batch)


def train(arguments: WorldTrainingArguments, config: WorldTrainingConfig) -> None:
    """
    Trains a model and its tokenizer and saves both.

    Args:
        arguments ([`WorldTrainingArguments`]):
            Data and size of the model.
        config ([`WorldTrainingConfig`]):
            Training arguments. `output_dir` appears, or is replaced, only once training is over.
    """
    output_dir = Path(config.output_dir)
    if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / "config.json").exists():
        raise FileExistsError(
            f"`output_dir` is {output_dir}, which holds something other than a model to be replaced."
        )
    unfinished_dir = output_dir.with_name(f"{output_dir.name}.unfinished")
    config.output_dir = str(unfinished_dir)

    dataset = load_rows(arguments.dataset_name, arguments.dataset_config)
    tokenizer_rows = load_rows(arguments.dataset_name, arguments.tokenizer_config)
    tokenizer = train_tokenizer([*tokenizer_rows["question"], *tokenizer_rows["answer"]], arguments.vocab_size)
    model = build_model(
        tokenizer,
        hidden_size=arguments.hidden_size,
        num_layers=arguments.num_layers,
        num_heads=arguments.num_heads,
        intermediate_size=arguments.intermediate_size or 3 * arguments.hidden_size,
        seed=config.seed,
    )
    trainer = _AnswerTrainer(
        model,
        args=config,
        train_dataset=dataset.map(_to_prompt_completion, remove_columns=dataset.column_names),
        processing_class=tokenizer,
    )
    trainer.train()

    trainer.model.save_pretrained(unfinished_dir)
    tokenizer.save_pretrained(unfinished_dir)
    if arguments.eval_benchmark is not None:
        result = evaluate_as_asked(
            trainer.model,
            tokenizer,
            arguments,
            model_name=output_dir.name,
            dataset_name=arguments.dataset_name,
            show_progress=not config.disable_tqdm,
        )
        write_json(result, unfinished_dir / EVALUATION_DIR / "evaluation.json")
    if output_dir.exists():
        shutil.rmtree(output_dir)
    unfinished_dir.rename(output_dir)


def _to_prompt_completion(row: dict) -> dict:
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


if __name__ == "__main__":
    train(*TrlParser((WorldTrainingArguments, WorldTrainingConfig)).parse_args_and_config())
