"""The metrics of an unlearned model, from one scoring pass and one generation pass over all its sets together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..metrics import (
    bootstrap_interval,
    forget_quality,
    model_utility,
    self_confidence,
    text_cleanness,
    truth_ratio,
)
from .cleanness import clean_probabilities
from .membership import membership_inference
from .plan import Plan
from .prompting import Compat, Prompting
from .provenance import cost, describe
from .sets import EvaluationSet, nll_of
from .store import RowStore, is_sharded, model_digest


logger = logging.get_logger(__name__)

ExtraMetric = Literal["min_k_plus_plus", "gradnorm", "self_confidence", "text_cleanness"]
# What model utility is the mean of, for each set to be kept
_UTILITY = ("probability", "rougeL_recall", "truth_ratio")
EXTRA_METRICS = ("min_k_plus_plus", "gradnorm", "self_confidence", "text_cleanness")


def evaluate_unlearning(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    forget: Dataset,
    retain: Dataset | None = None,
    utility_sets: dict[str, Dataset] | None = None,
    holdout: Dataset | None = None,
    retained: dict[str, Any] | None = None,
    extra_metrics: Sequence[ExtraMetric] = (),
    truth_ratio_question: Literal["question", "paraphrased_question"] = "question",
    max_new_tokens: int = 200,
    grammar: ModuleType | None = None,
    question_answer_template: str | None = None,
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    compat: Compat | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    max_batch_tokens: int | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """
    Evaluates a model on a forget set, a retain set and what else it should keep.

    The metrics are those that the columns allow; what is left out is named with the reason. Every distinct prompt and
    completion is computed once, on all processes of an `accelerate launch`, and each process returns the same result.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, on its device; sharded by FSDP2 or ZeRO-3, or whole on each process.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        forget ([`~datasets.Dataset`]):
            Rows in any format that the trainers accept. `question`/`answer` rows may have the columns of TOFU's
            `*_perturbed` sets, which truth ratios take: `perturbed_answer`, a list of wrong answers, and maybe
            `paraphrased_question`, `paraphrased_answer`. Where the paraphrase is missing the answer stands for it.
        retain ([`~datasets.Dataset`], *optional*):
            The same for facts to be kept.
        utility_sets (`dict[str, Dataset]`, *optional*):
            Further sets to be kept, by the name their metrics start with. As for TOFU's real authors and world facts,
            their probability is normalised by the perturbed answers'.
        holdout ([`~datasets.Dataset`], *optional*):
            Rows like the forget set's that no model has seen, for membership inference.
        retained (`dict`, *optional*):
            Result of the retained model, as this function returns it or [`read_log`] reads it, for forget quality,
            PrivLeak, the reference attack and the KS test of text cleanness.
        extra_metrics (`list[str]`, *optional*):
            Metrics that cost more: `"min_k_plus_plus"` and `"gradnorm"` (membership inference; the latter takes a
            backward pass a row), `"self_confidence"` (scores the generated answers) and `"text_cleanness"` (downloads a
            classifier).
        truth_ratio_question (`str`, *optional*, defaults to `"question"`):
            Column with the question that paraphrased and perturbed answers reply to. TOFU asks `"question"`; the
            embedded world's answers fit only `"paraphrased_question"`.
        max_new_tokens (`int`, *optional*, defaults to `200`):
            Longest generated answer.
        grammar (`ModuleType`, *optional*):
            `trl_unlearn.world.grammar` for rows of the embedded world: adds the shares of generated forget answers that
            are well-formed and that leak the true value.
        question_answer_template (`str`, *optional*):
            How questions and answers are written as text, for example `"[INST] {question} [/INST]{answer}"`. By default
            they are a chat, or `"Question: {question}\\nAnswer: {answer}"` for a tokenizer without a chat template.
        system_prompt (`str`, *optional*):
            First message of every chat.
        chat_template_kwargs (`dict`, *optional*):
            What the chat template is given beside the messages, for example `{"date_string": "10 Apr 2025"}`.
        compat (`str`, *optional*):
            `"open-unlearning"` or `"tofu"` reproduces that evaluator where it differs. open-unlearning hides every token
            that equals its padding token, EOS included where that is the padding; adds 1e-10 in ratios; gives a wrong
            answer an extraction strength of 1/n; leaves the model's own repetition penalty in. TOFU takes the first 300
            rows of each set, cuts them at 200 tokens and generates up to 200 tokens, the prompt counted in.
        cache_dir (`str` or `Path`, *optional*):
            Folder for finished rows, from which a run that was killed goes on. They are found by the content of the
            weights, whose hash takes about a second per 1.5 GB.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to remove what is in `cache_dir` first.
        max_batch_tokens (`int`, *optional*):
            Size of a scoring batch in tokens: 2,048 on a CPU and 16,384 on an accelerator by default. It is halved as often
            as a batch does not fit in memory.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar over all that is scored and generated.

    Returns:
        `dict`: Plain numbers, lists and texts.
        - `summary`: one number per metric, as `forget_probability` or `model_utility`.
        - `intervals`: for each that is a mean over rows, `n` and the 95 % bootstrap interval `low`, `high`.
        - `forget_quality`: of [`metrics.forget_quality`], if there is a retained model's result.
        - `missing`: the metrics that are left out, with the reason.
        - `conventions`, `prompt`, `generation`, `data`, `model`, `versions`: what the numbers depend on.
        - `cost`: what was computed, over all processes.
        - `rows`: for each set columns with one value a row.

    Raises:
        ValueError: If a row cannot be evaluated, by its number and column, or the retained model's result is of other
            rows.

    Example:

    ```python
    >>> retained_result = evaluate_unlearning(retained_model, tokenizer, forget, retain)
    >>> result = evaluate_unlearning(model, tokenizer, forget, retain, retained=retained_result)
    >>> result["forget_quality"]["log10_p_value"], result["summary"]["model_utility"]
    ```
    """
    unknown = set(extra_metrics) - set(EXTRA_METRICS)
    if unknown:
        raise ValueError(f"`extra_metrics` has {sorted(unknown)}; expected some of {', '.join(EXTRA_METRICS)}.")
    if "gradnorm" in extra_metrics and is_sharded(model):
        raise ValueError("`gradnorm` takes gradients of whole weights; leave it out where the model is sharded.")
    prompting = Prompting(processing_class, question_answer_template, system_prompt, chat_template_kwargs, compat)
    if not prompting.is_chat and question_answer_template is None:
        logger.warning(
            f"The tokenizer has no chat template: questions are asked as {prompting.template!r}. If the model was trained "
            "otherwise, give `question_answer_template`."
        )
    kept = {**({"retain": retain} if retain is not None else {}), **(utility_sets or {})}
    datasets = {"forget": forget, **kept, **({"holdout": holdout} if holdout is not None else {})}
    sets = {name: EvaluationSet(name, dataset, prompting, truth_ratio_question) for name, dataset in datasets.items()}
    plan = Plan()
    for name, rows in sets.items():
        is_attacked = holdout is not None and name in ("forget", "holdout")
        moments = is_attacked and "min_k_plus_plus" in extra_metrics
        rows.ask(plan, max_new_tokens, answers_only=name == "holdout", moments=moments)
        if is_attacked and "gradnorm" in extra_metrics:
            for answer in rows.answers_without_end():
                plan.gradients(*answer)
    _check_retained(retained, sets["forget"])

    digest = model_digest(model) if cache_dir is not None else None
    options = {
        "store": RowStore(Path(cache_dir) if cache_dir is not None else None, digest, overwrite),
        "hidden_token_id": prompting.hidden_token_id,
        "own_generation_config": compat == "open-unlearning",
        "max_batch_tokens": max_batch_tokens,
        "show_progress": show_progress,
    }
    plan.run(model, processing_class, **options)

    findings = Findings()
    for name in [name for name in sets if name != "holdout"]:
        _add_set(findings, sets[name], plan)
    _add_model_utility(findings, list(kept))
    if holdout is not None:
        attacks = membership_inference(plan, sets["forget"], sets["holdout"], retained, extra_metrics)
        findings.summary |= attacks["summary"]
        findings.missing |= attacks["missing"]
        for name, columns in attacks["rows"].items():
            findings.rows.setdefault(name, {}).update(columns)
        if sets["holdout"].has_truth_ratio:
            findings.rows["holdout"] |= sets["holdout"].truth_ratios(plan)
    else:
        reason = "membership inference and PrivLeak take a holdout set, of rows that no model has seen"
        findings.missing["privleak"] = reason
    quality = _forget_quality(findings, retained, prompting.convention)
    if "self_confidence" in extra_metrics and sets["forget"].prompts:
        generated = [plan.score(prompt[0], plan.generations[prompt]) for prompt in sets["forget"].prompts]
        plan.run(model, processing_class, **options)
        confidence = self_confidence(*nll_of(plan, generated))
        findings.add("self_confidence", confidence["per_row"])
        findings.add("self_confidence_unnormalized", confidence["per_row_unnormalized"])
    if "text_cleanness" in extra_metrics and sets["forget"].prompts:
        _add_text_cleanness(findings, retained)
    if grammar is not None:
        facts = [(row["attribute"], row["value"]) for row in sets["forget"].dataset]
        texts = findings.rows["forget"]["generated"]
        well_formed = [
            grammar.is_well_formed(text, attribute) for text, (attribute, _) in zip(texts, facts, strict=True)
        ]
        leaked = [grammar.leaks(text, value) for text, (_, value) in zip(texts, facts, strict=True)]
        for metric, values in (("well_formed", well_formed), ("leaked", leaked)):
            findings.rows["forget"][metric] = values
            findings.add(metric, values)
    return {
        "schema": 1,
        "summary": findings.summary,
        "intervals": findings.intervals,
        **({"forget_quality": quality} if quality is not None else {}),
        "missing": findings.missing,
        **describe(model, prompting, max_new_tokens, truth_ratio_question, digest),
        "data": {name: {"n": len(rows.dataset), "sha256": rows.digest()} for name, rows in sets.items()},
        "cost": cost(plan),
        "rows": findings.rows,
    }


@dataclass
class Findings:
    """What an evaluation has found so far: rows, and the metrics that are made of them."""

    rows: dict[str, dict[str, list]] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, metric: str, values: list) -> None:
        """Adds a metric that is the mean of `values`, one a row, `None` where a row has none."""
        interval = bootstrap_interval([value for value in values if value is not None])
        self.summary[metric] = interval["mean"]
        self.intervals[metric] = {key: interval[key] for key in ("n", "low", "high")}


def _add_set(findings: Findings, rows: EvaluationSet, plan: Plan) -> None:
    is_utility_set = rows.name not in ("forget", "retain")
    columns, means = rows.metrics(plan, normalize=is_utility_set)
    findings.rows[rows.name] = columns
    findings.missing |= rows.missing()
    for metric, values in means.items():
        if not is_utility_set or metric in _UTILITY:
            findings.add(f"{rows.name}_{metric}", values)


def _add_model_utility(findings: Findings, kept: list[str]) -> None:
    """Harmonic mean of what there is, with truth ratios of either mean over the perturbed answers."""
    metrics = [f"{name}_{metric}" for name in kept for metric in _UTILITY if f"{name}_{metric}" in findings.summary]
    if not metrics:
        findings.missing["model_utility"] = "there is no retain set and no other set to be kept"
        return
    scores = {metric: findings.summary[metric] for metric in metrics}
    findings.summary["model_utility"] = model_utility(list(scores.values()))["model_utility"]
    for name in kept:
        if f"{name}_truth_ratio" in scores:
            losses = (findings.rows[name][column] for column in ("paraphrased_loss", "perturbed_loss"))
            ratio = truth_ratio(*losses, aggregation="retain", perturbed_mean="arithmetic")
            scores[f"{name}_truth_ratio"] = ratio["truth_ratio"]
    findings.summary["model_utility_arithmetic"] = model_utility(list(scores.values()))["model_utility"]


def _forget_quality(
    findings: Findings, retained: dict[str, Any] | None, convention: str
) -> dict[str, float | int] | None:
    if "truth_ratio" not in findings.rows["forget"]:
        reason = "the forget set has no wrong answers (column `perturbed_answer`) to compare with"
        findings.missing["forget_quality"] = reason
    elif retained is None:
        reason = "it takes the results of the retained model, trained without the forget set"
        findings.missing["forget_quality"] = reason
    else:
        theirs = retained["rows"]["forget"]
        ratios = theirs["truth_ratio"]
        if "perturbed_loss" in theirs:  # whatever its evaluator added to denominators, this one's convention holds
            losses = theirs["paraphrased_loss"], theirs["perturbed_loss"]
            ratios = truth_ratio(*losses, convention=convention)["per_row"]
        return forget_quality(findings.rows["forget"]["truth_ratio"], ratios)
    return None


def _add_text_cleanness(findings: Findings, retained: dict[str, Any] | None) -> None:
    clean = clean_probabilities(findings.rows["forget"]["generated"])
    findings.rows["forget"]["text_cleanness"] = clean
    findings.add("text_cleanness", clean)
    theirs = (retained or {"rows": {"forget": {}}})["rows"]["forget"].get("text_cleanness")
    if theirs is not None:
        findings.summary["text_cleanness_log10_p"] = text_cleanness(clean, theirs)["log10_p_value"]
    else:
        reason = "it takes the cleanness of the retained model's answers"
        findings.missing["text_cleanness_log10_p"] = reason


def _check_retained(retained: dict[str, Any] | None, forget: EvaluationSet) -> None:
    if retained is None or not forget.has_truth_ratio:
        return
    ratios = retained["rows"].get("forget", {}).get("truth_ratio")
    if ratios is None:
        raise ValueError(
            "The retained model's result has no truth ratios of the forget set, which forget quality takes."
        )
    if len(ratios) != len(forget.dataset):
        raise ValueError(
            f"The retained model's result has {len(ratios)} forget rows and this evaluation {len(forget.dataset)}: they are "
            "of different splits or evaluators, and cannot be compared. Evaluate the retained model on the same forget "
            "set."
        )
    questions = retained["rows"]["forget"].get("question")
    if questions is not None and "question" in forget.texts[0]:
        for index, (theirs, texts) in enumerate(zip(questions, forget.texts, strict=True)):
            if texts["question"] not in theirs:
                raise ValueError(
                    f"Row {index} of the forget set is another question than row {index} of the retained model's result: "
                    "they are of different splits, and cannot be compared."
                )
