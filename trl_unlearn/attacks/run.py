"""Runs attacks on an unlearned model, on the one before unlearning and on the retained one, part by part."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache

from ..evaluation.benchmarks import load_sets, splits_of
from ..evaluation.loading import load_model
from ..evaluation.store import RowStore
from ..files import write_json
from ..hub.load import take_off
from ..hub.repository import find_repository
from .arguments import AttackArguments
from .not_applicable import NotApplicable
from .parts import prepare, settings_of, variants_of
from .subsets import groups_of
from .target import Loaded, Subject, Target, identity


def check_attacks(arguments: AttackArguments) -> None:
    """
    Says what is wrong with attacks before a model is loaded.

    Args:
        arguments ([`AttackArguments`]):
            How to evaluate and attack.

    Raises:
        FileNotFoundError: If there is no such original model.
        ValueError: Under FSDP and DeepSpeed, or if the forget set has no such column.
    """
    if Accelerator().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "Attacks change weights, which each process must hold whole. Start `--attacks` without FSDP and DeepSpeed: "
            "in one process, or in several with recipes/accelerate/ddp.yaml."
        )
    if arguments.original_model is not None:
        find_repository(arguments.original_model).check_weights()
    if arguments.attack_group_column is not None:
        for split in splits_of(arguments):
            groups_of(
                load_sets(arguments, split)[0]["forget"], arguments.eval_benchmark, arguments.attack_group_column
            )


def finished_attacks(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """
    The attacks in an earlier `evaluation.json`, if that is of the same model, evaluated on the same rows in the same way.

    Args:
        path (`Path`):
            File, which need not be there.
        result (`dict`):
            The evaluation of now.

    Returns:
        `dict`: By name, the attacks.
    """
    wanted = json.loads(json.dumps(identity(result)))
    if wanted["model"] is None or not path.is_file():  # lm-eval's results do not say which weights they are of
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    return earlier.get("attacks", {}) if identity(earlier) == wanted else {}


def run_attacks(
    arguments: AttackArguments,
    split: str | None,
    result: dict[str, Any],
    before: dict[str, Any] | None,
    retained: dict[str, Any] | None,
    directory: Path,
    cache_dir: Path,
) -> dict[str, dict[str, Any]]:
    """
    Attacks a model that has been evaluated, and writes what each part of an attack finds into its `evaluation.json`.

    A part is a subset to relearn, a number of bits, or a scale. Each loads its model anew, so that there is one at a time,
    and what it finds is kept in `cache_dir`: a run that is killed starts again with the part that it was at.

    Args:
        arguments ([`AttackArguments`]):
            `model_name_or_path`, `model_revision`, `base_model` and `dtype` too, as the evaluation command has them.
        split (`str`, *optional*):
            Split of the benchmark.
        result (`dict`):
            Evaluation of the model. Its key `attacks` is filled.
        before (`dict`, *optional*):
            Evaluation of the model before unlearning. Without it, that model is evaluated, if it is known.
        retained (`dict`, *optional*):
            Evaluation of the retained model.
        directory (`Path`):
            Where `evaluation.json` is.
        cache_dir (`Path`):
            Folder for finished rows and parts.

    Returns:
        `dict[str, dict]`: The evaluations of `before`, `after` and `retained`, as far as there are such.
    """
    target = Target(arguments, split, retained, cache_dir)
    subjects = [Subject("after", _load_unlearned(arguments), result)]
    load_original = _load_original(arguments, is_adapter="base_model" in result.get("model", {}))
    if load_original is not None:
        name = arguments.original_model or result["model"]["base_model"]
        original = target.evaluate(*load_original(), model_name=name)
        subjects.append(Subject("before", load_original, original))
        before = before or original
    if arguments.retain_model is not None:
        subjects.append(Subject("retained", partial(load_model, arguments.retain_model), retained))

    attacks = result.setdefault("attacks", {})
    for attack in arguments.attacks:
        attacks[attack] = {"settings": settings_of(attack, arguments), "results": {}, "missing": {}}
    for subject in subjects:
        for attack in arguments.attacks:
            found = attacks[attack]
            for variant in variants_of(attack, arguments):
                if attack == "adapter" and subject.name != "after":
                    continue
                try:
                    measured = _run_part(attack, variant, found["settings"], subject, target)
                except NotApplicable as reason:
                    found["missing"][variant] = str(reason)
                    continue
                found["results"].setdefault(subject.name, []).extend(measured)
                if PartialState().is_main_process:
                    write_json(result, directory / "evaluation.json")
    evaluations = {"before": before, "after": result, "retained": retained}
    return {name: evaluation for name, evaluation in evaluations.items() if evaluation is not None}


def _run_part(
    attack: str, variant: str, settings: dict[str, Any], subject: Subject, target: Target
) -> list[dict[str, Any]]:
    """What a part of an attack finds, or has found before."""
    run = prepare(attack, variant, settings, subject, target)
    digest = subject.result["model"].get("sha256")  # lm-eval's results have none
    store = RowStore(target.cache_dir if digest else None, digest)
    reference = ((target.retained or {}).get("model") or {}).get("sha256")
    depends_on = [settings, identity(subject.result), reference, target.arguments.eval_extra_metrics]
    depends_on.append(target.arguments.attack_group_column)
    part = (variant, json.dumps(depends_on, sort_keys=True))
    if found := store.finished(f"attack {attack}", [part]):
        return found[part]
    model, processing_class = subject.load()
    measured = run(model, processing_class)
    del model
    clear_device_cache(garbage_collection=True)
    if PartialState().is_main_process:
        store.add(f"attack {attack}", [part], [measured])
    return measured


def _load_unlearned(arguments: AttackArguments) -> Callable[[], Loaded]:
    return partial(
        load_model, arguments.model_name_or_path, arguments.model_revision, arguments.dtype, arguments.base_model
    )


def _load_original(arguments: AttackArguments, is_adapter: bool) -> Callable[[], Loaded] | None:
    if arguments.original_model is not None:
        return partial(load_model, arguments.original_model, dtype=arguments.dtype)
    if not is_adapter:
        return None

    def load_base() -> Loaded:
        # with the adapter's tokenizer and chat template, so that both are asked in the same way
        model, processing_class = _load_unlearned(arguments)()
        return take_off(model), processing_class

    return load_base
