"""Model utility of TOFU as an `evaluate` metric."""

import datasets
import evaluate

from trl_unlearn.metrics import model_utility


_DESCRIPTION = "Harmonic mean of a model's scores on what it should keep."

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[float]` of length `n`): scores, none of them negative. TOFU's are nine: probability, ROUGE-L
        recall and truth ratio on the retain set, the real authors and the world facts.
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


class ModelUtility(evaluate.Metric):
    VERSION = "1.0.0"

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
            reference_urls=["https://arxiv.org/abs/2401.06121"],
        )

    def _compute(self, predictions):
        return model_utility(predictions)
