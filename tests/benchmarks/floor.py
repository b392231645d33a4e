"""The matrix products that a training step cannot do without, timed alone."""

from collections.abc import Callable
from typing import Any

import torch


class Floor:
    """
    Forward and backward products of a Llama's body at every position, and of its LM head at the positions with a label.

    Args:
        case (`Case`):
            Size of the model, and whether an adapter is trained. Then the weights' gradients are those of the adapter.
        batch (`dict[str, Any]`):
            Batch of the trainers.
        device (`torch.device`):
            Device.
    """

    def __init__(self, case: Any, batch: dict[str, Any], device: torch.device):
        self.device, self.dtype = device, torch.bfloat16 if device.type == "cuda" else torch.float32
        self.products: list[Callable] = []
        hidden, inner = case.hidden_size, round(case.hidden_size * 8 / 3 / 64) * 64
        rows, length = batch["input_ids"].shape
        trained = not case.lora
        for _ in range(case.layers):
            for sizes in ((hidden, hidden),) * 4 + ((hidden, inner),) * 2 + ((inner, hidden),):
                self._linear(rows * length, *sizes, trained)
                if case.lora:
                    self._linear(rows * length, sizes[0], 16, True)
                    self._linear(rows * length, 16, sizes[1], True)
            self._attention(rows * (hidden // 64), length)
        num_labels = int((batch["labels"][:, 1:] != -100).sum())
        self._linear(num_labels, hidden, case.vocabulary, trained)
        if case.retain == "kl":  # the reference, forward only, of the retain rows
            retain = batch["num_rows"][-1]
            for _ in range(0 if case.cached else case.layers):
                for sizes in ((hidden, hidden),) * 4 + ((hidden, inner),) * 2 + ((inner, hidden),):
                    self._forward(retain * length, *sizes)
            self._forward(int((batch["labels"][-retain:, 1:] != -100).sum()), hidden, case.vocabulary)

    def _new(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def _forward(self, positions: int, size: int, out_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, weight, y = self._new(positions, size), self._new(out_size, size), self._new(positions, out_size)
        self.products.append(lambda: torch.mm(x, weight.t(), out=y))
        return x, weight, y

    def _linear(self, positions: int, size: int, out_size: int, trained: bool) -> None:
        x, weight, y = self._forward(positions, size, out_size)
        x_grad, weight_grad = torch.empty_like(x), torch.empty_like(weight)
        self.products.append(lambda: torch.mm(y, weight, out=x_grad))
        if trained:
            self.products.append(lambda: torch.mm(y.t(), x, out=weight_grad))

    def _attention(self, heads: int, length: int) -> None:
        """Scores and values, with two products of the backward for each. Half of them lie behind the causal mask."""
        queries, scores = self._new(heads, length, 64), self._new(heads, length, length)
        out, scores_grad = torch.empty_like(queries), torch.empty_like(scores)
        for _ in range(2):
            self.products.append(lambda: torch.bmm(queries, queries.transpose(1, 2), out=scores_grad))
        for _ in range(4):
            self.products.append(lambda: torch.bmm(scores, queries, out=out))

    def run(self) -> None:
        for product in self.products:
            product()
