"""A folder is read as it is now, whatever was read from it, or from another of its name, before; mixtures of sets."""

import json

import pytest
from datasets import load_dataset

from trl_unlearn.data.loading import load_mixture, load_rows, parse_source
from trl_unlearn.world import save_world


def write(folder, answer):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: forget\n  data_files: forget.json\n---\n")
    (folder / "forget.json").write_text(json.dumps({"question": "?", "answer": answer}) + "\n")


def test_edited_files_and_folders_of_the_same_name_are_read(tmp_path):
    write(tmp_path / "a" / "data", "one")
    assert load_rows(str(tmp_path / "a" / "data"), "forget")["answer"][0] == "one"
    write(tmp_path / "b" / "data", "two")
    assert load_rows(str(tmp_path / "b" / "data"), "forget")["answer"][0] == "two"
    write(tmp_path / "a" / "data", "three")
    assert load_rows(str(tmp_path / "a" / "data"), "forget")["answer"][0] == "three"


def test_an_unchanged_folder_is_read_once(tmp_path):
    write(tmp_path / "data", "one")
    files = [load_rows(str(tmp_path / "data"), "forget").cache_files for _ in range(2)]
    assert files[0] == files[1]


def test_worlds_in_folders_of_the_same_name_stay_apart(tmp_path):
    for name in ("a", "b"):
        save_world({"forget": [{"question": "?", "answer": name}]}, tmp_path / name / "data")
        assert load_dataset(str(tmp_path / name / "data"), "forget", split="train")["answer"][0] == name


def test_a_missing_configuration_is_named(tmp_path):
    write(tmp_path / "data", "one")
    with pytest.raises(ValueError, match="forget99"):
        load_rows(str(tmp_path / "data"), "forget99")


def test_mixtures_append_rows_and_keep_the_columns_that_are_shared(tmp_path):
    rows = {"a": [{"question": "q1", "answer": "a1", "id": 1}], "b": [{"answer": "a2", "question": "q2"}]}
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    first = (str(tmp_path / "a.jsonl"), None, "train")
    assert load_mixture(first, [], "retain").column_names == ["question", "answer", "id"]
    mixture = load_mixture(first, [str(tmp_path / "b.jsonl")], "retain")
    assert mixture.to_list() == [{"question": "q1", "answer": "a1"}, {"question": "q2", "answer": "a2"}]
    twice = load_mixture(first, [first[0], str(tmp_path / "b.jsonl")], "retain")  # the same set again is one more part
    assert twice["answer"] == ["a1", "a1", "a2"]
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "A document."}))
    with pytest.raises(
        ValueError, match=r"parts of the retain set have columns of different kinds \(.*a.jsonl: question, "
    ):
        load_mixture(first, [str(tmp_path / "c.jsonl")], "retain")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("locuslab/TOFU", ("locuslab/TOFU", None, "train")),
        ("locuslab/TOFU:retain90", ("locuslab/TOFU", "retain90", "train")),
        ("muse-bench/MUSE-News:raw:forget", ("muse-bench/MUSE-News", "raw", "forget")),
        ("not:there.jsonl", ("not:there.jsonl", None, "train")),
    ],
)
def test_what_a_source_stands_for(source, expected):
    assert parse_source(source) == expected
