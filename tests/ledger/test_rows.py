"""Rows by their hashes: the same text in other formats, no other text, and the check of a file."""

import json
from hashlib import sha256

import pytest
from datasets import Dataset, load_dataset

from trl_unlearn.ledger.rows import row_hashes, set_digest, without_rows


QUESTIONS = Dataset.from_dict({"question": ["Who is it?", "Where?"], "answer": ["They are Ann.", "There."]})


def chat(row) -> list[dict]:
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def test_hash_is_that_of_the_text():
    content = [[["user", "Who is it?"]], [["assistant", "They are Ann."]]]
    assert row_hashes(QUESTIONS, "forget")[0] == sha256(json.dumps(content).encode()).hexdigest()
    document = Dataset.from_dict({"text": ["A text."]})
    assert row_hashes(document, "forget") == [sha256(b'["A text."]').hexdigest()]


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": chat(row)} for row in QUESTIONS],
        [{"prompt": chat(row)[:1], "completion": chat(row)[1:]} for row in QUESTIONS],
        [{"prompt": chat(row)[:1], "chosen": chat(row)[1:], "rejected": chat(row)[1:]} for row in QUESTIONS],
        [{"messages": [message | {"name": None} for message in chat(row)]} for row in QUESTIONS],
        [row | {"alternates": ["They are Bob."]} for row in QUESTIONS],
    ],
)
def test_same_row_in_another_format(rows):
    assert row_hashes(Dataset.from_list(rows), "forget") == row_hashes(QUESTIONS, "forget")


def test_other_rows_have_other_hashes():
    rows = [("a", "b"), ("ab", ""), ("a", "b "), ("b", "a"), ("a", "B"), ('a", "b', "c")]
    texts = Dataset.from_dict({"prompt": [row[0] for row in rows], "completion": [row[1] for row in rows]})
    assert len(set(row_hashes(texts, "forget")) | set(row_hashes(QUESTIONS, "forget"))) == len(rows) + 2


def test_digest_of_a_set():
    hashes = row_hashes(QUESTIONS, "forget")
    assert set_digest(hashes, "salt") == set_digest(hashes[::-1], "salt")
    others = {set_digest(hashes, "pepper"), set_digest(hashes[:1], "salt"), set_digest([*hashes, hashes[0]], "salt")}
    assert len(others | {set_digest(hashes, "salt")}) == 4


def test_without_rows():
    hashes = row_hashes(QUESTIONS, "retain")
    kept, left_out = without_rows(QUESTIONS, [hashes[0], "unknown"], "retain")
    assert kept["answer"][:] == ["There."] and left_out == [hashes[0]]
    kept, left_out = without_rows(QUESTIONS, [], "retain")
    assert kept.to_list() == QUESTIONS.to_list() and left_out == []
    with pytest.raises(ValueError, match="All 2 rows of the retain set are to be forgotten"):
        without_rows(QUESTIONS, hashes, "retain")


def test_check_of_a_file(own_ledger, requests_dir, ledger_command, tmp_path):
    """Rows of two requests among others, one of them twice, and one that is nearly a row of a request."""
    first, second, kept = (
        load_dataset("json", data_files=str(requests_dir / name), split="train").to_list()
        for name in ("forget-1.jsonl", "forget-2.jsonl", "kept.jsonl")
    )
    nearly = first[2] | {"answer": first[2]["answer"] + " "}
    rows = [kept[0], first[4], second[0], nearly, first[4], first[1] | {"note": "x"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(ledger_command("check", file, "--ledger", own_ledger, "--json"))
    assert found == {"num_rows": 6, "requests": {"1": [1, 4, 5], "2": [2], "3": []}}
    output = ledger_command("check", file, "--ledger", own_ledger)
    assert "customer 1" in output and "1, 4, 5" in output and "customer 3" not in output
    assert "2 of 6 rows are part of no request" in output
    assert "is not there" in ledger_command("check", tmp_path / "no.jsonl", "--ledger", own_ledger, fails=True)
