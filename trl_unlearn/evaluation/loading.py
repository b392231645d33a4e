"""Loads a model or an adapter to be evaluated, whole or sharded as the launcher says."""

from accelerate import Accelerator
from accelerate.utils import DistributedType, disable_fsdp_ram_efficient_loading
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._trl import prepare_deepspeed, prepare_fsdp
from ..hub.load import load_unlearned


def load_model(
    model_name_or_path: str, revision: str | None = None, dtype: str = "auto", base_model: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a model and its tokenizer onto this process's device.

    Args:
        model_name_or_path (`str`):
            Model or adapter: an id on the Hub or a path.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` takes the saved one.
        base_model (`str`, *optional*):
            As for [`load_unlearned`].

    Returns:
        `tuple`: The model, sharded under FSDP and ZeRO-3, and its tokenizer.
    """
    accelerator = Accelerator()
    if accelerator.distributed_type == DistributedType.FSDP:
        # Else transformers 4 reads the weights on the first process only, and the others would shard what is not there.
        disable_fsdp_ram_efficient_loading()
    model, tokenizer = load_unlearned(model_name_or_path, revision=revision, base_model=base_model, dtype=dtype)
    if accelerator.distributed_type == DistributedType.FSDP:
        return prepare_fsdp(model, accelerator), tokenizer
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # DeepSpeed wants to know the batches of a training, which a trainer would fill in for "auto".
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_batch_size": accelerator.num_processes,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
        }
        return prepare_deepspeed(model, accelerator).module, tokenizer
    return model.to(accelerator.device), tokenizer
