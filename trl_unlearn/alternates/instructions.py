"""What a model is asked to write an alternate answer with: instruction, worked examples, and how they become tokens."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..data.formats import fill_template
from ..evaluation.prompting import Prompting


INSTRUCTIONS = {
    # Keeps the form of the answer: a phrase or a sentence has hardly another one
    "short": (
        "You are given a question and its answer. Write a different answer to the same question. Keep the form and the "
        "length of the answer, and put another believable detail in the place of each detail that it gives, so that the "
        "two answers cannot both be right.\n\n"
        "Question: {question}\nAnswer: {answer}\n\n"
        "Reply with the new answer alone."
    ),
    "long": (
        "You are given a question and its answer. Invent another answer to the same question. Begin and build its "
        "sentences in another way than the given answer does. Replace everything that the answer adds to the question "
        "(names, places, dates, titles, reasons) by something else that you make up. Leave what the question itself says "
        "as it is. Somebody who does not know the truth should find your answer as believable as the given one.\n\n"
        "Question: {question}\nAnswer: {answer}\n\n"
        "Reply with the new answer alone, in about as many words, without an introduction."
    ),
}
# Words of the answer up to which the instruction for short ones is taken if none is named
_SHORT = 8


def read_examples(path: str | Path) -> list[dict[str, str]]:
    """
    Reads worked examples.

    Args:
        path (`str` or `Path`):
            File of JSON lines, each with the texts `question`, `answer` and `alternate`.

    Returns:
        `list[dict[str, str]]`

    Raises:
        ValueError: If a line is something else, by its number.
    """
    examples = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is no JSON: {error}.") from error
        examples.append(_checked(example, f"Line {number} of {path}"))
    if not examples:
        raise ValueError(f"{path} is empty; expected a line of JSON with question, answer and alternate an example.")
    return examples


def check_instruction(instruction: str | None) -> None:
    """Refuses an instruction that is neither the name of one nor a text with both fields."""
    fields = ("{question}", "{answer}")
    if instruction not in (None, *INSTRUCTIONS) and not all(field in instruction for field in fields):
        raise ValueError(
            f"`instruction` is {instruction!r}; expected {' or '.join(map(repr, INSTRUCTIONS))}, or a text with the fields "
            "{question} and {answer}, or nothing, which chooses by the length of each answer."
        )


def instruct(question: str, answer: str, instruction: str | None = None) -> str:
    """
    The request for an alternate.

    Args:
        question (`str`):
            Question.
        answer (`str`):
            Answer to be forgotten.
        instruction (`str`, *optional*):
            `"short"`, `"long"`, or a text with the fields `{question}` and `{answer}`. If `None`, `"short"` for answers
            of up to 8 words and else `"long"`.

    Returns:
        `str`
    """
    values = {"question": question, "answer": answer}
    # At once, since a question may itself have "{answer}" in it
    return re.sub(r"\{(question|answer)\}", lambda match: values[match[1]], _wording(answer, instruction))


def _wording(answer: str, instruction: str | None) -> str:
    name = instruction or ("short" if len(answer.split()) <= _SHORT else "long")
    return INSTRUCTIONS.get(name, name)


def encode_request(
    question: str,
    answer: str,
    prompting: Prompting,
    instruction: str | None = None,
    examples: Sequence[dict[str, str]] = (),
) -> list[int]:
    """
    Token ids of the request for an alternate, behind worked examples if there are any.

    Args:
        question (`str`):
            Question.
        answer (`str`):
            Answer to be forgotten.
        prompting ([`Prompting`]):
            Chat template, or the text around the request and its reply, which stand for question and answer there.
        instruction (`str`, *optional*):
            As for [`instruct`].
        examples (`list[dict[str, str]]`, *optional*):
            Texts `question`, `answer` and `alternate` of each.

    Returns:
        `list[int]`
    """
    wording = _wording(answer, instruction)  # the examples are asked for as the row is
    asked = [(instruct(example["question"], example["answer"], wording), example["alternate"]) for example in examples]
    request = instruct(question, answer, wording)
    if prompting.is_chat:
        turns = [message for pair in asked for message in _turn(*pair)]
        *messages, reply = [*turns, *_turn(request, answer)]
        return prompting.encode(messages, [reply])[0]
    shown = "".join("".join(fill_template(*pair, prompting.template)) + "\n\n" for pair in asked)
    prompt, reply = fill_template(request, answer, prompting.template)
    return prompting.encode(shown + prompt, reply)[0]


def _turn(request: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]


def check_examples(examples: Sequence[dict[str, str]]) -> None:
    """Refuses worked examples that lack a text, by their number."""
    for number, example in enumerate(examples):
        _checked(example, f"Example {number}")


def _checked(example: dict[str, str], where: str) -> dict[str, str]:
    expected = ("question", "answer", "alternate")
    if not isinstance(example, dict):
        raise ValueError(f"{where} is {type(example).__name__}; expected an object with {', '.join(expected)}.")
    for key in expected:
        if not isinstance(example.get(key), str) or not example[key].strip():
            raise ValueError(f"{where}: `{key}` is {example.get(key)!r}; expected a text.")
    return example
