"""Rows by their hashes, so that a ledger can tell whether a row was part of a request without keeping its text."""

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from datasets import Dataset

from ..data.formats import FORMATS, check_dataset, infer_format, split_messages


def row_hashes(dataset: Dataset, name: str) -> list[str]:
    """
    SHA-256 of the prompt and the completion of each row.

    A question with its answer, the same as messages, and the same as a prompt and a completion of messages have the
    same hash. It is that of the exact text: one space more makes another row.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows in one of the accepted formats. Of preference rows, the answer to forget (`rejected`) is the
            completion.
        name (`str`):
            Name of the set in messages.

    Returns:
        `list[str]`: Hexadecimal digits, in the order of the rows.

    Raises:
        ValueError: If columns are missing, or a conversation does not end with an answer.

    Example:

    ```python
    >>> rows = Dataset.from_dict({"question": ["Who?"], "answer": ["They."]})
    >>> messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "They."}]
    >>> row_hashes(rows, "forget") == row_hashes(Dataset.from_dict({"messages": [messages]}), "forget")
    True
    ```
    """
    check_dataset(dataset, name)
    if {"prompt", "rejected"} <= set(dataset.column_names):
        dataset = dataset.select_columns(["prompt", "rejected"]).rename_column("rejected", "completion")
    kind = infer_format(dataset, name)
    rows = dataset.select_columns(list(FORMATS[kind]))
    return [sha256(json.dumps(_parts(row, kind, name, index)).encode()).hexdigest() for index, row in enumerate(rows)]


def _parts(row: dict[str, Any], kind: str, name: str, index: int) -> list[Any]:
    if kind == "messages":
        return [_messages(part) for part in split_messages(row["messages"], name, index)]
    parts = [row[column] for column in FORMATS[kind]]
    if kind == "question_answer":
        return [[[role, text]] for role, text in zip(("user", "assistant"), parts, strict=True)]
    return [part if isinstance(part, str | None) else _messages(part) for part in parts]


def _messages(messages: list[dict[str, Any]]) -> list[list[str]]:
    # Further keys of messages, `None` in most rows, come and go with the format of a file
    return [[message["role"], message["content"]] for message in messages]


def set_digest(hashes: Iterable[str], salt: str) -> str:
    """
    SHA-256 of a set of rows, in whatever order they come.

    With the salt, which stays in the ledger, nobody who reads the digest on a card can find out by trial what the rows
    are; whoever has ledger and rows can prove it.
    """
    return sha256("\n".join([salt, *sorted(hashes)]).encode()).hexdigest()


def without_rows(dataset: Dataset, hashes: Iterable[str], name: str) -> tuple[Dataset, list[str]]:
    """
    A set without the rows that have one of these hashes.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows.
        hashes (iterable of `str`):
            Hashes of the rows to leave out.
        name (`str`):
            Name of the set in messages.

    Returns:
        `tuple[Dataset, list[str]]`: The other rows, and the hashes of those that were left out, one a row.

    Raises:
        ValueError: If no row is left.
    """
    hashes, there = set(hashes), row_hashes(dataset, name)
    kept = [index for index, digest in enumerate(there) if digest not in hashes]
    if not kept:
        raise ValueError(
            f"All {len(dataset)} rows of the {name} set are to be forgotten, by this request or by an earlier one: "
            f"none is left to train on. Give a {name} set with other rows."
        )
    return dataset.select(kept), [digest for digest in there if digest in hashes]
