"""Runs PyTorch on tensors without data and counts, operation by operation, the bytes that would be held."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from math import prod
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from .._trl import CHUNK_SIZES, TRITON_KERNELS, ChunkedDivergenceFunction, ChunkedLogProbFunction
from ..trainer import scoring
from ..trainer.chunked_head import ChunkedHeadFunction


aten = torch.ops.aten

_COUNTERS = {aten.arange.default, aten.arange.start, aten.arange.start_step}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
# Operations of products, from shapes. Torch does not count the CPU's attention, and the product over a mixture's experts, in
# which each row meets one.
_OPERATIONS = flop_registry | {
    aten._grouped_mm: shape_wrapper(lambda left, right, *_, **__: 2 * left[-2] * left[-1] * right[-1]),
    aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(lambda *shapes, **_: sdpa_flop_count(*shapes[:3])),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}
# Real tensors are ids, labels and masks; beyond this size not even a mask is made.
_LARGEST_REAL_TENSOR = 2**26


class MemoryTrace(TorchDispatchMode):
    """
    Runs what is called within it on tensors that have a shape but no data, and counts the bytes they would hold.

    Tensors with data may be mixed in: token ids, labels and masks keep their values, so that what depends on them (which
    positions are scored, whether anything is padded) is as in the real run. What is computed from a tensor without data
    has none either. Storages are counted once, when an operation first returns them, until they are freed.

    Attributes:
        held (`Counter`):
            Bytes that are held now, by kind.
        most (`Counter`):
            Most bytes of each kind that were held since the last [`~MemoryTrace.reset_peak`].
        flops (`int`):
            Operations in matrix products and attention.
        peak (`float`):
            Most that was held at once in that time, each kind times its weight.

    Args:
        weights (`dict[str, float]`, *optional*):
            Factor of each kind of bytes in the peak, for what is sharded between devices. Defaults to 1.
    """

    def __init__(self, weights: dict[str, float] | None = None):
        super().__init__()
        self.weights = weights or {}
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.flops = 0
        self.held: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.peak = 0.0
        self._kind = "activations"
        self._storages: dict[int, tuple[weakref.ref, int, str]] = {}
        self._paused = False

    def __enter__(self) -> "MemoryTrace":
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        self.fake.__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        has_values = not any(isinstance(value, FakeTensor) for value in inputs)
        if has_values and (func in _COUNTERS or inputs and _size_of_result(inputs) <= _LARGEST_REAL_TENSOR):
            with _disable_current_modes():
                output = func(*args, **kwargs)
        else:
            if func in _INDEXING:
                args = (args[0], _without_masks(args[1]), *args[2:])
            output = _in_bf16(func, args, kwargs) if func is aten._grouped_mm.default else func(*args, **kwargs)
        if func.overloadpacket in _OPERATIONS:  # torch's own counter would keep what checkpointing frees
            self.flops += _OPERATIONS[func.overloadpacket](*args, **kwargs, out_val=output)
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and id(value.untyped_storage()) not in self._storages:
                self.count(value, self._kind)
        return output

    def count(self, tensor: torch.Tensor, kind: str) -> None:
        """Counts a tensor's storage as one of `kind` from now on."""
        if self._paused:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._storages.get(key)
        if known is not None:
            self.held[known[2]] -= known[1]
        num_bytes = storage.nbytes()
        reference = known[0] if known is not None else weakref.ref(storage, lambda _: self._free(key))
        self._storages[key] = (reference, num_bytes, kind)
        self.held[kind] += num_bytes
        self.most[kind] = max(self.most[kind], self.held[kind])
        self.peak = max(self.peak, self.total())

    def _free(self, key: int) -> None:
        _, num_bytes, kind = self._storages.pop(key)
        self.held[kind] -= num_bytes

    def total(self) -> float:
        """Bytes held now, each kind times its weight."""
        return sum(self.weights.get(kind, 1.0) * num_bytes for kind, num_bytes in self.held.items())

    def reset_peak(self) -> None:
        self.most = Counter(self.held)
        self.peak = self.total()

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor without data on the CPU; to the tracing, the device does not matter."""
        with self.fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    def adopt(self, model: nn.Module, kind: str) -> None:
        """
        Puts tensors without data in the place of a model's parameters and buffers, and counts them.

        Args:
            model (`nn.Module`):
                Model, on the meta device or any other.
            kind (`str`):
                What its bytes count as. Gradients count as `"gradients"`.
        """
        adopted: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None or isinstance(tensor, FakeTensor):
                        continue
                    if id(tensor) not in adopted:
                        empty = self.empty_like(tensor)
                        if isinstance(tensor, nn.Parameter):
                            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                        self.count(empty, kind)
                        adopted[id(tensor)] = empty
                        # keeps the old tensor's id from being used again
                        adopted[id(empty)] = tensor
                    tensors[name] = adopted[id(tensor)]
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: self.count(p.grad, "gradients"))

    @contextmanager
    def lm_head(self, triton: bool, vocab_size: int) -> Iterator[None]:
        """
        Counts what the LM head makes as `"lm_head"`: TRL's fused one, or that of the CPU.

        Args:
            triton (`bool`):
                Whether it runs as on a GPU, where Triton's kernels work in place; on the CPU they make tensors.
            vocab_size (`int`):
                Number of tokens. Of a chunk's buffer that is wider, the CPU takes no more than is written.
        """
        with ExitStack() as stack:
            for function in (ChunkedLogProbFunction, ChunkedDivergenceFunction, ChunkedHeadFunction):
                for name in ("forward", "backward"):
                    inside = staticmethod(self._with(getattr(function, name), _kind="lm_head"))
                    stack.enter_context(_replaced(function, name, inside))
            if triton:
                stack.enter_context(_replaced(scoring, "scores_in_chunks", lambda *_: False))
                for module, names in TRITON_KERNELS.items():
                    for name in names:
                        uncounted = self._with(getattr(module, name), _paused=True)
                        stack.enter_context(_replaced(module, name, uncounted))
            else:
                for module, name in CHUNK_SIZES:
                    stack.enter_context(_replaced(module, name, min(getattr(module, name), vocab_size)))
            yield

    def _with(self, function: Callable, **attributes: Any) -> Callable:
        """`function`, with attributes of this object that are other while it runs."""

        @wraps(function)
        def call(*args, **kwargs):
            with ExitStack() as stack:
                for name, value in attributes.items():
                    stack.enter_context(_replaced(self, name, value))
                return function(*args, **kwargs)

        return call


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a module, class or object is another within this context."""
    before = vars(owner)[name]  # not `getattr`, which would take a static method out of its wrapper
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _size_of_result(inputs: Iterable[torch.Tensor]) -> int:
    """Most elements that an elementwise operation on these tensors can have; of other operations, what they read."""
    shapes = [value.shape for value in inputs]
    try:
        return prod(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        return max(map(prod, shapes))


def _in_bf16(func: Callable, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """The product over a mixture's experts: the CPU has it in all types, its form for tensors without data in one."""
    in_bf16 = [value.bfloat16() if value is not None and value.is_floating_point() else value for value in args]
    return func(*in_bf16, **kwargs).to(args[0].dtype)


def _without_masks(indices: Iterable[Any]) -> list[Any]:
    """Positions in the place of masks with values, from which alone the shape of what they select is known."""
    taken = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            with _disable_current_modes():
                taken.extend(index.nonzero().unbind(1))
        else:
            taken.append(index)
    return taken
