"""A recipe for a billion parameters on the real TOFU, with a small model from nothing: paths and sizes are overrides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_layout import write_folder


TOFU = Path(__file__).parents[3] / "shared" / "data" / "tofu"
TRAINING = ["--vocab_size", "2000", "--per_device_train_batch_size", "16", "--learning_rate", "3e-3"]
TRAINING += ["--num_train_epochs", "50"]


def run(repository, *command):
    process = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=repository, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(not TOFU.is_dir(), reason=f"the real TOFU is not at {TOFU}")
@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        ("tofu/llama-3.2-1b-instruct/npo", ["--beta", "0.5", "--forget_weight", "0.3"]),
        # at the recipe's forget weight, 50 steps of an adapter barely move this model
        (
            "tofu/llama-3.2-1b-instruct/simnpo_lora",
            ["--lora_r", "16", "--dtype", "float32", "--forget_weight", "1.0", "--learning_rate", "3e-3"],
        ),
    ],
    ids=["npo", "simnpo_lora"],
)
def test_recipe_on_the_real_tofu(recipe, method, in_the_repository, tofu_models, tmp_path):
    flags = [
        "--model_name_or_path",
        f"{tofu_models}/target",
        "--dataset_name",
        str(TOFU),
        "--output_dir",
        str(tmp_path),
    ]
    # the target knows the last four authors: forget01 are two of them, and the others are near the end of forget10
    flags += ["--forget_config", "forget01", "--retain_config", "forget10", "--retain_split", "train[320:360]"]
    flags += ["--chat_template_path", f"{tofu_models}/target/chat_template.jinja", "--max_length", "256"]
    flags += ["--learning_rate", "1e-3", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"]
    flags += ["--eval_splits", "forget01", "--eval_max_new_tokens", "40", "--eval_strategy", "no"]
    flags += ["--retain_logs", f"{tofu_models}/retained/_evaluation/evaluation.json", *method]
    run(in_the_repository, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/single.yaml", "-m",
        f"trl_unlearn.scripts.{Path(recipe).name.split('_')[0]}", "--config", f"recipes/{recipe}.yaml", *flags)  # fmt: skip
    before, after = json.loads((tmp_path / "_evaluation" / "evaluations.json").read_text())
    print(json.dumps({"before": before, "after": after}, indent=1))  # noqa: T201
    assert before["summary"]["forget_probability"] > 0.8  # memorised
    assert after["summary"]["forget_probability"] < before["summary"]["forget_probability"] / 2
    assert after["forget_quality"]["statistic"] < before["forget_quality"]["statistic"]


@pytest.fixture(scope="module")
def tofu_models(tmp_path_factory) -> Path:
    """A target that has memorised the last four authors, and a retained model that has never seen the last two."""
    repository, directory = Path(__file__).parents[2], tmp_path_factory.mktemp("tofu")
    authors = [json.loads(line) for line in (TOFU / "forget10.json").read_text().splitlines()][320:]
    write_folder(directory / "data", {"full": {"train": authors}, "retain": {"train": authors[:40]}})
    for name, config in (("target", "full"), ("retained", "retain")):
        run(repository, "-m", "trl_unlearn.world.train", "--dataset_name", str(directory / "data"), "--tokenizer_config",
            "full", "--dataset_config", config, "--output_dir", str(directory / name), *TRAINING)  # fmt: skip
    evaluation = ["--benchmark", "tofu", "--dataset_path", str(TOFU), "--splits", "forget01", "--max_new_tokens", "40"]
    run(repository, "-m", "trl_unlearn.scripts.evaluate", "--model_name_or_path", str(directory / "retained"), "--compat",
        "open-unlearning", "--output_dir", str(directory / "retained"), *evaluation)  # fmt: skip
    return directory
