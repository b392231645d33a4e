"""Greedy answers to any number of prompts, in few large batches."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .batching import batch_by_length, evaluation_mode


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    max_batch_tokens: int = 65536,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """
    Greedy continuation of each prompt, up to EOS.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, on its device.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        prompts (`Sequence[list[int]]`):
            Token ids of the prompts. Equal ones are answered once.
        max_new_tokens (`int`):
            Most tokens to generate for a prompt.
        max_batch_tokens (`int`, *optional*, defaults to `65536`):
            Size of a batch in tokens, padding and new tokens included.
        progress (`Callable`, *optional*):
            Called with the number of distinct prompts done after each batch.

    Returns:
        `list[str]`: Texts without special tokens, in the order of `prompts`.
    """
    eos_token_ids = model.generation_config.eos_token_id
    eos_token_ids = [eos_token_ids] if isinstance(eos_token_ids, int) else list(eos_token_ids or [])
    pad_token_id = processing_class.pad_token_id
    if pad_token_id is None:
        pad_token_id = processing_class.eos_token_id
    # What is not passed to `generate`, it takes from the model's own settings, which for chat models are made for sampling.
    settings = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "num_beams": 1,
        "use_cache": True,
        "eos_token_id": sorted({*eos_token_ids, processing_class.eos_token_id}),
        "pad_token_id": pad_token_id,
    }
    answers: dict[tuple[int, ...], str] = {}
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    with evaluation_mode(model):
        for batch in batch_by_length(distinct, lambda prompt: len(prompt) + max_new_tokens, max_batch_tokens):
            length = len(batch[0])
            input_ids = torch.full((len(batch), length), pad_token_id)
            attention_mask = torch.zeros_like(input_ids)
            for index, prompt in enumerate(batch):
                input_ids[index, length - len(prompt) :] = torch.tensor(prompt)
                attention_mask[index, length - len(prompt) :] = 1
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                **settings,
            )
            texts = processing_class.batch_decode(output[:, length:], skip_special_tokens=True)
            answers.update(zip(batch, texts, strict=True))
            if progress is not None:
                progress(len(batch))
    return [answers[tuple(prompt)] for prompt in prompts]
