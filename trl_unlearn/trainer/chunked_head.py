"""
Losses of tokens from hidden states where there is no Triton, without logits beyond a chunk.

TRL's fused heads, written for a GPU, pass a dozen times over each chunk of logits on a CPU, and make every logit twice. Here
each loss turns the logits of a chunk into its gradient in place, and the last chunk, in most batches the only one, is kept for
the backward.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


# Of logits. On a CPU, where the model itself takes gigabytes, few batches have more label positions than fit.
CHUNK_BYTES = 2**28
# Tokens whose logits under the reference are held at once: none of them is needed twice
_REF_TOKENS = 64


class Head(NamedTuple):
    """
    What maps hidden states to logits: `softcap(scale * (hidden @ weight.T + bias))`.

    Args:
        weight (`torch.Tensor` of shape `(vocabulary, hidden size)`):
            Weight of the LM head.
        bias (`torch.Tensor` of shape `(vocabulary,)`, *optional*):
            Its bias.
        scale (`float`):
            Factor of the logits.
        softcap (`float`, *optional*):
            Bound of the logits.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None


def chunked_nll(head: Head, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Negative log-probabilities of labels.

    Args:
        head ([`Head`]):
            LM head without a soft-cap.
        hidden_states (`torch.Tensor`):
            Hidden states at the positions that predict a label, of shape `(tokens, hidden size)`.
        labels (`torch.Tensor`):
            Labels, of shape `(tokens,)`.

    Returns:
        `torch.Tensor`: In nats, of shape `(tokens,)`, in fp32 or more.
    """

    def to_gradient(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        of_labels = logits.gather(1, labels[rows, None])
        nll = _to_probs(logits) - of_labels.squeeze(1)
        logits.scatter_add_(1, labels[rows, None], torch.full_like(of_labels, -1.0))
        return nll

    return _apply(head, hidden_states, to_gradient)


def chunked_kl(
    head: Head, hidden_states: torch.Tensor, ref_head: Head, ref_hidden_states: torch.Tensor
) -> torch.Tensor:
    """
    KL(reference ‖ model) of next-token distributions.

    Args:
        head ([`Head`]):
            LM head of the model, without a soft-cap.
        hidden_states (`torch.Tensor`):
            Hidden states of the model, of shape `(tokens, hidden size)`.
        ref_head ([`Head`]):
            LM head of the reference, without a soft-cap; no gradient flows to it.
        ref_hidden_states (`torch.Tensor`):
            Hidden states of the reference, of shape `(tokens, hidden size of the reference)`.

    Returns:
        `torch.Tensor`: In nats, of shape `(tokens,)`, in fp32 or more.
    """
    dtype = _dtype_of(ref_hidden_states)
    ref_weight, ref_hidden_states = ref_head.weight.detach().to(dtype), ref_hidden_states.to(dtype)
    ref_bias = None if ref_head.bias is None else ref_head.bias.detach()

    def to_gradient(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        parts = []
        for part, ref_hidden in zip(
            logits.split(_REF_TOKENS), ref_hidden_states[rows].split(_REF_TOKENS), strict=True
        ):
            ref_probs = torch.empty_like(part)
            _write_logits(ref_probs, ref_hidden, ref_weight, ref_bias, ref_head.scale)
            gap = ref_probs - part
            ref_normalizer = _to_probs(ref_probs)
            parts.append(torch.linalg.vecdot(ref_probs, gap) - ref_normalizer + _to_probs(part))
            part -= ref_probs
        return torch.cat(parts)

    return _apply(head, hidden_states, to_gradient)


def _to_probs(logits: torch.Tensor) -> torch.Tensor:
    """Softmax in place. Returns the logarithm of its normalizer, which the largest probability, never 0, tells."""
    largest = logits.amax(1)
    torch.softmax(logits, 1, out=logits)
    return largest - logits.amax(1).log()


def _apply(head: Head, hidden_states: torch.Tensor, to_gradient: Callable) -> torch.Tensor:
    weight, bias = head.weight, head.bias
    if not torch.is_grad_enabled():  # a function of autograd cannot see this, and would prepare for a backward
        hidden_states, weight, bias = (x if x is None else x.detach() for x in (hidden_states, weight, bias))
    return ChunkedHeadFunction.apply(hidden_states, weight, bias, head.scale, _dtype_of(hidden_states), to_gradient)


def _dtype_of(hidden_states: torch.Tensor) -> torch.dtype:
    """Type that products are made in."""
    device = hidden_states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype


class ChunkedHeadFunction(torch.autograd.Function):
    """
    A loss of each token. `to_gradient(logits, rows)` turns the logits of some tokens into the gradient of their losses, in
    place, and returns the losses.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, scale, dtype, to_gradient):
        needs_hidden_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head, hidden = weight.to(dtype), hidden_states.to(dtype)
        chunk = _empty_chunk(hidden, head)
        losses = chunk.new_empty(len(hidden))
        # The gradient through a frozen head is known now, but for a factor: the logits are needed once.
        is_trained = needs_weight or needs_bias
        direction = torch.empty_like(hidden) if needs_hidden_states and not is_trained else None
        start = 0
        for start in range(0, len(hidden), len(chunk)):
            rows = slice(start, min(start + len(chunk), len(hidden)))
            tile = _write_logits(chunk[: rows.stop - start], hidden[rows], head, bias, scale)
            losses[rows] = to_gradient(tile, rows)
            if direction is not None:
                torch.mm(tile.to(dtype), head, out=direction[rows])
        ctx.scale, ctx.dtype, ctx.to_gradient, ctx.direction = scale, dtype, to_gradient, direction
        ctx.chunk, ctx.last_start = (chunk, start) if is_trained else (None, None)
        ctx.save_for_backward(hidden_states, weight, bias)
        return losses

    @staticmethod
    def backward(ctx, grad_losses):
        hidden_states, weight, bias = ctx.saved_tensors
        factors = (grad_losses * ctx.scale)[:, None]
        if ctx.direction is not None:
            return (ctx.direction * factors).to(hidden_states.dtype), None, None, None, None, None
        needs_hidden_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_weight = grad_bias = None
        head, hidden = weight.to(ctx.dtype), hidden_states.to(ctx.dtype)
        chunk = _empty_chunk(hidden, head) if ctx.chunk is None else ctx.chunk
        grad_hidden = torch.empty_like(hidden) if needs_hidden_states else None
        for start in reversed(range(0, max(len(hidden), 1), len(chunk))):
            rows = slice(start, min(start + len(chunk), len(hidden)))
            tile = chunk[: rows.stop - start]
            if start != ctx.last_start:
                ctx.to_gradient(_write_logits(tile, hidden[rows], head, bias, ctx.scale), rows)
            tile *= factors[rows]
            if needs_bias:
                grad_bias = _add(grad_bias, tile.sum(0))
            tile = tile.to(ctx.dtype)
            if needs_hidden_states:
                torch.mm(tile, head, out=grad_hidden[rows])
            if needs_weight:
                grad_weight = _add_product(grad_weight, tile.t(), hidden[rows])
        # Overwritten, and not to be held while the backward goes on: a second one makes it anew
        ctx.chunk = ctx.last_start = None
        grads = (grad_hidden, hidden_states), (grad_weight, weight), (grad_bias, bias)
        return *(grad if grad is None else grad.to(of.dtype) for grad, of in grads), None, None, None


def _empty_chunk(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    size = max(CHUNK_BYTES // (len(head) * dtype.itemsize), 1)
    return hidden.new_empty(min(size, max(len(hidden), 1)), len(head), dtype=dtype)


def _write_logits(
    chunk: torch.Tensor, hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    if chunk.dtype == hidden.dtype:
        torch.mm(hidden, head.t(), out=chunk)
    else:
        chunk.copy_(hidden @ head.t())
    if bias is not None:
        chunk += bias
    if scale != 1.0:
        chunk *= scale
    return chunk


def _add(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    return part if total is None else total.add_(part)


def _add_product(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sums in fp32 or more; the products are in the type of the factors."""
    if total is not None and total.dtype == a.dtype:
        return total.addmm_(a, b)
    return _add(total, (a @ b).to(torch.promote_types(a.dtype, torch.float32)))
