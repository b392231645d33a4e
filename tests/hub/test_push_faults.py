"""What can go wrong with a push: what its user reads, that nothing is lost, and that the command given then pushes it."""

import re

import pytest
from folders import Client, check_pushed, make_folder


USER = "faultsuser"

BUSY = {"Retry-After": "0"}
# name: faults as (endpoint, arguments of HubServer.fail), and what is said; None where it is mended without a word
FAULTS = {
    "429 at create": ([("create", {"status": 429, "times": 2, "headers": BUSY})], None),
    "500 at create": ([("create", {"status": 500, "headers": BUSY})], None),
    "503 at create": ([("create", {"status": 503, "times": 2, "headers": BUSY})], None),
    "503 at create, always": ([("create", {"status": 503, "times": 99, "headers": BUSY})], "the Hub did not answer"),
    "dropped before create": ([("create", {"drop": "before"})], None),
    "dropped after create": ([("create", {"drop": "after"})], None),
    "429 at preupload": ([("preupload", {"status": 429, "headers": BUSY})], None),
    "500 at preupload": ([("preupload", {"status": 500, "headers": BUSY})], None),
    "dropped before preupload": ([("preupload", {"drop": "before"})], None),
    "dropped after preupload": ([("preupload", {"drop": "after"})], None),
    "403 at preupload": ([("preupload", {"status": 403, "times": 2})], "may not write to"),
    "503 at upload": ([("upload", {"status": 503, "headers": BUSY})], None),
    "400 at upload": ([("upload", {"status": 400, "times": 2})], "400"),
    "dropped before upload": ([("upload", {"drop": "before"})], None),
    "dropped after upload": ([("upload", {"drop": "after"})], None),
    "429 at commit": ([("commit", {"status": 429, "headers": BUSY})], None),
    "500 at commit": ([("commit", {"status": 500, "headers": BUSY})], None),
    "503 at commit, always": ([("commit", {"status": 503, "times": 99, "headers": BUSY})], "the Hub did not answer"),
    "dropped before commit": ([("commit", {"drop": "before"})], None),
    "dropped after commit": ([("commit", {"drop": "after"})], None),
    "503 at validation": ([("validate", {"status": 503, "headers": BUSY})], None),
    "503 everywhere, once": (
        [(endpoint, {"headers": BUSY}) for endpoint in ("whoami", "create", "info", "preupload", "lfs", "commit")],
        None,
    ),
}


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


def state_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_told(answer, folder, name, reason, token):
    """One kind of error, which says what is wrong, where everything is, and the command, and never the token."""
    assert answer["kind"] == "PushError"
    assert re.search(reason, answer["error"]), answer["error"]
    assert str(folder) in answer["error"] and f"trl-unlearn push {folder} {name}" in answer["error"]
    assert token not in answer["error"]


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_hub(name, hub_server, pusher, folder, token):
    repo_id = f"{USER}/{re.sub('[^a-z0-9]+', '-', name)}"
    faults, reason = FAULTS[name]
    before = state_of(folder)
    for endpoint, arguments in faults:
        hub_server.fail(endpoint, **arguments)
    answer = pusher.call("push_folder", directory=folder, repo_id=repo_id, token=token)
    assert all(path in state_of(folder) for path in before)
    if reason is not None:
        check_told(answer, folder, repo_id, reason, token)
        hub_server.reset()
        answer = pusher.repeat(answer["error"], token)
    assert answer["error"] is None
    assert answer["seconds"] < 30
    check_pushed(hub_server, repo_id, folder)
    titles = [commit.title for commit in hub_server.repository("models", repo_id).commits.values()]
    assert len(titles) == 2  # the first commit of every repository, and this one: a lost answer does not make two


@pytest.mark.parametrize(
    ("bad", "repo_id", "reason"),
    [
        ("none", f"{USER}/no-token", r"there is no token.*hf auth login"),
        ("hf_wrongwrongwrongwrong", f"{USER}/bad-token", "does not know the token"),
        ("read", f"{USER}/read-token", f"the token of {USER} may only read"),
        ("write", "somebodyelse/theirs", "may not write to somebodyelse/theirs.*It belongs to: faultsuser"),
    ],
    ids=["no token", "bad token", "read-only token", "other namespace"],
)
def test_tokens_that_may_not(bad, repo_id, reason, hub_server, pusher, folder, token):
    given = {"none": None, "read": hub_server.token(USER, "read"), "write": token}.get(bad, bad)
    checked = pusher.call("check_push", repo_id=repo_id, token=given)
    assert checked["kind"] == "PushError" and re.search(reason, checked["error"])  # before training already
    answer = pusher.call("push_folder", directory=folder, repo_id=repo_id, token=given)
    check_told(answer, folder, repo_id, reason, given or token)
    assert ("models", repo_id) not in hub_server.repositories
    command = answer["error"].replace("somebodyelse/", f"{USER}/")
    assert pusher.repeat(command, token)["error"] is None
    check_pushed(hub_server, repo_id.replace("somebodyelse/", f"{USER}/"), folder)


def test_somebody_elses_repository_that_may_be_read_is_not_taken_for_ones_own(hub_server, pusher, token):
    """`create_repo(exist_ok=True)` is content with one that is there."""
    hub_server.repository("models", "somebodyelse/public")
    answer = pusher.call("check_push", repo_id="somebodyelse/public", token=token)
    assert "may not write to somebodyelse/public" in answer["error"]


@pytest.mark.parametrize("there", ["public", "private"])
def test_a_repository_of_the_other_visibility_is_refused(there, hub_server, pusher, folder, token):
    repo_id, wanted = f"{USER}/is-{there}", there == "public"
    hub_server.repository("models", repo_id).private = there == "private"
    answer = pusher.call("push_folder", directory=folder, repo_id=repo_id, private=wanted, token=token)
    check_told(answer, folder, repo_id, f"exists and is {there}", token)
    assert ("--private" in answer["error"]) is wanted
    assert set(hub_server.repository("models", repo_id).files()) == {".gitattributes"}
    hub_server.repository("models", repo_id).private = wanted  # as the message says
    assert pusher.repeat(answer["error"], token)["error"] is None
    check_pushed(hub_server, repo_id, folder)


def test_two_runs_at_once(hub_server, pusher, folder, token, tmp_path):
    """Both have started from the same commit: one of them is told, and pushes on top when that is wanted."""
    repo_id = f"{USER}/both"
    other = Client(hub_server.environment(tmp_path / "home"))
    second = make_folder(tmp_path / "second")
    (second / "unlearn_recipe.yaml").write_text("beta: 0.4\n")
    commit = pusher.call("check_push", repo_id=repo_id, token=token)["value"][1]
    for client, directory in ((pusher, folder), (other, second)):
        client.start("push_folder", directory=directory, repo_id=repo_id, token=token, parent_commit=commit)
    answers = {directory: client.finish() for client, directory in ((pusher, folder), (other, second))}
    other.close()
    failed = [directory for directory, answer in answers.items() if answer["error"] is not None]
    assert len(failed) == 1
    check_told(answers[failed[0]], failed[0], repo_id, "somebody else has pushed", token)
    first = hub_server.repository("models", repo_id).files()["unlearn_recipe.yaml"]
    assert pusher.repeat(answers[failed[0]]["error"], token)["error"] is None
    assert hub_server.repository("models", repo_id).files()["unlearn_recipe.yaml"] != first
    check_pushed(hub_server, repo_id, failed[0])


def test_no_hub_at_all(hub_server, folder, token, tmp_path):
    """Nobody listens there; the retries take some seconds, and no more."""
    client = Client(hub_server.environment(tmp_path / "home") | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    answer = client.call("push_folder", directory=folder, repo_id=f"{USER}/away", token=token)
    client.close()
    check_told(answer, folder, f"{USER}/away", "the Hub did not answer", token)
    assert answer["seconds"] < 30


def test_offline_mode_is_named(hub_server, folder, token, tmp_path):
    client = Client(hub_server.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "1"})
    answer = client.call("push_folder", directory=folder, repo_id=f"{USER}/away", token=token)
    client.close()
    check_told(answer, folder, f"{USER}/away", "offline mode is on: unset HF_HUB_OFFLINE", token)
    assert answer["seconds"] < 5
