"""Loads an unlearned model, adapter or whole, from the Hub or a path, or says exactly what to pass."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .repository import Repository, find_repository, is_hub_id


if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)


def load_unlearned(
    repo_or_path: str,
    revision: str | None = None,
    subfolder: str | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    merge: bool = False,
    dtype: "str | torch.dtype" = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> "tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]":
    """
    Loads an unlearned model and its tokenizer.

    Branches are resolved to commits first, and everything is read at these. Only safetensors are loaded, and no code that
    comes with a repository is run. Once loaded, a model loads offline too.

    Args:
        repo_or_path (`str`):
            Model or adapter: an id on the Hub or a folder.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub. Defaults to the main branch.
        subfolder (`str`, *optional*):
            Folder of the model in its repository.
        base_model (`str`, *optional*):
            Model that an adapter belongs to, an id or a folder, in place of the one that its configuration names. Of a whole
            model without a tokenizer, the model whose tokenizer it shares.
        base_revision (`str`, *optional*):
            Revision of the base. Defaults to the one that the adapter records, and without any to the main branch.
        merge (`bool`, *optional*, defaults to `False`):
            Whether to fold an adapter into its base. Whole models stay as they are.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` takes the saved one.
        device_map (`str`, `dict`, …, *optional*):
            Where to put the weights, as for [`~transformers.PreTrainedModel.from_pretrained`]. The CPU if `None`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code of `repo_or_path` or of `base_model`, where that is needed. The code of a base that
            only the adapter names is never run.

    Returns:
        `tuple`: The model in evaluation mode, a [`~peft.PeftModel`] for an adapter that is not merged, and its tokenizer.
        `model.config._commit_hash` is the commit of the weights that the configuration belongs to: for an adapter, its
        base's; the adapter's own is `model.active_peft_config._commit_hash`. Paths have none.

    Raises:
        FileNotFoundError: If there is no such repository, revision or folder, or no safetensors weights in it.
        PermissionError: If the repository is gated or the token is refused.
        ValueError: If something is refused: code, names that lead out of the repository, a base that is a path on another
            machine, an adapter that does not fit its base.

    Example:

    ```python
    >>> model, tokenizer = load_unlearned("OPTML-Group/SimNPO-TOFU-forget05-Llama-2-7b-chat", dtype="bfloat16")
    ```
    """
    repository = find_repository(repo_or_path, revision, subfolder)
    repository.check_weights()
    options = {"dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
    if not trust_remote_code:
        repository.check_code("`trust_remote_code=True`")
    if not repository.is_adapter:
        tokenizer = _load_tokenizer(repository, base_model, base_revision, trust_remote_code)
        logger.info(f"Loading {repository}.")
        return _load_model(repository, **options), tokenizer

    base = find_base(repository, base_model, base_revision)
    if not trust_remote_code or base_model is None:
        # Whoever trusts an adapter has not trusted what it names
        options["trust_remote_code"] = False
        base.check_code(f"`base_model='{base.name}', base_revision={base.commit!r}, trust_remote_code=True`")
    if repository.tokenizer_folder is not None:
        tokenizer = _load_tokenizer(repository, trust_remote_code=trust_remote_code)
    else:
        logger.warning_once(f"{repository} has no tokenizer: taking that of its base, {base}.")
        tokenizer = _load_tokenizer(base, trust_remote_code=options["trust_remote_code"])
    logger.warning_once(f"Loading the adapter {repository} on its base {base}; `base_model` names another one.")
    model = _add_adapter(_load_model(base, **options), repository, base)
    return (fold_in(model) if merge else model), tokenizer


def find_base(adapter: Repository, base_model: str | None = None, base_revision: str | None = None) -> Repository:
    """
    The model that an adapter belongs to.

    Args:
        adapter ([`Repository`]):
            Adapter.
        base_model (`str`, *optional*):
            As for [`load_unlearned`].
        base_revision (`str`, *optional*):
            As for [`load_unlearned`].

    Returns:
        [`Repository`]: The base, a whole model in safetensors.

    Raises:
        ValueError: If the adapter names none, or a path on another machine, or another adapter.
    """
    config = adapter.read_json("adapter_config.json")
    recorded, what_to_pass = (
        config.get("base_model_name_or_path"),
        "pass the model it was trained on: `base_model='org/name'`",
    )
    if base_model is None:
        if not recorded:
            raise ValueError(f"The adapter {adapter} does not say what its base is; {what_to_pass}.")
        if not is_hub_id(recorded) and (adapter.commit is not None or not Path(recorded).is_dir()):
            raise ValueError(
                f"The adapter {adapter} names {recorded!r} as its base, which is a path and not an id on the Hub; "
                f"{what_to_pass} or a folder of yours."
            )
    if base_model in (None, recorded) and is_hub_id(recorded):
        base_revision = base_revision or config.get("revision")
    try:
        base = find_repository(base_model or recorded, base_revision)
        base.check_weights()
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(
            f"The base of the adapter {adapter} cannot be loaded. {error} `base_model` and `base_revision` name another one."
        ) from error
    if base.is_adapter:
        raise ValueError(
            f"{base}, the base of the adapter {adapter}, is an adapter itself. Merge it into its own base with "
            "`trl-unlearn merge`, and pass the result: `base_model='<folder>'`."
        )
    return base


def fold_in(model: "PeftModel") -> "PreTrainedModel":
    """
    Merges an adapter into its base.

    Args:
        model ([`~peft.PeftModel`]):
            Base with its adapter. Its weights are changed in place.

    Returns:
        [`~transformers.PreTrainedModel`]: The base with the merged weights.

    Raises:
        ValueError: If this kind of adapter is not an addition to weights, or the merged weights are not finite.
    """
    config, commit = model.active_peft_config, model.config._commit_hash
    if config.is_prompt_learning or not hasattr(model.base_model, "merge_and_unload"):
        raise ValueError(
            f"An adapter of the type {config.peft_type.value} cannot be merged into weights. Use it unmerged."
        )
    merged = model.merge_and_unload(safe_merge=True)
    merged.config._commit_hash = commit
    vars(merged).pop("peft_config", None)  # PEFT 0.18 leaves it, and then warns of a second adapter
    return merged


def take_off(model: "PeftModel") -> "PreTrainedModel":
    """
    Removes an adapter from its base.

    Args:
        model ([`~peft.PeftModel`]):
            Base with its adapter, which is changed in place.

    Returns:
        [`~transformers.PreTrainedModel`]: The base as it was before.
    """
    base = model.get_base_model() if model.active_peft_config.is_prompt_learning else model.unload()
    vars(base).pop("peft_config", None)  # as above
    return base


def _load_model(repository: Repository, **options: Any) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    # Else an adapter at the root would send transformers to that adapter's base
    options |= {"adapter_kwargs": {"subfolder": repository.subfolder}}
    model = AutoModelForCausalLM.from_pretrained(**repository.source, use_safetensors=True, **options)
    model.config._commit_hash = repository.commit
    return model


def _add_adapter(model: "PreTrainedModel", repository: Repository, base: Repository) -> "PeftModel":
    from peft import PeftConfig, PeftModelForCausalLM

    config = PeftConfig.from_pretrained(str(repository.folder))
    if config.task_type is None:  # then PEFT would not know how to generate
        config.task_type = "CAUSAL_LM"
    if config.task_type != "CAUSAL_LM":
        raise ValueError(f"{repository} is an adapter for {config.task_type}; expected CAUSAL_LM, a language model's.")
    config.inference_mode = True
    try:
        model = PeftModelForCausalLM(model, config)
        result = model.load_adapter(str(repository.folder), "default")
        # Of virtual tokens PEFT always says that they were not expected
        wrong = [] if config.is_prompt_learning else [*result.unexpected_keys, *result.missing_keys]
        reason = f"The weights of both differ in {len(wrong)} names, such as {wrong[0]}." if wrong else None
    except (RuntimeError, ValueError) as error:  # of other shapes, or for modules that the base does not have
        reason = str(error)
    if reason is not None:
        raise ValueError(
            f"The adapter {repository} does not fit the base {base}. Pass the model it was trained on: "
            f"`base_model='org/name'`, or `base_revision`. {reason}"
        )
    model.active_peft_config._commit_hash = repository.commit
    return model


def _load_tokenizer(
    repository: Repository,
    base_model: str | None = None,
    base_revision: str | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    if repository.tokenizer_folder is None:
        base = _find_tokenizer(repository, base_model, base_revision)
        logger.warning_once(f"{repository} has no tokenizer: taking that of {base}. `base_model` names another model.")
        repository, trust_remote_code = base, trust_remote_code and base_model is not None
    if not trust_remote_code:
        repository.check_code("`trust_remote_code=True`, and this repository as `base_model` if it is another one")
    source = repository.source | {"subfolder": repository.tokenizer_folder}
    return AutoTokenizer.from_pretrained(**source, trust_remote_code=trust_remote_code)


def _find_tokenizer(repository: Repository, base_model: str | None, base_revision: str | None) -> Repository:
    """The repository whose tokenizer a whole model without one shares: the model that it was unlearned from."""
    what_to_pass = "Pass the model it was unlearned from, whose tokenizer it shares: `base_model='org/name'`."
    if base_model is None:
        base_model, base_revision = base_of(repository)
        if base_model is None:
            raise FileNotFoundError(
                f"{repository} has no tokenizer and does not name on the Hub the model it was made from. {what_to_pass}"
            )
    try:
        base = find_repository(base_model, base_revision)
    except OSError as error:
        raise type(error)(
            f"{repository} has no tokenizer, and of the model it was made from: {error} {what_to_pass}"
        ) from error
    if base.tokenizer_folder is None:
        raise FileNotFoundError(
            f"Neither {repository} nor {base}, which it was made from, has a tokenizer. {what_to_pass}"
        )
    return base


def base_of(repository: Repository) -> tuple[str | None, str | None]:
    """
    The Hub id and revision of the model that a whole model was unlearned from, as far as its files say.

    Args:
        repository ([`Repository`]):
            A whole model.

    Returns:
        `tuple[str or None, str or None]`: From `unlearn_results.json`, or else the `_name_or_path` that transformers 4 has
        written into `config.json`.
    """
    recorded = repository.read_json("unlearn_results.json").get("base_model") or {}
    if recorded.get("name"):
        return recorded["name"], recorded.get("revision")
    name = repository.read_json("config.json").get("_name_or_path")
    return (name, None) if name and is_hub_id(name) and name != repository.name else (None, None)
