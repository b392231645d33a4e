"""`trl-unlearn estimate` as a person types it: verdict, time, table, and what is wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trl_unlearn.estimation.timing import GPUS
from trl_unlearn.recipes import recipe_path
from trl_unlearn.scripts.estimate import EstimateScriptArguments, main, parse


def test_largest_batch_is_the_largest_that_fits(estimated):
    whole = estimated("--tokens_per_row", "64")["memory"]["total"]
    half = estimated("--tokens_per_row", "64", "--per_device_train_batch_size", "2")["memory"]["total"]
    flags = ["--tokens_per_row", "64", "--device_memory_gib"]
    verdict = estimated(*flags, str((whole + half) / 2 / 2**30))["verdict"]
    assert not verdict["fits"]
    assert (verdict["per_device_train_batch_size"], verdict["gradient_accumulation_steps"]) == (2, 4)
    verdict = estimated(*flags, "64")["verdict"]
    assert verdict["fits"]
    assert (verdict["per_device_train_batch_size"], verdict["gradient_accumulation_steps"]) == (8, 1)
    assert estimated(*flags, "0.001")["verdict"]["per_device_train_batch_size"] is None


def test_time_is_measured_on_this_machine_by_default(estimated):
    result = estimated("--tflops", "none")
    assert result["time"]["step"] > 2 * result["time"]["micro_batch"] > 0
    assert result["time"]["total"] > 30 * result["time"]["step"]
    assert any("measured here (cpu" in line for line in result["assumptions"])


@pytest.mark.parametrize("missing", ["data", "tokenizer"])
def test_rows_that_cannot_be_read_have_the_longest_length(missing, estimated, model_dir, tmp_path):
    """The configuration is all that must be there."""
    shutil.copy(Path(model_dir, "config.json"), tmp_path)
    where = ["--dataset_name", "nobody/nothing"] if missing == "data" else ["--model_name_or_path", str(tmp_path)]
    result = estimated(*where, "--max_length", "30")
    assert result["run"]["mean_tokens_per_micro_batch"] == 8 * 30
    assert "steps" not in result["run"]
    assert any("max_length" in line for line in result["assumptions"])


def test_table_is_readable(recipe, monkeypatch, capsys):
    flags = ["--tokens_per_row", "30", "--gpu", "L4", "--max_steps", "10"]
    monkeypatch.setattr(sys, "argv", ["trl-unlearn estimate", "--config", recipe, *flags])
    main()
    output = " ".join(capsys.readouterr().out.split())
    for text in ("Weights", "Activations of a micro-batch", "Total", "Time in all", "Fits:", "Assumed:", "every row"):
        assert text.lower() in output.lower()


@pytest.mark.parametrize("recipe", ["tofu/llama-3.2-1b-instruct/npo_lora.yaml", "world/llama-0.5m/altpo.yaml"])
def test_recipes_of_the_package_are_read_as_in_training(recipe):
    path = recipe_path(recipe)
    method, estimate_args, script_args, training_args, model_args = parse(
        ["--config", str(path), "--gpu", "L4", "--beta", "0.3"]
    )
    assert method == path.stem.removesuffix("_lora")
    assert (estimate_args.gpu, training_args.beta, training_args.bf16) == ("L4", 0.3, True)
    values = yaml.safe_load(path.read_text())
    for key in ("dataset_name", "forget_config", "model_name_or_path", "per_device_train_batch_size", "use_peft"):
        holder = next(each for each in (script_args, training_args, model_args) if hasattr(each, key))
        assert key not in values or getattr(holder, key) == values[key]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "no/such-model"], "config.json"),
        (["--accelerate_config", "nowhere.yaml"], "no file"),
        (["--tokens_per_rwo", "3"], "Did you mean `--tokens_per_row`"),
        (["--load_in_4bit", "true"], "use_peft"),
        (["--tokens_per_row", "1"], "at least 2"),
        (["--gpu", "abacus"], "A100-80GB"),
    ],
)
def test_what_is_wrong_is_said(flags, message, estimated, capsys):
    with pytest.raises(SystemExit) as error:
        estimated(*flags)
    assert message in f"{error.value} {capsys.readouterr().err}"


def test_wrong_key_and_unknown_method(recipe, monkeypatch, capsys, tmp_path):
    other = tmp_path / "mine.yaml"
    other.write_text(Path(recipe).read_text() + "per_device_batch_size: 4\n")
    monkeypatch.setattr(sys, "argv", ["trl-unlearn estimate", "--config", str(other)])
    with pytest.raises(SystemExit, match="--method"):
        main()
    monkeypatch.setattr(sys, "argv", ["trl-unlearn estimate", "npo", "--config", str(other)])
    with pytest.raises(SystemExit):
        main()
    assert "Did you mean `per_device_" in capsys.readouterr().err


def test_names_of_gpus_are_those_of_the_table():
    choices = EstimateScriptArguments.__annotations__["gpu"].__args__[0].__args__
    assert list(choices) == list(GPUS)


def test_help_imports_nothing_slow():
    command = [sys.executable, "-X", "importtime", "-m", "trl_unlearn.scripts.estimate", "--help"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--tokens_per_row" in process.stdout
    assert "--retain_loss_type" in process.stdout
    assert not {"torch", "datasets"} & {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
