"""Loads a model or an adapter to be evaluated, whole or sharded as the launcher says."""

from accelerate import Accelerator
from accelerate.utils import DistributedType
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
    model = AutoModelForCausalLM.from_pretrained(model_name_or_path, dtype=dtype, use_safetensors=True, **source)
    tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **source)
    if accelerator.distributed_type == DistributedType.FSDP:
        return prepare_fsdp(model, accelerator), tokenizer
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return prepare_deepspeed(model, accelerator).module, tokenizer
    return model.to(accelerator.device), tokenizer
