"""Repositories that would run code, read other files or load other weights are refused, and the message says what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_load import CLIENT, files_of
from transformers import AutoModelForCausalLM

from trl_unlearn.hub.load import load_unlearned


@pytest.fixture(scope="module")
def adapter_dir(model_dir, tmp_path_factory):
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    directory = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config).save_pretrained(directory)
    (directory / "README.md").write_text("# An adapter")
    return directory


@pytest.fixture
def load(client):
    def run(*calls: dict, **options) -> list[dict]:
        return [json.loads(line) for line in client(CLIENT, json.dumps(calls), **options).stdout.splitlines()]

    return run


class Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def changed(directory, file: str = "config.json", **changes) -> bytes:
    return json.dumps(json.loads((Path(directory) / file).read_text()) | changes).encode()


def code_that_creates(path, class_name: str, parent: str) -> bytes:
    return f"from pathlib import Path\nfrom transformers import {parent}\nPath({str(path)!r}).touch()\n\n\nclass {class_name}({parent}):\n    pass\n".encode()


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_weights_in_pickles(kind, model_dir, adapter_dir, tmp_path):
    source, weights = (
        (model_dir, "model.safetensors") if kind == "model" else (adapter_dir, "adapter_model.safetensors")
    )
    directory, ran = tmp_path / "pickled", tmp_path / "ran"
    shutil.copytree(source, directory)
    tensors = load_file(directory / weights)
    (directory / weights).unlink()
    pickled = {"model": "pytorch_model.bin", "adapter": "adapter_model.bin"}[kind]
    torch.save(tensors | {"trap": Trap(ran)}, directory / pickled)
    with pytest.raises(FileNotFoundError) as refused:
        load_unlearned(str(directory))
    assert f"It has {pickled}: pickles run code when they are loaded, so they are not" in str(refused.value)
    assert "`revision='refs/pr/<number>'`" in str(refused.value) and "`save_pretrained` it" in str(refused.value)
    assert not ran.exists()
    torch.load(directory / pickled, weights_only=False)
    assert ran.exists()  # the trap was one


def test_index_that_names_other_files(model_dir, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    (directory / "model.safetensors").rename(tmp_path / "secret.safetensors")
    names = load_file(tmp_path / "secret.safetensors")
    for file in (
        "../secret.safetensors",
        str(tmp_path / "secret.safetensors"),
        "pytorch_model.bin",
        "a/b.safetensors",
    ):
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="names the file .*; expected safetensors files in the same folder"):
            load_unlearned(str(directory))


@pytest.mark.slow
def test_code_of_a_whole_model(hub_server, load, model_dir, tmp_path):
    """Neither code of a class that transformers has nor of one that it has not, nor a tokenizer's."""
    ran = tmp_path / "ran"
    model_code = {"trap.py": code_that_creates(ran, "TrapModel", "LlamaForCausalLM")}
    auto_map = {"AutoModelForCausalLM": "trap.TrapModel"}
    tokenizer_map = {"AutoTokenizer": ["trap.TrapTokenizer", None]}
    layouts = {
        "known": model_code | {"config.json": changed(model_dir, auto_map=auto_map)},
        "unknown": model_code | {"config.json": changed(model_dir, auto_map=auto_map, model_type="trap")},
        "tokenizer": {
            "trap.py": code_that_creates(ran, "TrapTokenizer", "PreTrainedTokenizerFast"),
            "tokenizer_config.json": changed(model_dir, "tokenizer_config.json", auto_map=tokenizer_map),
        },
    }
    for name, files in layouts.items():
        hub_server.repository("models", f"hostile-code/{name}").commit(files_of(model_dir, **files))
    known, unknown, tokenizer = load(*({"repo_or_path": f"hostile-code/{name}"} for name in layouts))
    assert not ran.exists()
    for answer in (known, unknown, tokenizer):
        assert answer["type"] == "ValueError" and "says to run code" in answer["error"]
        assert "want it to run, pass `trust_remote_code=True`" in answer["error"]
    assert "transformers has 'llama' models itself: a copy of the repository without `auto_map`" in known["error"]
    assert "transformers has" not in unknown["error"]
    assert "tokenizer_config.json of hostile-code/tokenizer" in tokenizer["error"]

    (trusted,) = load({"repo_or_path": "hostile-code/known", "trust_remote_code": True})
    assert trusted["type"] == "TrapModel" and ran.exists()  # asked for, it does run: the trap was one


def test_code_of_an_adapters_base(hub_server, load, model_dir, adapter_dir, tmp_path):
    """Trust in an adapter is none in what it names."""
    ran = tmp_path / "ran"
    auto_map = {"AutoModelForCausalLM": "trap.TrapModel"}
    base = files_of(model_dir, **{"config.json": changed(model_dir, auto_map=auto_map)})
    base["trap.py"] = code_that_creates(ran, "TrapModel", "LlamaForCausalLM")
    commit = hub_server.repository("models", "hostile-base/base").commit(base)
    config = changed(adapter_dir, "adapter_config.json", base_model_name_or_path="hostile-base/base", revision=commit)
    hub_server.repository("models", "hostile-base/adapter").commit(
        files_of(adapter_dir, **{"adapter_config.json": config})
    )
    call = {"repo_or_path": "hostile-base/adapter"}
    untrusted, trusted = load(call, call | {"trust_remote_code": True})
    assert not ran.exists()
    named = f"pass `base_model='hostile-base/base', base_revision='{commit}', trust_remote_code=True`"
    for answer in (untrusted, trusted):
        assert f"config.json of hostile-base/base at commit {commit} says to run code" in answer["error"]
        assert named in answer["error"]
    (both,) = load(call | {"trust_remote_code": True, "base_model": "hostile-base/base", "base_revision": commit})
    assert both["type"] == "PeftModelForCausalLM" and ran.exists()


def test_adapter_that_names_a_path(hub_server, load, model_dir, adapter_dir, tmp_path, monkeypatch):
    """Whether or not there is such a folder on the user's machine."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_dir, tmp_path / "models" / "mine")
    named = {"absolute": model_dir, "relative": "../../models/mine", "own": "models/mine", "none": None, "home": "~/m"}
    for name, base in named.items():
        config = changed(adapter_dir, "adapter_config.json", base_model_name_or_path=base)
        files = files_of(adapter_dir, **{"adapter_config.json": config})
        hub_server.repository("models", f"hostile-path/{name}").commit(files)
    answers = load(*({"repo_or_path": f"hostile-path/{name}"} for name in named))
    for base, answer in zip(named.values(), answers, strict=True):
        assert answer["type"] == "ValueError"
        assert "pass the model it was trained on: `base_model='org/name'`" in answer["error"]
        assert (f"names {base!r} as its base, which is a path" if base else "does not say what its base is") in answer[
            "error"
        ]
    (given,) = load({"repo_or_path": "hostile-path/own", "base_model": "models/mine"})
    assert given["type"] == "PeftModelForCausalLM"


def test_adapter_that_names_another_base(hub_server, client, model_dir, adapter_dir):
    """It is said which base is loaded; the checks are the same for it, and an adapter is none."""
    whole = files_of(model_dir)
    pickled = {name: content for name, content in whole.items() if name != "model.safetensors"}
    bases = {"whole": whole, "pickled": pickled | {"pytorch_model.bin": b"pickle"}, "adapter": files_of(adapter_dir)}
    commits = {}
    for name, files in bases.items():
        hub_server.repository("models", f"hostile-other/{name}").commit(files)
        config = changed(adapter_dir, "adapter_config.json", base_model_name_or_path=f"hostile-other/{name}")
        adapter = files_of(adapter_dir, **{"adapter_config.json": config})
        commits[name] = hub_server.repository("models", f"hostile-other/on-{name}").commit(adapter)
    result = client(CLIENT, json.dumps([{"repo_or_path": f"hostile-other/on-{name}"} for name in bases]))
    loaded, on_pickled, on_adapter = map(json.loads, result.stdout.splitlines())
    assert loaded["type"] == "PeftModelForCausalLM"
    said = (
        f"Loading the adapter hostile-other/on-whole at commit {commits['whole']} on its base hostile-other/whole at"
    )
    assert said in result.stderr
    assert "The base of the adapter hostile-other/on-pickled" in on_pickled["error"]
    assert "It has pytorch_model.bin: pickles run code" in on_pickled["error"]
    assert "hostile-other/adapter at commit" in on_adapter["error"] and "is an adapter itself" in on_adapter["error"]


def test_names_that_lead_out_of_the_repository(hub_server, load, model_dir, tmp_path):
    names = ["../../../outside.json", "/outside.json", "a/../../outside.json", "..\\outside.json"]
    for index, name in enumerate(names):
        hub_server.repository("models", f"hostile-names/{index}").commit(files_of(model_dir, **{name: b"{}"}))
    answers = load(*({"repo_or_path": f"hostile-names/{index}"} for index in range(len(names))))
    for name, answer in zip(names, answers, strict=True):
        assert answer["type"] == "ValueError"
        assert f"has a file named {name!r}, which leads out of it. Not loaded." in answer["error"]
    assert not list(tmp_path.rglob("outside.json"))
    assert not list(tmp_path.rglob("config.json"))  # refused before anything was downloaded


def test_private_and_gated_repositories(hub_server, load, model_dir):
    private, gated = (hub_server.repository("models", f"hostile-closed/{name}") for name in ("private", "gated"))
    for repository in (private, gated):
        repository.commit(files_of(model_dir))
    private.private = gated.gated = True
    calls = [{"repo_or_path": "hostile-closed/private"}, {"repo_or_path": "hostile-closed/gated"}]
    tokens = ["", hub_server.token("hostile-stranger"), "hf_thisIsNoLogin", hub_server.token("hostile-closed", "read")]
    answers = load(*(call | {"token": token} for token in tokens for call in calls))
    for of_private, of_gated in (answers[0:2], answers[2:4]):
        assert of_private["type"] == "FileNotFoundError" and of_gated["type"] == "PermissionError"
        assert "or it is private: then log in with `hf auth login`, or set HF_TOKEN" in of_private["error"]
        assert "hostile-closed/gated is gated: accept its conditions on its page, and log in" in of_gated["error"]
    for answer in answers[4:6]:
        assert answer["type"] == "PermissionError"
        assert "to this login: its token is wrong" in answer["error"] and "hf_this" not in answer["error"]
    assert [answer["type"] for answer in answers[6:]] == ["LlamaForCausalLM"] * 2


def test_adapter_at_the_root_does_not_redirect_a_subfolder(hub_server, load, model_dir, adapter_dir, tmp_path):
    """transformers follows an adapter's configuration to its base wherever it finds one."""
    other = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    other.save_pretrained(tmp_path / "other")
    hub_server.repository("models", "hostile-root/other").commit(files_of(model_dir) | files_of(tmp_path / "other"))
    config = changed(adapter_dir, "adapter_config.json", base_model_name_or_path="hostile-root/other")
    files = files_of(adapter_dir, **{"adapter_config.json": config})
    files |= {f"npo/{name}": content for name, content in files_of(model_dir).items()}
    hub_server.repository("models", "hostile-root/both").commit(files)
    (answer,) = load({"repo_or_path": "hostile-root/both", "subfolder": "npo"})
    assert answer["type"] == "LlamaForCausalLM" and any(answer["logits"])


@pytest.mark.slow
def test_code_for_generation(hub_server, load, model_dir, tmp_path):
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n\n\ndef generate(model, **inputs):\n    pass\n".encode()
    hub_server.repository("models", "hostile-generate/model").commit(
        files_of(model_dir, **{"custom_generate/generate.py": code})
    )
    (answer,) = load({"repo_or_path": "hostile-generate/model"})
    assert "has code to generate with (custom_generate/generate.py), which was not run" in answer["error"]
    assert "pass `trust_remote_code=True`" in answer["error"] and not ran.exists()
    load({"repo_or_path": "hostile-generate/model", "trust_remote_code": True})
    assert ran.exists()
