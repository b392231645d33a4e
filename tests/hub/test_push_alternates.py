"""Alternates on the Hub: private unless somebody says otherwise, with their card and nothing else, and usable from there."""

import json
import sys
from pathlib import Path

import pytest

from trl_unlearn.world import save_world


USER = "alternates"


@pytest.fixture
def token(hub_server):
    return hub_server.token(USER)


@pytest.fixture
def flags(world, tmp_path):
    save_world({name: rows[:6] for name, rows in world.items()}, tmp_path / "world")
    flags = ["--source", "idk", "--dataset_name", tmp_path / "world", "--forget_config", "forget"]
    return [*flags, "--num_alternates", "2", "--output_dir", tmp_path / "out"]


def command(*flags):
    return [sys.executable, "-m", "trl_unlearn.scripts.alternates", *map(str, flags)]


def test_pushed_private_and_joined_from_there(hub_server, client, flags, token, tmp_path, world):
    result = client(command(*flags, "--hub_dataset_id", f"{USER}/made"), token=token)
    repository = hub_server.repository("datasets", f"{USER}/made")
    assert repository.private
    assert set(repository.files()) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    assert repository.files()["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    assert f"{hub_server.url}/datasets/{USER}/made/commit/{repository.branches['main']}" in "".join(
        result.stdout.split("\n")
    )
    assert "Pushing, with the forget set's own text." in result.stdout

    code = """
import json, sys
from datasets import Dataset, load_dataset
from trl_unlearn import join_alternates
forget = Dataset.from_list(json.loads(sys.argv[1])).select([4, 1])
print(json.dumps(join_alternates(forget, load_dataset(sys.argv[2], split="train"))["alternates"][:]))
"""
    rows = [{"question": row["question"], "answer": row["answer"]} for row in world["forget"][:6]]
    joined = json.loads(client(code, json.dumps(rows), f"{USER}/made", token=token).stdout.splitlines()[-1])
    assert [len(texts) for texts in joined] == [2, 2]

    # another run replaces it, in a second commit
    client(command(*flags, "--seed", "1", "--hub_dataset_id", f"{USER}/made"), token=token)
    assert len(repository.commits) == 3


def test_public_only_if_it_is_said(hub_server, client, flags, token):
    hub_server.repository("datasets", f"{USER}/open").private = False
    result = client(command(*flags, "--hub_dataset_id", f"{USER}/open"), token=token, check=False)
    assert result.returncode == 1
    assert "exists and is public, and you asked for a private one" in result.stderr.splitlines()[-1]
    assert f"/datasets/{USER}/open/settings" in result.stderr
    assert not Path(flags[-1]).exists()  # refused before anything was made
    result = client(command(*flags, "--hub_dataset_id", f"{USER}/open", "--private", "false"), token=token)
    assert "to the PUBLIC" in result.stdout
    assert "README.md" in hub_server.repository("datasets", f"{USER}/open").files()


def test_a_push_that_fails_loses_nothing(hub_server, client, flags, token, tmp_path):
    hub_server.fail("commit", 400, times=1)
    result = client(command(*flags, "--hub_dataset_id", f"{USER}/failing"), token=token, check=False)
    assert result.returncode == 1
    assert f"Nothing is lost: everything is in {tmp_path / 'out'}" in result.stderr
    hub_server.fail("commit", 503, times=1)
    client(command(*flags, "--hub_dataset_id", f"{USER}/failing"), token=token)
    assert "README.md" in hub_server.repository("datasets", f"{USER}/failing").files()


def test_without_a_token_nothing_is_made(client, flags):
    result = client(command(*flags, "--hub_dataset_id", f"{USER}/made"), check=False)
    assert result.returncode == 1
    assert "there is no token. Log in with `hf auth login`" in result.stderr.splitlines()[-1]
    assert not Path(flags[-1]).exists()
