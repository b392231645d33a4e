"""From rows to tokens: prompts masked, EOS labelled, long documents cut in windows, bad rows named."""

from hashlib import blake2b
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl import apply_chat_template

from .._trl import common_prefix_length
from .formats import FORMATS, check_dataset, completion_text, infer_format, question_to_prompt, split_messages


logger = logging.get_logger(__name__)

DEFAULT_QUESTION_ANSWER_TEMPLATE = "Question: {question}\nAnswer: {answer}"


def encode_prompt_completion(
    prompt: str | list[dict],
    completion: str | list[dict],
    processing_class: PreTrainedTokenizerBase,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> tuple[list[int], list[int]]:
    """
    Tokenizes a prompt and its completion.

    The header of the assistant's turn belongs to the prompt. The completion ends with EOS: the chat template's own end
    of turn for messages, the tokenizer's EOS for text. Prompt and completion are tokenized together, and the completion
    starts where this differs from the prompt tokenized alone.

    Args:
        prompt (`str` or `list[dict]`):
            Text or messages.
        completion (`str` or `list[dict]`):
            Text or messages, like the prompt.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, with a chat template if messages are given.
        chat_template_kwargs (`dict`, *optional*):
            What the chat template is given beside the messages, for example `{"date_string": "10 Apr 2025"}`.

    Returns:
        `tuple[list[int], list[int]]`: Token ids of the prompt and of the completion.

    Example:

    ```python
    >>> tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")
    >>> prompt_ids, completion_ids = encode_prompt_completion("The sky is", " blue.", tokenizer)
    ```
    """
    if isinstance(completion, str):
        add_special_tokens = True
        # A tokenizer may add EOS by itself; one that is written in the text would then be a second one.
        completion = completion.removesuffix(processing_class.eos_token)
    else:
        # The template writes the special tokens; the tokenizer must not add BOS a second time.
        add_special_tokens = False
        rendered = apply_chat_template(
            {"prompt": prompt, "completion": completion}, processing_class, **(chat_template_kwargs or {})
        )
        prompt, completion = rendered["prompt"], rendered["completion"]
    prompt_ids = processing_class(prompt, add_special_tokens=add_special_tokens)["input_ids"]
    input_ids = processing_class(prompt + completion, add_special_tokens=add_special_tokens)["input_ids"]
    if add_special_tokens and input_ids[-1] != processing_class.eos_token_id:
        input_ids = [*input_ids, processing_class.eos_token_id]
    start = common_prefix_length(prompt_ids, input_ids)
    if start < len(prompt_ids) and prompt_ids[start:] != [processing_class.eos_token_id]:
        logger.warning_once(
            "The last tokens of a prompt change when its completion follows, so the model is trained on another prompt "
            f"than it will see: {processing_class.decode(prompt_ids[start:])!r} is left out. Usually a space before "
            "the completion belongs to the completion, not to the prompt. This is said once, but may hold for all rows."
        )
    return input_ids[:start], input_ids[start:]


def encode_dataset(
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    name: str,
    max_length: int | None,
    question_answer_template: str = DEFAULT_QUESTION_ANSWER_TEMPLATE,
    num_proc: int | None = None,
) -> Dataset:
    """
    Tokenizes a forget, retain, alternate or evaluation set.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows in one of the accepted formats: `question`/`answer`, `prompt`/`completion`, `messages` or `text`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with an EOS token.
        name (`str`):
            Name of the set in progress bars and messages.
        max_length (`int` or `None`):
            Longest row, in tokens. Completions are cut there. Documents (`text`) are cut in windows that overlap by one
            token, so that every token but a document's first is predicted exactly once.
        question_answer_template (`str`, *optional*, defaults to `"Question: {question}\\nAnswer: {answer}"`):
            How `question`/`answer` rows are written for a tokenizer without a chat template.
        num_proc (`int`, *optional*):
            Number of processes.

    Returns:
        [`~datasets.Dataset`]: Columns `input_ids`, `labels` (-100 on the prompt) and `digest` (a hash of the tokens).

    Raises:
        ValueError: If columns are missing, the set is empty, a completion is empty, or a prompt leaves no room for its
            completion; the message names the row and the column.
    """
    check_dataset(dataset, name)
    kind = infer_format(dataset, name)
    return dataset.map(
        _encode_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={
            "kind": kind,
            "name": name,
            "processing_class": processing_class,
            "max_length": max_length,
            "question_answer_template": question_answer_template,
        },
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        desc=f"Tokenizing the {name} set",
    )


def _encode_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    kind: str,
    name: str,
    processing_class: PreTrainedTokenizerBase,
    max_length: int | None,
    question_answer_template: str,
) -> dict[str, list[Any]]:
    rows = []
    if kind == "text":
        for index, text in zip(indices, batch["text"], strict=True):
            if _is_empty(text, processing_class):
                raise ValueError(f"Row {index} of the {name} set, column `text`: the document is empty.")
            bos_ids, text_ids = encode_prompt_completion("", text, processing_class)
            ids = bos_ids + text_ids
            window = max_length or len(ids)
            for start in range(0, max(len(ids) - 1, 1), max(window - 1, 1)):
                rows.append((ids[start : start + window], ids[start : start + window]))
    else:
        for position, index in enumerate(indices):
            columns = {column: batch[column][position] for column in FORMATS[kind]}
            prompt, completion = read_prompt_completion(columns, kind, name, index, processing_class)
            if kind == "question_answer":
                prompt, completion = question_to_prompt(prompt, completion, processing_class, question_answer_template)
            prompt_ids, completion_ids = encode_prompt_completion(prompt, completion, processing_class)
            if max_length is not None and len(prompt_ids) >= max_length:
                raise ValueError(
                    f"Row {index} of the {name} set, column `{FORMATS[kind][0]}`: the prompt has {len(prompt_ids)} tokens and fills `max_length` "
                    f"({max_length}), so that no token of its completion is left. Raise `max_length` or remove the row."
                )
            ids = (prompt_ids + completion_ids)[:max_length]
            rows.append((ids, ([-100] * len(prompt_ids) + completion_ids)[:max_length]))
    return {
        "input_ids": [ids for ids, _ in rows],
        "labels": [labels for _, labels in rows],
        "digest": [blake2b(np.array(ids, dtype=np.int64).tobytes(), digest_size=16).hexdigest() for ids, _ in rows],
    }


def read_prompt_completion(
    row: dict[str, Any], kind: str, name: str, index: int, processing_class: PreTrainedTokenizerBase | None = None
) -> tuple[Any, Any]:
    """The prompt and the completion of a row of one of the `FORMATS` but `text`; an error that names a bad one."""
    if kind != "messages":
        prompt, completion = (row[column] for column in FORMATS[kind])
    else:
        prompt, completion = split_messages(row["messages"], name, index)
    where, prompt_column = f"Row {index} of the {name} set", f"column `{FORMATS[kind][0]}`"
    completion_column = f"column `{FORMATS[kind][-1]}`"
    if not completion or _is_empty(completion_text(completion), processing_class):
        raise ValueError(f"{where}, {completion_column}: the completion is empty.")
    _check_prompt(prompt, completion, where, prompt_column, completion_column)
    return prompt, completion


def _is_empty(text: str | None, processing_class: PreTrainedTokenizerBase | None) -> bool:
    end = "" if processing_class is None else processing_class.eos_token
    return not text or not text.removesuffix(end).strip()


def _check_prompt(prompt: Any, completion: Any, row: str, prompt_column: str, completion_column: str) -> None:
    """Refuses a prompt that is missing or that its completion cannot follow."""
    if prompt is None or prompt == []:
        raise ValueError(f"{row}, {prompt_column}: the prompt is missing.")
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError(
            f"{row}: {prompt_column} holds {'text' if isinstance(prompt, str) else 'messages'} and {completion_column} "
            f"{'text' if isinstance(completion, str) else 'messages'}. Give both as text or both as messages."
        )
    if not isinstance(prompt, str) and prompt[-1]["role"] not in ("user", "tool", "assistant"):
        raise ValueError(
            f"{row}, {prompt_column}: the completion must follow a user, tool or assistant message, got one of the role "
            f"{prompt[-1]['role']!r}."
        )
