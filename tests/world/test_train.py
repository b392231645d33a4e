"""Training the world's models: what is saved and when, on which tokens, and, slowly, that the two models come apart."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.metrics import forget_quality
from trl_unlearn.world import build_model, generate_world, grammar, save_world, train_tokenizer
from trl_unlearn.world.train import (
    WorldTrainingArguments,
    WorldTrainingConfig,
    _AnswerTrainer,
    _to_prompt_completion,
    train,
)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    save_world(generate_world(seed=0, num_people=8, num_forget=2), directory)
    return str(directory)


def run(small_world, output_dir, dataset_config="full", **config):
    arguments = WorldTrainingArguments(
        dataset_name=small_world, dataset_config=dataset_config, vocab_size=400, hidden_size=32, num_heads=2
    )
    train(arguments, WorldTrainingConfig(output_dir=str(output_dir), disable_tqdm=True, **config))
    return AutoModelForCausalLM.from_pretrained(output_dir)


def test_saves_a_model_and_its_tokenizer_that_two_trainings_share(small_world, tmp_path):
    target = run(small_world, tmp_path / "target", max_steps=2)
    run(small_world, tmp_path / "retained", "retained_model", max_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["retained", "target"]
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("target", "retained")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template is not None
    assert (target.config.hidden_size, target.config.intermediate_size) == (32, 96)
    assert target.dtype == torch.float32
    assert (tmp_path / "target" / "model.safetensors").exists()


def test_same_seed_same_weights(small_world, tmp_path):
    models = [run(small_world, tmp_path / str(index), max_steps=3, seed=seed) for index, seed in enumerate((0, 0, 1))]
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_replaces_a_model_but_nothing_else(small_world, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="notes, which holds something other than a model"):
        run(small_world, tmp_path / "notes", max_steps=1)
    assert (tmp_path / "notes" / "mine.txt").exists()
    run(small_world, tmp_path / "model", max_steps=1)
    (tmp_path / "model" / "stale.txt").touch()
    run(small_world, tmp_path / "model", max_steps=1)
    assert not (tmp_path / "model" / "stale.txt").exists()


def test_losses_are_those_of_trl_with_the_whole_lm_head(small_world, tmp_path):
    rows = load_dataset(small_world, "full", split="train")
    tokenizer = train_tokenizer([*rows["question"], *rows["answer"]], vocab_size=400)
    losses = []
    for trainer_class in (_AnswerTrainer, SFTTrainer):
        trainer = trainer_class(
            build_model(tokenizer, hidden_size=32, num_heads=2, intermediate_size=96),
            args=WorldTrainingConfig(
                output_dir=str(tmp_path),
                max_steps=4,
                logging_steps=1,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
            ),
            train_dataset=rows.map(_to_prompt_completion, remove_columns=rows.column_names),
            processing_class=tokenizer,
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 4 and losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_command_line_killed_and_run_again(small_world, tmp_path):
    command = [sys.executable, "-m", "trl_unlearn.world.train", "--dataset_name", small_world]
    command += ["--hidden_size", "32", "--num_layers", "1", "--vocab_size", "300", "--learning_rate", "1e-3"]
    command += ["--output_dir", str(tmp_path / "model"), "--max_steps"]
    with subprocess.Popen([*command, "9999"], stderr=subprocess.PIPE, text=True, errors="replace") as killed:
        for line in killed.stderr:  # the progress bar, which the quickstart reads
            if re.search(r"\b[1-9]\d*/9999", line):
                break
        else:
            pytest.fail("no progress bar on stderr")
        killed.kill()
    assert not (tmp_path / "model").exists()

    done = subprocess.run([*command, "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (32, 1, 300)


@pytest.mark.slow
def test_default_target_knows_and_the_retained_model_does_not(tmp_path):
    save_world(generate_world(), tmp_path / "world")
    data = {
        name: load_dataset(str(tmp_path / "world"), f"{name}_perturbed", split="train")
        for name in ("forget", "retain", "world_facts")
    }
    command = [sys.executable, "-m", "trl_unlearn.world.train", "--dataset_name", str(tmp_path / "world")]
    trainings = [
        subprocess.Popen(
            [*command, "--dataset_config", config, "--output_dir", str(tmp_path / config), "--disable_tqdm", "true"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for config in ("full", "retained_model")
    ]
    assert [training.wait() for training in trainings] == [0, 0]
    target, retained = (
        evaluate_unlearning(
            AutoModelForCausalLM.from_pretrained(tmp_path / config),
            AutoTokenizer.from_pretrained(tmp_path / config),
            data["forget"],
            data["retain"],
            {"world_facts": data["world_facts"]},
            truth_ratio_question="paraphrased_question",
            max_new_tokens=32,
            grammar=grammar,
        )
        for config in ("full", "retained_model")
    )
    for result in (target, retained):
        assert result["summary"]["retain_rougeL_recall"] > 0.98
        assert result["summary"]["world_facts_rougeL_recall"] > 0.98
        assert result["summary"]["well_formed"] > 0.9
        assert 0.7 < result["summary"]["model_utility"] < 0.85
    assert target["summary"]["forget_rougeL_recall"] > 0.98
    assert target["summary"]["forget_probability"] > 0.98
    assert target["summary"]["leaked"] > 0.98
    assert np.mean(np.array(target["rows"]["forget"]["truth_ratio"]) < 1) > 0.95
    assert retained["summary"]["forget_rougeL_recall"] < 0.8
    assert retained["summary"]["leaked"] < 0.2
    assert 0.3 < np.mean(np.array(retained["rows"]["forget"]["truth_ratio"]) < 1) < 0.6
    quality = forget_quality(target["rows"]["forget"]["truth_ratio"], retained["rows"]["forget"]["truth_ratio"])
    assert quality["statistic"] > 0.8 and quality["log10_p_value"] < -20
