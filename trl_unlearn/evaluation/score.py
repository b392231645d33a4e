"""Negative log-likelihoods of any number of completions, each distinct one scored once."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .batching import batch_by_length, evaluation_mode


_LOGITS_CHUNK = 1024  # positions whose logits are held in fp32 at once


@torch.no_grad()
def score_completions(
    model: PreTrainedModel,
    rows: Sequence[tuple[list[int], list[int]]],
    pad_token_id: int,
    max_batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[float, int]]:
    """
    Summed negative log-likelihood and number of tokens of each completion, given its prompt.

    Rows go longest first in batches of about equal length. Only the positions that predict a completion token are sent
    through the LM head, and the softmax is taken in fp32 whatever the model's precision.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, on its device.
        rows (`Sequence[tuple[list[int], list[int]]]`):
            Token ids of prompts and completions, EOS included where it is to be scored.
        pad_token_id (`int`):
            Token to pad with on the right.
        max_batch_tokens (`int`, *optional*, defaults to `8192`):
            Size of a batch in tokens, padding included. A single longer row is a batch of its own.
        progress (`Callable`, *optional*):
            Called with the number of distinct rows done after each batch.

    Returns:
        `list[tuple[float, int]]`: One `(nll_sum, num_tokens)` per row, in the order of `rows`.
    """
    for index, (prompt_ids, completion_ids) in enumerate(rows):
        if not prompt_ids or not completion_ids:
            raise ValueError(
                f"Row {index} has {len(prompt_ids)} prompt tokens and {len(completion_ids)} completion tokens; scoring "
                "needs at least one of each."
            )
    distinct = list(dict.fromkeys((tuple(prompt_ids), tuple(completion_ids)) for prompt_ids, completion_ids in rows))
    sums: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    with evaluation_mode(model):
        for batch in batch_by_length(distinct, lambda row: len(row[0]) + len(row[1]), max_batch_tokens):
            for row, nll in zip(batch, _score_batch(model, batch, pad_token_id), strict=True):
                sums[row] = nll
            if progress is not None:
                progress(len(batch))
    return [
        (sums[tuple(prompt_ids), tuple(completion_ids)], len(completion_ids)) for prompt_ids, completion_ids in rows
    ]


def _score_batch(
    model: PreTrainedModel, batch: list[tuple[tuple[int, ...], tuple[int, ...]]], pad_token_id: int
) -> list[float]:
    length = max(len(prompt_ids) + len(completion_ids) for prompt_ids, completion_ids in batch)
    input_ids = torch.full((len(batch), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    predicts = torch.zeros_like(input_ids, dtype=torch.bool)
    for index, (prompt_ids, completion_ids) in enumerate(batch):
        end = len(prompt_ids) + len(completion_ids)
        input_ids[index, :end] = torch.tensor(prompt_ids + completion_ids)
        attention_mask[index, :end] = 1
        predicts[index, len(prompt_ids) - 1 : end - 1] = True

    # The hook, and not a call of backbone and head apart, so that whatever the architecture does to its logits is done.
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda head, args: (args[0][predicts.to(args[0].device)].unsqueeze(0), *args[1:])
    )
    try:
        output = model(
            input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device), use_cache=False
        )
    finally:
        handle.remove()
    targets = input_ids.roll(-1, dims=1)[predicts].to(output.logits.device)
    token_nll = torch.cat(
        [
            F.cross_entropy(logits.float(), chunk_targets, reduction="none")
            for logits, chunk_targets in zip(
                output.logits.squeeze(0).split(_LOGITS_CHUNK), targets.split(_LOGITS_CHUNK), strict=True
            )
        ]
    )
    row_nll = token_nll.cpu().double().split([len(completion_ids) for _, completion_ids in batch])
    return [float(nll.sum()) for nll in row_nll]
