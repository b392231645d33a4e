"""The recipe of a run: it repeats the run, names nothing private, and one from others is read as data."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from example_run import TOKEN
from trl import ModelConfig, SFTConfig, TrlParser

from trl_unlearn import AltPOConfig, NPOConfig, SimNPOConfig
from trl_unlearn.hub.recipe import _KEYS, build_recipe, check_recipe, hyperparameters
from trl_unlearn.scripts.unlearn import UnlearningScriptArguments


CONFIGS = [NPOConfig, SimNPOConfig, AltPOConfig]
REPOSITORY = Path(__file__).parents[2]
MODEL = ["--model_name_or_path", "org/base", "--model_revision", "c" * 40]
DATA = ["--dataset_name", "locuslab/TOFU", "--forget_config", "forget10", "--retain_config", "retain90"]


def parse(config_class, *flags):
    return TrlParser((UnlearningScriptArguments, config_class, ModelConfig)).parse_args_and_config(list(flags))


def repeat(text, config_class, tmp_path, *flags):
    path = tmp_path / "unlearn_recipe.yaml"
    path.write_text(text)
    return parse(config_class, "--config", str(path), *flags)


def in_a_recipe(config):
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name in _KEYS}


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--beta", "0.05", "--learning_rate", "3e-5", "--retain_loss_type", "kl", "--max_length", "64", "--seed", "7"],
        ["--eval_strategy", "steps", "--eval_steps", "5", "--save_strategy", "no", "--lr_scheduler_type", "cosine"],
        ["--use_peft", "--lora_r", "8", "--lora_target_modules", "q_proj", "v_proj", "--dtype", "bfloat16"],
        ["--use_peft", "--lora_target_modules", "all-linear", "--attn_implementation", "sdpa", "--data_seed", "1"],
        ["--eval_benchmark", "tofu", "--eval_splits", "forget10", "forget05", "--retain_logs", "org/logs:a/TOFU_EVAL.json"],
        ["--eval_chat_template_kwargs", '{"date_string": "10 Apr 2025"}', "--eval_system_prompt", "Answer: 'yes'\n# no"],
        ["--eval_forget_data", "org/mine:forget:train", "--retain_model", "org/retained"],
        ["--question_answer_template", "Q: {question}\n\n A: {answer} #", "--gradient_checkpointing", "false"],
        ["--model_init_kwargs", '{"rope_scaling": {"factor": 2.0}}', "--optim", "sgd"],
    ],
)  # fmt: skip
def test_a_recipe_gives_the_same_configs(config_class, flags, tmp_path):
    given = parse(config_class, *MODEL, *DATA, "--output_dir", str(tmp_path / "run"), *flags)
    text = build_recipe(*given)
    check_recipe(text)
    for made, config in zip(repeat(text, config_class, tmp_path), given, strict=True):
        assert in_a_recipe(made) == in_a_recipe(config)


RECIPES = [path for path in sorted(REPOSITORY.glob("recipes/*/*/*.yaml")) if path.stem != "alternates"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.parts[-3:]))
def test_the_recipes_of_this_repository_come_back(path, tmp_path):
    config_class = {"simnpo": SimNPOConfig, "altpo": AltPOConfig}.get(path.stem.split("_")[0], NPOConfig)
    local = ["--model_name_or_path", "org/base", "--dataset_name", "org/data"]
    given = parse(config_class, "--config", str(path), *local)
    given[0].retain_logs = given[0].alternates_dataset_name = given[1].chat_template_path = None
    made = repeat(build_recipe(*given), config_class, tmp_path)
    for again, config in zip(made, given, strict=True):
        assert in_a_recipe(again) == in_a_recipe(config)


def test_a_recipe_has_what_differs_and_the_options_of_the_method():
    recipe = yaml.safe_load(build_recipe(*parse(SimNPOConfig, *MODEL, *DATA, "--num_train_epochs", "3")))
    assert recipe["model_revision"] == "c" * 40
    assert {key: recipe[key] for key in ("beta", "gamma", "forget_weight", "num_train_epochs", "seed", "bf16")} == {
        "beta": 2.5, "gamma": 0.0, "forget_weight": 0.1375, "num_train_epochs": 3.0, "seed": 42, "bf16": False
    }  # fmt: skip
    assert not {"adam_beta1", "lora_r", "max_steps", "forget_split", "eval_benchmark"} & recipe.keys()


def test_what_the_training_command_adds_to_the_model_is_not_repeated(tmp_path):
    script_args, training_args, model_args = parse(NPOConfig, *MODEL, *DATA, "--dtype", "bfloat16")
    training_args.model_init_kwargs = {"revision": "c" * 40, "attn_implementation": None, "dtype": "bfloat16"}
    recipe = yaml.safe_load(build_recipe(script_args, training_args, model_args))
    assert "model_init_kwargs" not in recipe and recipe["dtype"] == "bfloat16"


def test_nothing_private_is_in_a_recipe(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    given = parse(
        NPOConfig,
        *[
            "--model_name_or_path",
            str(tmp_path / "model"),
            "--dataset_name",
            str(tmp_path),
            "--retain_dataset_name",
            "./x",
        ],
        *[
            "--output_dir",
            str(tmp_path / "out"),
            "--hub_token",
            TOKEN,
            "--hub_model_id",
            "me/private",
            "--run_name",
            "jane",
        ],
        *["--eval_forget_data", str(tmp_path / "rows.jsonl"), "--retain_logs", str(tmp_path / "e.json")],
        *["--eval_system_prompt", f"The password is {TOKEN}", "--chat_template_path", str(tmp_path / "chat.jinja")],
    )
    text = build_recipe(*given)
    for private in (str(tmp_path), "rows.jsonl", "./x", "hf_", "me/private", "jane"):
        assert private not in text
    for key in ("model_name_or_path", "dataset_name", "retain_dataset_name", "eval_forget_data", "retain_logs"):
        assert f"# {key}: the " in text
    assert "Give an id or a path as --dataset_name." in text
    recipe = check_recipe(text)
    assert not {"model_name_or_path", "dataset_name", "eval_system_prompt", "chat_template_path"} & recipe.keys()
    # and it runs with what the comments ask for
    made = repeat(text, NPOConfig, tmp_path, "--dataset_name", "org/mine", "--model_name_or_path", "org/base")
    assert made[0].dataset_name == "org/mine"


def test_a_folder_that_looks_like_an_id_is_local(tmp_path, monkeypatch):
    (tmp_path / "my" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    given = parse(NPOConfig, *MODEL, "--dataset_name", "my/data")
    assert "my/data" not in build_recipe(*given)


def test_remote_code_is_left_out_of_a_recipe():
    script_args, training_args, model_args = parse(NPOConfig, *MODEL, *DATA)
    training_args.model_init_kwargs = {"trust_remote_code": True, "attn_implementation": "org/kernel"}
    text = build_recipe(script_args, training_args, model_args)
    assert "trust_remote_code" not in text and "org/kernel" not in text
    check_recipe(text)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_option_of_a_method_can_stand_in_a_recipe(config_class):
    own = {field.name for field in fields(config_class)} - {field.name for field in fields(SFTConfig)}
    about_the_hub = {name for name in own if name.startswith(("hub_", "eval_results_"))}
    assert own - about_the_hub <= _KEYS


def test_hyperparameters_of_a_card(tmp_path):
    _, config, _ = parse(
        NPOConfig,
        *DATA,
        "--beta",
        "0.3",
        "--seed",
        "3",
        "--optim",
        "sgd",
        "--output_dir",
        str(tmp_path),
        "--logging_steps",
        "3",
    )
    there = hyperparameters(config)
    assert there["beta"] == 0.3 and there["optim"] == "sgd" and there["learning_rate"] == 1e-5
    assert not {"seed", "output_dir", "logging_steps", "adam_beta1", "precompute_ref_batch_size"} & there.keys()


def test_a_recipe_from_others_is_read():
    assert check_recipe("beta: 0.5\nmodel_name_or_path: gpt2\ndataset_name: locuslab/TOFU\nretain_logs: auto\n") == {
        "beta": 0.5, "model_name_or_path": "gpt2", "dataset_name": "locuslab/TOFU", "retain_logs": "auto"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env:\n  HF_ENDPOINT: https://evil.example", r"sets environment variables \(`env`\)"),
        ("trust_remote_code: true", "lets code of others run"),
        ("model_init_kwargs: {trust_remote_code: true}", "lets code of others run"),
        ("eval_chat_template_kwargs: {a: [{auto_map: x}]}", "lets code of others run"),
        ("attn_implementation: evil/kernel", "may only choose attention among eager"),
        ("model_init_kwargs: {attn_implementation: evil/kernel}", "may only choose attention"),
        ("model_init_kwargs: {device_map: auto}", "may only choose attention"),
        ("model_init_kwargs: [a]", "may only choose attention"),
        ("output_dir: runs", "sets `output_dir`, which a recipe from others may not"),
        ("push_to_hub: true\nhub_model_id: evil/x", "sets `push_to_hub`, `hub_model_id`"),
        ("report_to: wandb", "sets `report_to`"),
        ("deepspeed: ds.json", "sets `deepspeed`"),
        ("1: a", "sets `1`"),
        ("model_name_or_path: /etc/passwd", "expected an id on the Hub, as `org/name`"),
        ("model_name_or_path: ../model", "expected an id on the Hub"),
        ("model_name_or_path: [org/a, /etc/passwd]", "expected"),
        ("dataset_name: data.json", "expected an id on the Hub"),
        ("dataset_name: https://evil.example/a.json", "expected an id on the Hub"),
        ("dataset_name: org/..", "expected an id on the Hub"),
        ("eval_forget_data: /home/rows.jsonl", "expected an id on the Hub"),
        ("retain_logs: org/logs:../../x.json", "expected an id on the Hub"),
        ("chat_template_path: ~/chat.jinja", "expected an id on the Hub"),
        ("eval_system_prompt: /etc/passwd", "expected no local path"),
        ("eval_chat_template_kwargs: {a: [/etc/passwd]}", "expected no local path"),
        ("beta: 2026-01-01", "expected numbers, texts, lists and mappings"),
        ("beta: !!python/object/apply:os.system [id]", "is not YAML"),
        ("beta: [", "is not YAML"),
        ("beta: &a [*a]", "has aliases"),
        ("- beta", "is a list; expected options"),
        ("", "is a NoneType; expected options"),
        (f"eval_system_prompt: {TOKEN}", "holds a token of the Hub"),
    ],
)
def test_a_recipe_from_others_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        check_recipe(text)
