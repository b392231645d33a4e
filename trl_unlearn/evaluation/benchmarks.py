"""From the arguments of an evaluation to its results: loads the sets, finds the retained model's results, evaluates."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from ..data.loading import commit_of, load_rows, parse_source
from ..world import grammar
from .arguments import EvaluationArguments
from .evaluate import evaluate_unlearning
from .loading import load_model
from .logs import read_log
from .muse import evaluate_muse
from .provenance import shown_name
from .retain_reference import resolve_retain_logs


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_DEFAULT_SPLITS = {"tofu": ["forget10"], "muse": ["News"], "world": ["forget"], "custom": [None]}


def splits_of(arguments: EvaluationArguments) -> list[str | None]:
    """What is evaluated one after the other: the splits asked for, or the benchmark's usual one."""
    if arguments.eval_benchmark == "wmdp":
        return [None]
    return arguments.eval_splits or _DEFAULT_SPLITS[arguments.eval_benchmark]


def evaluate_as_asked(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    arguments: EvaluationArguments,
    split: str | None = None,
    model_name: str | None = None,
    dataset_name: str | None = None,
    retained: dict[str, Any] | None = None,
    cache_dir: Path | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """
    Runs the evaluation that `arguments` describe.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        arguments ([`EvaluationArguments`]):
            What to evaluate.
        split (`str`, *optional*):
            Which of [`splits_of`]; the first by default.
        model_name (`str`, *optional*):
            Id on the Hub or path of the model, for `retain_logs="auto"` and for the result, which names a path's last
            folder only.
        dataset_name (`str`, *optional*):
            Data set where `eval_dataset` is not given.
        retained (`dict`, *optional*):
            What [`evaluate_retained`] gives; found anew if it is not given.
        cache_dir (`Path`, *optional*):
            Folder for finished rows.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict`: What [`evaluate_unlearning`] returns, with `benchmark`, `split`, `retain_reference`, and where model and data
        came from.
    """
    split = split or splits_of(arguments)[0]
    if retained is None:
        target = target_of(model, model_name)
        retained = evaluate_retained(arguments, split, target, dataset_name, cache_dir, show_progress)
    benchmark = arguments.eval_benchmark
    if benchmark == "wmdp":
        from .wmdp import evaluate_wmdp  # lm-eval is an option

        tasks = {"tasks": arguments.eval_splits} if arguments.eval_splits else {}
        result = evaluate_wmdp(
            model,
            processing_class,
            dataset_path=arguments.eval_dataset,
            batch_size=arguments.eval_batch_size,
            **tasks,
        )
    elif benchmark == "muse":
        result = evaluate_muse(
            model,
            processing_class,
            dataset_name=arguments.eval_dataset,
            corpus=split,
            revision=arguments.eval_dataset_revision,
            retained=retained,
            **_common_options(arguments, cache_dir, show_progress),
        )
    else:
        sets, sources = load_sets(arguments, split, dataset_name)
        result = evaluate_sets(model, processing_class, arguments, sets, retained, cache_dir, show_progress)
        for name, source in sources.items():
            result["data"][name] = source | result["data"][name]
    if model_name is not None:
        result["model"] = {"name": shown_name(model_name), **_commits(model), **result.get("model", {})}
    return {
        "schema": 1,
        "benchmark": benchmark,
        "split": split,
        **({"retain_reference": retained["model"]} if retained is not None else {}),
        **{key: value for key, value in result.items() if key != "schema"},
    }


def evaluate_sets(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    arguments: EvaluationArguments,
    sets: dict[str, datasets.Dataset],
    retained: dict[str, Any] | None = None,
    cache_dir: Path | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """
    Evaluates on these sets, or these of their rows, as `arguments` say.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        arguments ([`EvaluationArguments`]):
            How to evaluate.
        sets (`dict[str, Dataset]`):
            What [`load_sets`] gives: `"forget"`, and maybe `"retain"`, `"holdout"` and other sets to be kept.
        retained (`dict`, *optional*):
            The retained model's result of the same forget rows.
        cache_dir (`Path`, *optional*):
            Folder for finished rows.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict`: What [`evaluate_unlearning`] returns.
    """
    world = arguments.eval_benchmark == "world"
    return evaluate_unlearning(
        model,
        processing_class,
        sets["forget"],
        sets.get("retain"),
        {name: rows for name, rows in sets.items() if name not in ("forget", "retain", "holdout")},
        sets.get("holdout"),
        retained=retained,
        truth_ratio_question=truth_ratio_question(arguments),
        max_new_tokens=max_new_tokens(arguments),
        grammar=grammar if world else None,
        question_answer_template=arguments.eval_question_answer_template,
        system_prompt=arguments.eval_system_prompt,
        chat_template_kwargs=arguments.eval_chat_template_kwargs,
        **_common_options(arguments, cache_dir, show_progress),
    )


def max_new_tokens(arguments: EvaluationArguments) -> int:
    """Longest generated answer, in tokens: what is asked for, or the benchmark's usual one."""
    return arguments.eval_max_new_tokens or (32 if arguments.eval_benchmark == "world" else 200)


def truth_ratio_question(arguments: EvaluationArguments) -> str:
    """Column with the question that paraphrased and perturbed answers reply to."""
    usual = "paraphrased_question" if arguments.eval_benchmark == "world" else "question"
    return arguments.eval_truth_ratio_question or usual


def _common_options(arguments: EvaluationArguments, cache_dir: Path | None, show_progress: bool) -> dict[str, Any]:
    return {
        "extra_metrics": arguments.eval_extra_metrics,
        "compat": arguments.eval_compat,
        "cache_dir": cache_dir,
        "max_batch_tokens": arguments.eval_max_batch_tokens,
        "show_progress": show_progress,
    }


def load_sets(
    arguments: EvaluationArguments, split: str | None, dataset_name: str | None = None
) -> tuple[dict[str, datasets.Dataset], dict[str, dict[str, Any]]]:
    """
    The sets of TOFU, of data in its layout, or of one's own, and where they came from.

    Args:
        arguments ([`EvaluationArguments`]):
            What to evaluate.
        split (`str`, *optional*):
            Forget split of TOFU, as `"forget10"`.
        dataset_name (`str`, *optional*):
            Data set where `eval_dataset` is not given.

    Returns:
        `tuple[dict, dict]`: By name of the set, the rows, and `dataset`, `config`, `split` and `revision`.

    Raises:
        ValueError: If the data have no such split.
    """
    if arguments.eval_benchmark == "custom":
        specs = {
            "forget": arguments.eval_forget_data,
            "retain": arguments.eval_retain_data,
            "holdout": arguments.eval_holdout_data,
        }
        wanted = {name: parse_source(spec) for name, spec in specs.items() if spec is not None}
    else:
        source = arguments.eval_dataset or dataset_name or "locuslab/TOFU"
        there = datasets.get_dataset_config_names(source, revision=arguments.eval_dataset_revision)
        if f"{split}_perturbed" not in there:
            splits = [name.removesuffix("_perturbed") for name in there if name.endswith("_perturbed")]
            forget_splits = [name for name in splits if name.startswith("forget")]
            raise ValueError(
                f"{shown_name(source)} has no configuration `{split}_perturbed`. Forget splits that can be evaluated there: "
                f"{', '.join(forget_splits) or 'none'}."
            )
        configs = {
            "forget": f"{split}_perturbed",
            "retain": "retain_perturbed",
            "real_authors": "real_authors_perturbed",
            "world_facts": "world_facts_perturbed",
            "holdout": split.replace("forget", "holdout"),
        }
        wanted = {name: (source, config, "train") for name, config in configs.items() if config in there}
        if wanted.get("holdout") == wanted["forget"]:
            del wanted["holdout"]
    sets, sources = {}, {}
    for name, (source, config, part) in wanted.items():
        sets[name] = load_rows(source, config, part, revision=arguments.eval_dataset_revision)
        sources[name] = {
            "dataset": shown_name(source),
            "config": config,
            "split": part,
            "revision": commit_of(sets[name]),
        }
    return sets, sources


def _commits(model: "PreTrainedModel") -> dict[str, str | None]:
    """The commit of the model on the Hub, and for an adapter also its base and the base's, as far as they are known."""
    commit = getattr(model.config, "_commit_hash", None)
    if not hasattr(model, "peft_config"):
        return {"revision": commit}
    own_commit = getattr(model.active_peft_config, "_commit_hash", None)
    return {"revision": own_commit, "base_model": shown_name(model.config.name_or_path), "base_revision": commit}


def target_of(model: "PreTrainedModel", model_name: str | None) -> str | None:
    """The model that was unlearned, whose name tells which retained model belongs to it: an adapter's base, or itself."""
    return model.config.name_or_path if hasattr(model, "peft_config") else model_name


def evaluate_retained(
    arguments: EvaluationArguments,
    split: str | None = None,
    model_name: str | None = None,
    dataset_name: str | None = None,
    cache_dir: Path | None = None,
    show_progress: bool = True,
) -> dict[str, Any] | None:
    """
    The retained model's result, read from `retain_logs` or made with `retain_model`; `None` if neither is given.

    Its `model` says where it came from. Arguments are those of [`evaluate_as_asked`].
    """
    if arguments.retain_logs is not None:
        split = split or splits_of(arguments)[0]
        path, reference = resolve_retain_logs(arguments.retain_logs, model_name or "", split)
        return read_log(path) | {"model": reference}
    if arguments.retain_model is None:
        return None
    model, processing_class = load_model(arguments.retain_model)
    result = evaluate_as_asked(
        model,
        processing_class,
        replace(arguments, retain_model=None),
        split,
        arguments.retain_model,
        dataset_name,
        cache_dir=cache_dir,
        show_progress=show_progress,
    )
    for metric in ("forget_quality", "privleak", "mia_reference_auc"):  # what compares with the retained model itself
        result["missing"].pop(metric, None)
    return result
