"""A set of rows to evaluate on: what its columns allow to be asked of the model, and what the answers are worth."""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.encoding import read_prompt_completion
from ..data.formats import FORMATS, check_dataset, completion_text, infer_format
from ..metrics import (
    exact_memorization,
    extraction_strength,
    normalized_probability,
    probability,
    rouge_l,
    truth_ratio,
)
from .generate import Continuation
from .plan import Plan
from .prompting import Prompting
from .score import Completion


@dataclass
class EvaluationSet:
    """
    Rows with what is asked of the model about each.

    Args:
        name (`str`):
            `"forget"`, `"retain"`, `"holdout"`, or the name of another set to be kept.
        dataset ([`~datasets.Dataset`]):
            Rows in one of the accepted formats. `question`/`answer` rows may have `paraphrased_question`,
            `paraphrased_answer` and `perturbed_answer` (a list of wrong answers, equally many a row).
        prompting ([`Prompting`]):
            How rows become tokens.
        truth_ratio_question (`str`):
            Column with the question that paraphrased and perturbed answers reply to.
    """

    name: str
    dataset: Dataset
    prompting: Prompting
    truth_ratio_question: str
    kind: str = field(init=False)
    texts: list[dict[str, str]] = field(init=False)  # question or prompt, and answer
    answers: list[Completion] = field(init=False, default_factory=list)
    paraphrased: list[Completion] = field(init=False, default_factory=list)
    perturbed: list[list[Completion]] = field(init=False, default_factory=list)
    prompts: list[Continuation] = field(init=False, default_factory=list)

    def __post_init__(self):
        check_dataset(self.dataset, self.name)
        if self.prompting.compat == "tofu":
            self.dataset = self.dataset.select(range(min(300, len(self.dataset))))
        self.kind = infer_format(self.dataset, self.name)

    @property
    def has_prompts(self) -> bool:
        """Whether there is something to answer; documents have only themselves."""
        return self.kind != "text"

    @property
    def has_truth_ratio(self) -> bool:
        """Whether there are wrong answers to compare the true one with."""
        return self.kind == "question_answer" and "perturbed_answer" in self.dataset.column_names

    def ask(self, plan: Plan, max_new_tokens: int, answers_only: bool = False, moments: bool = False) -> None:
        """
        Puts everything that the metrics of this set need into the plan.

        Args:
            plan ([`Plan`]):
                Plan.
            max_new_tokens (`int`):
                Longest generated answer. TOFU counts the prompt in.
            answers_only (`bool`, *optional*, defaults to `False`):
                Whether the answers that there are are only scored, and none generated.
            moments (`bool`, *optional*, defaults to `False`):
                Whether the answers are scored with the moments that min-k++ takes.

        Raises:
            ValueError: For a row that cannot be evaluated, by its number and column.
        """
        self.texts = []
        num_perturbed = None
        for index, row in enumerate(self.dataset):
            if not self.has_prompts:
                prompt_ids, completion_ids = self._document(row, index)
                self.texts.append({"answer": row["text"]})
                self.answers.append(plan.score(prompt_ids, completion_ids, moments))
                continue
            prompt, completion = read_prompt_completion(
                row, self.kind, self.name, index, self.prompting.processing_class
            )
            is_question = self.kind == "question_answer"
            encode = self.prompting.encode_question if is_question else self.prompting.encode
            prompt_ids, completion_ids = encode(prompt, completion)
            self._check_tokens(prompt_ids, completion_ids, index)
            self.answers.append(plan.score(prompt_ids, completion_ids, moments))
            shown = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            self.texts.append({"question": shown, "answer": completion_text(completion)})
            if not answers_only:
                limit = max_new_tokens - len(prompt_ids) if self.prompting.compat == "tofu" else max_new_tokens
                self.prompts.append(plan.generate(prompt_ids, max(limit, 1)))
            if self.has_truth_ratio:
                wrong = row["perturbed_answer"]
                num_perturbed = len(wrong or ()) if num_perturbed is None else num_perturbed
                self._check_perturbed(wrong, num_perturbed, index)
                question = row.get(self.truth_ratio_question) or row["question"]
                paraphrase = row.get("paraphrased_answer") or row["answer"]
                self.paraphrased.append(plan.score(*encode(question, paraphrase)))
                self.perturbed.append([plan.score(*encode(question, answer)) for answer in wrong])

    def _document(self, row: dict, index: int) -> tuple[list[int], list[int]]:
        if not (row["text"] or "").strip():
            raise ValueError(f"Row {index} of the {self.name} set, column `text`: the document is empty.")
        prompt_ids, completion_ids = self.prompting.encode_document(row["text"])
        self._check_tokens(prompt_ids, completion_ids, index)
        return prompt_ids, completion_ids

    def _check_tokens(self, prompt_ids: list[int], completion_ids: list[int], index: int) -> None:
        if not prompt_ids or not completion_ids:
            raise ValueError(
                f"Row {index} of the {self.name} set, column `{FORMATS[self.kind][-1]}`: {len(prompt_ids)} prompt tokens "
                f"and {len(completion_ids)} completion tokens are left of it; scoring needs at least one of each."
            )

    def _check_perturbed(self, wrong: list[str] | None, expected: int, index: int) -> None:
        where = f"Row {index} of the {self.name} set, column `perturbed_answer`"
        if not isinstance(wrong, list) or not wrong or not all(answer and answer.strip() for answer in wrong):
            raise ValueError(
                f"{where}: expected a list of wrong answers, none of them empty, got {type(wrong).__name__}."
            )
        if len(wrong) != expected:
            raise ValueError(
                f"{where}: {len(wrong)} wrong answers, where row 0 has {expected}. Give equally many a row."
            )

    def metrics(self, plan: Plan, normalize: bool) -> tuple[dict[str, list], dict[str, list]]:
        """
        What the answered plan says of this set.

        Args:
            plan ([`Plan`]):
                Plan that has run.
            normalize (`bool`):
                Whether the probability is the true answer's share beside the wrong ones.

        Returns:
            `tuple[dict, dict]`: The columns of the rows, and for each metric what it is the mean of.
        """
        convention = self.prompting.convention
        nll, num_tokens = nll_of(plan, self.answers)
        columns: dict[str, list] = {
            **self.columns_of_texts(),
            "loss": (nll / num_tokens).tolist(),
            "num_tokens": num_tokens.tolist(),
        }
        means: dict[str, list] = {}
        if normalize and self.has_truth_ratio:
            perturbed = nll_of(plan, self.perturbed)
            share = normalized_probability(nll, num_tokens, *perturbed, convention=convention)
            columns["probability"] = share["per_row"]
        else:
            columns["probability"] = probability(nll, num_tokens)["per_row"]
        means["probability"] = columns["probability"]
        if self.has_prompts:
            columns["generated"] = [self._text(plan.generations[prompt]) for prompt in self.prompts]
            rouge = rouge_l(columns["generated"], self._references())
            columns["rouge1_recall"] = rouge["per_row_rouge1_recall"]
            columns["rougeL_recall"] = means["rougeL_recall"] = rouge["per_row_recall"]
            columns["rougeL_f1"] = rouge["per_row_f1"]
        if self.has_truth_ratio:
            columns |= self.truth_ratios(plan)
            losses = columns["paraphrased_loss"], columns["perturbed_loss"]
            aggregations = {"truth_ratio": "forget" if self.name == "forget" else "retain"}
            if self.name == "forget":
                aggregations["truth_ratio_probability"] = "probability"
            for name, aggregation in aggregations.items():
                ratio = truth_ratio(*losses, aggregation=aggregation, convention=convention)
                means[name] = ratio["per_row_aggregated"]
        matches = [plan.scores[answer]["matches"][: self._content(answer)] for answer in self.answers]
        columns["exact_memorization"] = means["exact_memorization"] = exact_memorization(matches)["per_row"]
        columns["extraction_strength"] = means["extraction_strength"] = extraction_strength(matches, convention)[
            "per_row"
        ]
        return columns, means

    def truth_ratios(self, plan: Plan) -> dict[str, list]:
        """The losses of paraphrased and wrong answers, and the truth ratios made of them, one a row."""
        paraphrased, wrong = (
            (nll / n).tolist() for nll, n in (nll_of(plan, self.paraphrased), nll_of(plan, self.perturbed))
        )
        ratios = truth_ratio(paraphrased, wrong, convention=self.prompting.convention)["per_row"]
        return {"paraphrased_loss": paraphrased, "perturbed_loss": wrong, "truth_ratio": ratios}

    def missing(self) -> dict[str, str]:
        """The metrics that the columns do not allow, with what is missing."""
        if not self.has_prompts:
            reason = f"the {self.name} set has documents (column `text`), which nothing asks for"
            return {f"{self.name}_rougeL_recall": reason, f"{self.name}_truth_ratio": reason}
        if not self.has_truth_ratio:
            return {
                f"{self.name}_truth_ratio": f"the {self.name} set has no wrong answers (column `perturbed_answer`)"
            }
        return {}

    def columns_of_texts(self) -> dict[str, list[str]]:
        """Question or prompt, and answer, of each row."""
        return {name: [texts[name] for texts in self.texts] for name in self.texts[0]}

    def content(self, plan: Plan, column: str) -> list[list[float]]:
        """A column of the scores of each answer, the tokens that end it left out."""
        return [plan.scores[answer][column][: self._content(answer)] for answer in self.answers]

    def answers_without_end(self) -> list[Completion]:
        """Prompts and answers, the tokens that end them left out."""
        return [(prompt_ids, completion_ids[: self._content((prompt_ids, completion_ids))])
                for prompt_ids, completion_ids in self.answers]  # fmt: skip

    def scored_texts(self) -> list[str]:
        """The text of what was scored of each row, without special tokens."""
        decode = self.prompting.processing_class.decode
        return [decode(completion_ids, skip_special_tokens=True) for _, completion_ids in self.answers]

    def _content(self, answer: Completion) -> int:
        return len(self.prompting.without_end(answer[1], is_document=not self.has_prompts))

    def _text(self, new_ids: list[int]) -> str:
        # open-unlearning cleans what it decodes, generated answers and true ones
        clean = {"clean_up_tokenization_spaces": True} if self.prompting.compat == "open-unlearning" else {}
        return self.prompting.processing_class.decode(new_ids, skip_special_tokens=True, **clean).strip()

    def _references(self) -> list[str]:
        if self.prompting.compat == "open-unlearning":
            return [self._text(completion_ids) for _, completion_ids in self.answers]
        return [texts["answer"] for texts in self.texts]

    def digest(self) -> str:
        """SHA-256 of the rows, so that two results can be known to be of the same ones."""
        rows = [json.dumps(row, sort_keys=True, default=str) for row in self.dataset]
        return sha256("\n".join(rows).encode()).hexdigest()


def nll_of(plan: Plan, keys: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Summed negative log-likelihoods and numbers of tokens of (lists of) completions."""
    if not keys:
        return np.zeros(0), np.zeros(0)
    if isinstance(keys[0], list):
        parts = [nll_of(plan, row) for row in keys]
        return np.stack([nll for nll, _ in parts]), np.stack([num_tokens for _, num_tokens in parts])
    scores = [plan.scores[key] for key in keys]
    losses = [score["losses"] if "losses" in score else np.negative(score["log_probabilities"]) for score in scores]
    nll = np.array([np.sum(row, dtype=np.float64) for row in losses])
    return nll, np.array([len(completion_ids) for _, completion_ids in keys])
