"""Forget quality of TOFU as an `evaluate` metric."""

import datasets
import evaluate

from trl_unlearn.metrics import forget_quality


_DESCRIPTION = (
    "Two-sample Kolmogorov–Smirnov test between the forget truth ratios of an unlearned model and of a model that never "
    "saw the forget set."
)

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[float]` of length `n`): truth ratio of each forget row under the unlearned model.
    retain_truth_ratios (`list[float]` of length `m`): the same under the retained model.
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


class ForgetQuality(evaluate.Metric):
    VERSION = "1.0.0"

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
            reference_urls=["https://arxiv.org/abs/2401.06121"],
        )

    def _compute(self, predictions, retain_truth_ratios):
        return forget_quality(predictions, retain_truth_ratios)
