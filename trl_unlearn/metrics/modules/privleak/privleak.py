"""PrivLeak of MUSE as an `evaluate` metric."""

import datasets
import evaluate

from trl_unlearn.metrics import privleak


_DESCRIPTION = (
    "How far membership inference tells forget texts from unseen ones, relative to a model retrained without the forget "
    "set, in per cent."
)

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[float]` of length `n`): Min-40% score of each forget text, higher for a text that was less likely
        in the training data.
    holdout_scores (`list[float]` of length `m`): the same of texts that never were in the training data.
    retain_auc (`float`): AUC of the same texts under the retained model. MUSE's published ones are 0.4772 for News and
        0.5393 for Books, with `auc_convention="muse"`.
    auc_convention (`str`, defaults to `"open-unlearning"`): direction of the AUCs, `"open-unlearning"` or `"muse"`.
"""

_CITATION = """\
@inproceedings{shi2025muse,
  title={{MUSE}: Machine Unlearning Six-Way Evaluation for Language Models},
  author={Shi, Weijia and Lee, Jaechan and Huang, Yangsibo and Malladi, Sadhika and others},
  booktitle={International Conference on Learning Representations},
  year={2025},
  url={https://arxiv.org/abs/2407.06460}
}
"""


class PrivLeak(evaluate.Metric):
    VERSION = "1.0.0"

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
            reference_urls=["https://arxiv.org/abs/2407.06460"],
        )

    def _compute(self, predictions, holdout_scores, retain_auc, **options):
        return privleak(predictions, holdout_scores, retain_auc, **options)
