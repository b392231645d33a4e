"""The sum of adapters as one adapter, and a base model with the requests of a ledger."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, PeftModelForCausalLM
from peft.tuners.lora import LoraLayer

from ..hub.load import fold_in
from ..hub.repository import Repository
from .base import check_base, find_base, identify
from .ledger import Ledger


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_ledger(
    path: str | Path,
    base_model: str | None = None,
    merge: bool = True,
    dtype: "str | torch.dtype" = "auto",
    device_map: Any = None,
) -> "tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]":
    """
    Loads the base model of a ledger with all requests that are applied.

    The changes of the weights add up: base + ΔW of each adapter in use.

    Args:
        path (`str` or `Path`):
            Folder of the ledger.
        base_model (`str`, *optional*):
            Where the base model is now, if it is not where it was: an id on the Hub or a folder, with the same
            weights.
        merge (`bool`, *optional*, defaults to `True`):
            Whether to fold the adapters into the weights. Otherwise they are one adapter, whose rank is the sum of
            theirs.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` takes the saved one.
        device_map (`str`, `dict`, …, *optional*):
            Where to put the weights, as for [`~transformers.PreTrainedModel.from_pretrained`]. The CPU if `None`.

    Returns:
        `tuple`: The model in evaluation mode, and its tokenizer.

    Raises:
        FileNotFoundError: If there is no ledger, or a part of it is missing.
        ValueError: If the base model is not the one that the requests were trained on.

    Example:

    ```python
    >>> model, tokenizer = load_ledger("outputs/ledger")
    ```
    """
    from transformers import AutoTokenizer

    ledger = Ledger.read(path)
    base = find_base_of(ledger, base_model)
    model = load_base(base, dtype=dtype, device_map=device_map)
    requests = ledger.in_use
    folder = ledger.folder(requests[-1].number) if requests else None
    tokenizer = AutoTokenizer.from_pretrained(folder) if requests else AutoTokenizer.from_pretrained(**base.source)
    if requests:
        model = add_adapters(model, [ledger.folder(request.number) for request in requests])
        model = fold_in(model) if merge else model
    return model.eval(), tokenizer


def find_base_of(ledger: Ledger, base_model: str | None = None) -> Repository:
    """The base model of a ledger, checked to be the one that its requests were trained on."""
    base = find_base(base_model or ledger.base["name"], ledger.base["revision"])
    check_base(ledger, identify(base))
    return base


def load_base(repository: Repository, **options: Any) -> "PreTrainedModel":
    """A whole model, at its commit."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(**repository.source, use_safetensors=True, **options)
    model.config._commit_hash = repository.commit
    return model


@torch.no_grad()
def add_adapters(model: "PreTrainedModel", folders: list[Path]) -> PeftModel:
    """
    Adds the sum of LoRA adapters to a model, as one adapter.

    Side by side, the factors of all adapters give the sum of their products, exactly: [s₁B₁ s₂B₂] [A₁; A₂] = s₁B₁A₁ +
    s₂B₂A₂.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Base model, which is changed in place.
        folders (`list[Path]`):
            Folders of the adapters.

    Returns:
        [`~peft.PeftModel`]: The model with one adapter, whose rank is the sum of theirs.

    Raises:
        FileNotFoundError: If an adapter is missing.
        ValueError: If one does not fit the model.
    """
    # PEFT's `add_weighted_adapter` does the same in the type of the base, in which the factors would be rounded, and
    # forgets in the scaling of the sum that ranks may have been stabilized (seen with PEFT 0.21)
    names = [folder.name for folder in folders]
    for name, folder in zip(names, folders, strict=True):
        model = load_adapter(model, folder, name)
    configs = [model.peft_config[name] for name in names]
    rank = sum(max([config.r, *config.rank_pattern.values()]) for config in configs)
    layers = {name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    modules = [config.target_modules for config in configs]
    target_modules = set().union(*modules) if all(isinstance(part, set) for part in modules) else set(layers)
    changes = {"lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "lora_dropout": 0.0}
    model.add_adapter("default", replace(configs[0], r=rank, target_modules=target_modules, **changes))
    for layer in layers.values():
        parts = [name for name in names if name in layer.lora_A]
        left, right = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        columns = torch.cat([layer.lora_B[name].weight * layer.scaling[name] for name in parts], dim=1)
        rows = torch.cat([layer.lora_A[name].weight for name in parts])
        # Where not all adapters are, the rest of the rank is not used
        left.zero_()[:, : columns.shape[1]] = columns
        right.zero_()[: len(rows)] = rows
    model.set_adapter("default")
    for name in names:
        model.delete_adapter(name)
    model.peft_config["default"].inference_mode = True
    return model.requires_grad_(False)


def load_adapter(
    model: "PreTrainedModel | PeftModel", folder: Path, name: str = "default", is_trainable: bool = False
) -> PeftModel:
    """Adds an adapter of a folder to a model, which may have others already; all its weights must fit."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} has no adapter_model.safetensors. Restore the ledger's folder from a copy.")
    if not isinstance(model, PeftModel):
        from peft import PeftConfig

        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = not is_trainable
        model = PeftModelForCausalLM(model, config, adapter_name=name)
    try:
        result = model.load_adapter(str(folder), name, is_trainable=is_trainable)
        wrong = [*result.unexpected_keys, *result.missing_keys]
        reason = f"the weights of both differ in {len(wrong)} names, such as {wrong[0]}" if wrong else None
    except RuntimeError as error:  # of other shapes
        reason = str(error)
    if reason is not None:
        raise ValueError(f"The adapter in {folder} does not fit the base model: {reason}.")
    return model


def check_adds_up(model: PeftModel) -> None:
    """
    Refuses an adapter that is more than an addition to weights, so that it could neither be added to others nor be
    undone.

    Args:
        model ([`~peft.PeftModel`]):
            Model with the adapter.

    Raises:
        ValueError: If it is one; the message names the option.
    """
    config = model.active_peft_config
    reasons = {
        f"it is of the type {config.peft_type.value}": config.peft_type.value != "LORA",
        "`use_dora` changes the norm of the weights": getattr(config, "use_dora", False),
        "`lora_modules_to_save` replaces whole modules": getattr(config, "modules_to_save", None),
        "`lora_target_parameters` is not supported": getattr(config, "target_parameters", None),
        "it trains tokens of its own": getattr(config, "trainable_token_indices", None),
        "it trains biases": getattr(config, "bias", "none") != "none",
        "it changes embeddings": any(
            layer.lora_embedding_A for layer in model.modules() if isinstance(layer, LoraLayer)
        ),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ValueError(
            "The adapters of a ledger are added to each other, and this one is not an addition to weight matrices: "
            f"{'; '.join(found)}. Use LoRA on linear modules, for example `--lora_target_modules all-linear`."
        )
