"""Truth ratio of TOFU as an `evaluate` metric."""

import datasets
import evaluate

from trl_unlearn.metrics import truth_ratio


_DESCRIPTION = "How probable false answers are to a model, relative to the true answer in words it was not trained on."

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[float]` of length `n`): token-mean negative log-likelihood of each paraphrased true answer.
    references (`list[list[float]]` of shape `(n, k)`): the same for the `k` perturbed answers of each row.
    aggregation (`str`, defaults to `"forget"`): `"forget"`, `"retain"` or `"probability"`.
    perturbed_mean (`str`, defaults to `"geometric"`): `"geometric"` or `"arithmetic"`.
    convention (`str`, defaults to `"exact"`): `"exact"` or `"open-unlearning"`.
"""

_CITATION = """\
@inproceedings{maini2024tofu,
  title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}},
  author={Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},
  booktitle={Conference on Language Modeling},
  year={2024},
  url={https://arxiv.org/abs/2401.06121}
}
"""


class TruthRatio(evaluate.Metric):
    VERSION = "1.0.0"

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Sequence(datasets.Value("float64"))}
            ),
            reference_urls=["https://arxiv.org/abs/2401.06121"],
        )

    def _compute(self, predictions, references, **options):
        return truth_ratio(predictions, references, **options)
