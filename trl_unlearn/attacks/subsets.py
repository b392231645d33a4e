"""Which rows an attacker has to fine-tune on, and which are asked for afterwards."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.encoding import read_prompt_completion
from ..data.formats import completion_text, infer_format
from .not_applicable import NotApplicable


_ROWS_OF_A_TOFU_AUTHOR = 20


def split_rows(
    forget: Dataset, subset: str, share: float, seed: int = 0, groups: Sequence[Any] | None = None
) -> tuple[list[int], list[int]]:
    """
    The rows of a forget set to fine-tune on, and all others.

    Args:
        forget ([`~datasets.Dataset`]):
            Forget set.
        subset (`str`):
            `"random"` rows, those with the `"shortest"` answers or documents, `"held_out"` groups, or `"retain"`: none.
        share (`float`):
            Share of the rows, or of the groups, to fine-tune on; one at least.
        seed (`int`, *optional*, defaults to `0`):
            Seed of what is drawn.
        groups (`Sequence`, *optional*):
            The group of each row, for `"held_out"`.

    Returns:
        `tuple[list[int], list[int]]`: Indices to fine-tune on and to evaluate, both in the order of the data.

    Raises:
        NotApplicable: If there are no groups, or nothing would be left on one of the sides.

    Example:

    ```python
    >>> split_rows(Dataset.from_dict({"question": ["Who?", "Why?"], "answer": ["Me.", "For fun."]}), "shortest", 0.5)
    ([0], [1])
    ```
    """
    if subset == "retain":
        return [], list(range(len(forget)))
    if subset == "held_out":
        if groups is None:
            raise NotApplicable(
                "nothing says which rows belong together; name the column with `--attack_group_column`"
            )
        units = _members(groups)
    else:
        units = [[index] for index in range(len(forget))]
    if len(units) < 2:
        what = "group" if subset == "held_out" else "row"
        raise NotApplicable(f"the forget set has {len(units)} {what}, and one is to be trained on and one asked for")
    if subset == "shortest":
        lengths = _answer_lengths(forget)
        order = sorted(range(len(units)), key=lambda index: (lengths[index], index))
    else:
        order = np.random.default_rng(seed).permutation(len(units)).tolist()
    count = min(max(round(share * len(units)), 1), len(units) - 1)
    trained = sorted(index for unit in order[:count] for index in units[unit])
    return trained, sorted(set(range(len(forget))) - set(trained))


def groups_of(forget: Dataset, benchmark: str, column: str | None = None) -> list[Any] | None:
    """
    Which rows of a forget set are about the same person.

    Args:
        forget ([`~datasets.Dataset`]):
            Forget set.
        benchmark (`str`):
            `"world"`, whose rows name a person; `"tofu"`, of which 20 rows in a row are of one author; or another.
        column (`str`, *optional*):
            Column that says it instead.

    Returns:
        `list` or `None`: The group of each row; `None` if nothing says it.

    Raises:
        ValueError: If there is no such column.
    """
    if column is None and benchmark == "tofu":
        return [index // _ROWS_OF_A_TOFU_AUTHOR for index in range(len(forget))]
    column = column or ("person" if benchmark == "world" else None)
    if column is None:
        return None
    if column not in forget.column_names:
        raise ValueError(
            f"`--attack_group_column` is {column}, and the forget set has the columns {', '.join(forget.column_names)}."
        )
    return list(forget[column])


def _members(groups: Sequence[Any]) -> list[list[int]]:
    members: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return list(members.values())


def _answer_lengths(forget: Dataset) -> list[int]:
    """Lengths in characters, which need no tokenizer: all models are to be trained on the same rows."""
    kind = infer_format(forget, "forget")
    if kind == "text":
        return [len(text or "") for text in forget["text"]]
    return [
        len(completion_text(read_prompt_completion(row, kind, "forget", index)[1])) for index, row in enumerate(forget)
    ]
