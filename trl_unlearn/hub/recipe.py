"""The recipe that repeats a run: written without tokens and local paths, and checked when it comes from others."""

import re
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from .results import TOKEN, hub_id, plain


RECIPE_FILE = "unlearn_recipe.yaml"

# What a recipe may set. Everything else stays with who runs it: folders, trackers, the Hub, devices, environment.
_SECTIONS = {
    "Model": (
        "model_name_or_path", "model_revision", "tokenizer_name_or_path", "model_init_kwargs", "dtype",
        "attn_implementation", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules",
        "lora_target_parameters", "lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora", "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type",
        "use_bnb_nested_quant", "bnb_4bit_quant_storage",
    ),
    "Data": (
        "dataset_name", "forget_config", "forget_split", "retain_dataset_name", "retain_config", "retain_split",
        "forget_mixture", "retain_mixture", "alternates_dataset_name", "alternates_config", "alternates_split",
        "alternates_column", "min_document_length", "max_length", "question_answer_template", "pairing", "bucket_by_length",
        "chat_template_path", "eos_token", "pad_token",
    ),
    "Method": (
        "forget_loss_type", "beta", "gamma", "forget_weight", "forget_floor", "forget_sharpness", "retain_weight", "retain_loss_type",
        "retain_normalization", "disable_dropout", "precompute_ref_log_probs", "precompute_ref_batch_size", "cache_ref_hidden_states",
    ),
    "Training": (
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_epochs", "warmup_steps", "warmup_ratio",
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim",
        "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
        "neftune_noise_alpha", "router_aux_loss_coef", "seed", "data_seed", "full_determinism", "bf16", "fp16", "tf32",
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_offloading", "padding_free",
        "use_liger_kernel", "average_tokens_across_devices", "dataloader_drop_last", "dataloader_num_workers",
        "dataloader_pin_memory", "ignore_data_skip", "auto_find_batch_size", "torch_compile", "torch_empty_cache_steps",
    ),
    "Evaluation": (
        "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "bf16_full_eval",
        "fp16_full_eval", "eval_accumulation_steps", "eval_benchmark", "eval_dataset", "eval_dataset_revision",
        "eval_splits", "eval_forget_data", "eval_retain_data", "eval_holdout_data", "eval_extra_metrics", "eval_compat",
        "eval_max_new_tokens", "eval_question_answer_template", "eval_system_prompt", "eval_chat_template_kwargs",
        "eval_truth_ratio_question", "eval_max_batch_tokens", "eval_batch_size", "retain_logs", "retain_model",
        "eval_select", "eval_stop", "eval_max_utility_drop", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    ),
    "Logs and checkpoints": (
        "logging_strategy", "logging_steps", "logging_first_step", "save_strategy", "save_steps", "save_total_limit",
        "save_only_model",
    ),
}  # fmt: skip
_KEYS = {key for keys in _SECTIONS.values() for key in keys}
# What a local path in these places stands for, and what to put there instead
_SOURCES = {
    "model_name_or_path": "the model to unlearn",
    "tokenizer_name_or_path": "the tokenizer",
    "chat_template_path": "a model with the chat template",
    "dataset_name": "the forget set",
    "retain_dataset_name": "the retain set",
    "forget_mixture": "further forget sets",
    "retain_mixture": "further retain sets",
    "alternates_dataset_name": "the alternate answers",
    "eval_dataset": "the data of the evaluation",
    "eval_forget_data": "the forget rows of the evaluation",
    "eval_retain_data": "the retain rows of the evaluation",
    "eval_holdout_data": "the holdout rows of the evaluation",
    "retain_logs": "the evaluation of the retained model",
    "retain_model": "the retained model",
}
# Another name would be a kernel that is downloaded and run.
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_MODEL_INIT = ("revision", "attn_implementation", "dtype", "torch_dtype", "rope_scaling")


def hyperparameters(training_args: "UnlearningConfig") -> dict[str, Any]:  # noqa: F821
    """
    What a card lists of a configuration: the options of the method and of the training that differ from the defaults.

    Args:
        training_args ([`UnlearningConfig`]):
            Configuration of the trainer.

    Returns:
        `dict`: Plain values by name: all options that unlearning adds to [`~trl.SFTConfig`] or gives another default, and
        of the others those that are not at their defaults. Without seeds, folders, trackers, evaluation and checkpoints.
    """
    there = _settings(training_args)
    keys = [key for section in ("Data", "Method", "Training") for key in _SECTIONS[section]]
    return {
        key: there[key]
        for key in keys
        if key in there and key not in ("seed", "data_seed") and not _is_local(key, there[key])
    }


def build_recipe(
    script_args: "UnlearningScriptArguments",  # noqa: F821
    training_args: "UnlearningConfig",  # noqa: F821
    model_args: "ModelConfig",  # noqa: F821
) -> str:
    """
    The YAML file with which the training command repeats a run.

    It holds the method's own options and what differs from the defaults. Folders, trackers, the Hub and devices are left
    to who runs it. In place of a local path there is a comment that says what to put there.

    Args:
        script_args ([`UnlearningScriptArguments`]):
            Data and evaluation.
        training_args ([`UnlearningConfig`]):
            Configuration of the trainer.
        model_args ([`~trl.ModelConfig`]):
            Model, quantization and adapter. Give the commit as `model_revision`, so that the recipe stays true.

    Returns:
        `str`: The recipe, which [`~trl.TrlParser`] reads and [`check_recipe`] accepts.

    Example:

    ```python
    >>> print(build_recipe(script_args, training_args, model_args))
    ```
    """
    given = _settings(model_args) | _settings(script_args) | _settings(training_args)
    if given.get("eval_benchmark") == "custom":  # which `eval_forget_data` means already, where it is given
        del given["eval_benchmark"]
    kwargs = {}
    for key, value in (given.pop("model_init_kwargs", None) or {}).items():
        # the training command adds the options of the model to these
        option = {"revision": "model_revision", "torch_dtype": "dtype"}.get(key, key)
        if key in _MODEL_INIT and value != plain(getattr(model_args, option, None)):
            kwargs[key] = value
    if kwargs:
        given["model_init_kwargs"] = kwargs
    if isinstance(given.get("lora_target_modules"), str):
        given["lora_target_modules"] = [given["lora_target_modules"]]
    command = type(training_args).__name__.removesuffix("Config").lower()
    lines = [f"# trl-unlearn {command} --config {RECIPE_FILE} --output_dir DIR"]
    for section, keys in _SECTIONS.items():
        written = []
        for key in keys:
            if key not in given:
                continue
            if _is_local(key, given[key]):
                what = _SOURCES.get(key, "what stood given")
                written.append(f"# {key}: {what}, which is not on the Hub. Give an id or a path as --{key}.")
            elif not _is_safe(key, given[key]):
                written.append(f"# {key}: left out, because a recipe from others may not set it.")
            else:
                written.append(yaml.safe_dump({key: given[key]}, sort_keys=False, allow_unicode=True).rstrip("\n"))
        if written:
            lines += ["", f"# {section}", *written]
    return "\n".join(lines) + "\n"


def check_recipe(text: str) -> dict[str, Any]:
    r"""
    Reads a recipe that comes from others, as data.

    Args:
        text (`str`):
            YAML.

    Returns:
        `dict`: The options.

    Raises:
        ValueError: If it is not a mapping, sets environment variables, lets code of others run, names local files, holds
            a token, or has an option that is not a recipe's, as a folder to write to.

    Example:

    ```python
    >>> check_recipe("beta: 0.5\nenv: {HF_TOKEN: x}")
    ValueError: The recipe sets environment variables (`env`), …
    ```
    """
    if TOKEN.search(text):
        raise ValueError(
            "The recipe holds a token of the Hub (`hf_…`). Tell its author, and remove it from a copy of it."
        )
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError(
                "The recipe has aliases (`*name`), with which it can be made endless. Write the values out."
            )
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe is not YAML: {error}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe is a {type(recipe).__name__}; expected options, one a line, as `beta: 0.1`.")
    if "env" in recipe:
        raise ValueError(
            "The recipe sets environment variables (`env`), which a recipe from others may not. Remove them from a copy of it."
        )
    if _names_remote_code(recipe):
        raise ValueError(
            "The recipe lets code of others run (`trust_remote_code`). Remove that from a copy of it, and pass the option "
            "yourself if you trust that code."
        )
    unknown = [key for key in recipe if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"The recipe sets {', '.join(f'`{key}`' for key in unknown)}, which a recipe from others may not: it names model, data, "
            "method and training. Remove that from a copy of it, and pass it as a flag."
        )
    for key, value in recipe.items():
        if not _is_plain(value):
            raise ValueError(
                f"`{key}` in the recipe is {value!r}; expected numbers, texts, lists and mappings of them."
            )
        if _is_local(key, value):
            expected = "an id on the Hub, as `org/name`" if key in _SOURCES else "no local path"
            raise ValueError(
                f"`{key}` in the recipe is {value!r}; expected {expected}. Pass a path of yours as a flag."
            )
        if not _is_safe(key, value):
            raise ValueError(
                f"`{key}` in the recipe is {value!r}; a recipe from others may only choose attention among "
                f"{', '.join(_ATTENTION)}, and of the model's own arguments {', '.join(_MODEL_INIT)}."
            )
    return recipe


def _settings(config: Any) -> dict[str, Any]:
    """Of the options that a recipe may set, unlearning's own and those that are not at their defaults, as plain values."""
    from trl import SFTConfig

    # what has no default that holds on every machine is always written
    own: set[str] = {"seed", "bf16"} if isinstance(config, SFTConfig) else set()
    for parent in type(config).__mro__:
        if parent is SFTConfig:
            break
        if issubclass(parent, SFTConfig):
            own |= parent.__annotations__.keys()
    settings = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name in _KEYS and (value != default or (field.name in own and value is not None)):
            settings[field.name] = value.value if isinstance(value, Enum) else value
    return settings


def _is_local(key: str, value: Any) -> bool:
    """Whether a value is a path on this machine, or, where data or models are named, no id on the Hub."""
    if isinstance(value, dict | list):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return any(_is_local(key if key in _SOURCES else "", part) for part in parts)
    if not isinstance(value, str):
        return False
    if key not in _SOURCES:
        return re.match(r"/\w|~\w*/|\.{1,2}/|[A-Za-z]:[/\\]|\\\\|file:", value) is not None
    name, _, file = value.partition(":")
    if key == "retain_logs" and value == "auto":
        return False
    if key in ("model_name_or_path", "retain_model") and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) and not file:
        return Path(name).exists()  # a model may still be named without a namespace, as `gpt2`
    return hub_id(name) is None or ".." in file or file.startswith("/")


def _is_safe(key: str, value: Any) -> bool:
    """Whether a value brings in no code and no token."""
    if key == "attn_implementation":
        return value is None or value in _ATTENTION
    if key == "model_init_kwargs" and value is not None:
        return (
            isinstance(value, dict)
            and set(value) <= set(_MODEL_INIT)
            and _is_safe("attn_implementation", value.get("attn_implementation"))
        )
    return not TOKEN.search(str(value))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _names_remote_code(value: Any) -> bool:
    if isinstance(value, dict):
        return any(
            str(key) in ("trust_remote_code", "auto_map", "custom_generate") or _names_remote_code(part)
            for key, part in value.items()
        )
    return isinstance(value, list) and any(map(_names_remote_code, value))
