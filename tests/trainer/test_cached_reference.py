"""The hidden states of the reference that the KL retain loss reads from disk. Trajectories: `tests/invariant`."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from factory import make_trainer
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from trl_unlearn.trainer.reference import REFERENCE_DIR


OPTIONS = {"retain_loss_type": "kl", "max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2}


@pytest.fixture
def other_model(model_dir):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir))


@pytest.fixture
def make(model_dir, tokenizer, forget_rows, retain_rows, tmp_path):
    def make(model=None, method="npo", cache=True, directory=tmp_path, options=None, **arguments):
        return make_trainer(
            method,
            model or AutoModelForCausalLM.from_pretrained(model_dir),
            directory,
            {"cache_ref_hidden_states": cache, **OPTIONS, **(options or {})},
            **{"train_dataset": forget_rows.select(range(5)), "retain_dataset": retain_rows, **arguments},
            processing_class=tokenizer,
        )

    return make


def stored_file(directory):
    (file,) = (directory / REFERENCE_DIR).iterdir()
    return file


def losses_of(trainer):
    return [entry["retain_loss"] for entry in trainer.state.log_history if "retain_loss" in entry]


def test_no_reference_is_in_memory_or_run(make):
    trainer = make()
    assert trainer.ref_model is None and trainer._reference() is None
    forwards = []
    trainer.model.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    trainer.train()
    assert len(forwards) == trainer.state.global_step == 6
    assert losses_of(trainer)[0] == pytest.approx(0, abs=1e-6) and losses_of(trainer)[-1] > 1e-6


def test_only_the_rows_that_training_comes_to_are_scored(make, retain_rows, tmp_path):
    trainer = make(options={"num_train_epochs": 1})
    assert len(retain_rows) > 5
    rows = trainer.train_dataset
    visited = sorted(int(retain) for _, retain in trainer._get_train_sampler())
    assert np.flatnonzero(rows.ref_hidden_states.places >= 0).tolist() == visited and len(visited) == 5
    assert len(Dataset.from_file(str(stored_file(tmp_path)))) == 5
    for index in visited:
        labels = [label for label in rows.retain[index]["labels"][1:] if label != -100]
        assert rows.ref_hidden_states[index].shape == (len(labels), trainer.model.config.hidden_size)
    trainer.train()
    trainer.args.num_train_epochs = 3
    with pytest.raises(ValueError, match=r"Of retain row \d+ no hidden states.*the run was shorter"):
        trainer.train()


@pytest.mark.parametrize("options", [{"max_steps": 4}, {"pairing": "fixed"}, {"gradient_accumulation_steps": 3}])
def test_every_run_finds_its_rows(make, options):
    trainer = make(options=options)
    trainer.train()
    assert all(np.isfinite(losses_of(trainer)))


@pytest.mark.parametrize("kind", ["another_model", "trained_head", "given_adapter"])
def test_the_head_is_the_references(kind, make, model_dir, other_model, tmp_path):
    """With and without the cache the same losses, where the model's own head is not that of the reference, or is trained."""
    losses = []
    for cache in (False, True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        adapter = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
        arguments = {}
        if kind == "another_model":
            arguments["ref_model"] = other_model
        elif kind == "trained_head":
            arguments["peft_config"] = adapter
        else:
            model = get_peft_model(model, adapter)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
        options = {"learning_rate": 1e-2, "warmup_epochs": 0.0}
        trainer = make(model, "simnpo", cache, tmp_path / str(cache), options, **arguments)
        trainer.train()
        losses.append(losses_of(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6) and losses[0][-1] > 1e-4


def test_a_resumed_run_reads_them_and_other_weights_do_not(make, other_model, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 10}
    trainer = make(options=saving)
    trainer.train()
    written = stored_file(tmp_path).stat().st_mtime_ns
    resumed = make(options=saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert stored_file(tmp_path).stat().st_mtime_ns == written
    assert losses_of(resumed) == pytest.approx(losses_of(trainer), rel=1e-5)
    make(other_model)
    assert len(list((tmp_path / REFERENCE_DIR).iterdir())) == 2


def test_nothing_is_left_of_a_pass_that_was_cut_off(make, tmp_path, monkeypatch):
    gather = Accelerator.gather_for_metrics

    def cut_off(self, *args, **kwargs):
        if kwargs.get("use_gather_object"):
            raise KeyboardInterrupt
        return gather(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "gather_for_metrics", cut_off)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert not list((tmp_path / REFERENCE_DIR).glob("*.arrow"))
    make().train()


def test_sets_to_evaluate(make, forget_rows):
    known, new = forget_rows.select(range(4, 8)), forget_rows.select(range(8, 12))
    trainer = make(eval_dataset={"retain_known": known})
    assert trainer.evaluate({"retain_new": new})["eval_retain_new_loss"] == pytest.approx(0, abs=1e-6)
    trainer.train()
    assert trainer.evaluate()["eval_retain_known_loss"] > 1e-6
    with pytest.raises(ValueError, match="The retain_new set was passed to `evaluate` after training"):
        trainer.evaluate({"retain_new": new})


def test_bf16_states_stay_bf16(make, model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    trainer = make(model)
    states = trainer.train_dataset.ref_hidden_states
    assert states[int(np.argmax(states.places >= 0))].dtype == torch.bfloat16
    trainer.train()
    assert_close(losses_of(trainer)[0], 0.0, atol=1e-3, rtol=0)
