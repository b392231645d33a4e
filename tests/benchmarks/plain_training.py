"""
A training step of the usual public design, written out plainly: what `training.py` compares with.

A resident copy of the model is the reference. Forget and retain rows go through the model apart, logits are made at every
position, the model computes its own loss, and the loss of each row is then computed again from the same logits. That is
the design of the field's research scripts (open-unlearning's `compute_batch_nll` and `compute_retain_loss`), not their code.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel


Batch = dict[str, torch.Tensor]


class PlainStep:
    """
    Loss of a step.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained. With an adapter, the reference is a copy all the same.
        method (`str`):
            `"npo"` or `"simnpo"`.
        retain (`str`):
            `"nll"` or `"kl"`.
        beta (`float`):
            Inverse temperature.
    """

    def __init__(self, model: PreTrainedModel, method: str, retain: str, beta: float):
        self.model, self.method, self.retain, self.beta = model, method, retain, beta
        needs_reference = method == "npo" or retain == "kl"
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if needs_reference else None

    def __call__(self, forget: Batch, retain: Batch) -> torch.Tensor:
        nll = row_nll(self.model, forget)
        if self.method == "npo":
            with torch.no_grad():
                ref_nll = row_nll(self.reference, forget)
            losses = -F.logsigmoid(self.beta * (nll - ref_nll)) * 2 / self.beta
        else:
            lengths = (forget["labels"][:, 1:] != -100).sum(1)
            losses = -F.logsigmoid(self.beta * nll / lengths) * 2 / self.beta
        if self.retain == "nll":
            return losses.mean() + self.model(**retain).loss
        return losses.mean() + self._kl(retain)

    def _kl(self, retain: Batch) -> torch.Tensor:
        """At the positions that predict an answer, as the trainers take it by default."""
        with torch.no_grad():
            ref_logps = F.log_softmax(self.reference(**retain).logits, dim=-1)
        logps = F.log_softmax(self.model(**retain).logits, dim=-1)
        kl = F.kl_div(logps, ref_logps, reduction="none", log_target=True).sum(-1)
        return kl[:, :-1][retain["labels"][:, 1:] != -100].mean()


def row_nll(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of each row: from the logits, after the model has computed its own loss from them."""
    logits = model(**batch).logits
    shifted = logits[:, :-1].transpose(-1, -2)
    return F.cross_entropy(shifted, batch["labels"][:, 1:], ignore_index=-100, reduction="none").sum(-1)


def split_batch(inputs: dict[str, Any]) -> list[Batch]:
    """Forget and retain rows of the trainers' batch, each padded to its own longest row only."""
    batches, start = [], 0
    for size in filter(None, inputs["num_rows"]):
        rows = slice(start, start + size)
        mask = inputs["attention_mask"][rows]
        length = int(mask.sum(1).max())  # padding is on the right
        batches.append({key: inputs[key][rows, :length] for key in ("input_ids", "attention_mask", "labels")})
        start += size
    return batches
