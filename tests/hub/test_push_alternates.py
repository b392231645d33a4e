"""Alternates on the Hub: private unless somebody says otherwise, with their card and nothing else, and usable from there."""

import json

import pytest

from trl_unlearn.world import save_world


USER = "alternates"
# Runs the command with each list of flags in turn, and tells what was printed and raised
RUN = """
import contextlib, io, json, sys
from trl_unlearn.scripts.alternates import AlternatesScriptArguments, alternates
from trl_unlearn.scripts.parsing import RecipeParser

for flags in json.loads(sys.argv[1]):
    printed, error = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            alternates(*RecipeParser(AlternatesScriptArguments).parse(flags))
        except Exception as raised:
            error = str(raised)
    print(json.dumps({"printed": printed.getvalue().replace("\\n", ""), "error": error}))
"""


@pytest.fixture
def run(client, hub_server, world, tmp_path):
    """Runs the command with flags of its own and an output folder for each call; returns what it printed and raised."""
    save_world({"forget": world["forget"][:6]}, tmp_path / "world")
    flags = ["--source", "idk", "--dataset_name", tmp_path / "world", "--forget_config", "forget"]
    flags += ["--num_alternates", "2"]

    def run(*calls, token=""):
        commands = [[*map(str, flags), "--output_dir", str(tmp_path / folder), *more] for folder, *more in calls]
        return [json.loads(line) for line in client(RUN, json.dumps(commands), token=token).stdout.splitlines()]

    return run


def test_pushed_private_with_nothing_but_data_and_card_and_joined_from_there(hub_server, run, client, tmp_path, world):
    token, name = hub_server.token(USER), f"{USER}/made"
    first, second = run(
        ["out", "--hub_dataset_id", name], ["other", "--hub_dataset_id", name, "--seed", "1"], token=token
    )
    repository = hub_server.repository("datasets", name)
    assert repository.private
    assert len(repository.commits) == 3  # the second replaces the first
    assert set(repository.files()) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    assert repository.files()["README.md"] == (tmp_path / "other" / "README.md").read_bytes()
    assert "Pushing, with the forget set's own text." in first["printed"]
    assert f"{hub_server.url}/datasets/{name}/commit/{repository.branches['main']}" in second["printed"]

    code = """
import json, sys
from datasets import Dataset, load_dataset
from trl_unlearn import join_alternates
forget = Dataset.from_list(json.loads(sys.argv[1]))
print(json.dumps(join_alternates(forget, load_dataset(sys.argv[2], split="train"))["alternates"][:]))
"""
    rows = [{"question": row["question"], "answer": row["answer"]} for row in (world["forget"][4], world["forget"][1])]
    joined = json.loads(client(code, json.dumps(rows), name, token=token).stdout.splitlines()[-1])
    assert [len(texts) for texts in joined] == [2, 2]


@pytest.mark.slow
def test_public_only_if_it_is_said_and_a_failed_push_loses_nothing(hub_server, run, tmp_path):
    token = hub_server.token(USER)
    hub_server.repository("datasets", f"{USER}/open").private = False
    hub_server.fail("commit", 400)  # the first commit that comes
    refused, failed, pushed, denied = run(
        ["refused", "--hub_dataset_id", f"{USER}/open"],
        ["out", "--hub_dataset_id", f"{USER}/open", "--private", "false"],
        ["out", "--hub_dataset_id", f"{USER}/open", "--private", "false"],
        ["denied", "--hub_dataset_id", "somebodyelse/data"],
        token=token,
    )
    assert f"{USER}/open exists and is public, and you asked for a private one" in refused["error"]
    assert f"/datasets/{USER}/open/settings" in refused["error"]
    assert not (tmp_path / "refused").exists()  # before anything was made
    assert f"Nothing is lost: everything is in {tmp_path / 'out'}" in failed["error"]
    assert pushed["error"] is None and "to the PUBLIC" in pushed["printed"]
    assert "README.md" in hub_server.repository("datasets", f"{USER}/open").files()
    assert f"the token of {USER} may not write to somebodyelse/data" in denied["error"]

    (without,) = run(["without", "--hub_dataset_id", f"{USER}/open"])
    assert "there is no token. Log in with `hf auth login`" in without["error"]
    assert not (tmp_path / "without").exists()
