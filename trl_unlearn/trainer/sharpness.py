"""Sharpness-aware forgetting: the forget gradient from where the weights would be if some of it were learnt again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .scoring import take_rows


class SharpnessMixin:
    """
    The part of an [`UnlearningTrainer`] that takes its forget gradient elsewhere than its other gradients: `forget_sharpness`.

    An optimizer step begins with two passes over the forget rows of all its micro-batches: one for the direction in which
    the forget loss rises fastest, one where the weights are moved in it. What the second leaves in `parameter.grad` is the
    forget gradient, to which the step's own passes add the others.
    """

    _batches_ahead: Sequence[dict[str, Any]] = ()  # of the optimizer step that is about to begin
    _is_in_forget_pass = False

    def _check_sharpness(self) -> None:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for name, is_on in {
            "FSDP and DeepSpeed": self.is_fsdp_enabled or self.is_deepspeed_enabled,
            "`padding_free=True`, where rows cannot be taken apart": self.args.padding_free,
            "`fp16=True`": self.accelerator.mixed_precision == "fp16",
            "trained weights in 16 bits, which are too coarse for it (load them with `dtype='float32'`)": any(
                parameter.dtype.itemsize < 4 for parameter in trained
            ),
            f"`optim='{self.args.optim.value}'`, which steps in the backward pass": any(
                kind in self.args.optim for kind in ("lomo", "layerwise")
            ),
        }.items():
            if is_on:
                raise ValueError(f"`forget_sharpness` is not supported with {name}. Leave either out.")

    def get_batch_samples(self, *args, **kwargs):
        batch_samples, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        if self.args.forget_sharpness > 0:
            self._batches_ahead = batch_samples
        return batch_samples, num_items_in_batch

    def training_step(self, model: nn.Module, *args, **kwargs) -> torch.Tensor:
        batches, self._batches_ahead = self._batches_ahead, ()
        if batches:
            self._take_forget_gradients(model, batches)
        return super().training_step(model, *args, **kwargs)

    def _take_forget_gradients(self, model: nn.Module, batches: Sequence[dict[str, Any]]) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._pass_forget_rows(model, batches)
        gradients = [
            self.accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, "mean") for p in parameters
        ]
        model.zero_grad()
        scale = self.args.forget_sharpness / max(float(nn.utils.get_total_norm(gradients)), 1e-12)
        weights = [parameter.detach().clone() for parameter in parameters]
        try:
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.add_(gradient, alpha=scale)
            del gradients
            self._pass_forget_rows(model, batches)
        finally:
            with torch.no_grad():
                for parameter, before in zip(parameters, weights, strict=True):
                    parameter.copy_(before)

    def _pass_forget_rows(self, model: nn.Module, batches: Sequence[dict[str, Any]]) -> None:
        """Adds the gradients of the forget loss to `parameter.grad`, which the step's last pass averages over processes."""
        self._is_in_forget_pass = True
        try:
            for inputs in batches:
                num_forget, num_alternate, _ = inputs["num_rows"]
                rows = take_rows(inputs, 0, num_forget + num_alternate)
                with self.accelerator.no_sync(model):
                    super().training_step(model, inputs | rows | {"num_rows": (num_forget, num_alternate, 0)})
        finally:
            self._is_in_forget_pass = False
