"""The metrics of unlearning as pure functions: numbers and texts in, a plain dict out, no model anywhere."""

from .bootstrap import bootstrap_interval
from .exact_memorization import exact_memorization
from .extraction_strength import extraction_strength
from .forget_quality import forget_quality
from .knowmem import knowmem
from .membership_inference import (
    gradnorm_score,
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    reference_score,
    zlib_score,
)
from .model_utility import model_utility
from .paths import metric_path
from .privleak import MUSE_RETAIN_AUC, privleak
from .probability import normalized_probability, probability
from .rouge import rouge_l
from .self_confidence import self_confidence
from .text_cleanness import text_cleanness
from .truth_ratio import truth_ratio
from .verbmem import verbmem


__all__ = [
    "MUSE_RETAIN_AUC",
    "bootstrap_interval",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "gradnorm_score",
    "knowmem",
    "loss_score",
    "membership_auc",
    "metric_path",
    "min_k_plus_plus_score",
    "min_k_score",
    "model_utility",
    "normalized_probability",
    "privleak",
    "probability",
    "reference_score",
    "rouge_l",
    "self_confidence",
    "text_cleanness",
    "truth_ratio",
    "verbmem",
    "zlib_score",
]
