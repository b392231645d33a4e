"""NPO: gradient ascent that stops by itself. And, as baselines, gradient ascent that does not."""

import textwrap

import torch

from ..losses import npo_loss
from .npo_config import NPOConfig
from .unlearning_trainer import RowScores, UnlearningTrainer


class NPOTrainer(UnlearningTrainer):
    """
    Trainer for Negative Preference Optimization (NPO), after [Negative Preference Optimization: From Catastrophic
    Collapse to Effective Unlearning](https://huggingface.co/papers/2404.05868).

    Pushes the log-probability of the forget answers below that of the reference, the less the further it is there. Needs
    a reference (the model before unlearning), which is scored once before training.

    Example:

    ```python
    from datasets import load_dataset
    from trl_unlearn import NPOConfig, NPOTrainer

    trainer = NPOTrainer(
        model="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        args=NPOConfig("npo", beta=0.1),
        train_dataset=load_dataset("locuslab/TOFU", "forget10", split="train"),
        retain_dataset=load_dataset("locuslab/TOFU", "retain90", split="train"),
    )
    trainer.train()
    ```

    Arguments are those of [`UnlearningTrainer`], with an [`NPOConfig`].
    """

    _tag_names = [*UnlearningTrainer._tag_names, "npo"]
    _name = "NPO"
    _paper = {
        "title": "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
        "id": "2404.05868",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{zhang2024negative,
                title     = {{Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning}},
                author    = {Ruiqi Zhang and Licong Lin and Yu Bai and Song Mei},
                booktitle = {First Conference on Language Modeling},
                year      = 2024,
            }"""),
    }
    _config_class = NPOConfig

    @property
    def _forget_loss_uses_reference(self) -> bool:
        return self.args.forget_loss_type == "npo"

    def forget_loss(self, forget: RowScores, alternate: RowScores | None) -> torch.Tensor:
        if self.args.forget_loss_type == "grad_ascent":
            # TOFU's authors average over the tokens of the batch, so long answers weigh more
            return forget.logps * len(forget.logps) / forget.lengths.sum()
        return npo_loss(forget.logps, forget.ref_logps, self.args.beta)
