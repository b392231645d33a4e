"""MUSE: what a model still recites and knows of the texts to be forgotten, and whether it betrays that it has seen them."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.loading import commit_of, load_rows
from ..metrics import (
    MUSE_RETAIN_AUC,
    bootstrap_interval,
    exact_memorization,
    extraction_strength,
    knowmem,
    min_k_score,
    privleak,
    verbmem,
)
from .generate import Continuation
from .membership import membership_inference
from .plan import Plan
from .prompting import Prompting
from .provenance import cost, describe, shown_name
from .score import Completion
from .sets import EvaluationSet, nll_of
from .store import RowStore, is_sharded, model_digest


_EXTRA_METRICS = ("min_k_plus_plus", "gradnorm")
_VERBMEM_NEW_TOKENS = 128
_KNOWMEM_NEW_TOKENS = 32

# Configuration of each set and the names of its split, the Hub's of today first. An older upload has `retain2` for `retain`.
_SPLITS = {
    "forget_verbmem": ("verbmem", ("forget",)),
    "forget_knowmem": ("knowmem", ("forget_qa",)),
    "forget_knowmem_examples": ("knowmem", ("forget_qa_icl",)),
    "retain_knowmem": ("knowmem", ("retain_qa", "retain2_qa")),
    "retain_knowmem_examples": ("knowmem", ("retain_qa_icl", "retain2_qa_icl")),
    "forget": ("privleak", ("forget",)),
    "retain": ("privleak", ("retain", "retain2")),
    "holdout": ("privleak", ("holdout",)),
}
_COLUMNS = {"verbmem": ["prompt", "gt"], "knowmem": ["question", "answer"], "privleak": ["text"]}

# open-unlearning cuts what is continued, and worked examples with their question, at so many tokens
_MAX_CONTINUATION_LENGTH = 2048
_MAX_QUESTION_LENGTH = 512


def evaluate_muse(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    dataset_name: str | None = None,
    corpus: Literal["News", "Books"] = "News",
    revision: str | None = None,
    retained: dict[str, Any] | None = None,
    extra_metrics: Sequence[Literal["min_k_plus_plus", "gradnorm"]] = (),
    compat: Literal["open-unlearning"] | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    max_batch_tokens: int | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """
    Evaluates a model on [MUSE](https://huggingface.co/papers/2407.06460): VerbMem, KnowMem and PrivLeak, and extraction
    strength and exact memorisation of the same continuations.

    The protocol is that of MUSE's authors: prompts are plain text also for chat models, `"Answer: "` keeps the space at
    its end, ROUGE-L compares words and not stems, and true continuations are cut at 128 tokens, BOS counted in. Three
    things differ from their code. Documents are cut at 2,048 tokens. End tokens of the model's generation config end an
    answer, but its repetition penalty is left out. Log-probabilities are fp32 whatever the model's precision.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, on its device; sharded by FSDP2 or ZeRO-3, or whole on each process.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        dataset_name (`str`, *optional*):
            Id on the Hub, or folder in the same layout, with the configurations `verbmem`, `knowmem` and `privleak`.
            Defaults to `muse-bench/MUSE-News` or `muse-bench/MUSE-Books`.
        corpus (`str`, *optional*, defaults to `"News"`):
            `"News"` or `"Books"`.
        revision (`str`, *optional*):
            Branch, tag or commit of the data on the Hub.
        retained (`dict`, *optional*):
            Result of the retained model, as this function returns it or [`read_log`] reads it, for PrivLeak. Without it,
            PrivLeak is taken against the AUC that MUSE's authors measured of their retrained Llama-2-7B, which says
            nothing of another model; open-unlearning takes 0.5 there.
        extra_metrics (`list[str]`, *optional*):
            Further attacks: `"min_k_plus_plus"` and `"gradnorm"`, which takes a backward pass a document.
        compat (`str`, *optional*):
            `"open-unlearning"` reproduces that evaluator where it differs: ROUGE-L compares stems; true continuations are
            whole; a space is always put before the continuation that extraction strength and exact memorisation are
            about, and its last token left out, as is a document's in Min-K%; worked examples and question are cut at 512
            tokens; and what [`evaluate_unlearning`] says of it. Their chat prompts for chat models are not reproduced.
        cache_dir (`str` or `Path`, *optional*):
            Folder for finished rows, from which a run that was killed goes on.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to remove what is in `cache_dir` first.
        max_batch_tokens (`int`, *optional*):
            Size of a scoring batch in tokens: 2,048 on a CPU and 16,384 on an accelerator by default. It is halved as often
            as a batch does not fit in memory.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar over all that is scored and generated.

    Returns:
        `dict`: As [`evaluate_unlearning`] returns it. `summary` has `forget_verbmem`, `forget_knowmem`, `retain_knowmem`,
        `privleak` (per cent), `forget_extraction_strength`, `forget_exact_memorization` and `mia_*_auc` of forget against
        holdout texts. `rows` has the sets `forget_verbmem`, `forget_knowmem`, `retain_knowmem`, with prompts, answers and
        scores, and the attacks' scores of the texts `forget`, `retain` and `holdout`.

    Raises:
        ValueError: If a configuration has neither the split's present name nor its older one, lacks a column or has an
            empty row, or the retained model's result is of other texts.

    Example:

    ```python
    >>> result = evaluate_muse(model, tokenizer, corpus="Books")
    >>> result["summary"]["forget_verbmem"], result["summary"]["privleak"]
    ```
    """
    if corpus not in MUSE_RETAIN_AUC:
        raise ValueError(f"`corpus` is {corpus!r}; expected 'News' or 'Books'.")
    if compat not in (None, "open-unlearning"):
        raise ValueError(f"`compat` is {compat!r}; expected 'open-unlearning' or None on MUSE.")
    unknown = set(extra_metrics) - set(_EXTRA_METRICS)
    if unknown:
        raise ValueError(
            f"`extra_metrics` has {sorted(unknown)}; on MUSE expected some of {', '.join(_EXTRA_METRICS)}."
        )
    if "gradnorm" in extra_metrics and is_sharded(model):
        raise ValueError("`gradnorm` takes gradients of whole weights; leave it out where the model is sharded.")
    rows, data = _load(dataset_name or f"muse-bench/MUSE-{corpus}", revision)
    _check_retained(retained, data)

    prompting = Prompting(processing_class, "Question: {question}\nAnswer: {answer}", compat=compat)
    plan = Plan()
    questions = {
        name: _Questions(rows[name], rows[f"{name}_examples"], prompting, plan)
        for name in ("forget_knowmem", "retain_knowmem")
    }
    continuations = _Continuations(rows["forget_verbmem"], prompting, plan)
    documents = {
        name: EvaluationSet(name, rows[name], prompting, "question") for name in ("forget", "retain", "holdout")
    }
    for name, texts in documents.items():
        texts.ask(plan, max_new_tokens=0, moments=name != "retain" and "min_k_plus_plus" in extra_metrics)
        if "gradnorm" in extra_metrics and name != "retain":
            for document in texts.answers_without_end():
                plan.gradients(*document)

    digest = model_digest(model) if cache_dir is not None else None
    plan.run(
        model,
        processing_class,
        store=RowStore(Path(cache_dir) if cache_dir is not None else None, digest, overwrite),
        hidden_token_id=prompting.hidden_token_id,
        own_generation_config=compat is not None,
        max_batch_tokens=max_batch_tokens,
        show_progress=show_progress,
    )

    columns = {"forget_verbmem": continuations.columns(plan)}
    columns |= {name: asked.columns(plan) for name, asked in questions.items()}
    attacks = membership_inference(plan, documents["forget"], documents["holdout"], retained, extra_metrics)
    del attacks["rows"]["holdout"]["answer"]  # the whole text, as long as all the rest
    nll, num_tokens = nll_of(plan, documents["retain"].answers)
    kept = min_k_score(documents["retain"].content(plan, "log_probabilities"))
    columns["forget"] = attacks["rows"]["forget"]
    columns["retain"] = {"loss": (nll / num_tokens).tolist(), "min_k": kept["per_row"]}
    columns["holdout"] = attacks["rows"]["holdout"]
    if retained is None:
        del attacks["missing"]["privleak"]
        attacks["summary"]["privleak"] = privleak(
            columns["forget"]["min_k"],
            columns["holdout"]["min_k"],
            MUSE_RETAIN_AUC[corpus],
            auc_convention="muse",
            convention="exact" if compat is None else compat,
        )["privleak"]

    means = {name: columns[name]["score"] for name in ("forget_verbmem", "forget_knowmem", "retain_knowmem")}
    for metric in ("extraction_strength", "exact_memorization"):
        means[f"forget_{metric}"] = [value for value in columns["forget_verbmem"][metric] if value is not None]
    settings = describe(model, prompting, _VERBMEM_NEW_TOKENS, digest=digest)
    settings["conventions"] = _conventions(settings["conventions"], corpus if retained is None else None)
    settings["generation"]["max_new_tokens"] = {"verbmem": _VERBMEM_NEW_TOKENS, "knowmem": _KNOWMEM_NEW_TOKENS}
    settings["prompt"]["examples"] = {name: len(rows[f"{name}_examples"]) for name in questions}
    constant = f"AUC of Min-40% of MUSE's retrained Llama-2-7B, {MUSE_RETAIN_AUC[corpus]}"
    return {
        "schema": 1,
        "benchmark": "muse",
        "split": corpus,
        "summary": {name: float(np.mean(values)) for name, values in means.items()} | attacks["summary"],
        "intervals": {
            name: {key: value for key, value in bootstrap_interval(values).items() if key in ("n", "low", "high")}
            for name, values in means.items()
        },
        "missing": attacks["missing"],
        **settings,
        "data": data,
        **({"retain_reference": {"name": constant, "revision": None, "sha256": None}} if retained is None else {}),
        "cost": cost(plan),
        "rows": columns,
    }


class _Continuations:
    """VerbMem: beginnings of forget texts, to be continued, and how the texts go on."""

    def __init__(self, rows: Dataset, prompting: Prompting, plan: Plan):
        self.prompts: list[str] = rows["prompt"]
        self.prompting = prompting
        self.references: list[str] = []
        self.generations: list[Continuation] = []
        self.scores: list[Completion] = []
        for prompt, text in zip(rows["prompt"], rows["gt"], strict=True):
            prompt_ids = prompting.processing_class(prompt)["input_ids"]
            self.generations.append(plan.generate(prompt_ids, _VERBMEM_NEW_TOKENS))
            if prompting.compat is None:
                gap = "" if prompt[-1].isspace() or text[0].isspace() else " "
                scored = prompting.encode(prompt, gap + text)
                reference_ids = prompting.processing_class(text)["input_ids"][:_VERBMEM_NEW_TOKENS]
                self.references.append(_decode(reference_ids, prompting))
            else:
                scored = _continuation_as_they_do(prompt, " " + text, prompting.processing_class)
                self.references.append(_without_prompt(scored[1], prompt_ids, prompting))
            self.scores.append(plan.score(*scored))

    def columns(self, plan: Plan) -> dict[str, list]:
        generated = [_decode(plan.generations[prompt], self.prompting) for prompt in self.generations]
        lengths = [len(self.prompting.without_end(completion_ids)) for _, completion_ids in self.scores]
        matches = [plan.scores[score]["matches"][:length] for score, length in zip(self.scores, lengths, strict=True)]
        return {
            "prompt": list(self.prompts),
            "answer": self.references,
            "generated": generated,
            "score": verbmem(generated, self.references, self.prompting.compat or "muse")["per_row"],
            "extraction_strength": extraction_strength(matches, self.prompting.compat or "exact")["per_row"],
            "exact_memorization": exact_memorization(matches)["per_row"],
        }


class _Questions:
    """KnowMem: questions, each after the same worked examples."""

    def __init__(self, rows: Dataset, examples: Dataset, prompting: Prompting, plan: Plan):
        tokenizer = self.tokenizer = prompting.processing_class
        self.questions: list[str] = list(rows["question"])
        self.prompting = prompting
        self.prompts: list[str] = []
        self.references: list[str] = []
        self.generations: list[Continuation] = []
        shown = "".join(
            prompting.template.format(question=question, answer=answer) + "\n\n"
            for question, answer in zip(examples["question"], examples["answer"], strict=True)
        )
        limit = {} if prompting.compat is None else {"max_length": _MAX_QUESTION_LENGTH, "truncation": True}
        for question, answer in zip(rows["question"], rows["answer"], strict=True):
            prompt = shown + prompting.template.format(question=question, answer="")
            prompt_ids = tokenizer(prompt, **limit)["input_ids"]
            self.prompts.append(prompt)
            self.generations.append(plan.generate(prompt_ids, _KNOWMEM_NEW_TOKENS))
            if prompting.compat is not None:
                answer = _without_prompt(tokenizer(prompt + answer, **limit)["input_ids"], prompt_ids, prompting)
            self.references.append(answer)

    def columns(self, plan: Plan) -> dict[str, list]:
        generated = [_decode(plan.generations[prompt], self.prompting) for prompt in self.generations]
        return {
            "question": self.questions,
            "prompt": self.prompts,
            "answer": self.references,
            "generated": generated,
            "score": knowmem(generated, self.references, self.prompting.compat or "muse")["per_row"],
        }


def _load(dataset_name: str, revision: str | None) -> tuple[dict[str, Dataset], dict[str, dict[str, Any]]]:
    """The sets, and where each came from."""
    configs: dict[str, DatasetDict] = {
        config: load_rows(dataset_name, config, split=None, revision=revision) for config in _COLUMNS
    }
    rows, data = {}, {}
    for name, (config, splits) in _SPLITS.items():
        there = configs[config]
        split = next((split for split in splits if split in there), None)
        if split is None:
            raise ValueError(
                f"{dataset_name}, configuration `{config}`, has the splits {', '.join(there)}; expected one named "
                f"{' or '.join(f'`{split}`' for split in splits)}."
            )
        missing = [column for column in _COLUMNS[config] if column not in there[split].column_names]
        if missing:
            raise ValueError(
                f"{dataset_name}, configuration `{config}`, split `{split}`, has the columns "
                f"{', '.join(there[split].column_names)}; expected {' and '.join(f'`{column}`' for column in missing)} too."
            )
        rows[name] = there[split].select_columns(_COLUMNS[config])
        for index, row in enumerate(rows[name]):
            for column, text in row.items():
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(
                        f"Row {index} of {dataset_name}, configuration `{config}`, split `{split}`, column `{column}`, is "
                        f"{text!r}; expected a text that is not empty."
                    )
        data[name] = {
            "dataset": shown_name(dataset_name),
            "config": config,
            "split": split,
            "revision": commit_of(there[split]),
            "n": len(rows[name]),
            "sha256": sha256("\n".join(json.dumps(row, sort_keys=True) for row in rows[name]).encode()).hexdigest(),
        }
    return rows, data


def _check_retained(retained: dict[str, Any] | None, data: dict[str, dict[str, Any]]) -> None:
    for name in ("forget", "holdout") if retained is not None else ():
        theirs = retained.get("data", {}).get(name, {})  # logs of other evaluators do not say
        n = len(retained["rows"].get(name, {}).get("min_k", ())) or data[name]["n"]
        if n != data[name]["n"] or theirs.get("sha256", data[name]["sha256"]) != data[name]["sha256"]:
            raise ValueError(
                f"The retained model's result is of {n} {name} texts of {theirs.get('dataset') or 'unknown data'}, and this "
                f"evaluation of {data[name]['n']} others of {data[name]['dataset']}: their AUCs cannot be compared. Evaluate "
                "the retained model on the same data."
            )


def _continuation_as_they_do(
    prompt: str, text: str, processing_class: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """The prompt is as many tokens as it has by itself, whether or not these are the first of the whole."""
    length = len(processing_class(prompt)["input_ids"])
    ids = processing_class(prompt + text)["input_ids"][: length + _MAX_CONTINUATION_LENGTH]
    return ids[:length], ids[length:]


def _decode(ids: Sequence[int], prompting: Prompting) -> str:
    # open-unlearning cleans what it decodes
    clean = {"clean_up_tokenization_spaces": True} if prompting.compat is not None else {}
    return prompting.processing_class.decode(ids, skip_special_tokens=True, **clean)


def _without_prompt(ids: list[int], prompt_ids: list[int], prompting: Prompting) -> str:
    return _decode(ids, prompting).replace(_decode(prompt_ids, prompting), "").strip()


def _conventions(settings: dict[str, Any], constant_of: str | None) -> dict[str, Any]:
    theirs = settings["compat"] is not None
    return {
        **{key: settings[key] for key in ("compat", "attention_mask", "softmax", "extraction_strength")},
        "rouge": "ROUGE-L F1 of " + ("stems" if theirs else "words as they stand"),
        "verbmem": f"continuations of {_VERBMEM_NEW_TOKENS} tokens, compared with "
        + ("the whole true one" if theirs else f"the true one's first {_VERBMEM_NEW_TOKENS} tokens, BOS counted in"),
        "knowmem": f"answers of {_KNOWMEM_NEW_TOKENS} tokens after worked examples, cut at a blank line or `Question:`"
        + (f"; prompts cut at {_MAX_QUESTION_LENGTH} tokens" if theirs else ""),
        "memorization": "the whole true continuation after a space" + (", its last token left out" if theirs else ""),
        "min_k": "the least probable 40 % of the tokens of documents cut at 2,048 tokens"
        + (" after BOS, the last token left out" if theirs else ""),
        "privleak": "against the given retained model's AUC"
        if constant_of is None
        else f"against the AUC {MUSE_RETAIN_AUC[constant_of]} that MUSE's authors measured of Llama-2-7B retrained without "
        f"the {constant_of} forget set; valid for unlearned versions of their MUSE-{constant_of}_target only",
    }
