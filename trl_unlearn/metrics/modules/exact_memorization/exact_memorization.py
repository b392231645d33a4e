"""Exact memorisation as an `evaluate` metric."""

import datasets
import evaluate

from trl_unlearn.metrics import exact_memorization


_DESCRIPTION = "Share of an answer's tokens that greedy decoding under teacher forcing gets right."

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[list[int]]` of length `n`): for each token of each answer, the model's most probable token id
        after the true tokens before it. The final EOS is left out.
    references (`list[list[int]]` of length `n`): true token ids of each answer, as many.
"""

_CITATION = """\
@inproceedings{tirumala2022memorization,
  title={Memorization Without Overfitting: Analyzing the Training Dynamics of Large Language Models},
  author={Tirumala, Kushal and Markosyan, Aram H. and Zettlemoyer, Luke and Aghajanyan, Armen},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022},
  url={https://arxiv.org/abs/2205.10770}
}
"""


class ExactMemorization(evaluate.Metric):
    VERSION = "1.0.0"

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2205.10770"],
        )

    def _compute(self, predictions, references):
        matches = [
            [predicted == true for predicted, true in zip(*row, strict=True)]
            for row in zip(predictions, references, strict=True)
        ]
        return exact_memorization(matches)
