"""A ledger whose base is on the Hub: at its commit only, and what is pushed of it."""

import json
from pathlib import Path

import pytest
from command_line import LORA, flags_of

from trl_unlearn.files import write_text


TRAIN = """
import sys
from trl_unlearn.scripts import unlearn
unlearn.main("SimNPO")
"""
COMMAND = "from trl_unlearn.cli import main; main()"
LOAD = """
import sys
import torch
from trl_unlearn import load_ledger, load_unlearned
models = [load_ledger(sys.argv[1]), load_unlearned(sys.argv[2])]
logits = [model(**tokenizer("Who is it?", return_tensors="pt")).logits for model, tokenizer in models]
print("difference", (logits[0] - logits[1]).abs().max().item())
"""


@pytest.mark.slow
def test_base_on_the_hub(hub_server, client, world, model_dir, tmp_path):
    token = hub_server.token("ledger-user")
    base = hub_server.repository("models", "ledger-user/base")
    files = {path.name: path.read_bytes() for path in Path(model_dir).iterdir()}
    commit = base.commit(files)
    rows = [{"question": row["question"], "answer": row["answer"]} for row in world["full"]]
    for name, part in {"forget": rows[:6], "retain": rows[:24]}.items():
        write_text("".join(json.dumps(row) + "\n" for row in part), tmp_path / f"{name}.jsonl")
    ledger = tmp_path / "ledger"
    options = {
        "model_name_or_path": "ledger-user/base",
        "dataset_name": tmp_path / "forget.jsonl",
        "retain_dataset_name": tmp_path / "retain.jsonl",
        "forget_config": None,
        "retain_config": None,
        "ledger": ledger,
        "request": "Zebulon",
        "num_train_epochs": 4,
        **LORA,
    }
    client(TRAIN, *flags_of(tmp_path / "out", **options))
    content = json.loads((ledger / "unlearn_ledger.json").read_text())
    assert content["base"] == {"name": "ledger-user/base", "revision": commit, "sha256": None}

    output = client(COMMAND, "ledger", "merge", tmp_path / "merged", "--ledger", ledger, "--adapter").stdout
    assert "trl-unlearn push" in output
    client(COMMAND, "push", tmp_path / "merged", "ledger-user/forgets", token=token)
    published = hub_server.repository("models", "ledger-user/forgets").files()
    assert {"adapter_model.safetensors", "README.md", "unlearn_results.json"} <= set(published)
    assert json.loads(published["adapter_config.json"])["revision"] == commit
    card = published["README.md"].decode()
    assert "## Deletion requests" in card and content["requests"][0]["sha256"][:16] in card
    texts = [content for name, content in published.items() if not name.startswith("tokenizer")]
    hidden = [
        b"Zebulon",
        str(tmp_path).encode(),
        rows[0]["answer"].encode(),
        content["requests"][0]["rows"][0].encode(),
    ]
    assert not any(secret in text for secret in hidden for text in texts)

    # the base moves on: the ledger stays with its commit, and takes no request on the new one
    changed = base.commit(files | {"notes.md": b"other"})
    result = client(TRAIN, *flags_of(tmp_path / "out", **options), check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"at commit {changed}" in result.stderr and f"at commit {commit}" in result.stderr
    assert json.loads((ledger / "unlearn_ledger.json").read_text()) == content
    output = client(LOAD, ledger, "ledger-user/forgets").stdout
    assert float(output.split("difference")[1]) < 1e-5
