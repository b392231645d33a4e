"""What is trained on and what is asked for never overlap, and persons stay whole."""

import pytest
from datasets import Dataset

from trl_unlearn.attacks.not_applicable import NotApplicable
from trl_unlearn.attacks.subsets import groups_of, split_rows


@pytest.mark.parametrize("subset", ["random", "shortest", "held_out"])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_each_row_is_on_one_side(people, subset, share):
    forget = Dataset.from_list(people["forget"])
    trained, asked = split_rows(forget, subset, share, 0, groups_of(forget, "world"))
    assert sorted(trained + asked) == list(range(len(forget)))
    assert trained and asked
    units = 4 if subset == "held_out" else len(forget)
    assert len(trained) == len(forget) // units * min(max(round(share * units), 1), units - 1)


def test_all_phrasings_of_a_person_are_on_one_side(people):
    forget = Dataset.from_list(people["forget"])  # three phrasings a fact, 24 rows a person
    trained, asked = split_rows(forget, "held_out", 0.5, 0, groups_of(forget, "world"))
    persons = [{forget[index]["person"] for index in side} for side in (trained, asked)]
    assert len(trained) == 48 and len(persons[0]) == 2 and not persons[0] & persons[1]
    # which rows drawn one by one do not give
    trained, asked = split_rows(forget, "random", 0.5)
    assert {forget[index]["person"] for index in trained} & {forget[index]["person"] for index in asked}


def test_authors_of_tofu_are_blocks_of_twenty_rows():
    forget = Dataset.from_dict({"question": [f"{i}?" for i in range(100)], "answer": [f"{i}." for i in range(100)]})
    trained, _ = split_rows(forget, "held_out", 0.4, 3, groups_of(forget, "tofu"))
    assert len(trained) == 40
    assert [index - trained[0] for index in trained[:20]] == list(range(20)) and trained[0] % 20 == 0


def test_a_column_groups_rows_that_are_apart():
    forget = Dataset.from_dict({"question": list("abcd"), "answer": list("efgh"), "who": ["x", "y", "x", "y"]})
    trained, asked = split_rows(forget, "held_out", 0.5, 0, groups_of(forget, "custom", "who"))
    assert sorted([trained, asked]) == [[0, 2], [1, 3]]


def test_shortest_answers_whatever_the_columns():
    texts = ["long, long", "short", "longer than that", "mid size"]
    for columns in (
        {"question": ["?"] * 4, "answer": texts},
        {"prompt": ["?"] * 4, "completion": texts},
        {"text": texts},
        {
            "messages": [
                [{"role": "user", "content": "?" * 99}, {"role": "assistant", "content": text}] for text in texts
            ]
        },
    ):
        assert split_rows(Dataset.from_dict(columns), "shortest", 0.5)[0] == [1, 3]


def test_the_seed_alone_decides(people):
    forget = Dataset.from_list(people["forget"])
    assert split_rows(forget, "random", 0.2, 1) == split_rows(forget, "random", 0.2, 1)
    assert split_rows(forget, "random", 0.2, 1) != split_rows(forget, "random", 0.2, 2)


def test_retain_leaves_all_forget_rows(people):
    forget = Dataset.from_list(people["forget"])
    assert split_rows(forget, "retain", 0.2) == ([], list(range(len(forget))))


def test_what_cannot_be_split_is_said():
    row = Dataset.from_dict({"question": ["?"], "answer": ["."]})
    with pytest.raises(NotApplicable, match="has 1 row, and one is to be trained on"):
        split_rows(row, "random", 0.2)
    with pytest.raises(NotApplicable, match="--attack_group_column"):
        split_rows(row, "held_out", 0.2, groups=groups_of(row, "custom"))
    with pytest.raises(NotApplicable, match="has 1 group,"):
        split_rows(row, "held_out", 0.2, groups=groups_of(row, "tofu"))
    with pytest.raises(ValueError, match="`--attack_group_column` is who, and the forget set has the columns"):
        groups_of(row, "custom", "who")
