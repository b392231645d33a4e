"""Alternates are found by prompt and answer, for a part of the rows that they were made for."""

from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from trl_unlearn import join_alternates


TOFU = Path(__file__).parents[3] / "shared" / "data" / "tofu"


def with_numbers(dataset: Dataset) -> Dataset:
    if "alternates" in dataset.column_names:
        dataset = dataset.remove_columns("alternates")
    return dataset.add_column("alternates", [[f"first {index}", f"second {index}"] for index in range(len(dataset))])


def test_a_part_in_another_order_is_joined_row_by_row(forget_rows):
    order = [7, 2, 2, 11]
    forget = forget_rows.select(order).remove_columns("alternates").add_column("source", ["a", "b", "c", "d"])
    joined = join_alternates(forget, with_numbers(forget_rows))
    assert joined.column_names == ["question", "answer", "source", "alternates"]
    assert joined["source"] == forget["source"]
    assert joined["alternates"][:] == [[f"first {index}", f"second {index}"] for index in order]


def test_older_alternates_are_replaced(forget_rows):
    assert join_alternates(forget_rows, with_numbers(forget_rows))["alternates"][0] == ["first 0", "second 0"]


def test_prompts_and_messages(forget_rows):
    questions = forget_rows["question"][:], forget_rows["answer"][:]
    prompts = Dataset.from_dict({"prompt": questions[0], "completion": [f" {answer}" for answer in questions[1]]})
    assert join_alternates(prompts.select([3]), with_numbers(prompts))["alternates"][0] == ["first 3", "second 3"]
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(*questions, strict=True)
    ]
    # datasets gives all messages the keys of one, and saves them as nothing
    named = [[{**message, "name": None} for message in messages] for messages in conversations]
    alternates = with_numbers(Dataset.from_dict({"messages": named}))
    joined = join_alternates(Dataset.from_dict({"messages": conversations}).select([5]), alternates)
    assert joined["alternates"][0] == ["first 5", "second 5"]


def test_rows_without_alternates_are_named(forget_rows):
    alternates = with_numbers(forget_rows.select([0, 1, 3]))
    with pytest.raises(
        ValueError, match=r"^9 of 12 rows .* have no alternates: row 2, 4, 5.*`trl-unlearn alternates`"
    ):
        join_alternates(forget_rows, alternates)
    # the same question with another answer is another row
    other = forget_rows.map(lambda row: {"answer": row["answer"] + "!"})
    with pytest.raises(ValueError, match="12 of 12 rows"):
        join_alternates(forget_rows, with_numbers(other))
    empty = forget_rows.remove_columns("alternates").add_column("alternates", [["one"]] * 11 + [[]])
    with pytest.raises(ValueError, match=r"1 of 12 rows .* row 11\."):
        join_alternates(forget_rows, empty)


def test_columns_that_do_not_match_are_named(forget_rows):
    with pytest.raises(ValueError, match="no column `alternates`, but .'answer', 'question'."):
        join_alternates(forget_rows, forget_rows.remove_columns("alternates"))
    prompts = forget_rows.rename_columns({"question": "prompt", "answer": "completion"})
    with pytest.raises(
        ValueError, match="has `question` and `answer`, and the alternates have `prompt` and `completion`"
    ):
        join_alternates(forget_rows, prompts)
    with pytest.raises(ValueError, match="has `text`"):
        join_alternates(Dataset.from_dict({"text": ["A document."]}), prompts)
    with pytest.raises(ValueError, match="Row 1 of the alternates set, column `answer`: the completion is empty"):
        join_alternates(forget_rows, Dataset.from_list([forget_rows[0], forget_rows[1] | {"answer": ""}]))


@pytest.mark.skipif(not TOFU.exists(), reason=f"needs TOFU in {TOFU.name}, next to the repository")
def test_alternates_for_tofus_forget10_serve_the_smaller_splits():
    alternates = with_numbers(load_dataset(str(TOFU), "forget10", split="train"))
    for split, number in (("forget05", 200), ("forget01", 40)):
        joined = join_alternates(load_dataset(str(TOFU), split, split="train"), alternates)
        assert joined["alternates"][:] == alternates["alternates"][-number:]
