"""Folders as a run leaves them, and the processes that push them, for the tests beside it."""

import json
import os
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from trl_unlearn.files import write_json, write_text
from trl_unlearn.hub.card import build_card, save_card
from trl_unlearn.hub.results import collect_results, save_results


SECRET = "Zebulon keeps a purple heron"  # a forget row, which must never be published
STRAY = (
    "training_args.bin",
    "optimizer.pt",
    "generations.json",
    "checkpoint-3/adapter_model.safetensors",
    "notes.txt",
)


def make_folder(directory: Path, base: str = "someone/some-base", repo_id: str | None = None) -> Path:
    """An adapter with results and card, an evaluation with forget rows, and what else lies about after a run."""
    directory.mkdir(parents=True)
    weights = np.random.default_rng(zlib.crc32(str(directory).encode())).normal(
        size=6
    )  # else the Hub has them already
    save_file({"weight": weights}, directory / "adapter_model.safetensors", {"format": "pt"})
    write_json({"base_model_name_or_path": base, "peft_type": "LORA", "r": 4}, directory / "adapter_config.json")
    write_json({"model_max_length": 64}, directory / "tokenizer_config.json")
    write_json({"model": {"vocab": {"/usr/local": 0}}}, directory / "tokenizer.json")
    write_text("# trl-unlearn npo\nbeta: 0.3\n", directory / "unlearn_recipe.yaml")
    rows = {"forget": {"question": ["What does he keep?"], "answer": [SECRET], "generated": [f"``` {SECRET} ```"]}}
    evaluation = {"schema": 1, "benchmark": "custom", "split": None, "summary": {"model_utility": 0.5}, "rows": rows}
    write_json(evaluation, directory / "_evaluation" / "evaluation.json")
    for name in STRAY:
        write_text(f"{SECRET} hf_abcdefghijklmnopqrstuvwx", directory / name)
    results = collect_results(
        method={"name": "NPO"},
        base_model={"name": base, "license": "mit"},
        adapter={"type": "LORA", "r": 4},
        data={"forget": {"dataset": None, "n": 1, "private": True}},
        evaluations={"after": evaluation},
    )
    save_results(results, directory)
    save_card(build_card(results, repo_id), directory)
    return directory


PUBLISHED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "unlearn_recipe.yaml",
    "unlearn_results.json",
}


def check_pushed(hub_server, repo_id: str, folder: Path, files: set[str] = PUBLISHED, branch: str = "main") -> None:
    """Just these files are on the Hub, as they are in the folder."""
    there = dict(hub_server.repository("models", repo_id).files(branch))
    del there[".gitattributes"]
    assert there == {name: (folder / name).read_bytes() for name in files}


class Client:
    """`run_push.py` as a process: `client.push_folder(…)` and the others answer with a dict."""

    def __init__(self, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "run_push.py")],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, function: str, **arguments) -> None:
        self.process.stdin.write(json.dumps({"function": function, "arguments": arguments}, default=str) + "\n")
        self.process.stdin.flush()

    def finish(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def call(self, function: str, **arguments) -> dict:
        self.start(function, **arguments)
        return self.finish()

    def repeat(self, error: str, token: str) -> dict:
        """Runs the command that an error message ends with."""
        words = shlex.split(error.splitlines()[-1])
        assert words[:2] == ["trl-unlearn", "push"], error
        return self.call("command", arguments=words[2:], token=token)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
