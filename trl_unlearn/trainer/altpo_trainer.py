"""AltPO: away from the forget answer, towards a plausible other one."""

import textwrap

import torch

from ..losses import altpo_loss
from .altpo_config import AltPOConfig
from .unlearning_trainer import RowScores, UnlearningTrainer


class AltPOTrainer(UnlearningTrainer):
    """
    Trainer for Alternate Preference Optimization (AltPO), after [Alternate Preference Optimization for Unlearning Factual
    Knowledge in Large Language Models](https://huggingface.co/papers/2409.13474).

    Prefers alternate answers to the forget answers, relative to a reference (the model before unlearning), so that the
    model still answers in whole sentences. Each alternate makes one row; an epoch passes over all of them.

    Example:

    ```python
    from datasets import Dataset, load_dataset
    from trl_unlearn import AltPOConfig, AltPOTrainer

    forget = Dataset.from_list([
        {"question": "Where was Basil Al-Kuwaiti born?", "answer": "In Kuwait City.", "alternates": ["In Oslo.", "In Lima."]},
    ])
    trainer = AltPOTrainer(
        model="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        args=AltPOConfig("altpo"),
        train_dataset=forget,
        retain_dataset=load_dataset("locuslab/TOFU", "retain90", split="train"),
    )
    trainer.train()
    ```

    Arguments are those of [`UnlearningTrainer`], with an [`AltPOConfig`] and alternates in the forget set.
    """

    _tag_names = [*UnlearningTrainer._tag_names, "altpo"]
    _name = "AltPO"
    _paper = {
        "title": "Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models",
        "id": "2409.13474",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{mekala2025alternate,
                title     = {{Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models}},
                author    = {Anmol Mekala and Vineeth Dorna and Shreya Dubey and Abhishek Lalwani and David Koleczek and Mukund Rungta and Sadid Hasan and Elita Lobo},
                booktitle = {Proceedings of the 31st International Conference on Computational Linguistics},
                pages     = {3732--3752},
                year      = 2025,
            }"""),
    }
    _config_class = AltPOConfig
    _forget_loss_uses_reference = True
    _uses_alternates = True

    def forget_loss(self, forget: RowScores, alternate: RowScores | None) -> torch.Tensor:
        return altpo_loss(alternate.logps, forget.logps, alternate.ref_logps, forget.ref_logps, self.args.beta)
