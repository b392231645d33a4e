"""Quantisation: small changes of weights can be what unlearning consists of, and rounding takes them back."""

from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_bitsandbytes_available

from ..hub.load import fold_in
from .not_applicable import NotApplicable


def quantize(
    model: PreTrainedModel | PeftModel, bits: int, group_size: int = 64
) -> tuple[PreTrainedModel, dict[str, str | int | float]]:
    """
    Quantises the weights of a model's linear layers, all but the LM head.

    An adapter is merged into its base first. With bitsandbytes and a GPU, these are `load_in_8bit` and `load_in_4bit`
    (NF4). Otherwise [`round_to_nearest`] does it, and the model computes with the rounded weights in its own data type.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Whole model or adapter, on its device. It is changed in place, or is no longer needed.
        bits (`int`):
            8 or 4.
        group_size (`int`, *optional*, defaults to `64`):
            As for [`round_to_nearest`], where that is used.

    Returns:
        `tuple`: The quantised model, and `quantizer`: what did it; of rounding also `share`: of the model's parameters.

    Raises:
        NotApplicable: If the model has no linear layers.

    Example:

    ```python
    >>> quantize(model, bits=4)[1]["quantizer"]
    'round to nearest, 16 levels per group of 64'
    ```
    """
    if isinstance(model, PeftModel):
        model = fold_in(model)
    if model.device.type == "cuda" and is_bitsandbytes_available():
        return _by_bitsandbytes(model, bits)
    levels = "256 levels per output channel" if bits == 8 else f"16 levels per group of {group_size}"
    share = round_to_nearest(model, bits, None if bits == 8 else group_size)
    return model, {"quantizer": f"round to nearest, {levels}", "share": share}


@torch.no_grad()
def round_to_nearest(model: PreTrainedModel, bits: int, group_size: int | None = None) -> float:
    """
    Rounds the weights of the linear layers, all but the LM head, to the nearest of evenly spaced levels.

    The `2 ** bits` levels reach from the smallest to the largest weight of each output channel or, with `group_size`, of
    each group of a channel's weights. They are computed in fp32 and kept in the model's data type.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model, whose weights are changed in place.
        bits (`int`):
            Bits of a weight.
        group_size (`int`, *optional*):
            Weights of a group; the last one of a channel may be smaller. If `None`, the whole channel.

    Returns:
        `float`: Share of the model's parameters that were rounded.

    Raises:
        NotApplicable: If the model has no linear layers.
    """
    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]
    if not layers:
        raise NotApplicable(f"a {type(model).__name__} has no linear layers whose weights could be rounded")
    for layer in layers:
        # output channels first; of GPT-2's layers they come last
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        for group in weight.split(group_size or weight.shape[1], dim=1):
            values = group.float()
            low, high = values.aminmax(dim=1, keepdim=True)
            step = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
            group.copy_(low + step * ((values - low) / step).round())
    rounded = sum(layer.weight.numel() for layer in layers)
    return rounded / sum(parameter.numel() for parameter in model.parameters())


def _by_bitsandbytes(model: PreTrainedModel, bits: int) -> tuple[PreTrainedModel, dict[str, str | int | float]]:
    import bitsandbytes

    device = model.device
    with TemporaryDirectory() as directory:  # bitsandbytes quantises while it loads
        model.save_pretrained(directory)
        model.to("meta")
        config = BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=model.dtype,
        )
        quantized = AutoModelForCausalLM.from_pretrained(
            directory, quantization_config=config, dtype=model.dtype, device_map={"": device}
        )
    kind = "load_in_8bit" if bits == 8 else "load_in_4bit, NF4"
    return quantized.eval(), {"quantizer": f"bitsandbytes {bitsandbytes.__version__}, {kind}"}
