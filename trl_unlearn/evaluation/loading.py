"""Loads a model or an adapter to be evaluated, whole or sharded as the launcher says."""

from accelerate import Accelerator
from accelerate.utils import DistributedType, disable_fsdp_ram_efficient_loading
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .._trl import prepare_deepspeed, prepare_fsdp


def load_model(
    model_name_or_path: str, revision: str = "main", dtype: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a model and its tokenizer onto this process's device.

    Args:
        model_name_or_path (`str`):
            Model or adapter: an id on the Hub or a path.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` takes the saved one.

    Returns:
        `tuple`: The model, sharded under FSDP and ZeRO-3, and its tokenizer.
    """
    source = {"revision": revision, "trust_remote_code": False}
    accelerator = Accelerator()
    if accelerator.distributed_type == DistributedType.FSDP:
        # Else transformers 4 reads the weights on the first process only, and the others would shard what is not there.
        disable_fsdp_ram_efficient_loading()
    model = AutoModelForCausalLM.from_pretrained(model_name_or_path, dtype=dtype, use_safetensors=True, **source)
    tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **source)
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
