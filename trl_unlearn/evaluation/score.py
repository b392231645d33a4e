"""Log-probabilities of completions, token by token, and whether greedy decoding would have said the same."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .forward import forward_at, pad_left, pad_right, positions


_LOGITS_CHUNK = 128  # positions whose logits are held in fp32 at once: few enough for the processor's cache

# Token ids of a prompt and of its completion
Completion = tuple[tuple[int, ...], tuple[int, ...]]


def num_scored_tokens(row: Completion) -> int:
    """How many tokens of a row go through the model by itself: all but the last, after which nothing is predicted."""
    return len(row[0]) + len(row[1]) - 1


def batch_questions(rows: Sequence[Completion], max_batch_tokens: int) -> list[list[Completion]]:
    """
    Batches in which the completions of a prompt stand together, so that their prompt is computed once.

    Args:
        rows (`Sequence[Completion]`):
            Distinct rows.
        max_batch_tokens (`int`):
            Most tokens of a batch, each prompt counted once. A single question may have more.

    Returns:
        `list[list[Completion]]`: Batches, those with the longest completions first.
    """
    questions: dict[tuple[int, ...], list[Completion]] = {}
    for row in rows:
        questions.setdefault(row[0], []).append(row)
    batches: list[list[Completion]] = []
    room = 0
    for question in sorted(questions.values(), key=lambda rows: (-max(len(ids) for _, ids in rows), -len(rows[0][0]))):
        num_tokens = len(question[0][0]) + sum(len(ids) - 1 for _, ids in question)
        if num_tokens > room:
            batches.append([])
            room = max_batch_tokens
        batches[-1] += question
        room -= num_tokens
    return batches


@torch.no_grad()
def score_batch(
    model: PreTrainedModel,
    batch: list[Completion],
    pad_token_id: int,
    hidden_token_id: int | None = None,
    moments: bool = False,
    share_prompts: bool = False,
) -> tuple[list[dict[str, Any]], int]:
    """
    Scores completions given their prompts.

    Only the positions that predict a completion token are sent through the LM head, and the softmax is taken in fp32
    whatever the model's precision.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model in evaluation mode, on its device.
        batch (`list[Completion]`):
            Rows, neither part of them empty.
        pad_token_id (`int`):
            Token to pad with on the right.
        hidden_token_id (`int`, *optional*):
            Token that is not attended to wherever it stands. See `compat="open-unlearning"` of [`evaluate_unlearning`].
        moments (`bool`, *optional*, defaults to `False`):
            Whether to compute `mu` and `sigma`, which take the whole distribution at each position.
        share_prompts (`bool`, *optional*, defaults to `False`):
            Whether each distinct prompt is computed once, and its keys and values used for all its completions. Only for
            models of which [`can_select_from_cache`], and without a `hidden_token_id`.

    Returns:
        `tuple[list[dict], int]`: The number of tokens that went through the model, padding included, and for each row lists with a value for each completion token: `log_probabilities` (nats), `matches`
        (whether it is the most probable token), with `moments` `mu` and `sigma`, mean and standard deviation of the
        log-probability over the next-token distribution, and with a `hidden_token_id` `losses`, as open-unlearning
        computes them.
    """
    if share_prompts:
        parts, num_tokens = _logits_with_shared_prompts(model, batch, pad_token_id)
    else:
        parts, num_tokens = _logits_of_rows(model, batch, pad_token_id, hidden_token_id)
    rows: list[dict[str, list]] = [{} for _ in batch]
    for logits, targets, lengths in parts:
        targets = torch.tensor(targets, device=logits.device)
        columns = _columns(logits, targets, moments, class_first=hidden_token_id is not None)
        start = 0
        for row, length in zip(rows, lengths, strict=True):
            for name, values in columns.items():
                row.setdefault(name, []).extend(values[start : start + length])
            start += length
    return rows, num_tokens


# Logits at positions, the tokens that follow there, and how many of them belong to each row
_Part = tuple[torch.Tensor, list[int], list[int]]


def _logits_of_rows(
    model: PreTrainedModel, batch: list[Completion], pad_token_id: int, hidden_token_id: int | None
) -> tuple[list[_Part], int]:
    rows = [prompt_ids + completion_ids[:-1] for prompt_ids, completion_ids in batch]
    input_ids, attention_mask = pad_right(rows, pad_token_id)
    if hidden_token_id is not None:
        attention_mask[input_ids == hidden_token_id] = 0
    lengths = [len(completion_ids) for _, completion_ids in batch]
    starts = torch.tensor([len(prompt_ids) - 1 for prompt_ids, _ in batch])[:, None]
    index = torch.arange(input_ids.shape[1])
    predicts = (index >= starts) & (index < starts + torch.tensor(lengths)[:, None])
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    logits = forward_at(model, predicts, inputs).logits.squeeze(0)
    targets = [token_id for _, completion_ids in batch for token_id in completion_ids]
    return [(logits, targets, lengths)], input_ids.numel()


def _logits_with_shared_prompts(
    model: PreTrainedModel, batch: list[Completion], pad_token_id: int
) -> tuple[list[_Part], int]:
    prompts: dict[tuple[int, ...], int] = {}
    owners = torch.tensor([prompts.setdefault(prompt_ids, len(prompts)) for prompt_ids, _ in batch])
    input_ids, attention_mask = pad_left(list(prompts), pad_token_id)
    last = torch.zeros_like(input_ids, dtype=torch.bool)
    last[:, -1] = True
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions(attention_mask)}
    output = forward_at(model, last, inputs | {"use_cache": True})
    firsts = output.logits.squeeze(0)
    parts = [(firsts[owners.to(firsts.device)], [ids[0] for _, ids in batch], [1] * len(batch))]
    num_tokens = input_ids.numel()

    lengths = [len(completion_ids) - 1 for _, completion_ids in batch]
    if any(lengths):
        cache = output.past_key_values
        cache.batch_select_indices(owners.to(model.device))
        input_ids, completion_mask = pad_right([completion_ids[:-1] for _, completion_ids in batch], pad_token_id)
        attention_mask = torch.cat([attention_mask[owners], completion_mask], dim=1)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": positions(attention_mask)[:, -input_ids.shape[1] :],
            "past_key_values": cache,
            "use_cache": True,
        }
        logits = forward_at(model, completion_mask.bool(), inputs).logits.squeeze(0)
        parts.append((logits, [token_id for _, ids in batch for token_id in ids[1:]], lengths))
        num_tokens += input_ids.numel()
    return parts, num_tokens


def _columns(logits: torch.Tensor, targets: torch.Tensor, moments: bool, class_first: bool) -> dict[str, list]:
    chunks = []
    for logits_chunk, targets_chunk in zip(logits.split(_LOGITS_CHUNK), targets.split(_LOGITS_CHUNK), strict=True):
        logits_chunk = logits_chunk.float()
        largest, best = logits_chunk.max(-1)
        # `logsumexp` would look for the largest again
        log_normalizers = (logits_chunk - largest[:, None]).exp_().sum(-1).log_() + largest
        target_logits = logits_chunk.gather(-1, targets_chunk[:, None]).squeeze(-1)
        columns = {
            "log_probabilities": target_logits - log_normalizers,
            "matches": best == targets_chunk,
        }
        if moments:
            log_probabilities = logits_chunk - log_normalizers[:, None]
            # the floor, because 0 times minus infinity is no number
            log_probabilities.clamp_(min=torch.finfo(torch.float16).min)
            probabilities = log_probabilities.exp()
            mu = (probabilities * log_probabilities).sum(-1)
            variance = (probabilities * log_probabilities.square()).sum(-1) - mu.square()
            columns |= {"mu": mu, "sigma": variance.clamp(min=0).sqrt()}
        if class_first:
            # PyTorch's softmax over a first dimension is less exact, by 1e-5 a token for a sure model.
            columns["losses"] = F.cross_entropy(logits_chunk.T[None], targets_chunk[None], reduction="none")[0]
        chunks.append({name: values.tolist() for name, values in columns.items()})
    return {name: [value for chunk in chunks for value in chunk[name]] for name in chunks[0]}
