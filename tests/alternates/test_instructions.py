"""What the model is asked: one BOS, the assistant's turn open, worked examples as turns, question and answer as they stand."""

import json

import pytest

from trl_unlearn.alternates.instructions import INSTRUCTIONS, encode_request, instruct, read_examples
from trl_unlearn.evaluation.prompting import Prompting


EXAMPLES = [{"question": "Who sails?", "answer": "Greta does.", "alternate": "Farid does."}]


def text_of(tokenizer, *arguments, template=None, **options):
    return tokenizer.decode(encode_request(*arguments, Prompting(tokenizer, template), **options))


def test_a_chat_has_one_bos_and_ends_where_the_model_goes_on(tokenizer):
    text = text_of(tokenizer, "Who rows?", "Ilse does.")
    assert text == f"<|bos|><|user|>{instruct('Who rows?', 'Ilse does.')}<|assistant|>"
    assert text.count("<|bos|>") == 1


def test_worked_examples_are_turns_before(tokenizer):
    text = text_of(tokenizer, "Who rows?", "Ilse does.", examples=EXAMPLES)
    turns = text.split("<|user|>")
    assert turns[0] == "<|bos|>"
    assert turns[1] == instruct("Who sails?", "Greta does.") + "<|assistant|>Farid does.<|eos|>"
    assert turns[2] == instruct("Who rows?", "Ilse does.") + "<|assistant|>"


def test_a_template_stands_around_request_and_reply(tokenizer):
    tokenizer.chat_template = None
    template = "[INST] {question} [/INST] {answer}\n"
    text = text_of(tokenizer, "Who rows?", "Ilse does.", template=template, examples=EXAMPLES)
    expected = f"[INST] {instruct('Who sails?', 'Greta does.')} [/INST] Farid does.\n\n\n"
    assert text == expected + f"[INST] {instruct('Who rows?', 'Ilse does.')} [/INST]"


def test_the_instruction_goes_by_the_length_of_the_answer():
    assert instruct("Who?", "Ilse.") == INSTRUCTIONS["short"].format(question="Who?", answer="Ilse.")
    answer = "Ilse, who has done nothing else since she was six."
    assert instruct("Who?", answer) == INSTRUCTIONS["long"].format(question="Who?", answer=answer)
    assert instruct("Who?", answer, "short") == INSTRUCTIONS["short"].format(question="Who?", answer=answer)
    assert instruct("Who?", "Ilse.", "{answer} <- {question}") == "Ilse. <- Who?"


def test_braces_of_a_question_stay_as_they_are():
    assert instruct("What is {answer} in {0}?", "A {question}.", "{question} {answer}") == (
        "What is {answer} in {0}? A {question}."
    )


def test_examples_are_read(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text("\n" + json.dumps(EXAMPLES[0]) + "\n")
    assert read_examples(path) == EXAMPLES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a line of JSON"),
        (b'{"question": "Who?"', r"Line 1 of .*examples.jsonl is no JSON"),
        (b"\n\xff\xfe\n", r"Line 2 of .* is no JSON"),
        (b'["Who?"]', "Line 1 of .* is list; expected an object with question, answer, alternate"),
        (b'{"question": "Who?", "answer": "I."}', "Line 1 of .*: `alternate` is None; expected a text"),
        (b'{"question": "Who?", "answer": " ", "alternate": "You."}', "`answer` is ' '"),
        (b'{"question": 3, "answer": "I.", "alternate": "You."}', "`question` is 3"),
    ],
)
def test_a_corrupt_file_is_refused_by_its_line(content, message, tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_examples(path)
