"""Options of AltPO."""

from dataclasses import dataclass, field

from .unlearning_config import UnlearningConfig


@dataclass
class AltPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`AltPOTrainer`].

    This class includes only the parameters that are specific to AltPO. See [`UnlearningConfig`] for those that all
    unlearning trainers share. The defaults are those of the AltPO authors on TOFU with five alternates a question:
    `beta` 0.1, weights 1 and 1, an effective batch of 35 pairs, and two epochs of which one is warm-up. One epoch is one
    pass over all alternates.

    > [!NOTE]
    > These parameters have default values different from [`UnlearningConfig`]:
    > - `learning_rate`: Defaults to `5e-5` instead of `1e-5`.
    > - `num_train_epochs`: Defaults to `2` instead of `10`.
    > - `per_device_train_batch_size`, `gradient_accumulation_steps`: Default to `7` and `5` instead of `8` and `4`.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "The initial learning rate for AdamW."})
    num_train_epochs: float = field(
        default=2.0, metadata={"help": "Number of epochs; an epoch is one pass over all alternates."}
    )
    per_device_train_batch_size: int = field(
        default=7, metadata={"help": "Pairs of forget and alternate rows per device and step."}
    )
    gradient_accumulation_steps: int = field(
        default=5, metadata={"help": "Number of batches whose gradients are added up before an optimizer step."}
    )
