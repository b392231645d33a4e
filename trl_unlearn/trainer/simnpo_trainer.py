"""SimNPO: NPO without a reference."""

import textwrap

import torch

from ..losses import simnpo_loss
from .simnpo_config import SimNPOConfig
from .unlearning_trainer import RowScores, UnlearningTrainer


class SimNPOTrainer(UnlearningTrainer):
    """
    Trainer for Simple Negative Preference Optimization (SimNPO), after [Simplicity Prevails: Rethinking Negative
    Preference Optimization for LLM Unlearning](https://huggingface.co/papers/2410.07163).

    Pushes the log-probability *per token* of the forget answers down, the less the lower it is. No reference is loaded or
    run, unless the retain loss is a KL divergence.

    Example:

    ```python
    from datasets import load_dataset
    from trl_unlearn import SimNPOConfig, SimNPOTrainer

    trainer = SimNPOTrainer(
        model="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        args=SimNPOConfig("simnpo", beta=4.5, forget_weight=0.125),
        train_dataset=load_dataset("locuslab/TOFU", "forget10", split="train"),
        retain_dataset=load_dataset("locuslab/TOFU", "retain90", split="train"),
    )
    trainer.train()
    ```

    Arguments are those of [`UnlearningTrainer`], with a [`SimNPOConfig`].
    """

    _tag_names = [*UnlearningTrainer._tag_names, "simnpo"]
    _name = "SimNPO"
    _paper = {
        "title": "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
        "id": "2410.07163",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{fan2025simplicity,
                title     = {{Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning}},
                author    = {Chongyu Fan and Jiancheng Liu and Licong Lin and Jinghan Jia and Ruiqi Zhang and Song Mei and Sijia Liu},
                booktitle = {Advances in Neural Information Processing Systems 38},
                year      = 2025,
            }"""),
    }
    _config_class = SimNPOConfig

    def forget_loss(self, forget: RowScores, alternate: RowScores | None) -> torch.Tensor:
        return simnpo_loss(forget.logps, forget.lengths, self.args.beta, self.args.gamma)
