"""TOFU's metrics of a model, from one scoring pass and one generation pass over all sets together."""

from types import ModuleType
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.encoding import DEFAULT_QUESTION_ANSWER_TEMPLATE, encode_prompt_completion
from ..data.formats import question_to_prompt
from ..metrics import model_utility, normalized_probability, probability, rouge_l, truth_ratio
from .generate import generate_answers
from .score import score_completions


def evaluate_unlearning(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    forget: Dataset,
    retain: Dataset,
    utility_sets: dict[str, Dataset],
    truth_ratio_question: Literal["question", "paraphrased_question"] = "question",
    max_new_tokens: int = 200,
    grammar: ModuleType | None = None,
    question_answer_template: str = DEFAULT_QUESTION_ANSWER_TEMPLATE,
    max_batch_tokens: int = 8192,
    show_progress: bool = True,
) -> dict[str, Any]:
    """
    Evaluates a model on a forget set, a retain set and what else it should keep.

    Forget quality takes two models: pass the forget truth ratios of this result and of the retained model's to
    [`metrics.forget_quality`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        forget ([`~datasets.Dataset`]):
            Rows with the columns of TOFU's `*_perturbed` sets: `question`, `answer`, `perturbed_answer`, and maybe
            `paraphrased_question`, `paraphrased_answer`. Where the paraphrase is missing the answer stands for it.
        retain ([`~datasets.Dataset`]):
            The same for facts to be kept.
        utility_sets (`dict[str, Dataset]`):
            Further sets to be kept, by the name their metrics start with. As for TOFU's real authors and world facts,
            their probability is normalised by the perturbed answers'.
        truth_ratio_question (`str`, *optional*, defaults to `"question"`):
            Column with the question that paraphrased and perturbed answers reply to. TOFU asks `"question"`; the
            embedded world's answers fit only `"paraphrased_question"`.
        max_new_tokens (`int`, *optional*, defaults to `200`):
            Longest generated answer.
        grammar (`ModuleType`, *optional*):
            `trl_unlearn.world.grammar` for rows of the embedded world: adds the shares of generated forget answers that
            are well-formed and that leak the true value.
        question_answer_template (`str`, *optional*, defaults to `"Question: {question}\\nAnswer: {answer}"`):
            How questions and answers are written for a tokenizer without a chat template.
        max_batch_tokens (`int`, *optional*, defaults to `8192`):
            Size of a scoring batch.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar over all that is scored and generated.

    Returns:
        `dict`: Plain numbers, lists and texts. `summary` has one number per metric: `forget_*`, `retain_*` and those of
        each utility set (`*_probability`, `*_rougeL_recall`, `*_truth_ratio`), `model_utility`, and with a grammar
        `well_formed` and `leaked`. `rows` has for each set the columns `probability`, `rougeL_recall`, `truth_ratio`
        and `generated`, one value per row.

    Example:

    ```python
    >>> result = evaluate_unlearning(model, tokenizer, forget, retain, {"world_facts": world_facts})
    >>> retained_result = evaluate_unlearning(retained_model, tokenizer, forget, retain, {})
    >>> forget_quality(*(r["rows"]["forget"]["truth_ratio"] for r in (result, retained_result)))
    ```
    """
    sets = {"forget": forget, "retain": retain, **utility_sets}
    pairs, prompts = [], []  # of all sets: what to score, and what to continue
    for dataset in sets.values():
        for row in dataset:
            truth_question = row.get(truth_ratio_question, row["question"])
            asked = [
                (row["question"], row["answer"]),
                (truth_question, row.get("paraphrased_answer", row["answer"])),
                *((truth_question, answer) for answer in row["perturbed_answer"]),
            ]
            encoded = [
                encode_prompt_completion(
                    *question_to_prompt(question, answer, processing_class, question_answer_template), processing_class
                )
                for question, answer in asked
            ]
            pairs += encoded
            prompts.append(encoded[0][0])

    pad_token_id = (
        processing_class.eos_token_id if processing_class.pad_token_id is None else processing_class.pad_token_id
    )
    num_distinct = len({(*prompt, -1, *answer) for prompt, answer in pairs}) + len(
        {tuple(prompt) for prompt in prompts}
    )
    with tqdm(total=num_distinct, desc="Evaluating", unit=" rows", disable=not show_progress, leave=False) as bar:
        scores = iter(score_completions(model, pairs, pad_token_id, max_batch_tokens, bar.update))
        answers = iter(generate_answers(model, processing_class, prompts, max_new_tokens, progress=bar.update))

    summary: dict[str, float] = {}
    rows: dict[str, dict[str, list]] = {}
    for name, dataset in sets.items():
        scored = [[next(scores) for _ in range(2 + len(row["perturbed_answer"]))] for row in dataset]
        nll = np.array([[nll_sum for nll_sum, _ in row] for row in scored])
        num_tokens = np.array([[count for _, count in row] for row in scored])
        losses = nll / num_tokens
        generated = [next(answers) for _ in dataset]

        if name in utility_sets:
            prob = normalized_probability(nll[:, 0], num_tokens[:, 0], nll[:, 2:], num_tokens[:, 2:])
            prob["probability"] = prob.pop("normalized_probability")
        else:
            prob = probability(nll[:, 0], num_tokens[:, 0])
        rouge = rouge_l(generated, dataset["answer"])
        ratio = truth_ratio(losses[:, 1], losses[:, 2:], aggregation="forget" if name == "forget" else "retain")
        summary[f"{name}_probability"] = prob["probability"]
        summary[f"{name}_rougeL_recall"] = rouge["rougeL_recall"]
        summary[f"{name}_truth_ratio"] = ratio["truth_ratio"]
        rows[name] = {
            "probability": prob["per_row"],
            "rougeL_recall": rouge["per_row_recall"],
            "truth_ratio": ratio["per_row"],
            "generated": generated,
        }

    kept = [value for metric, value in summary.items() if not metric.startswith("forget_")]
    summary["model_utility"] = model_utility(kept)["model_utility"]
    if grammar is not None:
        facts = list(zip(rows["forget"]["generated"], forget["attribute"], forget["value"], strict=True))
        summary["well_formed"] = sum(grammar.is_well_formed(text, attribute) for text, attribute, _ in facts) / len(
            facts
        )
        summary["leaked"] = sum(grammar.leaks(text, value) for text, _, value in facts) / len(facts)
    return {"summary": summary, "rows": rows}
