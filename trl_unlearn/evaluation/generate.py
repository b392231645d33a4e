"""Answers to any number of prompts, greedy or drawn, in few large batches."""

from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from .forward import forward_at, pad_left, positions
from .sampling import Sampling, SamplingProcessor


# Rows that have ended are dropped once there are this many of them: dropping copies the cache.
_LIVE_SHARE = 7 / 8

# What of a model's own settings `generate` would follow besides
_SWITCHED_OFF = dict.fromkeys(
    (
        "min_length", "min_new_tokens", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
        "forced_eos_token_id", "exponential_decay_length_penalty", "sequence_bias", "guidance_scale",
    )
)  # fmt: skip

# Token ids of a prompt, the most tokens to generate after it, and of one that is drawn the number of the repeat
Continuation = tuple[tuple[int, ...], int] | tuple[tuple[int, ...], int, int]


def generation_settings(
    model: PreTrainedModel, processing_class: PreTrainedTokenizerBase, own: bool = False
) -> dict[str, Any]:
    """
    What [`~transformers.GenerationMixin.generate`] is given beside the prompts: the largest logit and nothing else. To draw, a
    [`Sampling`] changes the logits.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        own (`bool`, *optional*, defaults to `False`):
            Whether to leave the model's own repetition penalty and end tokens in, as open-unlearning does.
    """
    settings = {"do_sample": False, "num_beams": 1, "use_cache": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    if own:
        return settings | {"pad_token_id": processing_class.eos_token_id}
    eos_token_ids = model.generation_config.eos_token_id
    eos_token_ids = [eos_token_ids] if isinstance(eos_token_ids, int) else list(eos_token_ids or [])
    # What is not passed to `generate`, it takes from the model's own settings, which for chat models are made for sampling.
    return settings | {
        "repetition_penalty": 1.0,
        "eos_token_id": sorted({*eos_token_ids, processing_class.eos_token_id}),
        "pad_token_id": pad_token_id(processing_class),
    }


def pad_token_id(processing_class: PreTrainedTokenizerBase) -> int:
    """The padding token, or EOS where there is none."""
    token_id = processing_class.pad_token_id
    return processing_class.eos_token_id if token_id is None else token_id


@torch.no_grad()
def decode_batch(
    model: PreTrainedModel, batch: list[Continuation], settings: dict[str, Any], sampling: Sampling | None = None
) -> tuple[list[list[int]], int]:
    """
    Continues prompts; a row that has ended costs nothing any more.

    [`~transformers.GenerationMixin.generate`] computes all rows until the last one ends, which takes twice as long for
    answers of such different lengths. Only for models of which [`can_select_from_cache`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model in evaluation mode, on its device.
        batch (`list[Continuation]`):
            Prompts with the same number of tokens to generate.
        settings (`dict`):
            What [`generation_settings`] gives.
        sampling ([`Sampling`], *optional*):
            How continuations are drawn. If `None`, they are greedy.

    Returns:
        `tuple[list[list[int]], int]`: As for [`generate_batch`].
    """
    end_token_ids = set(settings["eos_token_id"])
    input_ids, attention_mask = pad_left([row[0] for row in batch], settings["pad_token_id"])
    position_ids = positions(attention_mask)
    new_ids: list[list[int]] = [[] for _ in batch]
    rows = list(range(len(batch)))  # which row of the batch each row of the tensors is
    keys = None if sampling is None else _keys(sampling, batch)
    cache, num_steps = None, 0
    while True:
        last = torch.zeros_like(input_ids, dtype=torch.bool)
        last[:, -1] = True
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        output = forward_at(model, last, inputs | {"past_key_values": cache, "use_cache": True})
        logits = output.logits.squeeze(0)
        if sampling is not None:
            logits = sampling.perturb(logits, keys[rows], step=num_steps)
        cache, num_steps = output.past_key_values, num_steps + 1
        next_ids = logits.argmax(-1).cpu()
        for row, token_id in zip(rows, next_ids.tolist(), strict=True):
            if not new_ids[row] or new_ids[row][-1] not in end_token_ids:
                new_ids[row].append(token_id)
        if num_steps == batch[0][1]:
            break
        live = [index for index, row in enumerate(rows) if new_ids[row][-1] not in end_token_ids]
        if not live:
            break
        position_ids = position_ids[:, -1:] + 1
        if len(live) <= _LIVE_SHARE * len(rows):
            rows = [rows[index] for index in live]
            cache.batch_select_indices(torch.tensor(live, device=model.device))
            next_ids, attention_mask, position_ids = next_ids[live], attention_mask[live], position_ids[live]
        input_ids = next_ids[:, None]
        attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids)], dim=1)
    return new_ids, num_steps - 1


@torch.no_grad()
def generate_batch(
    model: PreTrainedModel,
    batch: list[Continuation],
    settings: dict[str, Any],
    hidden_token_id: int | None = None,
    synced: bool = False,
    sampling: Sampling | None = None,
) -> tuple[list[list[int]], int]:
    """
    Continues prompts with [`~transformers.GenerationMixin.generate`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model in evaluation mode, on its device.
        batch (`list[Continuation]`):
            Prompts with the same number of tokens to generate.
        settings (`dict`):
            What [`generation_settings`] gives.
        hidden_token_id (`int`, *optional*):
            Token that is not attended to wherever it stands in the prompt.
        synced (`bool`, *optional*, defaults to `False`):
            Whether all processes go on until the last of them is done, as they must where the weights are sharded.
        sampling ([`Sampling`], *optional*):
            How continuations are drawn. If `None`, they are greedy.

    Returns:
        `tuple[list[list[int]], int]`: The new tokens of each prompt up to its end token, which is the last one unless
        the limit came first, and the number of decoding steps after the prompts.
    """
    input_ids, attention_mask = pad_left([row[0] for row in batch], settings["pad_token_id"])
    if hidden_token_id is not None:
        attention_mask[input_ids == hidden_token_id] = 0
    own = "eos_token_id" not in settings
    processors = LogitsProcessorList()
    if sampling is not None:
        processors.append(SamplingProcessor(sampling, _keys(sampling, batch), input_ids.shape[1]))
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        max_new_tokens=batch[0][1],
        synced_gpus=synced,
        logits_processor=processors,
        **({} if own else _SWITCHED_OFF),
        **settings,
    )
    end_token_ids = settings.get("eos_token_id", model.generation_config.eos_token_id)
    end_token_ids = {end_token_ids} if isinstance(end_token_ids, int) else set(end_token_ids or ())
    new_ids = output[:, input_ids.shape[1] :].tolist()
    return [_until_end(ids, end_token_ids) for ids in new_ids], len(new_ids[0]) - 1


def _keys(sampling: Sampling, batch: list[Continuation]) -> torch.Tensor:
    return sampling.keys([(prompt_ids, repeat) for prompt_ids, _, repeat in batch])


def _until_end(ids: list[int], end_token_ids: set[int]) -> list[int]:
    for index, token_id in enumerate(ids):
        if token_id in end_token_ids:
            return ids[: index + 1]
    return ids
