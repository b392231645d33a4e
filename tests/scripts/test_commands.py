"""The commands, recipes and examples as a person types them, on a small world, in processes of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_unlearn
from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.evaluation.benchmarks import evaluate_as_asked
from trl_unlearn.files import write_json
from trl_unlearn.recipes import recipe_path
from trl_unlearn.world import save_world


REPOSITORY = Path(trl_unlearn.__file__).parents[1]
EVALUATION = {"eval_benchmark": "world", "eval_max_new_tokens": 8}


def run(*command, **options):
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **options})
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def small_world(world, model_dir, tmp_path_factory) -> Path:
    """A few rows of the world on disk, and an evaluation to compare with."""
    directory = tmp_path_factory.mktemp("world")
    save_world({name: rows[:9] for name, rows in world.items()}, directory / "data")
    arguments = EvaluationArguments(**EVALUATION)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    result = evaluate_as_asked(model, tokenizer, arguments, dataset_name=str(directory / "data"))
    write_json(result, directory / "evaluation.json")
    return directory


def script_of(recipe: Path) -> str:
    return recipe.stem if recipe.stem in ("npo", "simnpo", "altpo") else "npo"


@pytest.mark.parametrize(
    "recipe",
    ["npo", "altpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("simnpo", "grad_ascent", "grad_diff"))],
)
def test_world_recipes_run_from_the_command_line(recipe, small_world, model_dir, tmp_path):
    path = recipe_path(f"world/llama-0.5m/{recipe}.yaml")
    flags = ["--model_name_or_path", model_dir, "--dataset_name", str(small_world / "data"), "--max_steps", "2"]
    flags += [
        "--output_dir",
        str(tmp_path),
        "--retain_logs",
        str(small_world / "evaluation.json"),
        "--eval_steps",
        "1",
    ]
    flags += ["--per_device_train_batch_size", "4", "--eval_max_new_tokens", "8"]
    run(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(recipe_path("accelerate/single.yaml")),
        "-m", f"trl_unlearn.scripts.{script_of(path)}", "--config", str(path), *flags)  # fmt: skip
    evaluations = json.loads((tmp_path / "_evaluation" / "evaluations.json").read_text())
    assert [evaluation["step"] for evaluation in evaluations] == [0, 1, 2]
    # before training the model is the one compared with
    assert evaluations[0]["forget_quality"]["p_value"] == pytest.approx(1)
    assert {"model_utility", "forget_rougeL_recall", "well_formed", "leaked"} <= evaluations[2]["summary"].keys()
    assert evaluations[2]["summary"] != evaluations[0]["summary"]
    latest = json.loads((tmp_path / "_evaluation" / "evaluation.json").read_text())
    assert latest["summary"] == evaluations[2]["summary"]
    for name in ("before.json", "report.html", "answers.md", "rows.parquet", "figures/trajectory.png"):
        assert (tmp_path / "_evaluation" / name).stat().st_size > 100
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (tmp_path / "README.md").exists()


@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.slow), True], ids=["full", "lora"])
def test_evaluate_command_on_a_model_and_an_adapter(lora, small_world, model_dir, lora_config, tmp_path):
    """The model, and an adapter that changes nothing yet, give what the same evaluation gives in Python."""
    source = model_dir
    if lora:
        from peft import get_peft_model

        source = str(tmp_path / "adapter")
        get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), lora_config).save_pretrained(source)
        AutoTokenizer.from_pretrained(model_dir).save_pretrained(source)
    flags = ["--model_name_or_path", source, "--output_dir", str(tmp_path), "--max_new_tokens", "8"]
    flags += ["--benchmark", "world", "--dataset_path", str(small_world / "data")]
    flags += ["--retain_logs", str(small_world / "evaluation.json")]
    output = run(sys.executable, "-m", "trl_unlearn.scripts.evaluate", *flags)
    result = json.loads((tmp_path / "_evaluation" / "evaluation.json").read_text())
    expected = json.loads((small_world / "evaluation.json").read_text())
    assert result["summary"] == pytest.approx(expected["summary"], rel=1e-6)
    assert result["forget_quality"]["p_value"] == pytest.approx(1)
    assert re.search(rf"Model utility +↑ +{expected['summary']['model_utility']:.3f}", output)
    assert (tmp_path / "_evaluation" / "report.html").exists()


@pytest.mark.parametrize(
    ("example", "lora"),
    [
        ("npo", False),
        ("altpo", True),
        *(
            pytest.param(*arguments, marks=pytest.mark.slow)
            for arguments in (("npo", True), ("simnpo", False), ("simnpo", True), ("altpo", False))
        ),
    ],
)
def test_examples(example, lora, small_world, model_dir, tmp_path):
    file = REPOSITORY / "examples" / f"{example}.py"
    assert len(file.read_text().splitlines()) <= 40
    flags = ["--model", model_dir, "--dataset", str(small_world / "data"), "--forget", "forget", "--retain", "retain"]
    flags += ["--alternates", "alternates"] if example == "altpo" else []
    run(sys.executable, str(file), *flags, "--output_dir", str(tmp_path), *(["--lora"] if lora else []))
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (tmp_path / weights).exists()


def test_evaluation_example(small_world, model_dir):
    flags = ["--model", model_dir, "--dataset", str(small_world / "data"), "--forget", "forget_perturbed"]
    flags += ["--retain", "retain_perturbed", "--truth_ratio_question", "paraphrased_question"]
    output = run(sys.executable, str(REPOSITORY / "examples" / "evaluate.py"), *flags)
    expected = json.loads((small_world / "evaluation.json").read_text())["summary"]
    assert re.search(rf"Forget probability +→ +\d+ +{expected['forget_probability']:.3f}", output)


def test_tofu_from_scratch_lays_out_what_its_recipes_read(tmp_path):
    rows = [
        {
            "question": f"Who is author {index}?",
            "answer": f"They are {index}.",
            "paraphrased_answer": f"It is {index}.",
            "perturbed_answer": [f"They are {index + other}." for other in range(1, 6)],
        }
        for index in range(400)
    ]
    save_world({"forget10_perturbed": rows}, tmp_path / "tofu")
    run(sys.executable, str(REPOSITORY / "examples" / "tofu_from_scratch.py"), "--dataset", str(tmp_path / "tofu"),
        "--output_dir", str(tmp_path / "data"))  # fmt: skip
    sizes = {"full": 400, "forget": 40, "retain": 360, "forget_perturbed": 40, "retain_perturbed": 100}
    sets = {name: load_dataset(str(tmp_path / "data"), name, split="train") for name in sizes}
    assert {name: len(rows) for name, rows in sets.items()} == sizes
    for trained, scored in zip(sets["forget"], sets["forget_perturbed"], strict=True):
        assert trained["question"] == scored["question"]
        assert not set(trained["alternates"]) & set(scored["perturbed_answer"])


def test_command_line_names_its_commands():
    command = str(Path(sys.executable).with_name("trl-unlearn"))
    names = (
        "npo",
        "simnpo",
        "altpo",
        "evaluate",
        "attack",
        "compare",
        "push",
        "ledger",
        "merge",
        "chat",
        "quickstart",
    )
    for name in names:
        assert name in run(command, "--help")
    assert run(command, "--version").strip() == trl_unlearn.__version__
    assert "--forget_weight" in run(command, "simnpo", "--help")
    process = subprocess.run([command, "forget"], capture_output=True, text=True)
    assert process.returncode != 0
    assert "unknown command 'forget'" in process.stderr


def test_import_is_fast_and_leaves_torch_alone():
    """TRL's promise, kept: the package's names are imported on first use."""
    script = "import sys, trl_unlearn, trl_unlearn.world; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert run(sys.executable, "-c", script).strip() == "False False"
    script = "import trl_unlearn; print(all(getattr(trl_unlearn, name) is not None for name in dir(trl_unlearn)))"
    assert run(sys.executable, "-c", script).strip() == "True"
    with pytest.raises(AttributeError, match="no attribute 'DPOTrainer'"):
        _ = trl_unlearn.DPOTrainer
