"""The attacks as the arguments ask for them, each in parts that load, attack and evaluate a model of their own."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.benchmarks import max_new_tokens, truth_ratio_question
from ..evaluation.store import RowStore
from ..hub.repository import find_repository
from ..world import grammar
from .adapter import scaled_adapter
from .arguments import AttackArguments
from .muse import muse_corpora, without_trained
from .not_applicable import NotApplicable
from .paraphrase import paraphrase_questions
from .quantize import quantize
from .relearn import encode_rows, relearn
from .sample import leak_at_k
from .subsets import groups_of, split_rows
from .target import Subject, Target


# From a model, which may be changed, and its tokenizer to what was measured
Attack = Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[dict[str, Any]]]


def variants_of(attack: str, arguments: AttackArguments) -> list[str]:
    """The parts of an attack: subsets to relearn, numbers of bits, scales."""
    return {
        "relearn": arguments.relearn_subsets,
        "quantize": [f"{bits} bits" for bits in arguments.quantize_bits],
        "sample": ["samples"],
        "paraphrase": ["paraphrased questions"],
        "adapter": [f"scale {scale:g}" for scale in arguments.adapter_scales],
    }[attack]


def settings_of(attack: str, arguments: AttackArguments) -> dict[str, Any]:
    """What the numbers of an attack depend on beside its parts."""
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


def prepare(attack: str, variant: str, settings: dict[str, Any], subject: Subject, target: Target) -> Attack:
    """
    Part of an attack, ready to run.

    Args:
        attack (`str`):
            Name of the attack.
        variant (`str`):
            One of [`variants_of`].
        settings (`dict`):
            What [`settings_of`] gives.
        subject ([`Subject`]):
            Model to attack, which is not loaded yet.
        target ([`Target`]):
            What is asked of it.

    Returns:
        `Callable`: From the loaded model, which it may change, and its tokenizer to what was measured.

    Raises:
        NotApplicable: If the attack cannot be made on these data.
    """
    prepare_attack = {
        "relearn": _prepare_relearn,
        "quantize": _prepare_quantize,
        "sample": _prepare_sample,
        "paraphrase": _prepare_paraphrase,
        "adapter": _prepare_adapter,
    }[attack]
    return prepare_attack(variant, settings, subject, target)


def _prepare_relearn(subset: str, settings: dict[str, Any], subject: Subject, target: Target) -> Attack:
    arguments = target.arguments
    options = {key: settings[key] for key in ("steps", "learning_rate", "batch_size", "lora_r", "seed")}
    if arguments.eval_benchmark == "wmdp":
        raise NotApplicable("WMDP is a set of questions, and has no forget rows to fine-tune on")
    if arguments.eval_benchmark == "muse":
        forget, retain = muse_corpora(arguments, target.split)
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
                return without_trained(target.evaluate(model, processing_class, keep_rows=False), texts)
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
