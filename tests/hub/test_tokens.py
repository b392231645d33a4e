"""Tokens: in no pickle, text, log or tracker, and still there for the process that uses them."""

import copy
import json
import pickle

import pytest
import torch
from datasets import Dataset
from transformers.utils import logging

from trl_unlearn import AltPOConfig, NPOConfig, NPOTrainer, SimNPOConfig, UnlearningConfig


SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(params=[UnlearningConfig, NPOConfig, SimNPOConfig, AltPOConfig])
def config(request, tmp_path):
    arguments = {"hub_token": SECRET, "model_init_kwargs": {"token": SECRET, "revision": "main"}}
    return request.param(str(tmp_path / "run"), report_to="none", **arguments)


def test_no_text_and_no_pickle_of_a_config_has_it(config, tmp_path):
    torch.save(config, tmp_path / "training_args.bin")
    texts = [repr(config), str(config), f"{config}", config.to_json_string(), str(config.to_dict())]
    texts += [str(config.to_sanitized_dict()), str(vars(pickle.loads(pickle.dumps(config))))]
    for text in texts:
        assert SECRET not in text
    assert SECRET.encode() not in (tmp_path / "training_args.bin").read_bytes()
    assert f"beta={config.beta}" in repr(config) and repr(config).startswith(type(config).__name__ + "(")
    loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert loaded.hub_token is None and loaded.beta == config.beta
    assert loaded.model_init_kwargs == {"token": None, "revision": "main"}


def test_the_config_itself_and_its_copies_keep_it(config):
    for same in (config, copy.copy(config), copy.deepcopy(config)):
        assert same.hub_token == SECRET
        assert same.model_init_kwargs["token"] == SECRET
    other = copy.deepcopy(config)
    other.model_init_kwargs["token"] = "another"
    assert config.model_init_kwargs["token"] == SECRET


def test_a_config_of_ones_own_does_not_print_it_either(tmp_path):
    from dataclasses import dataclass

    @dataclass
    class MyConfig(NPOConfig):
        mine: int = 3

    text = repr(MyConfig(str(tmp_path), hub_token=SECRET, mine=4))
    assert SECRET not in text and "mine=4" in text


def test_a_training_leaves_it_nowhere(
    model_dir, tokenizer, forget_rows, retain_rows, tmp_path, capfd, caplog, request
):
    """Two checkpoints, with all logs at their most talkative."""
    level = logging.get_verbosity()
    request.addfinalizer(lambda: logging.set_verbosity(level))
    logging.set_verbosity_debug()
    logging.add_handler(caplog.handler)  # its own one writes to where stderr was when it was imported
    request.addfinalizer(lambda: logging.remove_handler(caplog.handler))
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "report_to": "none"}
    trainer = NPOTrainer(
        model_dir,
        args=NPOConfig(str(tmp_path / "run"), hub_token=SECRET, **options),
        train_dataset=forget_rows,
        retain_dataset=retain_rows,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert (tmp_path / "run" / "checkpoint-2" / "training_args.bin").exists()
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    told = "".join([*capfd.readouterr(), caplog.text])
    assert "Saving model checkpoint" in told and SECRET not in told
    assert trainer.args.hub_token == SECRET


def test_what_is_not_published_of_a_run_in_memory(model_dir, tokenizer, forget_rows, retain_rows, tmp_path):
    """Results and recipe of rows that are not on the Hub: their number, and no name, path or text."""
    forget = Dataset.from_list(forget_rows.to_list())
    trainer = NPOTrainer(
        model_dir,
        args=NPOConfig(str(tmp_path / "run"), report_to="none", max_steps=1, hub_base_model_id="someone/base"),
        train_dataset=forget,
        retain_dataset=retain_rows,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    results = json.loads((tmp_path / "run" / "unlearn_results.json").read_text())
    assert results["data"]["forget"] == {
        "dataset": None, "config": None, "split": None, "revision": None, "n": len(forget), "private": True,
    }  # fmt: skip
    assert results["base_model"]["name"] == "someone/base"
    recipe = (tmp_path / "run" / "unlearn_recipe.yaml").read_text()
    assert "# dataset_name: the forget set, which is not on the Hub" in recipe
    assert "model_name_or_path: someone/base" in recipe
    for name in ("unlearn_results.json", "unlearn_recipe.yaml", "README.md"):
        text = (tmp_path / "run" / name).read_text()
        assert str(tmp_path) not in text and model_dir not in text
        assert not any(row["answer"] in text for row in forget)


def test_strategies_that_publish_pickles_are_refused(tmp_path):
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(ValueError, match=f"`hub_strategy='{strategy}'` publishes the states of optimizers"):
            NPOConfig(str(tmp_path), hub_strategy=strategy)
    assert NPOConfig(str(tmp_path)).hub_strategy == "end"
    assert NPOConfig(str(tmp_path), hub_strategy="every_save").hub_strategy == "every_save"
