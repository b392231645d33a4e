"""leak@k: what the worst of k drawn answers gives away, where the greedy one gives nothing away."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.plan import Plan
from ..evaluation.prompting import Prompting
from ..evaluation.sampling import Sampling
from ..evaluation.sets import EvaluationSet
from ..evaluation.store import RowStore
from ..metrics import bootstrap_interval, rouge_l
from .not_applicable import NotApplicable


def leak_at_k(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    forget: Dataset,
    prompting: Prompting,
    counts: Sequence[int] = (1, 4, 16),
    seed: int = 0,
    max_new_tokens: int = 200,
    grammar: ModuleType | None = None,
    store: RowStore | None = None,
    max_batch_tokens: int | None = None,
    show_progress: bool = True,
) -> dict[int, dict[str, Any]]:
    r"""
    Draws answers at temperature 1, and takes the worst of the first k of each question.

    One set of `max(counts)` answers gives all k, so that leak@k never falls with k. An answer is drawn with random numbers
    that depend on `seed`, the prompt and the number of the answer alone, see [`~evaluation.sampling.Sampling`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, on its device.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        forget ([`~datasets.Dataset`]):
            Forget set, of any format but documents.
        prompting ([`Prompting`]):
            How rows become tokens.
        counts (`Sequence[int]`, *optional*, defaults to `(1, 4, 16)`):
            Each k.
        seed (`int`, *optional*, defaults to `0`):
            Seed.
        max_new_tokens (`int`, *optional*, defaults to `200`):
            Longest answer.
        grammar (`ModuleType`, *optional*):
            `trl_unlearn.world.grammar` for rows of the embedded world, which knows whether an answer tells the true value.
        store ([`RowStore`], *optional*):
            Where drawn answers are kept.
        max_batch_tokens (`int`, *optional*):
            As for [`evaluate_unlearning`].
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict[int, dict]`: By k, `summary` and `intervals` as of [`evaluate_unlearning`]: `forget_rougeL_recall`, the mean
        over the rows of the highest ROUGE-L recall of the true answer among k answers, and with `grammar` `leaked`, the
        share of rows of which any of k answers tells the true value.

    Raises:
        NotApplicable: If the set has documents, which nothing asks for.

    Example:

    ```python
    >>> leak_at_k(model, tokenizer, forget, Prompting(tokenizer))[16]["summary"]["forget_rougeL_recall"]
    ```
    """
    asked = EvaluationSet("forget", forget, prompting, "question")
    if not asked.has_prompts:
        raise NotApplicable("the forget set has documents (column `text`), which nothing asks for")
    asked.ask(Plan(), max_new_tokens)
    plan = Plan()
    keys = [
        [plan.generate(list(prompt_ids), limit, repeat) for repeat in range(max(counts))]
        for prompt_ids, limit in asked.prompts
    ]
    plan.run(
        model,
        processing_class,
        store,
        hidden_token_id=prompting.hidden_token_id,
        own_generation_config=prompting.compat == "open-unlearning",
        max_batch_tokens=max_batch_tokens,
        show_progress=show_progress,
        sampling=Sampling(seed),
        description="Sampling",
    )
    answers = [
        [processing_class.decode(plan.generations[key], skip_special_tokens=True).strip() for key in row]
        for row in keys
    ]
    references = [texts["answer"] for texts in asked.texts]
    scores = {
        "forget_rougeL_recall": np.array(
            [rouge_l(row, [answer] * len(row))["per_row_recall"] for row, answer in zip(answers, references, strict=True)]
        )
    }  # fmt: skip
    if grammar is not None:
        values = asked.dataset["value"]
        scores["leaked"] = np.array(
            [[float(grammar.leaks(text, value)) for text in row] for row, value in zip(answers, values, strict=True)]
        )
    results = {}
    for k in sorted(counts):
        intervals = {metric: bootstrap_interval(rows[:, :k].max(axis=1)) for metric, rows in scores.items()}
        results[k] = {
            "summary": {metric: interval["mean"] for metric, interval in intervals.items()},
            "intervals": {
                metric: {key: interval[key] for key in ("n", "low", "high")} for metric, interval in intervals.items()
            },
        }
    return results
