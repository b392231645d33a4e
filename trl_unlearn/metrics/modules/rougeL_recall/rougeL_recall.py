"""ROUGE-L recall as TOFU takes it, as an `evaluate` metric."""

import datasets
import evaluate

from trl_unlearn.metrics import rouge_l


_DESCRIPTION = "Share of the reference answer's words, by their stems and in order, that a generated answer repeats."

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]` of length `n`): generated answers.
    references (`list[str]` of length `n`): true answers.
    use_stemmer (`bool`, defaults to `True`): whether to compare the stems of the words, as TOFU does, or the words.
"""

_CITATION = """\
@inproceedings{lin2004rouge,
  title={{ROUGE}: A Package for Automatic Evaluation of Summaries},
  author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out},
  year={2004},
  url={https://aclanthology.org/W04-1013}
}
"""


class RougeLRecall(evaluate.Metric):
    VERSION = "1.0.0"

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://aclanthology.org/W04-1013"],
        )

    def _compute(self, predictions, references, **options):
        scores = rouge_l(predictions, references, **options)
        return {"rougeL_recall": scores["rougeL_recall"], "per_row": scores["per_row_recall"]}
