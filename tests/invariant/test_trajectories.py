"""
Options that must not change what is trained do not: each class of them has one trajectory, which is recorded.

    RECORD_TRAJECTORIES=1 python -m pytest tests/invariant/test_trajectories.py

records them anew, in `trajectories.json`. Within a run of the tests, the options of a class agree up to rounding; with what
was recorded, up to what another machine or version changes.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from command_line import LORA, METRICS, OPTIONS, assert_same_logs, assert_same_series, train, trajectory, weights_of
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from trl_unlearn import NPOConfig, NPOTrainer
from trl_unlearn.data.loading import load_rows


RECORDED = Path(__file__).with_name("trajectories.json")
KL = {"retain_loss_type": "kl"}
RESIDENT = {"precompute_ref_log_probs": False}
CACHED = {"cache_ref_hidden_states": True}
ACCUMULATED = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
# Class: the method, the options that make it, and the options that must not change it
CLASSES = {
    "npo": (
        "NPO",
        {},
        {
            "accumulated": ACCUMULATED,
            "resident": RESIDENT,
            "checkpointing": {"gradient_checkpointing": True},
            "padding_free": {"padding_free": True},
            "encoding": {"dataset_num_proc": 2, "precompute_ref_batch_size": 3},
            "workers": {"dataloader_num_workers": 1},
        },
    ),
    "npo-kl": (
        "NPO",
        KL,
        {
            "accumulated": ACCUMULATED,
            "resident": RESIDENT,
            "cached": CACHED,
            "padding_free": {"padding_free": True} | RESIDENT,
            "cached_padding_free": {"padding_free": True} | CACHED,
        },
    ),
    "npo-kl-lora": (
        "NPO",
        KL | LORA,
        {
            "accumulated": ACCUMULATED,
            "adapter_off": RESIDENT,
            "cached": CACHED,
            "checkpointing": {"gradient_checkpointing": True},
        },
    ),
    "simnpo": (
        "SimNPO",
        {"beta": 0.1},
        {"accumulated": ACCUMULATED, "checkpointing": {"gradient_checkpointing": True}},
    ),
    "altpo": ("AltPO", {"num_train_epochs": 1}, {"accumulated": ACCUMULATED, "resident": RESIDENT}),
}
SLOW = [("npo", "workers"), ("npo", "encoding"), ("npo-kl", "padding_free"), ("simnpo", "checkpointing")]


@pytest.fixture(scope="session")
def command(fixed_model, fixed_rows):
    return {"model_name_or_path": fixed_model, "dataset_name": fixed_rows}


@pytest.fixture(scope="session")
def of_class(command, tmp_path_factory):
    """Trains a class with its own options, once, and returns its logs and folder."""
    done = {}

    def train_class(name):
        if name not in done:
            method, options, _ = CLASSES[name]
            directory = tmp_path_factory.mktemp(name)
            done[name] = train(method, directory, **command, **options), directory
        return done[name]

    return train_class


@pytest.mark.parametrize("name", CLASSES)
def test_recorded(name, of_class):
    logs, _ = of_class(name)
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get("RECORD_TRAJECTORIES"):
        recorded[name] = {metric: trajectory(logs, metric) for metric in METRICS if trajectory(logs, metric)}
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    assert recorded[name].keys() >= {"loss", "grad_norm", "forget_loss"}
    for metric, values in recorded[name].items():
        assert_same_series(trajectory(logs, metric), values, largest=1e-3, drift=2e-4, name=metric)
    losses = recorded[name]["forget_loss"]
    assert losses[0] != pytest.approx(losses[-1], rel=1e-2)  # something has been trained


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        pytest.param(name, variant, marks=[pytest.mark.slow] * ((name, variant) in SLOW))
        for name, (_, _, variants) in CLASSES.items()
        for variant in variants
    ],
)
def test_same_trajectory(name, variant, of_class, command, tmp_path):
    method, options, variants = CLASSES[name]
    expected, directory = of_class(name)
    logs = train(method, tmp_path, **command, **options | variants[variant])
    assert_same_logs(logs, expected, [metric for metric in METRICS if trajectory(expected, metric)])
    for key, tensor in weights_of(directory).items():
        assert_close(weights_of(tmp_path)[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_the_papers_normalization_does_change_with_the_split(of_class, command, tmp_path):
    """So that the test above is known to be able to fail, by the means that are least likely to be seen."""
    expected, _ = of_class("npo")
    logs = train("NPO", tmp_path, **command, **ACCUMULATED, retain_normalization="micro_batch")
    with pytest.raises(AssertionError):
        assert_same_logs(logs, expected)
    assert trajectory(logs, "forget_loss")[0] == pytest.approx(trajectory(expected, "forget_loss")[0], rel=1e-5)


def test_evaluation_does_not_depend_on_its_batches(command, tmp_path):
    logs = [
        train(
            "NPO",
            tmp_path / str(size),
            **command,
            eval_strategy="epoch",
            per_device_eval_batch_size=size,
            num_train_epochs=1,
        )
        for size in (3, 16)
    ]
    assert_same_logs(*logs, ["loss", "eval_forget_loss", "eval_forget_logps/forget"])


def test_a_frozen_copy_of_an_adapter_is_the_reference_that_switching_it_off_is(of_class, command, tmp_path):
    """A given adapter, which does nothing yet, has a frozen copy as its reference."""
    expected, _ = of_class("npo-kl-lora")
    options = OPTIONS | KL | RESIDENT | {"output_dir": str(tmp_path)}
    del options["dtype"]
    forget, retain = (
        load_rows(str(command["dataset_name"]), options.pop(f"{name}_config"), "train")
        for name in ("forget", "retain")
    )
    model = AutoModelForCausalLM.from_pretrained(command["model_name_or_path"])
    adapter = LoraConfig(
        r=LORA["lora_r"],
        lora_alpha=LORA["lora_alpha"],
        target_modules=LORA["lora_target_modules"],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(42)  # as the command does before it makes the adapter
    trainer = NPOTrainer(
        get_peft_model(model, adapter), args=NPOConfig(**options), train_dataset=forget, retain_dataset=retain
    )
    assert "ref" in trainer.model.peft_config
    trainer.train()
    assert_same_logs(trainer.state.log_history, expected)


def test_resumed_in_the_middle_of_an_epoch(command, tmp_path):
    options = {"per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 4}
    expected = train("NPO", tmp_path / "whole", **command, **options, **LORA)
    checkpoint = tmp_path / "whole" / "checkpoint-8"  # of 6 steps an epoch
    logs = train("NPO", tmp_path / "resumed", **command, **options, **LORA, resume_from_checkpoint=checkpoint)
    for metric in METRICS:
        assert trajectory(logs, metric) == trajectory(expected, metric), metric
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "resumed")
    assert whole.keys() == resumed.keys() and all(whole[key].equal(resumed[key]) for key in whole)
