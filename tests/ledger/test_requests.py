"""
Training requests into a ledger: what is refused, what is left out of the retain set, and what an interruption leaves.
"""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from trl_unlearn.ledger.ledger import Ledger


def read(ledger) -> dict:
    return json.loads((ledger / "unlearn_ledger.json").read_text())


def test_rows_to_be_forgotten_are_not_retained(train_request, own_ledger, copy_of, capsys, ledger_command):
    """The retain set has 48 rows, 6 of each of the four requests among them."""
    ledger = copy_of(own_ledger)
    ledger_command("undo", "2", "--ledger", ledger)  # may be retained again
    capsys.readouterr()
    train_request(ledger, 4, dry_run=True, report_to="none")
    output = " ".join(capsys.readouterr().out.split())
    assert "since they are to be forgotten: 18 rows, 12 of them of earlier requests." in output
    assert "Retain 30 rows" in output
    assert not list((ledger / "request-004").glob("*")) and len(read(ledger)["requests"]) == 3


def test_what_a_request_leaves(own_ledger, ledger_command, capsys):
    content = read(own_ledger)
    for request in content["requests"]:
        folder = own_ledger / f"request-00{request['number']}"
        assert (own_ledger / request["recipe"]).read_text().startswith(f"# trl-unlearn {request['method'].lower()}")
        assert (folder / "adapter_model.safetensors").exists() and (folder / "README.md").exists()
        assert {"forget_probability", "model_utility"} <= request["results"]["before"].keys()
        later = [str(number) for number in range(request["number"] + 1, 4)]
        assert list(request["results"]["later"]) == later
    first = content["requests"][0]
    assert first["results"]["later"]["3"]["forget_probability"] != first["results"]["after"]["forget_probability"]
    output = ledger_command("show", "--ledger", own_ledger)
    last = first["results"]["later"]["3"]["forget_probability"]
    line = next(line for line in output.splitlines() if "customer 1" in line)
    assert line.split()[:3] == ["1", "customer", "1"] and f"{last:.2f}" in line and "applied" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request": None}, "give `--request`"),
        ({"use_peft": False}, "give `--use_peft true`"),
        ({"load_in_4bit": True}, "Leave out `load_in_4bit`"),
        ({"push_to_hub": True}, "push what `trl-unlearn ledger merge` writes"),
        ({"use_dora": True}, "`use_dora` changes the norm of the weights"),
        ({"lora_target_modules": ["embed_tokens"]}, "it changes embeddings"),
        ({"ledger_rehearsal": -0.5}, "0 or more, got -0.5"),
        ({"resume_from_checkpoint": True}, "has no interrupted training of this very request"),
    ],
)
def test_what_a_ledger_refuses(options, message, train_request, tmp_path):
    with pytest.raises(SystemExit, match=message):
        train_request(tmp_path / "ledger", 1, **options)
    assert not (tmp_path / "ledger" / "unlearn_ledger.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": 8}, r"`lora_r` is 8, but .* the adapter of request 2 \('customer 2'\) on, with which it is 4"),
        ({"lora_alpha": 12}, "`lora_alpha` is 12, .* with which it is 8"),
        ({"lora_target_modules": ["q_proj"]}, r"`lora_target_modules` is 'q_proj', .* it is {.*'down_proj'"),
        ({"lora_target_modules": ["all-linear"]}, "`lora_target_modules` is 'all-linear', .* it is {.*'down_proj'"),
        ({"use_rslora": True}, "`use_rslora` is True, .* Leave it out, or .* `--ledger_mode own`"),
    ],
)
def test_other_adapter_than_the_one_that_is_trained_on(
    options, message, train_request, continued_ledger, copy_of, ledger_command
):
    ledger = copy_of(continued_ledger)
    ledger_command("undo", "3", "--ledger", ledger)
    with pytest.raises(SystemExit, match=message):
        train_request(ledger, 4, ledger_mode="continued", **options)
    assert not (ledger / "request-004").exists()
    train_request(ledger, 4, dry_run=True, **options)


def test_same_adapter_or_none_is_trained_on(train_request, tmp_path):
    """What is left out is at its default, whatever the adapter has."""
    all_linear = {"ledger_mode": "continued", "lora_target_modules": ["all-linear"], "max_steps": 1}
    train_request(tmp_path, 1, **all_linear)
    train_request(tmp_path, 2, **all_linear)
    defaults = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    train_request(tmp_path, 3, dry_run=True, **all_linear, **defaults)
    assert [request["continues"] for request in read(tmp_path)["requests"]] == [None, 1]


def test_other_base_is_refused(train_request, own_ledger, copy_of, other_model_dir):
    ledger = copy_of(own_ledger)
    before = read(ledger)
    with pytest.raises(SystemExit, match=f"The base model is {other_model_dir} with weights of SHA-256"):
        train_request(ledger, 4, model_name_or_path=other_model_dir)
    assert read(ledger) == before and not (ledger / "request-004").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantized. Adapters are added to the weights"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "says to run code .* a copy without it, since a ledger"),
        (None, "is an adapter. Merge it into its base"),
    ],
)
def test_base_that_no_adapter_can_be_added_to(changes, message, train_request, own_ledger, model_dir, tmp_path):
    base = own_ledger / "request-001"
    if changes is not None:
        base = Path(shutil.copytree(model_dir, tmp_path / "base"))
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SystemExit, match=message):
        train_request(tmp_path / "ledger", 1, model_name_or_path=str(base))


def test_interrupted_training_is_overwritten(train_request, tmp_path, capsys):
    folder = tmp_path / "request-001"
    (folder / "checkpoint-9").mkdir(parents=True)
    (folder / "checkpoint-9" / "optimizer.pt").write_text("left")
    (folder / "unlearn_request.json").write_text(json.dumps({"name": "customer 9"}))
    train_request(tmp_path, 1, eval_forget_data=None, eval_retain_data=None)
    assert "has an interrupted training of 'customer 9': starting afresh" in " ".join(capsys.readouterr().out.split())
    (request,) = read(tmp_path)["requests"]
    assert request["name"] == "customer 1" and not (folder / "checkpoint-9").exists()
    # without an evaluation, nothing is measured
    assert request["evaluation"] is None and request["results"] == {"before": None, "after": None, "later": {}}


def test_forget_sets_that_are_gone_are_not_measured(train_request, requests_dir, tmp_path, capsys):
    """Of the first request, the file is another one by now; of the second, it is gone."""
    for number in (1, 2):
        shutil.copy(requests_dir / f"forget-{number}.jsonl", tmp_path / f"{number}.jsonl")
        train_request(tmp_path / "ledger", number, eval_forget_data=str(tmp_path / f"{number}.jsonl"), max_steps=1)
    shutil.copy(tmp_path / "2.jsonl", tmp_path / "1.jsonl")
    (tmp_path / "2.jsonl").unlink()
    capsys.readouterr()
    train_request(tmp_path / "ledger", 3, max_steps=1)
    output = capsys.readouterr().out
    assert "What request 1 ('customer 1') is to forget cannot be measured again: other rows stand there now" in output
    assert "What request 2 ('customer 2') is to forget cannot be measured again" in output
    later = [list(request["results"]["later"]) for request in read(tmp_path / "ledger")["requests"]]
    assert later == [["2"], [], []]


def test_folder_of_somebody_else_is_left_alone(train_request, tmp_path):
    (tmp_path / "request-001").mkdir()
    (tmp_path / "request-001" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds something that no request of this ledger has left"):
        train_request(tmp_path, 1)
    assert [path.name for path in (tmp_path / "request-001").iterdir()] == ["mine.txt"]


def test_two_at_once(train_request, tmp_path):
    with Ledger(tmp_path).locked(), pytest.raises(SystemExit, match="Another process is working on the ledger"):
        train_request(tmp_path, 1)


def interrupt_when(path: Path) -> None:
    """Sends this process what Ctrl-C does, as soon as a file is there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, it is ignored

    def wait():
        while not path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_interruption_leaves_the_ledger_as_it_was(train_request, own_ledger, copy_of, capsys):
    ledger = copy_of(own_ledger)
    before = (ledger / "unlearn_ledger.json").read_bytes()
    checkpoints = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "per_device_train_batch_size": 1}
    uninterrupted = train_request(copy_of(own_ledger, "uninterrupted"), 4, **checkpoints)
    interrupt_when(ledger / "request-004" / "checkpoint-4" / "trainer_state.json")
    with pytest.raises(KeyboardInterrupt):
        train_request(ledger, 4, **{**checkpoints, "num_train_epochs": 3000})
    assert (ledger / "unlearn_ledger.json").read_bytes() == before
    assert (ledger / "request-004" / "checkpoint-4").exists()

    with pytest.raises(SystemExit, match="has no interrupted training of this very request"):
        train_request(ledger, 4, resume_from_checkpoint=True, request="customer 5", **checkpoints)
    for checkpoint in sorted((ledger / "request-004").glob("checkpoint-*")):
        if checkpoint.name != "checkpoint-4":
            shutil.rmtree(checkpoint)
    resumed = train_request(ledger, 4, resume_from_checkpoint=True, **checkpoints)
    assert [entry["step"] for entry in resumed if "loss" in entry] == [
        entry["step"] for entry in uninterrupted if "loss" in entry
    ]
    assert read(ledger)["requests"][3]["name"] == "customer 4"
    assert read(ledger)["requests"][:3] != json.loads(before)["requests"]  # measured again
    assert not (ledger / "request-004" / "unlearn_request.json").exists()
