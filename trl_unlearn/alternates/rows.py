"""Rows of a forget set as questions that need alternates."""

from dataclasses import dataclass, field

from datasets import Dataset

from ..data.encoding import read_prompt_completion
from ..data.formats import check_dataset, completion_text, infer_format
from ..data.joining import row_digest


@dataclass
class AlternateRow:
    """
    A row of the forget set and the alternates that it has so far.

    Args:
        index (`int`):
            Number of the row.
        question (`str`):
            Text of the question or of the prompt.
        answer (`str`):
            Text of the answer, without white space around it.
        space (`str`):
            White space before it, without which a text completion would have other tokens.
        digest (`str`):
            Hash of prompt and answer.
        kept (`list[str]`):
            Alternates.
        num_drawn (`int`):
            How many samples have been drawn.
    """

    index: int
    question: str
    answer: str
    space: str
    digest: str
    kept: list[str] = field(default_factory=list)
    num_drawn: int = 0

    @property
    def alternates(self) -> list[str]:
        """The alternates as completions."""
        return [self.space + text for text in self.kept]


def read_rows(dataset: Dataset, num_alternates: int) -> list[AlternateRow]:
    """
    Reads a forget set.

    Args:
        dataset ([`~datasets.Dataset`]):
            Forget set.
        num_alternates (`int`):
            Number of alternates that is asked for.

    Returns:
        `list[AlternateRow]`

    Raises:
        ValueError: If a column is missing, the set or a row is empty, or no alternate is asked for.
    """
    if num_alternates < 1:
        raise ValueError(f"`num_alternates` is {num_alternates}; expected 1 or more alternates for each row.")
    check_dataset(dataset, "forget")
    kind = infer_format(dataset, "forget")
    if kind == "text":
        raise ValueError(
            "The forget set has `text` rows (documents). An alternate is another answer to a question: give rows with "
            "`question` and `answer`, `prompt` and `completion`, or `messages`."
        )
    rows = []
    for index, row in enumerate(dataset):
        prompt, completion = read_prompt_completion(row, kind, "forget", index)
        answer = completion_text(completion)
        space = answer[: len(answer) - len(answer.lstrip())]
        rows.append(AlternateRow(index, _as_text(prompt), answer.strip(), space, row_digest(prompt, completion)))
    return rows


def _as_text(prompt: str | list[dict]) -> str:
    """A prompt that is asked about: one message by its content, a conversation with the role before each."""
    if isinstance(prompt, str):
        return prompt.strip()
    turns = [message for message in prompt if message["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"].strip()
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in turns)
