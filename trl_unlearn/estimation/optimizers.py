"""States of bitsandbytes' optimizers, which have no form that can be traced."""

from math import ceil

from torch import nn


_BLOCK = 256  # elements that share a scale
_SMALLEST = 4096  # smaller tensors keep states in fp32


def bitsandbytes_bytes(model: nn.Module, optim: str) -> float | None:
    """
    Bytes of the states that an optimizer of bitsandbytes keeps on the device.

    States in 8 bits have a scale in fp32 for every 256 elements; those of embeddings and of small tensors stay in fp32.
    Paged states lie in memory that the GPU shares with the host, which takes them when the device is full: they count 0.

    Args:
        model (`nn.Module`):
            Model.
        optim (`str`):
            Name of the optimizer, as of `TrainingArguments.optim`.

    Returns:
        `float` or `None`: Bytes; `None` if it is not one of bitsandbytes' optimizers.
    """
    name = str(getattr(optim, "value", optim))
    if "torch" in name or not (
        name.endswith("_8bit") or name.startswith("paged") or "bnb" in name or name == "lion_32bit"
    ):
        return None
    if "galore" in name or "apollo" in name:
        return None
    if name.startswith("paged"):
        return 0.0
    num_states = 3 if "ademamix" in name else 2 if "adam" in name else 1
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    num_bytes = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            count = parameter.numel()
            in_8_bits = "8bit" in name and count >= _SMALLEST and id(parameter) not in embeddings
            num_bytes += count + 4 * ceil(count / _BLOCK) if in_8_bits else 4 * count
    return float(num_states * num_bytes)
