"""The metrics of unlearning as pure functions: numbers and texts in, a plain dict out, no model anywhere."""

from .forget_quality import forget_quality
from .model_utility import model_utility
from .probability import normalized_probability, probability
from .rouge import rouge_l
from .truth_ratio import truth_ratio


__all__ = ["forget_quality", "model_utility", "normalized_probability", "probability", "rouge_l", "truth_ratio"]
