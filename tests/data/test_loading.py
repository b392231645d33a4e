"""A folder is read as it is now, whatever was read from it, or from another of its name, before."""

import json

import pytest
from datasets import load_dataset

from trl_unlearn.data.loading import load_rows
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
