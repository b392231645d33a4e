"""Finds the alternates of forget rows in a data set of alternates, which may have been made for more rows than these."""

import json
from hashlib import blake2b
from typing import Any

from datasets import Dataset, List, Value

from .encoding import read_prompt_completion
from .formats import FORMATS, check_dataset, infer_format


def join_alternates(forget: Dataset, alternates: Dataset) -> Dataset:
    """
    Adds to forget rows the alternates that another data set has for the same prompt and answer.

    Further rows of that data set do not matter, so that alternates for TOFU's forget10 serve forget05 and forget01.

    Args:
        forget ([`~datasets.Dataset`]):
            Forget set: `question`/`answer`, `prompt`/`completion` or `messages` rows.
        alternates ([`~datasets.Dataset`]):
            Rows with the same columns, and `alternates`, a list of texts a row.

    Returns:
        [`~datasets.Dataset`]: The forget set with the column `alternates`, in its order.

    Raises:
        ValueError: If columns are missing, or a forget row has no alternates there; the message names the rows.

    Example:

    ```python
    >>> alternates = load_dataset("me/tofu-forget10-alternates", split="train")
    >>> forget = join_alternates(load_dataset("locuslab/TOFU", "forget01", split="train"), alternates)
    ```
    """
    check_dataset(forget, "forget")
    check_dataset(alternates, "alternates")
    kinds = [infer_format(dataset, name) for dataset, name in ((forget, "forget"), (alternates, "alternates"))]
    columns = [" and ".join(f"`{column}`" for column in FORMATS[kind]) for kind in kinds]
    if "text" in kinds or kinds[0] != kinds[1]:
        raise ValueError(
            f"The forget set has {columns[0]}, and the alternates have {columns[1]}. They are matched by prompt and answer: "
            "both must have the same of `question` and `answer`, `prompt` and `completion`, or `messages`."
        )
    if "alternates" not in alternates.column_names:
        raise ValueError(
            f"The alternates have no column `alternates`, but {sorted(alternates.column_names)}. Expected is a list of "
            "texts a row, as `trl-unlearn alternates` writes it."
        )
    found: dict[str, list[str]] = {}
    for digest, row in zip(_digests(alternates, kinds[1], "alternates"), alternates, strict=True):
        found.setdefault(digest, row["alternates"])
    digests = _digests(forget, kinds[0], "forget")
    missing = [index for index, digest in enumerate(digests) if not found.get(digest)]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise ValueError(
            f"{len(missing)} of {len(forget)} rows of the forget set have no alternates: row {shown}. Expected is a row "
            f"with the same {columns[0]}, to the letter, among the {len(alternates)} rows with alternates. Make alternates "
            "for this forget set with `trl-unlearn alternates`, or name the data set that they were made for."
        )
    return with_alternates(forget, [found[digest] for digest in digests])


def with_alternates(forget: Dataset, alternates: list[list[str]]) -> Dataset:
    """A forget set with a column `alternates`, which takes the place of an older one."""
    if "alternates" in forget.column_names:
        forget = forget.remove_columns("alternates")
    return forget.add_column("alternates", alternates, feature=List(Value("string")))


def row_digest(prompt: str | list[dict], completion: str | list[dict]) -> str:
    """Hash of a prompt and its completion. Keys of messages that are `None` come and go with files, and do not count."""
    return blake2b(
        json.dumps([_plain(prompt), _plain(completion)], sort_keys=True).encode(), digest_size=16
    ).hexdigest()


def _digests(dataset: Dataset, kind: str, name: str) -> list[str]:
    return [row_digest(*read_prompt_completion(row, kind, name, index)) for index, row in enumerate(dataset)]


def _plain(text: str | list[dict]) -> Any:
    if isinstance(text, str):
        return text
    return [{key: value for key, value in message.items() if value is not None} for message in text]
