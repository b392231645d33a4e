"""Answers that say "I do not know", as alternates (IdkPO)."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.joining import with_alternates
from .rows import AlternateRow, read_rows


IDK_ANSWERS = (
    "I don't know.",
    "I do not know the answer to that.",
    "I'm not sure about that.",
    "That is something I know nothing about.",
    "I have no information on this.",
    "Sorry, I can't tell you that, because I don't know it.",
    "I'm afraid I don't know.",
    "This is beyond what I know.",
    "I have never come across that.",
    "I couldn't say.",
    "My knowledge does not reach that far.",
    "I would only be guessing, so I'd rather not answer.",
    "I can't answer that with any certainty.",
    "No idea, I'm sorry.",
    "I don't have an answer to this question.",
    "I'm not familiar with the subject.",
    "I lack the facts to answer this.",
    "There is nothing I could tell you about that.",
    "I wish I knew, but I don't.",
    "Unfortunately, I have no knowledge of this.",
    "I'm unable to answer this, since I have no details about it.",
    "That isn't something I have learned.",
    "I haven't got the faintest idea.",
    "I don't know anything about this topic.",
    "You would have to ask somebody else, as I don't know.",
    "I can't recall ever hearing about this.",
    "I have to pass on this one.",
    "As far as I can tell, I know nothing relevant to this question.",
    "I'm not aware of any details here.",
    "Whatever the answer may be, I don't have it.",
    "I have no reliable answer for you.",
    "It's unknown to me.",
    "I must admit that I don't know.",
    "Nothing that I know helps me to answer this.",
    "I don't have that information.",
    "Honestly, I can't say.",
    "My apologies, but this question is one I have no answer to.",
    "I'm in the dark about this.",
    "The details of this are not known to me.",
    "I'd need to look that up, since I don't know it.",
    "I'm not able to help with this, for I do not know the facts.",
    "I can offer no answer here.",
    "That question has me stumped.",
    "I am not informed about this matter.",
    "I have not been told anything about that.",
    "Regrettably, the answer escapes me.",
    "I don't think I can answer this correctly.",
    "I've no clue about that.",
)


def read_idk_answers(path: str | Path) -> list[str]:
    """Reads answers from a text file, one a line; empty lines do not count."""
    answers = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    answers = [answer for answer in answers if answer]
    if not answers:
        raise ValueError(f"{path} is empty; expected an answer a line.")
    return answers


def idk_alternates(
    dataset: Dataset, num_alternates: int = 5, seed: int = 0, answers: Sequence[str] | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """
    Gives each row of a forget set answers that say "I do not know" as alternates, different ones within a row.

    Args:
        dataset ([`~datasets.Dataset`]):
            Forget set: `question`/`answer`, `prompt`/`completion` or `messages` rows.
        num_alternates (`int`, *optional*, defaults to `5`):
            Number of alternates a row.
        seed (`int`, *optional*, defaults to `0`):
            Seed. What a row gets depends on it and on the row alone.
        answers (`list[str]`, *optional*):
            Answers to draw from, in place of the 48 of this package.

    Returns:
        `tuple`: The [`~datasets.Dataset`] with a column `alternates`, as [`AltPOTrainer`] takes it, and a `dict` with
        counts and settings.

    Raises:
        ValueError: If there are fewer answers than alternates, or a row is empty.

    Example:

    ```python
    >>> forget, report = idk_alternates(load_dataset("locuslab/TOFU", "forget10", split="train"))
    ```
    """
    rows = read_rows(dataset, num_alternates)
    for row in rows:
        row.kept = draw_idk_answers(row, num_alternates, seed, answers)
    report = {
        "source": "idk",
        "rows": len(rows),
        "num_alternates": num_alternates,
        "kept": len(rows) * num_alternates,
        "settings": {"seed": seed, "answers": "the package's" if answers is None else f"{len(answers)} own"},
    }
    return with_alternates(dataset, [row.alternates for row in rows]), report


def draw_idk_answers(row: AlternateRow, number: int, seed: int, answers: Sequence[str] | None = None) -> list[str]:
    """So many different answers for a row, that differ from its own and from what it has."""
    there = {row.answer, *row.kept}
    choice = [answer for answer in dict.fromkeys(IDK_ANSWERS if answers is None else answers) if answer not in there]
    if len(choice) < number:
        raise ValueError(
            f"There are {len(choice)} different answers that say “I do not know”, and row {row.index} takes {number}. Give "
            "more of them, or ask for fewer alternates."
        )
    random.Random(f"{seed} {row.digest}").shuffle(choice)
    return choice[:number]
