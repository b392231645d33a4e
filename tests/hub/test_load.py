"""Published layouts load, at the commit that was asked for, or the message says exactly what to pass."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_unlearn.hub.load import load_unlearned


# Calls `load_unlearned` with each of the given keyword arguments, logged in by `token`, and prints what came of it.
CLIENT = """
import json, os, sys
from peft import PeftModel
from trl_unlearn.hub.load import load_unlearned

for arguments in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = arguments.pop("token", "")
    try:
        model, tokenizer = load_unlearned(**arguments)
    except Exception as error:
        print(json.dumps({"error": str(error), "type": type(error).__name__}))
        continue
    ids = tokenizer("Question: Who is it?", return_tensors="pt")["input_ids"]
    adapter = model.active_peft_config if isinstance(model, PeftModel) else None
    print(json.dumps({
        "type": type(model).__name__,
        "commit": model.config._commit_hash,
        "adapter_commit": adapter and adapter._commit_hash,
        "logits": model(ids).logits[0, -1].double().tolist(),
        "dtype": str(model.dtype),
        "training": model.training,
        "tokens": len(tokenizer),
    }))
"""


def files_of(*folders, **renamed) -> dict[str, bytes]:
    """Content by name of the files of folders, and of `renamed`, for a commit."""
    return {path.name: path.read_bytes() for folder in folders for path in Path(folder).iterdir()} | renamed


def weights_of(folder) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in ("config.json", "model.safetensors")}


def logits_of(model) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    ids = tokenizer("Question: Who is it?", return_tensors="pt")["input_ids"]
    return model(ids).logits[0, -1].detach()


@pytest.fixture
def load(client):
    def run(*calls: dict, **options) -> tuple[list[dict], str]:
        result = client(CLIENT, json.dumps(calls), **options)
        return [json.loads(line) for line in result.stdout.splitlines()], result.stderr

    return run


@pytest.fixture(scope="module")
def other_dir(model_dir, tmp_path_factory):
    """The same model with other weights, and without a tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    directory = tmp_path_factory.mktemp("other")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapter_dir(model_dir, tmp_path_factory):
    """An adapter that does something, as PEFT saves it: without a tokenizer."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config)
    directory = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def adapter_copy(adapter_dir, tmp_path):
    """A function that copies the adapter with other values in its configuration; those that are `None` are left out."""

    def copy(**changes) -> Path:
        directory = tmp_path / "adapter"
        shutil.copytree(adapter_dir, directory, dirs_exist_ok=True)
        config = json.loads((directory / "adapter_config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if key not in changes or value is not None}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    return copy


def test_folder_with_a_whole_model(model_dir, model):
    loaded, tokenizer = load_unlearned(model_dir)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert tokenizer("abc")["input_ids"] == AutoTokenizer.from_pretrained(model_dir)("abc")["input_ids"]
    assert not loaded.training and loaded.config._commit_hash is None


def test_folder_with_an_adapter(adapter_dir, model_dir, model):
    loaded, tokenizer = load_unlearned(str(adapter_dir))
    expected = logits_of(PeftModel.from_pretrained(model, adapter_dir))
    assert torch.equal(logits_of(loaded), expected)
    assert not any(module.training for module in loaded.modules())
    assert not any(weight.requires_grad for name, weight in loaded.named_parameters() if "lora" in name)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(model_dir).get_vocab()  # the base's
    with loaded.disable_adapter():
        assert (logits_of(loaded) - expected).abs().max() > 0.01


def test_merged(adapter_dir):
    merged, _ = load_unlearned(str(adapter_dir), merge=True)
    assert not isinstance(merged, PeftModel) and not hasattr(merged, "peft_config")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits_of(merged), logits_of(load_unlearned(str(adapter_dir))[0]), atol=1e-4, rtol=0)


def test_dtype_and_device_map(adapter_dir, model_dir):
    model, _ = load_unlearned(model_dir, dtype=torch.bfloat16, device_map="meta")
    assert model.dtype == torch.bfloat16 and model.device.type == "meta"
    assert load_unlearned(str(adapter_dir), dtype="bfloat16", merge=True)[0].dtype == torch.bfloat16


def test_adapter_without_task_type_generates(adapter_copy, adapter_dir):
    loaded, tokenizer = load_unlearned(str(adapter_copy(task_type=None)))
    torch.testing.assert_close(logits_of(loaded), logits_of(load_unlearned(str(adapter_dir))[0]))
    ids = tokenizer("Question: Who is it?", return_tensors="pt")["input_ids"]
    assert loaded.generate(input_ids=ids, max_new_tokens=3, min_new_tokens=3).shape[1] == ids.shape[1] + 3


def test_adapter_configurations_of_other_versions_of_peft(adapter_copy, adapter_dir, model_dir):
    directory = adapter_copy()
    expected = logits_of(load_unlearned(str(adapter_dir))[0])
    first_release = {
        "base_model_name_or_path": model_dir,
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    (directory / "adapter_config.json").write_text(json.dumps(first_release))
    torch.testing.assert_close(logits_of(load_unlearned(str(directory))[0]), expected)
    config = json.loads((adapter_dir / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"from_the_future": {"a": 1}}))
    torch.testing.assert_close(logits_of(load_unlearned(str(directory))[0]), expected)


def test_adapter_for_another_task_is_refused(adapter_copy):
    with pytest.raises(ValueError, match="is an adapter for SEQ_CLS; expected CAUSAL_LM"):
        load_unlearned(str(adapter_copy(task_type="SEQ_CLS")))


def test_adapter_that_does_not_fit_its_base(adapter_copy, tmp_path, tokenizer):
    from trl_unlearn.world.model import build_model

    for case, sizes in {
        "narrow": {"hidden_size": 16},
        "shallow": {"num_layers": 1},
        "deep": {"num_layers": 3},
    }.items():
        sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "seed": 0} | sizes
        build_model(tokenizer, **sizes).save_pretrained(tmp_path / case)
        tokenizer.save_pretrained(tmp_path / case)
        with pytest.raises(ValueError, match=rf"does not fit the base .*{case}.*`base_model='org/name'`"):
            load_unlearned(str(adapter_copy()), base_model=str(tmp_path / case))
    with pytest.raises(ValueError, match="does not fit the base .*no_such_module"):
        load_unlearned(str(adapter_copy(target_modules=["no_such_module"])))


def test_prompt_tuning_cannot_be_merged(model, model_dir, tmp_path):
    from peft import PromptTuningConfig

    adapter = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    adapter.save_pretrained(tmp_path)
    load_unlearned(str(tmp_path))
    with pytest.raises(ValueError, match="PROMPT_TUNING cannot be merged into weights"):
        load_unlearned(str(tmp_path), merge=True)


def test_adapter_whose_base_is_an_adapter(adapter_copy, adapter_dir):
    with pytest.raises(ValueError, match="is an adapter itself. Merge it .*`trl-unlearn merge`"):
        load_unlearned(str(adapter_copy(base_model_name_or_path=str(adapter_dir))))


def test_models_in_subfolders(model_dir, other_dir, tmp_path):
    for name in ("retain90", "runs/npo"):
        shutil.copytree(other_dir, tmp_path / name)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="in its subfolders retain90, runs/npo: pass `subfolder='retain90'`"):
        load_unlearned(str(tmp_path))
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)  # one tokenizer for all, at the root
    model, tokenizer = load_unlearned(str(tmp_path), subfolder="runs/npo")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(model_dir).get_vocab()
    with pytest.raises(FileNotFoundError, match="subfolders retain90, runs/npo"):
        load_unlearned(str(tmp_path), subfolder="logs")


def test_what_is_wrong_with_arguments(model_dir, tmp_path):
    with pytest.raises(ValueError, match="`revision` is 'main', but .* is a folder on this machine"):
        load_unlearned(model_dir, revision="main")
    with pytest.raises(ValueError, match=r"`subfolder` is '\.\./x'; expected a folder inside the repository"):
        load_unlearned(model_dir, subfolder="../x")
    with pytest.raises(FileNotFoundError, match="'outputs/no/model' is neither a folder nor a Hub id"):
        load_unlearned("outputs/no/model")
    with pytest.raises(FileNotFoundError, match="has no config.json and model.safetensors. What it has: no file."):
        load_unlearned(str(tmp_path))
    with pytest.raises(
        OSError, match="me/model at revision main is not cached, and the Hub does not answer or offline"
    ):
        load_unlearned("me/model")  # HF_HUB_OFFLINE is set for the tests


@pytest.mark.slow
def test_whole_models_on_the_hub(hub_server, load, model_dir, other_dir, model):
    """As of open-unlearning/*: pinned and at the newest commit, private ones with a token, and offline afterwards."""
    repository = hub_server.repository("models", "load-whole/full")
    older = repository.commit(files_of(model_dir))
    newer = repository.commit(weights_of(other_dir))
    calls = [
        {"repo_or_path": "load-whole/full"},
        {"repo_or_path": "load-whole/full", "revision": older, "dtype": "bfloat16"},
        {"repo_or_path": "load-whole/full", "revision": "v9"},
        {"repo_or_path": "load-whole/none"},
    ]
    answers, _ = load(*calls)
    newest, pinned, no_revision, nothing = answers
    assert (newest["type"], newest["commit"], newest["dtype"]) == ("LlamaForCausalLM", newer, "torch.float32")
    other = AutoModelForCausalLM.from_pretrained(other_dir)
    other.config._name_or_path = model_dir
    torch.testing.assert_close(torch.tensor(newest["logits"]).float(), logits_of(other))
    assert (pinned["commit"], pinned["dtype"], pinned["training"]) == (older, "torch.bfloat16", False)
    torch.testing.assert_close(torch.tensor(pinned["logits"]).float(), logits_of(model), atol=0.2, rtol=0)
    assert no_revision["error"] == "load-whole/full has no revision 'v9' on the Hub."
    assert nothing["type"] == "FileNotFoundError"
    assert "load-whole/none is neither a folder nor a model on the Hub, or it is private" in nothing["error"]

    hub_server.requests.clear()
    again, _ = load(*calls[:2], HF_HUB_OFFLINE="1")
    assert again == answers[:2] and not hub_server.requests
    hub_server.failing |= {"GET": 501, "HEAD": 501}
    assert load(*calls[:2])[0] == answers[:2]


def test_whole_model_without_a_tokenizer(hub_server, load, model_dir, other_dir):
    """As of OPTML-Group/SimNPO-*, saved by transformers 4, which writes where the weights came from."""
    hub_server.repository("models", "load-simnpo/target").commit(files_of(model_dir))
    config = json.loads((other_dir / "config.json").read_text())
    results = {"schema": 1, "base_model": {"name": "load-simnpo/target", "revision": None}}
    layouts = {
        "named": {"config.json": json.dumps(config | {"_name_or_path": "load-simnpo/target"}).encode()},
        "results": {"unlearn_results.json": json.dumps(results).encode()},
        "unnamed": {"config.json": json.dumps(config | {"_name_or_path": "/home/them/model"}).encode()},
        "gone": {"config.json": json.dumps(config | {"_name_or_path": "load-simnpo/deleted"}).encode()},
    }
    for name, files in layouts.items():
        hub_server.repository("models", f"load-simnpo/{name}").commit(weights_of(other_dir) | files)
    calls = [{"repo_or_path": f"load-simnpo/{name}"} for name in layouts]
    answers, log = load(*calls, *(call | {"base_model": "load-simnpo/target"} for call in calls[2:]))
    for index in (0, 1, 4, 5):
        assert answers[index]["logits"] == answers[0]["logits"] and answers[index]["tokens"] > 0
    assert (
        "load-simnpo/named at commit" in log and "has no tokenizer: taking that of load-simnpo/target at commit" in log
    )
    assert answers[2]["error"].endswith(
        "has no tokenizer and does not name on the Hub the model it was made from. Pass the model it was unlearned from, "
        "whose tokenizer it shares: `base_model='org/name'`."
    )
    assert "load-simnpo/deleted is neither a folder nor a model on the Hub" in answers[3]["error"]
    assert answers[3]["error"].endswith("`base_model='org/name'`.")


def test_weights_only_in_branches(hub_server, load, model_dir, other_dir):
    """As of locuslab/phi_*."""
    repository = hub_server.repository("models", "load-branches/phi")
    repository.commit({"README.md": b"# Checkpoints", "config.json": b"{}"})
    for branch in ("checkpoint-10", "checkpoint-20"):
        repository.commit(files_of(model_dir), branch=branch)
    found, loaded = load(
        {"repo_or_path": "load-branches/phi"}, {"repo_or_path": "load-branches/phi", "revision": "checkpoint-20"}
    )[0]
    assert found["type"] == "FileNotFoundError"
    assert "It has other branches, checkpoint-10, checkpoint-20: pass `revision='checkpoint-10'`" in found["error"]
    assert loaded["commit"] == repository.branches["checkpoint-20"]


def test_models_in_subfolders_on_the_hub(hub_server, load, model_dir, other_dir):
    repository = hub_server.repository("models", "load-folders/many")
    for folder, files in {"npo": files_of(model_dir), "runs/simnpo": weights_of(other_dir)}.items():
        commit = repository.commit({f"{folder}/{name}": content for name, content in files.items()})
    found, npo, without = load(
        {"repo_or_path": "load-folders/many"},
        {"repo_or_path": "load-folders/many", "subfolder": "./npo/"},
        {"repo_or_path": "load-folders/many", "subfolder": "runs/simnpo"},
    )[0]
    assert "There are models in its subfolders npo, runs/simnpo: pass `subfolder='npo'`" in found["error"]
    assert npo["commit"] == commit
    assert f"load-folders/many at commit {commit} in runs/simnpo has no tokenizer" in without["error"]


def test_adapters_on_the_hub(hub_server, load, model_dir, other_dir, adapter_copy, model):
    """The base is taken at the recorded revision, another one can be given, and what was taken is said."""
    base = hub_server.repository("models", "load-adapter/base")
    trained_on = base.commit(files_of(model_dir))
    moved_on = base.commit(weights_of(other_dir))
    directory = adapter_copy(base_model_name_or_path="load-adapter/base", revision=trained_on, task_type=None)
    commit = hub_server.repository("models", "load-adapter/npo").commit(files_of(directory, **{"README.md": b"# NPO"}))
    call = {"repo_or_path": "load-adapter/npo"}
    calls = [
        call,
        call | {"base_revision": "main"},
        call | {"base_model": "load-adapter/gone"},
        call | {"merge": True},
    ]
    answers, log = load(*calls)
    recorded, newest, gone, merged = answers
    expected = logits_of(PeftModel.from_pretrained(model, directory))
    assert (recorded["type"], recorded["commit"], recorded["adapter_commit"]) == (
        "PeftModelForCausalLM",
        trained_on,
        commit,
    )
    torch.testing.assert_close(torch.tensor(recorded["logits"]).float(), expected)
    assert newest["commit"] == moved_on and newest["logits"] != recorded["logits"]
    assert (
        "The base of the adapter load-adapter/npo" in gone["error"] and "load-adapter/gone is neither" in gone["error"]
    )
    assert (merged["type"], merged["commit"]) == ("LlamaForCausalLM", trained_on)
    torch.testing.assert_close(torch.tensor(merged["logits"]), torch.tensor(recorded["logits"]), atol=1e-4, rtol=0)
    assert f"adapter load-adapter/npo at commit {commit} on its base load-adapter/base at commit {trained_on};" in log

    hub_server.requests.clear()
    offline = [call, call | {"base_revision": "main"}]
    assert load(*offline, HF_HUB_OFFLINE="1")[0] == answers[:2] and not hub_server.requests


def test_merged_adapter_in_shards(hub_server, load, adapter_dir, model_dir, tmp_path):
    """A merged model as PEFT users push it: in several files, with the adapter's tokenizer."""
    model, tokenizer = load_unlearned(str(adapter_dir), merge=True)
    model.save_pretrained(tmp_path / "merged", max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path / "merged")
    files = files_of(tmp_path / "merged")
    assert sum(name.endswith(".safetensors") for name in files) > 1
    hub_server.repository("models", "load-merged/model").commit(files)
    (answer,) = load({"repo_or_path": "load-merged/model"})[0]
    expected = logits_of(load_unlearned(str(tmp_path / "merged"))[0])
    torch.testing.assert_close(torch.tensor(answer["logits"]).float(), expected)


def test_adapter_weights_of_other_modules(adapter_copy):
    """Weights under other names than the configuration says are not left out silently."""
    directory = adapter_copy()
    weights = load_file(directory / "adapter_model.safetensors")
    renamed = {name.replace("q_proj", "k_proj"): weight for name, weight in weights.items()}
    save_file(renamed, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="differ in 8 names, such as .*k_proj"):
        load_unlearned(str(directory))
