"""The retained model's evaluation is found where it was said to be, and when it is not, the message says what to do."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from hub_server import HubServer

from trl_unlearn.evaluation.retain_reference import published_retain_logs, resolve_retain_logs


TARGET = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
PUBLISHED = "tofu_Llama-3.2-1B-Instruct_retain90/TOFU_EVAL.json"
LOG = b'{"forget_truth_ratio": {"agg_value": 0.5, "value_by_index": {"0": {"score": 0.5}}}}'
LOG_SHA256 = hashlib.sha256(LOG).hexdigest()
TOKEN = "hf_notARealTokenButItMustNotBeShown"

# Resolves each of the given (value, model name, split), and prints what came of it.
CLIENT = """
import json, sys
from trl_unlearn.evaluation.retain_reference import resolve_retain_logs

for arguments in json.loads(sys.argv[1]):
    try:
        path, reference = resolve_retain_logs(*arguments)
        print(json.dumps({"content": path.read_text(), "reference": reference}))
    except OSError as error:
        print(json.dumps({"error": str(error), "type": type(error).__name__}))
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def commit(hub):
    return hub.repository("datasets", "open-unlearning/eval").commit({PUBLISHED: LOG})


def resolve(hub, home, *arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(arguments)],
        env=os.environ | hub.environment(home) | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_local_file_is_recorded_without_its_folder(tmp_path):
    folder = tmp_path / "somebody's home"
    folder.mkdir()
    (folder / "TOFU_EVAL.json").write_bytes(LOG)
    path, reference = resolve_retain_logs(str(folder / "TOFU_EVAL.json"), "any", None)
    assert path.read_bytes() == LOG
    assert reference == {"name": "TOFU_EVAL.json", "revision": None, "sha256": LOG_SHA256}


def test_what_is_neither_a_file_nor_on_the_hub(tmp_path):
    for value in (str(tmp_path), str(tmp_path / "no.json"), "org/name", "name:file.json"):
        with pytest.raises(FileNotFoundError, match="is not a file.*trl-unlearn evaluate.*org/name:path"):
            resolve_retain_logs(value, TARGET, "forget10")


@pytest.mark.parametrize(
    ("model", "split", "expected"),
    [
        (TARGET, "forget10", PUBLISHED),
        (TARGET, "forget05", "tofu_Llama-3.2-1B-Instruct_retain95/TOFU_EVAL.json"),
        ("tofu_Llama-2-7b-chat-hf_full", "forget01", "tofu_Llama-2-7b-chat-hf_retain99/TOFU_EVAL.json"),
        ("saves/tofu_Llama-3.1-8B-Instruct_full/", "forget10", "tofu_Llama-3.1-8B-Instruct_retain90/TOFU_EVAL.json"),
        ("open-unlearning/unlearn_tofu_Llama-3.2-1B-Instruct_forget10_NPO_lr2e-05_beta0.5_epoch10", None, PUBLISHED),
        ("me/tofu_Llama-3.2-1B-Instruct_full-tofu-forget10-SimNPO-lora", None, PUBLISHED),
        ("open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90", "forget10", PUBLISHED),
        ("locuslab/tofu_ft_llama2-7b", "forget05", "tofu_Llama-2-7b-chat-hf_retain95/TOFU_EVAL.json"),
        ("muse-bench/MUSE-News_target", None, "muse_Llama-2-7b-hf_News_retrain/MUSE_EVAL.json"),
        ("muse-bench/MUSE-Books_target", "Books", "muse_Llama-2-7b-hf_Books_retrain/MUSE_EVAL.json"),
        ("muse_Llama-2-7b-hf_Books_SimNPO", None, "muse_Llama-2-7b-hf_Books_retrain/MUSE_EVAL.json"),
    ],
)
def test_published_targets(model, split, expected):
    assert published_retain_logs(model, split) == expected


@pytest.mark.parametrize(
    ("model", "split", "message"),
    [
        ("meta-llama/Llama-3.2-1B", "forget10", "'meta-llama/Llama-3.2-1B' is not named like one.*--retain_logs"),
        (TARGET, None, "for the split None; expected one of forget01, forget05, forget10.*trl-unlearn evaluate"),
        (TARGET, "forget20", "for the split 'forget20'; expected one of"),
        ("muse-bench/MUSE-News_target", "forget10", "for the split 'forget10'; expected News or Books"),
    ],
)
def test_what_has_no_published_retained_model(model, split, message):
    with pytest.raises(ValueError, match=message):
        resolve_retain_logs("auto", model, split)


def test_files_of_the_hub(hub, commit, tmp_path):
    mine = hub.repository("datasets", "me/logs")
    older = mine.commit({"deep/er/evaluation.json": LOG})
    mine.commit({"deep/er/evaluation.json": b"{}"})
    auto, newest, pinned = resolve(
        hub,
        tmp_path,
        ("auto", TARGET, "forget10"),
        ("me/logs:deep/er/evaluation.json", "any", None),
        (f"me/logs@{older}:deep/er/evaluation.json", "any", None),
    )
    assert auto["content"] == LOG.decode()
    assert auto["reference"] == {
        "name": f"open-unlearning/eval:{PUBLISHED}",
        "revision": commit,
        "sha256": LOG_SHA256,
    }
    assert newest["content"] == "{}" and newest["reference"]["revision"] == mine.branches["main"] != older
    assert pinned["reference"] == {
        "name": "me/logs:deep/er/evaluation.json",
        "revision": older,
        "sha256": LOG_SHA256,
    }

    # What is cached is found without the Hub, with its commit.
    assert resolve(hub, tmp_path, ("auto", TARGET, "forget10"), HF_HUB_OFFLINE="1") == [auto]


def test_what_the_hub_does_not_give(hub, commit, tmp_path):
    hub.repository("datasets", "me/gated").commit({"log.json": LOG})
    hub.repository("datasets", "me/gated").gated = True
    asked = {
        "nobody/nothing:log.json": "log.json in the data set nobody/nothing at revision main: there is no such data set",
        "open-unlearning/eval:no.json": "no.json in the data set open-unlearning/eval at revision main: it has no such file",
        f"open-unlearning/eval@v9:{PUBLISHED}": f"{PUBLISHED} in the data set open-unlearning/eval at revision v9: it has no",
        "me/gated:log.json": "me/gated at revision main: it is gated: accept its conditions",
        "me/--bad--:log.json": "that is not a valid name on the Hub",
    }
    hub.requests.clear()
    answers = resolve(hub, tmp_path, *((value, TARGET, "forget10") for value in asked), HF_TOKEN=TOKEN)
    assert [authorization for _, _, authorization in hub.requests] == [f"Bearer {TOKEN}"] * 4
    for answer, expected in zip(answers, asked.values(), strict=True):
        assert expected in answer["error"]
        assert "trl-unlearn evaluate" in answer["error"] and "--retain_logs" in answer["error"]
        assert answer["type"] == "OSError"


def test_a_hub_that_cannot_be_reached(hub, commit, tmp_path):
    asked = ("auto", TARGET, "forget10")
    with_password = hub.url.replace("http://", "http://me:secret@")  # as of a mirror
    try:
        offline = resolve(hub, tmp_path, asked, HF_HUB_OFFLINE="1")
        hub.failing["GET"] = 501
        interrupted = resolve(hub, tmp_path, asked, HF_ENDPOINT=with_password)
        hub.failing["HEAD"] = 501  # unlike 500 and a refused connection, not tried again for 20 seconds
        broken = resolve(hub, tmp_path, asked, HF_ENDPOINT=with_password)
    finally:
        hub.failing.clear()
    for answer in offline + broken:
        assert "the Hub does not answer, or offline mode is on, and the file is not cached" in answer["error"]
    assert "at revision main: HfHubHTTPError, status 501. Evaluate the retained model" in interrupted[0]["error"]
    for answer in offline + interrupted + broken:
        assert PUBLISHED in answer["error"] and "secret" not in answer["error"]
