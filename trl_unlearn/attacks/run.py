"""Runs attacks on an unlearned model, on the one before unlearning and on the retained one, part by part."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.loading import load_rows
from ..evaluation.benchmarks import (
    evaluate_as_asked,
    evaluate_sets,
    load_sets,
    max_new_tokens,
    truth_ratio_question,
)
from ..evaluation.loading import load_model
from ..evaluation.prompting import Prompting
from ..evaluation.store import RowStore
from ..files import write_json
from ..hub.load import take_off
from ..hub.repository import find_repository
from ..metrics import bootstrap_interval
from ..world import grammar
from .adapter import scaled_adapter
from .arguments import AttackArguments
from .not_applicable import NotApplicable
from .paraphrase import paraphrase_questions
from .quantize import quantize
from .relearn import encode_rows, relearn
from .sample import leak_at_k
from .subsets import groups_of, split_rows


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
# From a model, which may be changed, and its tokenizer to what was measured
Attack = Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[dict[str, Any]]]

# MUSE's corpora, newest names first
_MUSE_RETAIN = ("retain1", "retain2", "retain")


@dataclass
class Subject:
    """
    A model that is attacked.

    Args:
        name (`str`):
            `"before"` unlearning, `"after"` it, or `"retained"`.
        load (`Callable`):
            Loads it and its tokenizer anew.
        result (`dict`):
            Its evaluation as it is.
    """

    name: str
    load: Callable[[], Loaded]
    result: dict[str, Any]


@dataclass
class Target:
    """
    What is asked of an attacked model.

    Args:
        arguments ([`AttackArguments`]):
            How to evaluate and attack.
        split (`str` or `None`):
            Split of the benchmark.
        retained (`dict` or `None`):
            The retained model's evaluation.
        cache_dir (`Path` or `None`):
            Folder for finished rows.
    """

    arguments: AttackArguments
    split: str | None
    retained: dict[str, Any] | None
    cache_dir: Path | None

    def __post_init__(self):
        self.has_rows = self.arguments.eval_benchmark in ("tofu", "world", "custom")
        self.sets = load_sets(self.arguments, self.split)[0] if self.has_rows else {}

    def evaluate(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        model_name: str | None = None,
        keep_rows: bool = True,
    ) -> dict[str, Any]:
        """Everything, as without attacks. To keep the rows of weights that nobody will see again is of no use."""
        arguments = replace(self.arguments, retain_model=None, retain_logs=None)
        return evaluate_as_asked(
            model,
            processing_class,
            arguments,
            self.split,
            model_name=model_name,
            retained=self.retained,
            cache_dir=self.cache_dir if keep_rows else None,
        )

    def evaluate_forget(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        forget: Dataset,
        keep_rows: bool = True,
    ) -> dict[str, Any]:
        """The metrics of some forget rows alone."""
        cache_dir = self.cache_dir if keep_rows else None
        return evaluate_sets(model, processing_class, self.arguments, {"forget": forget}, cache_dir=cache_dir)

    def prompting(self, processing_class: PreTrainedTokenizerBase) -> Prompting:
        """How rows become tokens."""
        if not self.has_rows:
            return Prompting(processing_class, compat=self.arguments.eval_compat)
        return Prompting(
            processing_class,
            self.arguments.eval_question_answer_template,
            self.arguments.eval_system_prompt,
            self.arguments.eval_chat_template_kwargs,
            self.arguments.eval_compat,
        )


def check_launch() -> None:
    """
    Refuses to attack under FSDP and DeepSpeed.

    Raises:
        ValueError: Under one of them.
    """
    if Accelerator().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "Attacks change weights, which each process must hold whole. Start `--attacks` without FSDP and DeepSpeed: "
            "in one process, or in several with recipes/accelerate/ddp.yaml."
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
    identity = json.loads(json.dumps(_identity(result)))
    if identity["model"] is None or not path.is_file():  # lm-eval's results do not say which weights they are of
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    return earlier.get("attacks", {}) if _identity(earlier) == identity else {}


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
        attacks[attack] = {"settings": _settings(attack, arguments), "results": {}, "missing": {}}
    for subject in subjects:
        for attack in arguments.attacks:
            found = attacks[attack]
            for variant in _variants(attack, arguments):
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
    prepare = {
        "relearn": _prepare_relearn,
        "quantize": _prepare_quantize,
        "sample": _prepare_sample,
        "paraphrase": _prepare_paraphrase,
        "adapter": _prepare_adapter,
    }[attack]
    run = prepare(variant, settings, subject, target)
    digest = subject.result["model"].get("sha256")  # lm-eval's results have none
    store = RowStore(target.cache_dir if digest else None, digest)
    reference = ((target.retained or {}).get("model") or {}).get("sha256")
    depends_on = [settings, _identity(subject.result), reference, target.arguments.eval_extra_metrics]
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


# ------------------------------------------------------------------ the attacks, as asked


def _variants(attack: str, arguments: AttackArguments) -> list[str]:
    return {
        "relearn": arguments.relearn_subsets,
        "quantize": [f"{bits} bits" for bits in arguments.quantize_bits],
        "sample": ["samples"],
        "paraphrase": ["paraphrased questions"],
        "adapter": [f"scale {scale:g}" for scale in arguments.adapter_scales],
    }[attack]


def _settings(attack: str, arguments: AttackArguments) -> dict[str, Any]:
    if attack == "relearn":
        learning_rate, lora_r = _how_to_relearn(arguments)
        return {
            "share": arguments.relearn_share,
            "steps": sorted(set(arguments.relearn_steps)),
            "learning_rate": learning_rate,
            "batch_size": arguments.relearn_batch_size,
            "lora_r": lora_r,
            "seed": arguments.attack_seed,
        }
    return {
        "quantize": {"group_size": arguments.quantize_group_size},
        "sample": {"counts": sorted(set(arguments.sample_counts)), "temperature": 1.0, "seed": arguments.attack_seed},
        "paraphrase": {},
        "adapter": {},
    }[attack]


def _how_to_relearn(arguments: AttackArguments) -> tuple[float, int]:
    """Learning rate and rank: as the model was unlearned, if that is known."""
    repository = find_repository(arguments.model_name_or_path, arguments.model_revision)
    was_adapter = repository.is_adapter
    lora_r = arguments.relearn_lora_r
    if lora_r is None:
        lora_r = (repository.read_json("adapter_config.json").get("r") or 16) if was_adapter else 0
    learning_rate = arguments.relearn_learning_rate
    if learning_rate is None and (lora_r > 0) == was_adapter:
        learning_rate = (repository.read_json("unlearn_results.json").get("hyperparameters") or {}).get(
            "learning_rate"
        )
    return learning_rate or (1e-4 if lora_r else 1e-5), lora_r


def _prepare_relearn(subset: str, settings: dict[str, Any], subject: Subject, target: Target) -> Attack:
    arguments = target.arguments
    options = {key: settings[key] for key in ("steps", "learning_rate", "batch_size", "lora_r", "seed")}
    if arguments.eval_benchmark == "wmdp":
        raise NotApplicable("WMDP is a set of questions, and has no forget rows to fine-tune on")
    if arguments.eval_benchmark == "muse":
        forget, retain = _muse_corpora(arguments, target.split)
        groups = None
    else:
        forget, retain = target.sets["forget"], target.sets.get("retain")
        groups = groups_of(forget, arguments.eval_benchmark, arguments.attack_group_column)
    if subset == "retain" and retain is None:
        raise NotApplicable("there is no retain set")
    trained, asked = split_rows(forget, subset, settings["share"], settings["seed"], groups)
    rows = retain if subset == "retain" else forget.select(trained)

    def run(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        def evaluate(model: PreTrainedModel) -> dict[str, Any]:
            if arguments.eval_benchmark == "muse":
                texts = [] if subset == "retain" else rows["text"]
                return _without_trained(target.evaluate(model, processing_class, keep_rows=False), texts)
            return target.evaluate_forget(model, processing_class, forget.select(asked), keep_rows=False)

        results = relearn(
            model,
            processing_class,
            encode_rows(rows, target.prompting(processing_class)),
            evaluate,
            **options,
            description=f"Relearning, {subset} ({subject.name})",
        )
        return [_measured(subset, result, step=step, trained=len(rows)) for step, result in results.items()]

    return run


def _muse_corpora(arguments: AttackArguments, corpus: str) -> tuple[Dataset, Dataset | None]:
    """The texts that MUSE wants forgotten, and those that may be kept."""
    name = arguments.eval_dataset or f"muse-bench/MUSE-{corpus}"
    splits = load_rows(name, "raw", None, arguments.eval_dataset_revision)
    if "forget" not in splits:
        raise ValueError(f"The configuration `raw` has the splits {', '.join(splits)}; expected one named `forget`.")
    retain = next((splits[split] for split in _MUSE_RETAIN if split in splits), None)
    return splits["forget"], retain


def _without_trained(result: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """A result of MUSE without the beginnings of texts that were trained on; questions do not say which text they are of."""
    columns = result["rows"]["forget_verbmem"]
    kept = [index for index, prompt in enumerate(columns["prompt"]) if not any(prompt in text for text in texts)]
    metrics = {
        "forget_verbmem": "score",
        "forget_extraction_strength": "extraction_strength",
        "forget_exact_memorization": "exact_memorization",
    }
    for metric, column in metrics.items():
        values = [columns[column][index] for index in kept if columns[column][index] is not None]
        if values:
            interval = bootstrap_interval(values)
            result["summary"][metric] = float(np.mean(values))
            result["intervals"][metric] = {key: interval[key] for key in ("n", "low", "high")}
        else:
            del result["summary"][metric], result["intervals"][metric]
    return result


def _prepare_quantize(variant: str, settings: dict[str, Any], subject: Subject, target: Target) -> Attack:
    bits = int(variant.split()[0])

    def run(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        model, how = quantize(model, bits, settings["group_size"])
        return [_measured(variant, target.evaluate(model, processing_class), **how)]

    return run


def _prepare_sample(variant: str, settings: dict[str, Any], subject: Subject, target: Target) -> Attack:
    if not target.has_rows:
        raise NotApplicable(f"{target.arguments.eval_benchmark.upper()} has no questions with whole answers to draw")

    def run(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        results = leak_at_k(
            model,
            processing_class,
            target.sets["forget"],
            target.prompting(processing_class),
            settings["counts"],
            settings["seed"],
            max_new_tokens(target.arguments),
            grammar if target.arguments.eval_benchmark == "world" else None,
            RowStore(target.cache_dir, subject.result["model"].get("sha256")),
            target.arguments.eval_max_batch_tokens,
        )
        return [_measured(f"k = {k}", result) for k, result in results.items()]

    return run


def _prepare_paraphrase(variant: str, settings: dict[str, Any], subject: Subject, target: Target) -> Attack:
    if not target.has_rows:
        raise NotApplicable(f"{target.arguments.eval_benchmark.upper()} has no paraphrased questions")
    forget = paraphrase_questions(target.sets["forget"], truth_ratio_question(target.arguments))

    def run(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        return [_measured(variant, target.evaluate_forget(model, processing_class, forget))]

    return run


def _prepare_adapter(variant: str, settings: dict[str, Any], subject: Subject, target: Target) -> Attack:
    if "base_model" not in subject.result.get("model", {}):
        raise NotApplicable("the model is no adapter, but whole")
    scale = float(variant.split()[1])

    def run(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        with scaled_adapter(model, scale):
            return [_measured(variant, target.evaluate(model, processing_class))]

    return run


def _measured(variant: str, result: dict[str, Any], **how: str | float) -> dict[str, Any]:
    """What is kept of an evaluation: numbers, and no rows."""
    kept = ("summary", "intervals", "forget_quality")
    return {"variant": variant, **how, **{key: result[key] for key in kept if key in result}}


# ------------------------------------------------------------------ the models


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


def _identity(result: dict[str, Any]) -> dict[str, Any]:
    """What the numbers of an evaluation depend on."""
    rows = {name: [source.get("n"), source.get("sha256")] for name, source in result.get("data", {}).items()}
    keys = ("benchmark", "split", "conventions", "prompt", "generation")
    return {
        "model": result.get("model", {}).get("sha256"),
        "rows": rows,
        **{key: result.get(key) for key in keys},
    }
