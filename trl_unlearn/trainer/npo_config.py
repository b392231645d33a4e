"""Options of NPO, and of the gradient-ascent baselines it is compared with."""

from dataclasses import dataclass, field

from .unlearning_config import UnlearningConfig


@dataclass
class NPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`NPOTrainer`].

    This class includes only the parameters that are specific to NPO. See [`UnlearningConfig`] for those that all
    unlearning trainers share. The defaults are those of the NPO authors on TOFU: `beta` 0.1 and weights 1 and 1.

    Parameters:
        forget_loss_type (`str`, *optional*, defaults to `"npo"`):
            Forget loss. Possible values are:

            - `"npo"`: Negative Preference Optimization.
            - `"grad_ascent"`: the negative log-likelihood per token with its sign turned, the baseline of TOFU's
              authors. With `retain_weight=0.0` it is gradient ascent, otherwise gradient difference (GradDiff). It has no
              bound: use it to compare, not to unlearn.
    """

    forget_loss_type: str = field(
        default="npo",
        metadata={
            "help": "Forget loss: 'npo', or 'grad_ascent' for the baselines gradient ascent (with `retain_weight` 0) and "
            "gradient difference.",
            "choices": ["npo", "grad_ascent"],
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.forget_loss_type not in ("npo", "grad_ascent"):
            raise ValueError(f"`forget_loss_type` must be 'npo' or 'grad_ascent', got {self.forget_loss_type!r}.")
