"""Options of SimNPO."""

from dataclasses import dataclass, field

from .unlearning_config import UnlearningConfig


@dataclass
class SimNPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`SimNPOTrainer`].

    This class includes only the parameters that are specific to SimNPO. See [`UnlearningConfig`] for those that all
    unlearning trainers share. The defaults are those of the SimNPO authors on TOFU forget05; for forget10 they use
    `beta=4.5` and `forget_weight=0.125`. Their code puts the coefficient on the forget loss, and so do these options;
    their paper and model cards write it on the other side.

    Parameters:
        beta (`float`, *optional*, defaults to `2.5`):
            Inverse temperature, on log-probabilities per token.
        gamma (`float`, *optional*, defaults to `0.0`):
            Margin inside `beta`, in nats per token: `gamma_paper = beta * gamma`. open-unlearning calls it `delta`.
        forget_weight (`float`, *optional*, defaults to `0.1375`):
            Weight of the forget loss.
    """

    beta: float = field(
        default=2.5, metadata={"help": "Inverse temperature of the forget loss, on log-probabilities per token."}
    )
    gamma: float = field(default=0.0, metadata={"help": "Margin inside `beta`, in nats per token."})
    forget_weight: float = field(default=0.1375, metadata={"help": "Weight of the forget loss."})
