"""What a trainer knows about its run that others should know: for the results, the recipe and the repository's name."""

import os
import platform
import re
import resource
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from huggingface_hub import HfApi, try_to_load_from_cache

from .. import __version__
from .._trl import get_config_model_id
from ..data.loading import hub_source, parse_source
from ..hub.recipe import RECIPE_FILE, build_recipe, hyperparameters
from ..hub.repository import is_hub_id
from ..hub.results import collect_results


_OBJECTIVES = {
    "NPO": "mean[−2/β · log σ(−β · log π(y)/π_ref(y))]",
    "SimNPO": "mean[−2/β · log σ(−β · (log π(y)/|y| + γ))]",
    "AltPO": "mean[−2/β · log σ(β · log π(y_alt)/π_ref(y_alt) − β · log π(y)/π_ref(y))]",
    "GradAscent": "Σ log π(y) / Σ |y|",
    "GradDiff": "Σ log π(y) / Σ |y|",
}
_RETAIN = {
    "nll": "NLL(retain)",
    "kl": "KL(π_ref ‖ π; retain)",
    "kl_all_positions": "KL(π_ref ‖ π; retain, padding too)",
}


def source_of(dataset: Dataset | None) -> dict[str, Any] | None:
    """
    Where rows came from.

    Args:
        dataset ([`~datasets.Dataset`], *optional*):
            Rows, as loaded or with some of them selected.

    Returns:
        `dict` or `None`: `dataset`, `config`, `split` and `revision` of rows that were loaded from the Hub, `n` and
        `private`, which is true of all others, and of data sets that the Hub calls private.
    """
    if dataset is None:
        return None
    source = hub_source(dataset)
    if source is None:
        return {"dataset": None, "n": len(dataset), "private": True}
    name, is_private = _ask_hub(source[0])
    if is_private:
        return {"dataset": None, "n": len(dataset), "private": True}
    commit = source[1]
    return {
        "dataset": name,
        "config": dataset.info.config_name,
        "split": re.match(r"\w+", str(dataset.split or "train"))[0],
        "revision": commit,
        "n": len(dataset),
        "private": False,
    }


@cache
def _ask_hub(name: str) -> tuple[str, bool]:
    """A data set's id as it is written, of which the cache keeps small letters only, and whether it is private."""
    try:
        info = HfApi().dataset_info(name, timeout=10)
    except Exception:  # no connection, or nothing of that spelling: then what was cached is named
        return name, False
    return info.id, bool(info.private)


def base_of(trainer: "UnlearningTrainer") -> tuple[str | None, str | None]:  # noqa: F821
    """Id on the Hub and commit of the model that is unlearned; `None` where it has none."""
    if trainer.args.hub_base_model_id is not None:
        return trainer.args.hub_base_model_id, None
    name = get_config_model_id(trainer.model.config)
    return (name, getattr(trainer.model.config, "_commit_hash", None)) if name and is_hub_id(name) else (None, None)


def commit_of_model(name: str, revision: str | None = None) -> str | None:
    """
    The commit of a model that has just been loaded by its name, which transformers 5 does not tell any more.

    Args:
        name (`str`):
            Id on the Hub, or a path.
        revision (`str`, *optional*):
            Revision that it was loaded at.

    Returns:
        `str` or `None`: The commit that is cached for that revision; `None` for a path.
    """
    path = try_to_load_from_cache(name, "config.json", revision=revision) if is_hub_id(name) else None
    return Path(path).parent.name if isinstance(path, str) else None


def method_of(trainer: "UnlearningTrainer") -> dict[str, Any]:  # noqa: F821
    """Name, paper and objective of a run; the baselines among NPO's options are not NPO."""
    args, name, paper = trainer.args, trainer._name, trainer._paper or None
    if getattr(args, "forget_loss_type", None) == "grad_ascent":
        name, paper = ("GradDiff" if args.retain_weight > 0 else "GradAscent"), None
    loss = _OBJECTIVES.get(name)
    objective = None
    if loss is not None:
        constants = [f"β = {args.beta:g}"] if "β" in loss else []
        constants += [f"γ = {args.gamma:g}"] if "γ" in loss else []
        objective = f"{args.forget_weight:g} · {loss}"
        if args.retain_weight > 0:
            objective += f" + {args.retain_weight:g} · {_RETAIN[args.retain_loss_type]}"
        objective += f", {', '.join(constants)}" if constants else ""
    return {"name": name, "paper": paper, "objective": objective}


def default_repo_name(trainer: "UnlearningTrainer") -> str:  # noqa: F821
    """
    `{base}-{benchmark}-{split}-{Method}[-lora]`; never the output directory's name, which says something else.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer.

    Returns:
        `str`: A name without namespace; benchmark and split only of a forget set from the Hub.
    """
    forget = trainer._sources["forget"]
    parts = [(base_of(trainer)[0] or getattr(trainer.model.config, "model_type", "model")).split("/")[-1]]
    if forget["dataset"] is not None:
        parts += [forget["dataset"].split("/")[-1].lower(), forget["config"]]
    parts += [method_of(trainer)["name"], _adapter(trainer)["type"].lower() if _adapter(trainer) else None]
    name = "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts if part and part != "default")
    return re.sub(r"-{2,}|\.{2,}", "-", name)[:96].strip("-.")


def collect(trainer: "UnlearningTrainer") -> dict[str, Any]:  # noqa: F821
    """The results of a run, as far as it has come: see [`~hub.results.collect_results`]."""
    args, state = trainer.args, trainer.state
    base_model, revision = base_of(trainer)
    callback = trainer._evaluation_callback()
    evaluations = {}
    if callback is not None:
        evaluations = {"before": callback.before, "after": callback.latest, "retained": callback.retained}
    eval_results = None
    if args.eval_results_benchmark is not None:
        eval_results = {"benchmark": args.eval_results_benchmark, "task_id": args.eval_results_task_id}
    seconds = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    return collect_results(
        method=method_of(trainer),
        base_model={"name": base_model, "revision": revision, "license": trainer._base_license},
        adapter=_adapter(trainer),
        data=trainer._sources,
        hyperparameters=hyperparameters(args),
        seeds={"training": args.seed, "data": args.data_seed},
        history=state.log_history,
        evaluations=evaluations,
        run={
            "hardware": _hardware(trainer.accelerator.num_processes),
            "processes": trainer.accelerator.num_processes,
            "seconds": seconds[-1] if seconds else None,
            "peak_memory_bytes": _peak_memory(),
            "command": _command(args),
        },
        versions={
            "trl_unlearn": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("trl", "transformers", "peft", "torch", "datasets", "accelerate")},
        },
        eval_results=eval_results,
    )


def recipe_of(trainer: "UnlearningTrainer") -> str:  # noqa: F821
    """The recipe of a run that was written in Python."""
    from trl import ModelConfig

    from ..scripts.unlearn import UnlearningScriptArguments

    callback = trainer._evaluation_callback()
    private = {"dataset": "./private", "config": None, "split": "train"}
    forget, retain = (
        {**private, **{k: v for k, v in (trainer._sources[name] or {}).items() if v}} for name in ("forget", "retain")
    )
    script_args = UnlearningScriptArguments(
        **(vars(callback.arguments) if callback is not None else {}),
        dataset_name=forget["dataset"],
        forget_config=forget["config"],
        forget_split=forget["split"],
        retain_dataset_name=retain["dataset"] if retain["dataset"] != forget["dataset"] else None,
        retain_config=retain["config"],
        retain_split=retain["split"],
    )
    base_model, revision = base_of(trainer)
    adapter = _adapter(trainer)
    options = {"use_peft": True} if adapter else {}
    if adapter and adapter["type"] == "LORA":
        config = trainer.model.active_peft_config
        options |= {
            "lora_r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "lora_target_modules": adapter["target_modules"],
        }
    model_args = ModelConfig(
        model_name_or_path=base_model or "./private", model_revision=revision or "main", **options
    )
    return build_recipe(script_args, trainer.args, model_args)


def without_private_names(script_args: Any) -> Any:
    """The arguments of a training command with paths in place of data sets that only some may know of."""

    def shown(source: str | None) -> str | None:
        name = source and parse_source(source)[0]
        return "./private" if name and is_hub_id(name) and not Path(name).exists() and _ask_hub(name)[1] else source

    hidden = {
        key: shown(getattr(script_args, key))
        for key in ("dataset_name", "retain_dataset_name", "alternates_dataset_name")
    }
    hidden |= {key: [*map(shown, getattr(script_args, key))] for key in ("forget_mixture", "retain_mixture")}
    return replace(script_args, **hidden)


def _adapter(trainer: "UnlearningTrainer") -> dict[str, Any] | None:  # noqa: F821
    if not is_peft_model(trainer.model):
        return None
    config = trainer.model.active_peft_config
    modules = getattr(config, "target_modules", None)
    return {
        "type": getattr(config.peft_type, "value", str(config.peft_type)),
        "r": getattr(config, "r", None),
        "lora_alpha": getattr(config, "lora_alpha", None),
        "target_modules": modules if isinstance(modules, str | None) else sorted(modules),
    }


def _command(args: "UnlearningConfig") -> str | None:  # noqa: F821
    script = f"trl_unlearn.scripts.{type(args).__name__.removesuffix('Config').lower()}"
    if find_spec(script) is None:  # a method of the user's own
        return None
    return f"accelerate launch -m {script} --config {RECIPE_FILE} --output_dir outputs"


def _hardware(num_processes: int) -> str:
    if torch.cuda.is_available():
        return f"{num_processes} × {torch.cuda.get_device_name()}"
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
