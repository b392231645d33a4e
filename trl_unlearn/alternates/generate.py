"""The model to be unlearned, or another, writes alternates; what is no good is rejected, counted and drawn again."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.joining import with_alternates
from ..evaluation.generate import generation_settings
from ..evaluation.plan import Plan
from ..evaluation.prompting import Prompting
from ..evaluation.provenance import cost
from ..evaluation.sampling import Sampling
from ..evaluation.store import RowStore, model_digest
from .filters import REASONS, reason_to_reject
from .idk import draw_idk_answers
from .instructions import check_examples, check_instruction, encode_request
from .rows import AlternateRow, read_rows


# Many small batches: they are dealt to the processes, and a run that is killed loses those that it was at
_MAX_BATCH_TOKENS = {"cpu": 8192}
_MAX_BATCH_TOKENS_ON_ACCELERATOR = 32768
_LABEL = re.compile(r"\A(?:the |a )?(?:new |other |different |alternate |alternative )?answer\s*:\s*", re.IGNORECASE)


class MissingAlternatesError(ValueError):
    """
    Some rows still lack alternates. The message says which, why, and what to do.

    Args:
        message (`str`):
            Message.
        dataset ([`~datasets.Dataset`]):
            The forget set with the alternates that there are, for some rows fewer than asked for.
        report (`dict`):
            Counts and settings.
    """

    def __init__(self, message: str, dataset: Dataset, report: dict[str, Any]):
        super().__init__(message)
        self.dataset = dataset
        self.report = report


def generate_alternates(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    dataset: Dataset,
    num_alternates: int = 5,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 200,
    max_rounds: int = 5,
    instruction: str | None = None,
    examples: Sequence[dict[str, str]] = (),
    question_answer_template: str | None = None,
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    stop_strings: Sequence[str] = (),
    max_similarity: float = 0.9,
    max_fact_recall: float = 0.5,
    fill_with_idk: bool = False,
    idk_answers: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    max_batch_tokens: int | None = None,
    show_progress: bool = True,
) -> tuple[Dataset, dict[str, Any]]:
    """
    Lets a model write alternate answers to the questions of a forget set, as AltPO takes them.

    The model sees question and answer and is asked for another answer. Each sample is drawn with random numbers of its own,
    which depend on `seed`, the prompt and the number of the repeat, so that neither batches nor the number of processes nor
    a kill change what is drawn. (Logits that round in another way do so about once in a million tokens in fp32; any number of
    processes computes the same batches, and so the same bits.) All processes of an `accelerate launch` share the work, and
    each returns the result. Nothing is taken from the model's own generation settings but its end tokens.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model that follows instructions, on its device; the AltPO authors take the one to be unlearned.
            Sharded by FSDP2 or ZeRO-3, or whole on each process.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        dataset ([`~datasets.Dataset`]):
            Forget set: `question`/`answer`, `prompt`/`completion` or `messages` rows.
        num_alternates (`int`, *optional*, defaults to `5`):
            Number of alternates a row.
        seed (`int`, *optional*, defaults to `0`):
            Seed.
        temperature (`float`, *optional*, defaults to `1.0`):
            What logits are divided by.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of the probability that the tokens to draw from have together.
        top_k (`int`, *optional*, defaults to `0`):
            Number of tokens to draw from; 0 for all.
        max_new_tokens (`int`, *optional*, defaults to `200`):
            Longest alternate. A sample that has not ended there is rejected.
        max_rounds (`int`, *optional*, defaults to `5`):
            How often is drawn: in each round as many samples as a row lacks alternates.
        instruction (`str`, *optional*):
            `"short"`, `"long"`, or a text with the fields `{question}` and `{answer}`. If `None`, `"short"` for answers
            of up to 8 words and else `"long"`.
        examples (`list[dict[str, str]]`, *optional*):
            Worked examples to show first, each with the texts `question`, `answer` and `alternate`.
        question_answer_template (`str`, *optional*):
            Text with the fields `{question}`, in whose place the instruction stands, and `{answer}`, for example
            `"[INST] {question} [/INST]{answer}"`. Needed for a tokenizer without a chat template.
        system_prompt (`str`, *optional*):
            First message of every chat.
        chat_template_kwargs (`dict`, *optional*):
            What the chat template is given beside the messages, for example `{"date_string": "10 Apr 2025"}`.
        stop_strings (`list[str]`, *optional*):
            Texts at the first of which a sample is cut, and counts as ended.
        max_similarity (`float`, *optional*, defaults to `0.9`):
            ROUGE-L F1 with the answer, or with an alternate of the same row, above which a sample is rejected.
        max_fact_recall (`float`, *optional*, defaults to `0.5`):
            Share of the answer's own words, see [`alternates.filters.fact_recall`], above which a sample is rejected. Of
            TOFU's wrong answers 3 % have more than 0.5, and of its paraphrases of the true answer 55 %.
        fill_with_idk (`bool`, *optional*, defaults to `False`):
            Whether rows that still lack alternates get answers that say "I do not know", instead of an error.
        idk_answers (`list[str]`, *optional*):
            Answers to fill with, in place of this package's.
        cache_dir (`str` or `Path`, *optional*):
            Folder for finished samples, from which a run that was killed goes on.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to remove what is in `cache_dir` first.
        max_batch_tokens (`int`, *optional*):
            Size of a batch in tokens, prompts and new ones together: 8,192 on a CPU and 32,768 on an accelerator by default.
            It is halved as often as a batch does not fit in memory.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `tuple`: The forget set with a column `alternates` (a list of texts), and a report, a `dict`:
        - `rows`, `num_alternates`, `samples` (how many were drawn), `kept`, `filled` (with "I do not know"), `rounds`;
        - `rejected`: by reason, the number of samples, see `alternates.filters.REASONS`; `cut`: those cut at a stop string;
        - `settings`, and `cost`: what was computed and not found in `cache_dir`.

    Raises:
        MissingAlternatesError: If rows lack alternates after the last round.
        ValueError: If the set, a row or an option is no good.

    Example:

    ```python
    >>> forget, report = generate_alternates(model, tokenizer, load_dataset("locuslab/TOFU", "forget10", split="train"))
    >>> trainer = AltPOTrainer(model, args=AltPOConfig("altpo"), train_dataset=forget, retain_dataset=retain)
    ```
    """
    rows = read_rows(dataset, num_alternates)
    if max_rounds < 1:
        raise ValueError(f"`max_rounds` is {max_rounds}; expected 1 or more.")
    check_instruction(instruction)
    check_examples(examples)
    sampling = Sampling(seed, temperature, top_p, top_k)
    prompting = Prompting(processing_class, question_answer_template, system_prompt, chat_template_kwargs)
    if not prompting.is_chat and question_answer_template is None:
        raise ValueError(
            "The tokenizer has no chat template, so that it is not known how this model is asked for something. Give "
            "`question_answer_template`, a text with the fields {question}, in whose place the instruction stands, and "
            "{answer}, as '[INST] {question} [/INST]{answer}' or 'Question: {question}\\nAnswer: {answer}'."
        )
    requests = [encode_request(row.question, row.answer, prompting, instruction, examples) for row in rows]
    _check_lengths(model, processing_class, rows, requests, max_new_tokens)

    digest = model_digest(model) if cache_dir is not None else None
    store = RowStore(Path(cache_dir) if cache_dir is not None else None, digest, overwrite)
    if max_batch_tokens is None:
        max_batch_tokens = _MAX_BATCH_TOKENS.get(model.device.type, _MAX_BATCH_TOKENS_ON_ACCELERATOR)
    end_token_ids = set(generation_settings(model, processing_class)["eos_token_id"])
    stop = re.compile("|".join(map(re.escape, stop_strings))) if stop_strings else None
    plan, rejected = Plan(), Counter(dict.fromkeys(REASONS, 0))
    num_cut = num_rounds = 0
    while num_rounds < max_rounds and (lacking := [row for row in rows if len(row.kept) < num_alternates]):
        num_rounds += 1
        asked = []
        for row in lacking:
            repeats = range(row.num_drawn, row.num_drawn + num_alternates - len(row.kept))
            asked += [(row, plan.generate(requests[row.index], max_new_tokens, repeat)) for repeat in repeats]
            row.num_drawn = repeats.stop
        plan.run(
            model,
            processing_class,
            store,
            sampling=sampling,
            max_generation_tokens=max_batch_tokens,
            show_progress=show_progress,
            description="Alternates" if num_rounds == 1 else f"Alternates again ({num_rounds} of {max_rounds})",
        )
        for row, key in asked:
            new_ids = plan.generations[key]
            text = processing_class.decode(new_ids, skip_special_tokens=True)
            cut = stop.search(text) if stop else None
            if cut:
                text = text[: cut.start()]
                num_cut += 1
            text = _clean(text)
            reason = "unfinished" if not cut and new_ids[-1] not in end_token_ids else None
            reason = reason or reason_to_reject(
                text, row.question, row.answer, row.kept, max_similarity, max_fact_recall
            )
            if reason is None:
                row.kept.append(text)
            else:
                rejected[reason] += 1

    report = {
        "source": "model",
        "rows": len(rows),
        "num_alternates": num_alternates,
        "samples": sum(row.num_drawn for row in rows),
        "kept": sum(len(row.kept) for row in rows),
        "filled": 0,
        "rejected": dict(rejected),
        "cut": num_cut,
        "rounds": num_rounds,
        "settings": {
            "seed": seed,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_new_tokens": max_new_tokens,
            "max_rounds": max_rounds,
            "instruction": instruction or "by length of the answer",
            "examples": len(examples),
            "prompt": "the tokenizer's chat template" if prompting.is_chat else prompting.template,
            "system_prompt": system_prompt,
            "chat_template_kwargs": chat_template_kwargs,
            "stop_strings": list(stop_strings),
            "max_similarity": max_similarity,
            "max_fact_recall": max_fact_recall,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "cost": cost(plan),
    }
    lacking = [row for row in rows if len(row.kept) < num_alternates]
    if lacking and not fill_with_idk:
        there = with_alternates(dataset, [row.alternates for row in rows])
        raise MissingAlternatesError(_what_is_missing(lacking, report), there, report)
    for row in lacking:
        idk = draw_idk_answers(row, num_alternates - len(row.kept), seed, idk_answers)
        row.kept += idk
        report["filled"] += len(idk)
    return with_alternates(dataset, [row.alternates for row in rows]), report


def _check_lengths(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    rows: list[AlternateRow],
    requests: list[list[int]],
    max_new_tokens: int,
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"`max_new_tokens` is {max_new_tokens}; expected 1 or more.")
    lengths = processing_class([row.answer for row in rows], add_special_tokens=False, return_length=True)["length"]
    num_longer = sum(length >= max_new_tokens for length in lengths)
    if 2 * num_longer > len(rows):
        raise ValueError(
            f"`max_new_tokens` is {max_new_tokens}, and {num_longer} of the {len(rows)} answers are longer (up to "
            f"{max(lengths)} tokens), so that an alternate as long as the answer could not be finished. Give "
            f"`max_new_tokens` {max(lengths) * 3 // 2} or more."
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for row, prompt_ids in zip(rows, requests, strict=True):
        if limit is not None and len(prompt_ids) + max_new_tokens > limit:
            raise ValueError(
                f"Row {row.index} of the forget set: the request for an alternate has {len(prompt_ids)} tokens, and with "
                f"{max_new_tokens} new ones (`max_new_tokens`) it is longer than the {limit} that the model was made for. "
                "Shorten `max_new_tokens`, the examples or the instruction, or take another model."
            )


def _clean(text: str) -> str:
    """Without a label or quotation marks around it, which models like to add."""
    text = _LABEL.sub("", text.strip())
    if len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("“", "”")) and not set('"“”') & set(text[1:-1]):
        text = text[1:-1].strip()
    return text


def _what_is_missing(lacking: list[AlternateRow], report: dict[str, Any]) -> str:
    shown = ", ".join(f"{row.index} ({len(row.kept)})" for row in lacking[:20]) + (", …" if len(lacking) > 20 else "")
    counts = ", ".join(f"{number} {REASONS[reason]}" for reason, number in report["rejected"].items() if number)
    reason = max(report["rejected"], key=report["rejected"].get)
    advice = {
        "unfinished": "The model does not end its answers: raise `max_new_tokens`, give `stop_strings`, or take a model that "
        "follows instructions (any other may write the alternates).",
        "duplicate": "The model repeats itself: raise `temperature`, or ask for fewer alternates.",
    }.get(
        reason,
        "The model does not follow the instruction: take one that follows instructions (any other may write the alternates), "
        "or show it `examples`.",
    )
    return (
        f"{len(lacking)} of {report['rows']} rows have fewer than {report['num_alternates']} alternates after round "
        f"{report['rounds']}: row (with how many) {shown}. Without alternates they would not be forgotten. Of "
        f"{report['samples']} samples {report['kept']} were kept; rejected: {counts}. {advice} If few are missing, raise "
        "`max_rounds`; or fill up with answers that say “I do not know” (`fill_with_idk`)."
    )
