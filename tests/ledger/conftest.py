"""
A small world divided into requests, each in files of its own, and a ledger that two of them have been trained into.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import LORA, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_unlearn import cli
from trl_unlearn.files import write_text


def write_rows(rows: list[dict], path: Path) -> str:
    write_text("".join(json.dumps(row) + "\n" for row in rows), path)
    return str(path)


@pytest.fixture(scope="session")
def requests_dir(world, tmp_path_factory) -> Path:
    """
    `forget-1.jsonl` to `forget-4.jsonl`, 6 rows each, and `retain.jsonl` with 24 rows more and those of all requests.
    """
    directory = tmp_path_factory.mktemp("requests")
    rows = [{"question": row["question"], "answer": row["answer"]} for row in world["full"]]
    for number in range(1, 5):
        write_rows(rows[6 * number - 6 : 6 * number], directory / f"forget-{number}.jsonl")
    write_rows(rows[:48], directory / "retain.jsonl")
    write_rows(rows[40:48], directory / "kept.jsonl")
    return directory


@pytest.fixture(scope="session")
def train_request(requests_dir, model_dir):
    """A function that trains a request with the training command, in this process."""

    def run(ledger, number: int, method: str = "SimNPO", **options):
        options = {
            "model_name_or_path": model_dir,
            "dataset_name": str(requests_dir / f"forget-{number}.jsonl"),
            "retain_dataset_name": str(requests_dir / "retain.jsonl"),
            "forget_config": None,
            "retain_config": None,
            "eval_forget_data": str(requests_dir / f"forget-{number}.jsonl"),
            "eval_retain_data": str(requests_dir / "kept.jsonl"),
            "eval_max_new_tokens": 4,
            "num_train_epochs": 3,
            "ledger": str(ledger),
            "request": f"customer {number}",
            **LORA,
            **options,
        }
        return train(method, Path(ledger) / f"request-{number:03d}", **options)

    return run


@pytest.fixture(scope="session")
def own_ledger(train_request, tmp_path_factory) -> Path:
    """
    Three requests with adapters of their own, of other ranks and modules. Read only: tests that change it copy it.
    """
    ledger = tmp_path_factory.mktemp("own") / "ledger"
    train_request(ledger, 1)
    train_request(ledger, 2, "NPO", lora_r=2, lora_alpha=12, lora_target_modules=["q_proj", "o_proj"])
    train_request(ledger, 3, use_rslora=True)
    return ledger


@pytest.fixture(scope="session")
def continued_ledger(train_request, tmp_path_factory) -> Path:
    """The second request trains the first one's adapter on; the third has its own."""
    ledger = tmp_path_factory.mktemp("continued") / "ledger"
    train_request(ledger, 1, ledger_mode="continued")
    train_request(ledger, 2, ledger_mode="continued")
    train_request(ledger, 3)
    return ledger


@pytest.fixture
def copy_of(tmp_path):
    """A function that copies a ledger's folder."""
    return lambda ledger, name="ledger": Path(shutil.copytree(ledger, tmp_path / name))


@pytest.fixture(scope="session")
def other_model_dir(model_dir, tmp_path_factory) -> str:
    """The same model with one weight changed by a little."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    directory = tmp_path_factory.mktemp("other")
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def ledger_command(capsys, monkeypatch):
    """
    A function that runs `trl-unlearn ledger` in this process and returns what it prints, or what it says where it
    `fails`.
    """
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments, fails: bool = False) -> str:
        monkeypatch.setattr("sys.argv", ["trl-unlearn", "ledger", *map(str, arguments)])
        capsys.readouterr()
        if not fails:
            cli.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as error:
            cli.main()
        return str(error.value)

    return run
