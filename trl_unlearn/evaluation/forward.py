"""Forward passes over padded rows, with logits only where they are wanted."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of rows as a tensor padded on the right, and its attention mask, both of shape `(len(rows), longest)`."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    input_ids = torch.full(mask.shape, pad_token_id)
    input_ids[mask] = torch.tensor([token_id for row in rows for token_id in row])
    return input_ids, mask.long()


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same padded on the left."""
    input_ids, mask = pad_right([row[::-1] for row in rows], pad_token_id)
    return input_ids.flip(1), mask.flip(1)


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each token among those of its row that are attended to."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def forward_at(model: PreTrainedModel, wanted: torch.Tensor, inputs: dict[str, Any]) -> Any:
    """
    Runs the model and its LM head at some positions only.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        wanted (`torch.Tensor` of shape `(batch_size, sequence_length)`):
            Whether the logits at a position are wanted.
        inputs (`dict`):
            What the model is called with. Tensors are moved to its device.

    Returns:
        The model's output, with `logits` of shape `(1, number of wanted positions, vocab_size)`, row by row.
    """
    # A hook, and not a call of backbone and head apart, so that whatever the architecture does to its logits is done.
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda head, args: (args[0][wanted.to(args[0].device)].unsqueeze(0), *args[1:])
    )
    try:
        return model(
            **{
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in inputs.items()
            }
        )
    finally:
        handle.remove()


def can_select_from_cache(model: PreTrainedModel) -> bool:
    """
    Whether rows can be taken out of the model's key-value cache and go on elsewhere.

    Not for models with a recurrent state, nor for those that are not told positions and so cannot skip padding.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return not base._is_stateful and "position_ids" in inspect.signature(base.forward).parameters
