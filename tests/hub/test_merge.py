"""Merging keeps what the model computes, and leaves a folder that can be pushed as a whole model, or nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trl_unlearn.hub.card import build_card, save_card
from trl_unlearn.hub.load import load_unlearned
from trl_unlearn.hub.merge import merge_adapter
from trl_unlearn.hub.results import collect_results, load_results, save_results


MERGE = "from trl_unlearn.scripts.merge import main; main()"


def make_adapter(model_dir, directory, **options) -> Path:
    torch.manual_seed(0)
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | options
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_dir), LoraConfig(task_type="CAUSAL_LM", **options)
    )
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def adapter(model_dir, tmp_path) -> Path:
    """An adapter with results, recipe and a card that was edited."""
    directory = make_adapter(model_dir, tmp_path / "adapter")
    evaluation = {"schema": 1, "benchmark": "world", "summary": {"forget_rougeL_recall": 0.25}, "rows": {"forget": {}}}
    results = collect_results(
        method={"name": "NPO"},
        base_model={"name": "org/base", "revision": "a" * 40, "license": "apache-2.0"},
        adapter={"type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
        evaluations={"after": evaluation},
    )
    save_results(results, directory)
    save_card(build_card(results), directory)
    with (directory / "README.md").open("a") as card:
        card.write("\n\nWritten by hand.\n")
    (directory / "unlearn_recipe.yaml").write_text("method: npo\n")
    return directory


def logits_of(model, tokenizer) -> torch.Tensor:
    return model(tokenizer("Question: Who is it?", return_tensors="pt")["input_ids"]).logits.detach()


def test_merged_model_computes_the_same(adapter, model, tokenizer, tmp_path):
    with_adapter = PeftModel.from_pretrained(model, adapter)
    expected = logits_of(with_adapter, tokenizer)
    with with_adapter.disable_adapter():
        assert (logits_of(with_adapter, tokenizer) - expected).abs().max() > 0.1
    parity = merge_adapter(str(adapter), tmp_path / "merged")
    loaded, loaded_tokenizer = load_unlearned(str(tmp_path / "merged"))
    assert not isinstance(loaded, PeftModel) and loaded_tokenizer.get_vocab() == tokenizer.get_vocab()
    torch.testing.assert_close(logits_of(loaded, tokenizer), expected, atol=1e-4, rtol=0)
    assert 0 < parity["max_abs_difference"] < 1e-4 < 1 < parity["max_abs_logit"]
    assert parity["same_top_token"] == 1 and parity["num_positions"] > 20
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_files_of_the_merged_model(adapter, model_dir, tmp_path):
    merge_adapter(str(adapter), tmp_path / "merged")
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "unlearn_recipe.yaml",
        "unlearn_results.json",
    } <= files
    assert not files & {"adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin", "training_args.bin"}
    for path in (tmp_path / "merged").glob("*.json"):
        assert str(model_dir) not in path.read_text()
    before, after = load_results(adapter), load_results(tmp_path / "merged")
    assert after["adapter"] == before["adapter"] | {"merged": True}
    assert {**after, "adapter": None} == {**before, "adapter": None}
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", "finetune")
    assert card.data.library_name == "transformers" and "Written by hand." in card.text
    assert ModelCard.load(adapter / "README.md").data.base_model_relation == "adapter"


def test_dtype_of_the_base_and_another_one(adapter, model, model_dir, tokenizer, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    parity = merge_adapter(str(adapter), tmp_path / "half", base_model=str(tmp_path / "base"))
    assert parity["max_abs_difference"] > 1e-3  # rounded, and said so
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    parity = merge_adapter(str(adapter), tmp_path / "full", base_model=str(tmp_path / "base"), dtype="float32")
    assert parity["max_abs_difference"] < 1e-4


def test_what_cannot_be_merged(adapter, model_dir, tmp_path):
    output_dir = tmp_path / "merged"
    with pytest.raises(ValueError, match="is a whole model, and there is nothing to merge"):
        merge_adapter(model_dir, output_dir)
    quantized = tmp_path / "quantized"
    shutil.copytree(model_dir, quantized)
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quantized \(bitsandbytes\).*unquantized: `--base_model org/name`"):
        merge_adapter(str(adapter), output_dir, base_model=str(quantized))
    assert not output_dir.exists()
    output_dir.mkdir()
    (output_dir / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is there already and not empty"):
        merge_adapter(str(adapter), output_dir)
    assert [path.name for path in output_dir.iterdir()] == ["mine.txt"]


def test_merge_that_changes_the_model_is_not_saved(model_dir, model, tokenizer, tmp_path):
    """An adapter on embeddings that the output layer shares: merged, it changes both."""
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "tied")
    tokenizer.save_pretrained(tmp_path / "tied")
    adapter = make_adapter(tmp_path / "tied", tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(ValueError, match="logits differ by up to .*Nothing was saved"):
        merge_adapter(str(adapter), tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))


@pytest.mark.slow
def test_command_with_an_adapter_on_the_hub(hub_server, client, adapter, model_dir, tmp_path):
    base = hub_server.repository("models", "merge-user/base")
    commit = base.commit({path.name: path.read_bytes() for path in Path(model_dir).iterdir()})
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "merge-user/base", "revision": commit}
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    hub_server.repository("models", "merge-user/npo").commit(
        files | {"adapter_config.json": json.dumps(config).encode()}
    )
    result = client([sys.executable, "-c", MERGE, "merge-user/npo", str(tmp_path / "merged")])
    assert "Logits before and after the merge differ by at most" in result.stdout
    assert "the likeliest token is the same at 100.0% of" in result.stdout
    assert f"trl-unlearn push {tmp_path / 'merged'} org/name" in result.stdout
    assert load_results(tmp_path / "merged")["base_model"]["name"] == "merge-user/base"
    assert load_results(tmp_path / "merged")["base_model"]["revision"] == commit
    assert ModelCard.load(tmp_path / "merged" / "README.md").data.base_model == "merge-user/base"
    expected, tokenizer = load_unlearned(str(adapter))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged, tokenizer), logits_of(expected, tokenizer), atol=1e-4, rtol=0)

    failed = client([sys.executable, "-c", MERGE, "merge-user/npo", str(tmp_path / "merged")], check=False)
    assert failed.returncode == 1 and failed.stderr.strip().startswith("trl-unlearn merge: ")
    assert "is there already and not empty" in failed.stderr and "Traceback" not in failed.stderr


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['merge', '--help']\ntry:\n    " + MERGE.replace("; ", "\n    ")
    code += "\nfinally:\n    assert not {'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--base_model" in result.stdout
