"""A plain evaluator of the public design: rows in file order, 32 a batch, and a pass for each metric and answer column."""

import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, mannwhitneyu
from transformers import PreTrainedModel, PreTrainedTokenizerBase


BATCH_SIZE = 32
MIN_K = 0.4


class PlainEvaluator:
    """
    Computes TOFU's metrics one after the other.

    Every pass tokenizes its rows, pads each batch on the right to its longest row and takes the logits of all positions.
    Nothing is kept from one metric for the next but truth ratios, which are made of the probabilities.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer whose padding token is not its EOS token.
        template (`str`):
            How questions and answers are written, with `{question}` and, at its end, `{answer}`.
        max_new_tokens (`int`):
            Longest generated answer.

    Attributes:
        counts (`Counter`):
            `sequences` and `padded_tokens` (rows x longest row, summed over the forwards) that were scored.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: str, max_new_tokens: int):
        self.model = model
        self.tokenizer = tokenizer
        self.prompt_template = template.removesuffix("{answer}")
        self.max_new_tokens = max_new_tokens
        self.counts: Counter[str] = Counter()

    @torch.no_grad()
    def evaluate(
        self, forget: Dataset, retain: Dataset, utility_sets: dict[str, Dataset], holdout: Dataset | None = None
    ) -> dict:
        """
        Evaluates the model; with a holdout set also exact memorization and the attacks loss, zlib, min-k and min-k++.

        Returns:
            `dict`: `summary` (`dict[str, float]`) and `rows` (for each set `loss`, `paraphrased_loss`, `perturbed_loss`
            and `generated`), named as in the result of `evaluate_unlearning`.
        """
        summary, rows = {}, {}
        for name, dataset in {"forget": forget, "retain": retain, **utility_sets}.items():
            questions = dataset["question"]
            loss = self._losses(questions, dataset["answer"])
            paraphrased = loss
            if "paraphrased_answer" in dataset.column_names:
                paraphrased = self._losses(questions, dataset["paraphrased_answer"])
            perturbed = np.stack(
                [self._losses(questions, answers) for answers in zip(*dataset["perturbed_answer"], strict=True)], 1
            )
            probability = np.exp(-loss)
            if name in utility_sets:
                probability = probability / (probability + np.exp(-perturbed).sum(1))
            ratio = np.exp(paraphrased - perturbed.mean(1))
            generated = self._answers(questions)
            summary[f"{name}_probability"] = probability.mean()
            summary[f"{name}_rougeL_recall"] = _rouge_recall(generated, dataset["answer"])
            summary[f"{name}_truth_ratio"] = (
                np.minimum(ratio, 1 / ratio) if name == "forget" else np.maximum(0, 1 - ratio)
            ).mean()
            rows[name] = {
                "loss": loss,
                "paraphrased_loss": paraphrased,
                "perturbed_loss": perturbed,
                "generated": generated,
            }
        summary["model_utility"] = hmean([value for name, value in summary.items() if not name.startswith("forget")])
        summary["forget_extraction_strength"] = np.mean(self._extraction_strengths(forget))
        if holdout is not None:
            summary["forget_exact_memorization"] = np.mean(self._exact_memorizations(forget))
            attacks = {
                "loss": self._loss_attack,
                "zlib": self._zlib_attack,
                "min_k": self._min_k_attack,
                "min_k_plus_plus": self._min_k_plus_plus_attack,
            }
            for name, scores in attacks.items():
                wins = mannwhitneyu(scores(holdout), scores(forget)).statistic
                summary[f"mia_{name}_auc"] = wins / (len(forget) * len(holdout))
        return {"summary": {name: float(value) for name, value in summary.items()}, "rows": rows}

    def _passes(self, questions: list[str], answers: list[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each batch the logits of all positions and the labels (-100 on prompts and padding) that they predict."""
        for start in range(0, len(questions), BATCH_SIZE):
            ids, labels = [], []
            for question, answer in zip(
                questions[start : start + BATCH_SIZE], answers[start : start + BATCH_SIZE], strict=True
            ):
                prompt = self.prompt_template.replace("{question}", question)
                ids.append(self.tokenizer(prompt + answer)["input_ids"] + [self.tokenizer.eos_token_id])
                num_prompt_tokens = len(self.tokenizer(prompt)["input_ids"])
                labels.append([-100] * num_prompt_tokens + ids[-1][num_prompt_tokens:])
            input_ids = _pad_right(ids, self.tokenizer.pad_token_id)
            logits = self.model(
                input_ids=input_ids, attention_mask=_pad_right([[1] * len(row) for row in ids], 0)
            ).logits
            self.counts["sequences"] += len(ids)
            self.counts["padded_tokens"] += input_ids.numel()
            yield logits[:, :-1], _pad_right(labels, -100)[:, 1:]

    def _losses(self, questions: list[str], answers: list[str]) -> np.ndarray:
        losses = []
        for logits, labels in self._passes(questions, answers):
            # The public evaluators transpose the logits here instead, which on a CPU is slower and off by up to 3e-4 nats.
            nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).sum(1)
            losses += (nll / (labels != -100).sum(1)).tolist()
        return np.array(losses)

    def _distributions(self, dataset: Dataset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each row the log-probabilities of the whole vocabulary and the labels, the final EOS left out."""
        for logits, labels in self._passes(dataset["question"], dataset["answer"]):
            log_probabilities = logits.log_softmax(-1)
            for row, row_labels in zip(log_probabilities, labels, strict=True):
                positions = (row_labels != -100).nonzero()[:-1, 0]
                yield row[positions], row_labels[positions]

    def _extraction_strengths(self, dataset: Dataset) -> list[float]:
        strengths = []
        for log_probabilities, labels in self._distributions(dataset):
            wrong = (log_probabilities.argmax(-1) != labels).nonzero()
            first = int(wrong[-1]) + 1 if len(wrong) else 0
            strengths.append(1 - first / len(labels))
        return strengths

    def _exact_memorizations(self, dataset: Dataset) -> list[float]:
        return [
            (log_probabilities.argmax(-1) == labels).float().mean().item()
            for log_probabilities, labels in self._distributions(dataset)
        ]

    def _loss_attack(self, dataset: Dataset) -> np.ndarray:
        return self._losses(dataset["question"], dataset["answer"])

    def _zlib_attack(self, dataset: Dataset) -> np.ndarray:
        sizes = np.array([len(zlib.compress(answer.encode())) for answer in dataset["answer"]])
        return self._losses(dataset["question"], dataset["answer"]) / sizes

    def _min_k_attack(self, dataset: Dataset) -> list[float]:
        return [
            _negative_mean_of_lowest(log_probabilities.gather(1, labels[:, None])[:, 0])
            for log_probabilities, labels in self._distributions(dataset)
        ]

    def _min_k_plus_plus_attack(self, dataset: Dataset) -> list[float]:
        # The public design runs the model once for the vocabulary's log-probabilities and once more for the tokens'.
        scores = []
        for (distribution, _), (log_probabilities, labels) in zip(
            self._distributions(dataset), self._distributions(dataset), strict=True
        ):
            mean = (distribution.exp() * distribution).sum(-1)
            variance = (distribution.exp() * distribution.square()).sum(-1) - mean.square()
            tokens = log_probabilities.gather(1, labels[:, None])[:, 0]
            scores.append(_negative_mean_of_lowest((tokens - mean) / variance.clamp(min=1e-6).sqrt()))
        return scores

    def _answers(self, questions: list[str]) -> list[str]:
        answers = []
        for start in range(0, len(questions), BATCH_SIZE):
            prompts = [
                self.prompt_template.replace("{question}", question)
                for question in questions[start : start + BATCH_SIZE]
            ]
            inputs = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
            output = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            answers += self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return answers


def _pad_right(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _negative_mean_of_lowest(values: torch.Tensor) -> float:
    return -values.sort().values[: max(1, int(MIN_K * len(values)))].mean().item()


def _rouge_recall(predictions: list[str], references: list[str]) -> float:
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    return np.mean([scorer.score(reference, prediction)["rougeL"].recall for prediction, reference in pairs])
