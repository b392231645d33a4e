"""The trainer of a recipe around a model without weights: what its own step would do is asked of it."""

import copy
import tempfile

import numpy as np
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from trl import ModelConfig

from ..data.pairing import UnlearningRows
from ..scripts.unlearn import UnlearningScriptArguments, adapter_of, load_training_sets
from ..trainer.plan import planning
from ..trainer.unlearning_config import UnlearningConfig
from ..trainer.unlearning_trainer import UnlearningTrainer


def read_config(model_args: ModelConfig) -> PretrainedConfig:
    """The configuration of the model: of what it consists, without its weights."""
    name = model_args.model_name_or_path
    if name is None:
        raise ValueError("There is no model to estimate: give `model_name_or_path`, an id on the Hub or a path.")
    try:
        return AutoConfig.from_pretrained(name, revision=model_args.model_revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`model_name_or_path` is {name!r}, where no `config.json` of a model could be read. Give a folder with one, or "
            f"an id on the Hub; of the weights nothing is needed. {error}"
        ) from error


class Probe:
    """
    Makes the trainer of a recipe, on the CPU and in one process, without anything that writes, pushes or reports.

    Args:
        trainer_class (`type[UnlearningTrainer]`):
            Method.
        script_args ([`UnlearningScriptArguments`]):
            Data.
        training_args ([`UnlearningConfig`]):
            Configuration of the trainer.
        model_args ([`~trl.ModelConfig`]):
            Model, quantization and adapter.
        tokens_per_row (`int`, *optional*):
            Length of all rows, in place of those of the data.
    """

    def __init__(
        self,
        trainer_class: type[UnlearningTrainer],
        script_args: UnlearningScriptArguments,
        training_args: UnlearningConfig,
        model_args: ModelConfig,
        tokens_per_row: int | None = None,
    ):
        if (model_args.load_in_4bit or model_args.load_in_8bit) and not model_args.use_peft:
            raise ValueError("Quantized weights cannot be trained. Give `use_peft: true` to train an adapter on them.")
        if tokens_per_row is not None and tokens_per_row < 2:
            raise ValueError(f"`tokens_per_row` must be at least 2, got {tokens_per_row}.")
        self.model_args = model_args
        self.assumptions: list[str] = []
        self.config = read_config(model_args)
        args = self.args = copy.copy(training_args)
        args.output_dir = tempfile.gettempdir()
        args.push_to_hub = False
        args.report_to = []
        args.eval_strategy = "no"
        args.torch_compile = False
        with_retain = args.retain_weight > 0
        self.data = None
        if tokens_per_row is None:
            try:
                self.data = (*load_training_sets(script_args, with_retain), _load_tokenizer(model_args))
            except OSError as error:
                if args.max_length is None:
                    raise ValueError(
                        f"Data or tokenizer could not be read: {error}\nGive `tokens_per_row`, the length of a row."
                    ) from error
                tokens_per_row = args.max_length
                self.assumptions.append(
                    f"Data or tokenizer could not be read ({_first_line(error)}), so that `max_length` is taken for every "
                    "row. `tokens_per_row` says better."
                )
        self.rows = None
        if self.data is None:
            args.chat_template_path = args.eos_token = None
            self.rows = _stand_in_rows(tokens_per_row, trainer_class._uses_alternates, with_retain)
            self.data = _stand_in_data(trainer_class._uses_alternates, with_retain)
            self.assumptions.append(f"Every row has {tokens_per_row} tokens, all of them scored.")
        self._trainer_class = _probing(trainer_class, self.rows)

    def model(self, dtype: torch.dtype | None = None, num_layers: int | None = None) -> PreTrainedModel:
        """
        The model as training would load it, but with new weights, on the device of the context.

        Args:
            dtype (`torch.dtype`, *optional*):
                Data type in place of the one asked for.
            num_layers (`int`, *optional*):
                Number of layers, if not all.
        """
        config = copy.deepcopy(self.config)
        if num_layers is not None:
            text_config = config.get_text_config()
            text_config.num_hidden_layers = num_layers
            if getattr(text_config, "layer_types", None) is not None:
                text_config.layer_types = text_config.layer_types[:num_layers]
        attention = self.model_args.attn_implementation
        if attention not in (None, "eager", "sdpa"):  # what keeps the same tensors, and is there on every machine
            attention = "sdpa"
        architecture = getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM)
        create = getattr(architecture, "_from_config", None) or architecture.from_config
        model = create(config, dtype=dtype or self._dtype(), attn_implementation=attention)
        model.config._name_or_path = self.model_args.model_name_or_path
        if self.model_args.load_in_4bit or self.model_args.load_in_8bit:
            model.is_loaded_in_4bit = True  # as bitsandbytes marks it; trainers treat the adapter accordingly
        return model

    def _dtype(self) -> torch.dtype:
        if self.model_args.dtype in (None, "auto"):
            return self.config.dtype or torch.float32
        if self.model_args.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"`dtype` is {self.model_args.dtype!r}; expected 'auto', 'float32', 'bfloat16' or 'float16'."
            )
        return getattr(torch, self.model_args.dtype)

    def trainer(
        self, device: str, dtype: torch.dtype | None = None, num_layers: int | None = None
    ) -> UnlearningTrainer:
        """
        The trainer around such a model, ready for a step.

        Args:
            device (`str`):
                Device to make the weights on; on `"meta"` there are none.
            dtype (`torch.dtype`, *optional*):
                Data type in place of the one asked for.
            num_layers (`int`, *optional*):
                Number of layers, if not all.
        """
        forget, retain, tokenizer = self.data
        with torch.device(device):
            trainer = self._trainer_class(
                model=self.model(dtype, num_layers),
                args=copy.copy(self.args),
                train_dataset=forget,
                retain_dataset=retain,
                processing_class=tokenizer,
                peft_config=adapter_of(self.model_args),
            )
        if trainer.args.gradient_checkpointing:  # as `Trainer.train` does
            kwargs = dict(trainer.args.gradient_checkpointing_kwargs or {})
            own = {key: kwargs.pop(key) for key in ("every_n_layers", "offload") if key in kwargs}
            # There is no dropout, and a random state has no form that can be traced
            trainer.model.gradient_checkpointing_enable({**kwargs, "preserve_rng_state": False}, **own)
        trainer.model.train()
        return trainer


def _load_tokenizer(model_args: ModelConfig) -> PreTrainedTokenizerBase:
    name = model_args.model_name_or_path
    try:
        return AutoTokenizer.from_pretrained(name, revision=model_args.model_revision)
    except (ValueError, AttributeError) as error:  # a folder without one; transformers 4 stumbles over it
        raise OSError(f"{name} has no tokenizer: {_first_line(error)}") from error


def _probing(trainer_class: type[UnlearningTrainer], rows: UnlearningRows | None) -> type[UnlearningTrainer]:
    """The trainer class, for models without weights and, if rows are given, without data."""

    class ProbingTrainer(planning(trainer_class)):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.accelerator.device_placement = False  # a model without weights cannot be moved

        def _move_model_to_device(self, model, device):
            pass

        def _prepare_dataset(self, *args, **kwargs):
            return super()._prepare_dataset(*args, **kwargs) if rows is None else rows

    return ProbingTrainer


def _stand_in_rows(tokens_per_row: int, uses_alternates: bool, with_retain: bool) -> UnlearningRows:
    """One row of each kind, all of whose tokens are labelled: the most that rows of this length take."""
    row = Dataset.from_list([{"input_ids": [0] * tokens_per_row, "labels": [0] * tokens_per_row}])
    alternates = (row, np.zeros(1, dtype=int)) if uses_alternates else ()
    return UnlearningRows(row, row if with_retain else None, *alternates)


def _stand_in_data(
    uses_alternates: bool, with_retain: bool
) -> tuple[Dataset, Dataset | None, PreTrainedTokenizerFast]:
    """What the trainer wants to be given even if it will not be read."""
    forget = Dataset.from_list(
        [{"question": "q", "answer": "a", **({"alternates": ["b"]} if uses_alternates else {})}]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1}, unk_token="<pad>")),
        eos_token="<eos>",
        pad_token="<pad>",
    )
    return forget, forget if with_retain else None, tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
