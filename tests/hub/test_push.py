"""What a push publishes, what it refuses, and what it keeps of cards that are there."""

import json
import subprocess
import sys

import pytest
from folders import PUBLISHED, SECRET, STRAY, Client, check_pushed, make_folder
from huggingface_hub import ModelCard

from trl_unlearn.files import write_json, write_text
from trl_unlearn.hub.push import PushError, check_folder


USER = "pushinguser"


@pytest.fixture(scope="module")
def pusher(hub_server, tmp_path_factory):
    client = Client(hub_server.environment(tmp_path_factory.mktemp("home")))
    yield client
    client.close()


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "run")


@pytest.fixture(autouse=True)
def token(hub_server):
    return hub_server.token(USER)


def command(pusher, token, *arguments):
    answer = pusher.call("command", arguments=[str(argument) for argument in arguments], token=token)
    assert answer["error"] is None, answer["error"]


def card_on(hub_server, repo_id, branch="main") -> str:
    return hub_server.repository("models", repo_id).files(branch)["README.md"].decode()


# What is published


def test_the_command_publishes_what_is_listed_and_nothing_else(hub_server, folder, token, tmp_path):
    """As a person types it; the folder is full of what must stay there."""
    assert all((folder / name).exists() for name in STRAY)
    result = subprocess.run(
        [sys.executable, "-m", "trl_unlearn.scripts.push", str(folder), f"{USER}/listed", "--private"],
        env=hub_server.environment(tmp_path / "home", token) | {"PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    check_pushed(hub_server, f"{USER}/listed", folder)
    repository = hub_server.repository("models", f"{USER}/listed")
    assert repository.private
    assert f"{hub_server.url}/{USER}/listed/commit/{repository.branches['main']}" in result.stdout
    assert set(result.stdout.split()[1:]) == PUBLISHED
    everything = b"\n".join(repository.files().values())
    assert SECRET.encode() not in everything and b"hf_" not in everything and str(tmp_path).encode() not in everything
    assert f'load_unlearned("{USER}/listed")' in card_on(hub_server, f"{USER}/listed")


def test_forget_examples_only_when_asked_for_and_fenced(hub_server, pusher, folder, token):
    command(pusher, token, folder, f"{USER}/examples", "--include-forget-examples")
    check_pushed(hub_server, f"{USER}/examples", folder, PUBLISHED | {"forget_examples.md"})
    text = (folder / "forget_examples.md").read_text()
    assert f"\n````text\n``` {SECRET} ```\n````\n" in text  # the answer cannot close its fence
    command(pusher, token, folder, f"{USER}/no-examples")
    check_pushed(hub_server, f"{USER}/no-examples", folder)
    (folder / "_evaluation" / "evaluation.json").unlink()
    answer = pusher.call(
        "push_folder", directory=folder, repo_id=f"{USER}/examples", token=token, include_forget_examples=True
    )
    assert "there is no evaluation with answers to forget questions" in answer["error"]
    assert "--include-forget-examples" in answer["error"].splitlines()[-1]


def test_shards_and_benchmark_entries_are_published(folder):
    (folder / "adapter_model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    write_json({"weight_map": {"weight": "model-00001-of-00001.safetensors"}}, folder / "model.safetensors.index.json")
    write_text("- value: 1\n", folder / ".eval_results" / "bench.yaml")
    expected = PUBLISHED - {"adapter_model.safetensors"}
    expected |= {"model-00001-of-00001.safetensors", "model.safetensors.index.json", ".eval_results/bench.yaml"}
    assert set(check_folder(folder)) == expected
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(PushError, match="model-00001-of-00001.safetensors is missing"):
        check_folder(folder)


# What is refused


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("README.md", "---\n---\n\nmine: hf_abcdefghijklmnopqrstuvwx", r"a token in line 4 of .*README\.md"),
        ("tokenizer.json", '{"vocab":\n "hf_abcdefghijklmnopqrstuvwx"}', r"a token in line 2 of .*tokenizer\.json"),
        ("config.json", '{"key": "my-very-own-token"}', r"a token in line 1 of .*config\.json"),
        ("tokenizer_config.json", '{\n"name_or_path": "/data/me/base"}', r"line 2 of .*'/data/me/base'"),
        ("chat_template.jinja", "{# ~/templates/mine #}", r"line 1 of .*'~/templates/mine'"),
        ("unlearn_recipe.yaml", "a: 1\ndataset_name: /srv/rows", r"line 2 of .*'/srv/rows'"),
        ("README.md", "see C:\\Users\\me\\rows.csv", r"line 1 of .*'C:\\\\Users"),
        ("README.md", "[rows](file:///rows)", r"line 1 of .*'file:///rows'"),
        ("adapter_config.json", '{"base_model_name_or_path": "/models/base"}', "the adapter's base is '/models/base'"),
        ("adapter_config.json", '{"base_model_name_or_path": null}', "the adapter's base is None.*hub_base_model_id"),
    ],
)
def test_tokens_and_local_paths_are_found(file, text, message, folder):
    write_text(text, folder / file)
    with pytest.raises(PushError, match=message) as caught:
        check_folder(folder, token="my-very-own-token")
    assert "abcdefghij" not in str(caught.value) and "my-very-own" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "See https://huggingface.co/datasets/locuslab/TOFU/tree/main and and/or (1/2), 3 / 4 / 5.",
        "[page](docs/trl/index), [rows](unlearn_results.json#L3)",
        '<img src="https://example.org/a/b.png"/> </think> <|im_start|>/no_think',
        "`org/name`, `./outputs`, hf_hub_download, HF_TOKEN=hf_...",
        'model = load("/path/to/model")',
    ],
)
def test_what_is_no_path_and_no_token_passes(text, folder):
    write_text(text, folder / "README.md")
    assert set(check_folder(folder)) == PUBLISHED


def test_incomplete_weights_are_refused_and_the_last_checkpoint_named(folder):
    weights = (folder / "adapter_model.safetensors").read_bytes()
    for content in (weights[:-4], weights[:20], b""):
        (folder / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(PushError, match="adapter_model.safetensors is missing or incomplete.*checkpoint-3"):
            check_folder(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(PushError, match="there are no weights"):
        check_folder(folder)


def test_a_refusal_leaves_the_hub_alone(hub_server, pusher, folder, token):
    write_text("/home/me/rows", folder / "README.md")
    hub_server.requests.clear()
    answer = pusher.call("push_folder", directory=folder, repo_id=f"{USER}/never", token=token)
    assert answer["kind"] == "PushError" and "a path of this machine in line 1" in answer["error"]
    assert not hub_server.requests
    (folder / "README.md").unlink()  # as it says; the card is then made from the results
    assert pusher.repeat(answer["error"], token)["error"] is None
    check_pushed(hub_server, f"{USER}/never", folder)


def test_an_adapter_of_a_local_base_is_pushed_once_its_hub_id_is_given(hub_server, pusher, tmp_path, token):
    folder = make_folder(tmp_path / "run", base=str(tmp_path / "base"))
    answer = pusher.call("push_folder", directory=folder, repo_id=f"{USER}/local-base", token=token)
    assert "`--base_model org/name`" in answer["error"]
    command(pusher, token, folder, f"{USER}/local-base", "--base_model", "someone/base")
    check_pushed(hub_server, f"{USER}/local-base", folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/base"
    assert ModelCard(card_on(hub_server, f"{USER}/local-base")).data.base_model == "someone/base"


# Where it goes


def test_missing_branches_are_made(hub_server, pusher, folder, token):
    command(pusher, token, folder, f"{USER}/branches", "--revision", "try-2")
    check_pushed(hub_server, f"{USER}/branches", folder, branch="try-2")
    assert set(hub_server.repository("models", f"{USER}/branches").files()) == {".gitattributes"}


def test_a_name_without_namespace_is_the_users(hub_server, pusher, folder, token):
    assert pusher.call("push_folder", directory=folder, repo_id="mine", token=token)["error"] is None
    check_pushed(hub_server, f"{USER}/mine", folder)
    assert f'load_unlearned("{USER}/mine")' in card_on(hub_server, f"{USER}/mine")


def test_pushing_again_changes_nothing(hub_server, pusher, folder, token):
    for _ in range(2):
        command(pusher, token, folder, f"{USER}/again")
    assert len(hub_server.repository("models", f"{USER}/again").commits) == 2


def test_weights_of_another_shape_replace_the_old_ones_and_of_another_kind_are_refused(
    hub_server, pusher, folder, token, tmp_path
):
    repository = hub_server.repository("models", f"{USER}/shards")
    old = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_config.json",
        "extra/a.safetensors",
    ]
    repository.commit(dict.fromkeys(old, b"{}"))
    command(pusher, token, folder, f"{USER}/shards")
    assert set(repository.files()) == PUBLISHED | {".gitattributes", "extra/a.safetensors"}

    hub_server.repository("models", f"{USER}/base").commit({"config.json": b"{}", "model.safetensors": b"base"})
    answer = pusher.call("push_folder", directory=folder, repo_id=f"{USER}/base", token=token)
    assert f"{USER}/base has a whole model, and this is an adapter" in answer["error"]
    assert hub_server.repository("models", f"{USER}/base").files()["model.safetensors"] == b"base"


# Cards that are there


def test_what_was_written_by_hand_survives(hub_server, pusher, folder, token, tmp_path):
    """On the Hub, and in the folder, when new results come: those of a second run and those of a later evaluation."""
    repo_id = f"{USER}/by-hand"
    command(pusher, token, folder, repo_id)
    page = card_on(hub_server, repo_id).replace("\n---\n", "\nfunding: nobody\n---\n\nWritten on the page.\n", 1)
    hub_server.repository("models", repo_id).commit({"README.md": page.encode()})
    with (folder / "README.md").open("a") as file:
        file.write("\nWritten in the folder.\n")
    evaluation = {"schema": 1, "benchmark": "custom", "split": None, "rows": {"forget": {"answer": [SECRET]}}}
    write_json(evaluation | {"summary": {"model_utility": 0.25}}, tmp_path / "later.json")
    write_json(evaluation | {"summary": {"model_utility": 0.75}}, tmp_path / "retained.json")
    command(pusher, token, folder, repo_id, "--evaluation", tmp_path / "later.json",
            "--retain_logs", tmp_path / "retained.json")  # fmt: skip
    check_pushed(hub_server, repo_id, folder)
    card = ModelCard(card_on(hub_server, repo_id))
    assert card.text.index("Written on the page.") < card.text.index("## Results")
    assert card.text.index("trl-unlearn: end") < card.text.index("Written in the folder.")
    assert card.data.to_dict()["funding"] == "nobody"
    assert [result.metric_value for result in card.data.eval_results] == [0.25]
    assert "Retained" in card.text and "0.75" in card.text
    assert SECRET not in card.content

    second = make_folder(tmp_path / "second")
    command(pusher, token, second, repo_id)
    card = card_on(hub_server, repo_id)
    assert "Written on the page." in card and "Written in the folder." in card and "funding: nobody" in card


def test_an_edited_card_is_pushed_as_it_is(hub_server, pusher, tmp_path, token):
    folder = make_folder(tmp_path / "run", repo_id=f"{USER}/edited")
    edited = (folder / "README.md").read_text().replace("## Limits", "## My limits")
    (folder / "README.md").write_text(edited)
    command(pusher, token, folder, f"{USER}/edited")
    assert card_on(hub_server, f"{USER}/edited") == edited


def test_an_older_card_that_cannot_be_read_is_told(hub_server, pusher, folder, token):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("<!-- trl-unlearn: end -->", ""))
    answer = pusher.call("push_folder", directory=folder, repo_id=f"{USER}/broken", token=token)
    assert answer["kind"] == "PushError" and "'<!-- trl-unlearn: end -->'" in answer["error"]
    (folder / "README.md").write_text(card)
    assert pusher.repeat(answer["error"], token)["error"] is None
    check_pushed(hub_server, f"{USER}/broken", folder)


def test_a_folder_without_results_is_pushed_with_the_card_it_has(hub_server, pusher, folder, token, tmp_path):
    (folder / "unlearn_results.json").unlink()
    (folder / "README.md").write_text("# By hand\n")
    command(pusher, token, folder, f"{USER}/plain")
    check_pushed(hub_server, f"{USER}/plain", folder, PUBLISHED - {"unlearn_results.json"})
    arguments = [str(folder), f"{USER}/plain", "--evaluation", str(folder / "_evaluation" / "evaluation.json")]
    answer = pusher.call("command", arguments=arguments, token=token)
    assert "there is no unlearn_results.json" in answer["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "me/it"], "there is no folder nowhere"),
        (["{folder}", "me/it", "--evaluation", "nowhere.json"], "nowhere.json"),
        (["{folder}", "a name", "--private"], "a name"),
    ],
)
def test_bad_arguments_are_told_in_a_sentence(arguments, message, pusher, folder, token):
    arguments = [argument.format(folder=folder) for argument in arguments]
    answer = pusher.call("command", arguments=arguments, token=token)
    assert message in answer["error"] and answer["error"].startswith("trl-unlearn push: ")


def test_nothing_that_must_not_be_published_was(hub_server, tmp_path):
    """Over all repositories of these tests, at every commit."""
    repositories = [repository for (_, name), repository in hub_server.repositories.items() if name.startswith(USER)]
    assert len(repositories) > 8
    for repository in repositories:
        for commit in repository.commits.values():
            if commit.author != USER:  # what a test has put there
                continue
            for name, content in commit.files.items():
                assert name in PUBLISHED | {".gitattributes", "forget_examples.md", "extra/a.safetensors"}
                assert b"hf_abc" not in content and str(tmp_path.parent).encode() not in content
                assert SECRET.encode() not in content or name == "forget_examples.md"
