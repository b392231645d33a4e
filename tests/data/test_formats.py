"""What a data set may look like, and what people are told whose set looks otherwise."""

import re

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from trl_unlearn.data.formats import check_dataset, infer_format, question_to_prompt, split_alternates


def message(role, content):
    return {"role": role, "content": content}


# ---------------------------------------------------------------- which sets are accepted


@pytest.mark.parametrize(
    "columns, kind",
    [
        (["question", "answer"], "question_answer"),
        (["question", "answer", "paraphrased_answer", "perturbed_answer"], "question_answer"),
        (["prompt", "completion"], "prompt_completion"),
        (["messages"], "messages"),
        (["messages", "source"], "messages"),
        (["text"], "text"),
        (["text", "question", "answer"], "question_answer"),
        (["question", "answer", "prompt", "completion"], "prompt_completion"),
        (["question", "prompt", "text"], "text"),
    ],
)
def test_the_format_is_read_off_the_columns(columns, kind):
    assert infer_format(Dataset.from_dict({column: ["x"] for column in columns}), "forget") == kind


@pytest.mark.parametrize("columns", [["question"], ["prompt", "answer"], ["input", "output"]])
def test_missing_columns_are_listed_with_the_accepted_ones(columns):
    dataset = Dataset.from_dict({column: ["x"] for column in columns})
    with pytest.raises(ValueError) as error:
        infer_format(dataset, "retain")
    text = str(error.value)
    assert f"The retain set has the columns {sorted(columns)}." in text
    for accepted in ("`question` and `answer`", "`prompt` and `completion`", "`messages`", "`text`"):
        assert accepted in text
    assert "rename_columns" in text


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="The retain set is empty.*split and filters"):
        check_dataset(Dataset.from_dict({"text": []}), "retain")


def test_a_stream_is_refused_with_a_way_out_that_works(tmp_path):
    stream = Dataset.from_dict({"text": ["one", "two"]}).to_iterable_dataset()
    with pytest.raises(TypeError, match="The forget set is an `IterableDataset`") as error:
        check_dataset(stream, "forget")
    assert "streaming=True" in str(error.value)
    advice = "Dataset.from_generator(lambda: (yield from stream))"
    assert f"`{advice}`" in str(error.value)
    dataset = Dataset.from_generator(lambda: (yield from stream), cache_dir=str(tmp_path))
    check_dataset(dataset, "forget")
    assert dataset["text"][:] == ["one", "two"]


@pytest.mark.parametrize(
    "dataset, given",
    [
        ([{"text": "x"}], "list"),
        ({"train": Dataset.from_dict({"text": ["x"]})}, "dict"),
        (DatasetDict({"train": Dataset.from_dict({"text": ["x"]})}), "DatasetDict"),
        ("locuslab/TOFU", "str"),
        (None, "NoneType"),
    ],
    ids=["list", "dict", "dataset_dict", "name", "none"],
)
def test_what_is_not_a_dataset_is_refused(dataset, given):
    with pytest.raises(TypeError, match=rf"The forget set must be a `datasets\.Dataset`, got `{given}`"):
        check_dataset(dataset, "forget")


def test_a_question_becomes_messages_with_a_chat_template_and_text_without(tokenizer):
    prompt, completion = question_to_prompt("Why?", "So.", tokenizer, "Q: {question} A: {answer}")
    assert (prompt, completion) == ([message("user", "Why?")], [message("assistant", "So.")])
    tokenizer.chat_template = None
    assert question_to_prompt("Why?", "So.", tokenizer, "Q: {question} A: {answer}.") == ("Q: Why? A:", " So..")


# ---------------------------------------------------------------- alternates

QUESTIONS = ["Where was Ann born?", "Who is Bob?", "Why?"]
ANSWERS = ["In Oslo.", "A smith.", "Because."]
ALTERNATES = [["In Rome.", "In Lima."], ["A baker."], ["Never.", "Often.", "At noon."]]
OWNERS = [0, 0, 1, 2, 2, 2]
FLAT = [alternate for alternates in ALTERNATES for alternate in alternates]


def turn(text):
    return [message("assistant", text)]


def conversations():
    return [[message("user", q), message("assistant", a)] for q, a in zip(QUESTIONS, ANSWERS, strict=True)]


def split(columns):
    return split_alternates(Dataset.from_dict(columns), "forget")


def test_lists_of_alternates_give_one_pair_each_question_major():
    columns = {"question": QUESTIONS, "answer": ANSWERS, "alternates": ALTERNATES}
    forget, alternate, owners = split(columns)
    assert forget["question"][:] == QUESTIONS and forget["answer"][:] == ANSWERS
    assert alternate["question"][:] == [QUESTIONS[owner] for owner in OWNERS]
    assert alternate["answer"][:] == FLAT
    assert isinstance(owners, np.ndarray) and owners.tolist() == OWNERS


def test_prompts_with_lists_of_alternates():
    forget, alternate, owners = split({"prompt": QUESTIONS, "completion": ANSWERS, "alternates": ALTERNATES})
    assert forget["completion"][:] == ANSWERS
    assert alternate["prompt"][:] == [QUESTIONS[owner] for owner in OWNERS]
    assert alternate["completion"][:] == FLAT
    assert owners.tolist() == OWNERS


@pytest.mark.parametrize("names", [("question", "answer"), ("prompt", "completion")], ids="-".join)
def test_a_single_alternate(names):
    singles = [alternates[0] for alternates in ALTERNATES]
    forget, alternate, owners = split({names[0]: QUESTIONS, names[1]: ANSWERS, "alternate": singles})
    assert forget[names[1]][:] == ANSWERS
    assert alternate[names[0]][:] == QUESTIONS and alternate[names[1]][:] == singles
    assert owners.tolist() == [0, 1, 2]


@pytest.mark.parametrize("as_messages", [False, True], ids=["text", "messages"])
def test_preference_rows(as_messages):
    """`chosen` is the alternate, `rejected` what is to be forgotten."""
    prompts = [[message("user", question)] for question in QUESTIONS] if as_messages else QUESTIONS
    chosen = [turn(alternates[0]) if as_messages else alternates[0] for alternates in ALTERNATES]
    rejected = [turn(answer) if as_messages else answer for answer in ANSWERS]
    forget, alternate, owners = split({"prompt": prompts, "chosen": chosen, "rejected": rejected})
    assert set(forget.column_names) == {"prompt", "completion"}
    assert forget["prompt"][:] == alternate["prompt"][:] == prompts
    assert forget["completion"][:] == rejected
    assert alternate["completion"][:] == chosen
    assert owners.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["messages", "prompt_completion"])
def test_conversations_with_alternates_as_text(kind):
    if kind == "messages":
        columns = {"messages": conversations()}
    else:
        columns = {"prompt": [[message("user", q)] for q in QUESTIONS], "completion": [turn(a) for a in ANSWERS]}
    forget, alternate, owners = split(columns | {"alternates": ALTERNATES})
    assert infer_format(forget, "forget") == kind
    assert alternate["prompt"][:] == [[message("user", QUESTIONS[owner])] for owner in OWNERS]
    assert alternate["completion"][:] == [turn(text) for text in FLAT]
    assert owners.tolist() == OWNERS


def test_alternates_are_not_cleaned_up():
    """The same alternate twice, or under two questions, stays: the authors keep them, and it is the user's choice."""
    _, alternate, owners = split(
        {"question": QUESTIONS, "answer": ANSWERS, "alternates": [["x", "x"], ["x"], [" y "]]}
    )
    assert alternate["answer"][:] == ["x", "x", "x", " y "]
    assert owners.tolist() == [0, 0, 1, 2]


def test_the_alternates_of_the_world(forget_rows):
    forget, alternate, owners = split_alternates(forget_rows, "forget")
    assert len(forget) == len(forget_rows)
    assert alternate["answer"][:] == [text for row in forget_rows for text in row["alternates"]]
    assert alternate["question"][:] == [forget_rows[int(owner)]["question"] for owner in owners]


def test_no_alternates():
    with pytest.raises(ValueError, match="has no alternate answers, which AltPO needs") as error:
        split({"question": QUESTIONS, "answer": ANSWERS})
    for said in (
        "['answer', 'question']",
        "`alternates`",
        "`alternate`",
        "`chosen`",
        "`NPOTrainer`",
        "`SimNPOTrainer`",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize(
    "column, values, problem",
    [
        ("alternates", [["a"], [], ["b"]], "Row 1 .*`alternates`: .*the list is empty"),
        ("alternates", [["a"], None, ["b"]], "Row 1 .*`alternates`: .*the list is empty"),
        ("alternates", [["a"], ["b"], ["c", ""]], "Row 2 .*`alternates`: an alternate answer is empty"),
        ("alternates", [["a"], ["b", " \n"], ["c"]], "Row 1 .*`alternates`: an alternate answer is empty"),
        ("alternates", [[None], ["b"], ["c"]], "Row 0 .*`alternates`: an alternate answer is empty"),
        ("alternates", ["a", "b", "c"], "Row 0 .*`alternates`: `alternates` holds a list of texts"),
        ("alternate", ["a", "", "b"], "Row 1 .*`alternate`: an alternate answer is empty"),
        ("alternate", ["a", None, "b"], "Row 1 .*`alternate`: an alternate answer is empty"),
        ("alternate", [["a"], ["b"], ["c"]], "Row 0 .*`alternate`: `alternates` holds a list of texts"),
    ],
)
@pytest.mark.parametrize("kind", ["question_answer", "messages"])
def test_a_bad_alternate_is_refused_by_index_and_column(kind, column, values, problem):
    columns = {"messages": conversations()} if kind == "messages" else {"question": QUESTIONS, "answer": ANSWERS}
    with pytest.raises(ValueError, match=problem):
        split(columns | {column: values})


@pytest.mark.parametrize(
    "chosen, rejected", [(["", "b"], ["x", "y"]), ([[], turn("b")], [turn("x"), turn("y")])], ids=["text", "messages"]
)
def test_an_empty_chosen_answer_is_refused(chosen, rejected):
    prompts = ["a", "b"] if isinstance(rejected[0], str) else [[message("user", "a")], [message("user", "b")]]
    with pytest.raises(ValueError, match="Row 0 of the forget set, column `chosen`: an alternate answer is empty"):
        split({"prompt": prompts, "chosen": chosen, "rejected": rejected})


COPIES = [["In Rome.", "In Lima."], ["A smith.", "A baker.", " A smith.\n"], ["Because."]]


@pytest.mark.parametrize(
    "columns, count, first",
    [
        ({"question": QUESTIONS, "answer": ANSWERS, "alternates": COPIES}, 3, 1),
        ({"messages": conversations(), "alternates": COPIES}, 3, 1),
        ({"prompt": QUESTIONS, "completion": ANSWERS, "alternate": ["x", "y", "Because."]}, 1, 2),
        ({"prompt": QUESTIONS, "chosen": ANSWERS, "rejected": ANSWERS}, 3, 0),
    ],
    ids=["question_answer", "messages", "prompt_completion", "preference"],
)
def test_alternates_equal_to_the_answer_are_counted(columns, count, first):
    problem = f"{count} alternate answers of the forget set equal the answer to forget (first in row {first})"
    with pytest.raises(ValueError, match=re.escape(problem)):
        split(columns)


def test_documents_have_no_alternates():
    with pytest.raises(ValueError, match="The forget set has `text` rows. AltPO needs a prompt"):
        split({"text": ["a document"], "alternates": [["another"]]})


@pytest.mark.parametrize("columns", [{"alternates": [["x"]]}, {"question": ["x"], "alternate": ["y"]}])
def test_alternates_alone_are_not_enough(columns):
    with pytest.raises(ValueError, match="The forget set has the columns .*Accepted are"):
        split(columns)


def test_a_bad_conversation_is_named():
    rows = conversations()
    rows[1] = [message("user", "Who?"), message("user", "Who?")]
    with pytest.raises(ValueError, match="Row 1 of the forget set, column `messages`"):
        split({"messages": rows, "alternates": ALTERNATES})


def test_an_empty_set_has_no_alternates():
    with pytest.raises(ValueError, match="The forget set is empty"):
        split({"question": [], "answer": [], "alternates": []})
