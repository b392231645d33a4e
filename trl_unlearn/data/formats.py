"""Which columns a data set may have, and how its rows become prompt–completion rows (or stay plain documents)."""

from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase


# The accepted sets of columns, in the order in which they are looked for.
FORMATS: dict[str, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
    "messages": ("messages",),
    "text": ("text",),
}
_ACCEPTED = (
    "`question` and `answer`; `prompt` and `completion` (text or messages); `messages`; or `text` (plain documents)"
)


def check_dataset(dataset: Any, name: str) -> None:
    """Refuses what is not a non-empty map-style [`~datasets.Dataset`], and says how to get one."""
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"The {name} set is an `IterableDataset`. Unlearning pairs forget and retain rows by index, so it needs a "
            "map-style `Dataset`, which is memory-mapped and costs no memory either. Load it without "
            "`streaming=True`, or write the stream to disk once with "
            "`Dataset.from_generator(lambda: (yield from stream))`."
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(f"The {name} set must be a `datasets.Dataset`, got `{type(dataset).__name__}`.")
    if len(dataset) == 0:
        raise ValueError(f"The {name} set is empty: it has no rows. Check its split and filters.")


def infer_format(dataset: Dataset, name: str) -> str:
    """The first of `FORMATS` whose columns `dataset` has; a `ValueError` that lists what was found if none fits."""
    for kind, columns in FORMATS.items():
        if set(columns) <= set(dataset.column_names):
            return kind
    raise ValueError(
        f"The {name} set has the columns {sorted(dataset.column_names)}. Accepted are {_ACCEPTED}. Rename the columns "
        "with `dataset.rename_columns({...})`."
    )


def question_to_prompt(
    question: str, answer: str, processing_class: PreTrainedTokenizerBase, question_answer_template: str
) -> tuple[Any, Any]:
    """
    Writes a question and its answer as a prompt and a completion.

    Args:
        question (`str`):
            Question.
        answer (`str`):
            Answer.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer. With a chat template, the result is a user message and an assistant message.
        question_answer_template (`str`):
            Used without a chat template: text with the fields `{question}` and `{answer}`. White space before
            `{answer}` goes to the completion, where most tokenizers want it.

    Returns:
        `tuple`: Prompt and completion, both messages or both text.
    """
    if processing_class.chat_template is not None:
        return [{"role": "user", "content": question}], [{"role": "assistant", "content": answer}]
    return fill_template(question, answer, question_answer_template)


def fill_template(question: str, answer: str, question_answer_template: str) -> tuple[str, str]:
    """Prompt and completion as text; white space before the answer goes to the completion."""
    before, after = question_answer_template.split("{answer}")
    prompt = before.rstrip()
    return prompt.replace("{question}", question), before[len(prompt) :] + answer + after


def split_messages(messages: list[dict], name: str, index: int) -> tuple[list[dict], list[dict]]:
    """The conversation up to the last assistant message, and that message, which is what is forgotten or retained."""
    roles = [message["role"] for message in messages or ()]
    if len(roles) < 2 or roles[-1] != "assistant":
        raise ValueError(
            f"Row {index} of the {name} set, column `messages`: the conversation must end with an assistant message that "
            f"answers another message, got the roles {roles}."
        )
    return messages[:-1], messages[-1:]


def completion_text(completion: str | list[dict]) -> str:
    """The text of a completion, whichever way it is given."""
    return completion if isinstance(completion, str) else "".join(message["content"] or "" for message in completion)


def split_alternates(dataset: Dataset, name: str) -> tuple[Dataset, Dataset, np.ndarray]:
    """
    Splits rows with alternates into forget rows and alternate rows, one a pair, question-major.

    Accepted are a column `alternates` (a list of texts: one pair each), a column `alternate` (one text), both beside
    the columns of any prompt format, or TRL preference rows (`prompt`, `chosen` = alternate, `rejected` = forget
    answer).

    Args:
        dataset ([`~datasets.Dataset`]):
            Forget set with alternates, `n` rows.
        name (`str`):
            Name of the set in messages.

    Returns:
        `tuple`: Forget rows (`n`), alternate rows (`m`), and for each alternate row the index of its forget row, of
        shape `(m,)`.

    Raises:
        ValueError: If there are no alternates, or one is empty or equal to the forget answer.
    """
    check_dataset(dataset, name)
    columns = set(dataset.column_names)
    if {"prompt", "chosen", "rejected"} <= columns:
        kind, column, alternates = "prompt_completion", "chosen", [[chosen] for chosen in dataset["chosen"]]
        dataset = dataset.rename_column("rejected", "completion").remove_columns("chosen")
    elif "alternates" in columns or "alternate" in columns:
        kind = infer_format(dataset, name)
        if kind == "text":
            raise ValueError(f"The {name} set has `text` rows. AltPO needs a prompt that both answers share.")
        column = "alternates" if "alternates" in columns else "alternate"
        alternates = dataset[column] if column == "alternates" else [[text] for text in dataset[column]]
    else:
        raise ValueError(
            f"The {name} set has no alternate answers, which AltPO needs: its columns are {sorted(columns)}. Add a "
            "column `alternates` (a list of texts) or `alternate` (one text), or pass preference rows (`prompt`, "
            "`chosen` = alternate, `rejected` = forget answer). To forget without alternates use `NPOTrainer` or "
            "`SimNPOTrainer`."
        )

    owners, rows, copies = [], [], []
    for index, (row, row_alternates) in enumerate(zip(dataset, alternates, strict=True)):
        if kind == "messages":
            prompt, answer = split_messages(row["messages"], name, index)
        else:
            prompt, answer = (row[name_of] for name_of in FORMATS[kind])
        where = f"Row {index} of the {name} set, column `{column}`"
        if not row_alternates:
            raise ValueError(f"{where}: there is no alternate answer, the list is empty.")
        if isinstance(row_alternates, str) or (column == "alternate" and isinstance(row_alternates[0], list)):
            raise ValueError(f"{where}: `alternates` holds a list of texts a row, `alternate` one text.")
        for alternate in row_alternates:
            if isinstance(alternate, str) and isinstance(answer, list):
                alternate = [{"role": "assistant", "content": alternate}]
            if not completion_text(alternate or "").strip():
                raise ValueError(f"{where}: an alternate answer is empty.")
            if completion_text(alternate).strip() == completion_text(answer or "").strip():
                copies.append(index)
            owners.append(index)
            rows.append((prompt, alternate))
    if copies:
        raise ValueError(
            f"{len(copies)} alternate answers of the {name} set equal the answer to forget (first in row {copies[0]}). "
            "The same text would be pushed up and down at once: remove them, or generate others."
        )
    names = FORMATS["question_answer" if kind == "question_answer" else "prompt_completion"]
    columns_of_alternates = {
        column: list(values) for column, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    return dataset, Dataset.from_dict(columns_of_alternates), np.array(owners)
