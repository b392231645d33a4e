"""Extraction strength as an `evaluate` metric."""

import datasets
import evaluate

from trl_unlearn.metrics import extraction_strength


_DESCRIPTION = (
    "Share of an answer that greedy decoding under teacher forcing completes word for word from the rest before it."
)

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[list[int]]` of length `n`): for each token of each answer, the model's most probable token id
        after the true tokens before it. The final EOS is left out.
    references (`list[list[int]]` of length `n`): true token ids of each answer, as many.
    convention (`str`, defaults to `"exact"`): `"exact"` or `"open-unlearning"`.
"""

_CITATION = """\
@inproceedings{carlini2021extracting,
  title={Extracting Training Data from Large Language Models},
  author={Carlini, Nicholas and Tramèr, Florian and Wallace, Eric and others},
  booktitle={USENIX Security Symposium},
  year={2021},
  url={https://arxiv.org/abs/2012.07805}
}
"""


class ExtractionStrength(evaluate.Metric):
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
            reference_urls=["https://arxiv.org/abs/2012.07805"],
        )

    def _compute(self, predictions, references, **options):
        matches = [
            [predicted == true for predicted, true in zip(*row, strict=True)]
            for row in zip(predictions, references, strict=True)
        ]
        return extraction_strength(matches, **options)
