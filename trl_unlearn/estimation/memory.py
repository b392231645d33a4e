"""Memory of a training step on one device: the trainer's own step, traced, and what sharding makes of it."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from trl import ModelConfig

from ..trainer.unlearning_trainer import UnlearningTrainer
from .batches import MicroBatches, batch_of
from .optimizers import bitsandbytes_bytes
from .sharding import Sharding
from .trace import MemoryTrace


GIB = 2**30

# Bytes beside tensors, and what the allocator holds beside what is in use, as a part of what comes and goes. On a CPU with
# glibc's allocator: measured, see tests/benchmarks/README.md. On a GPU: CUDA's context with cuBLAS' workspaces, and NCCL's
# buffers, as commonly seen; not measured here.
CPU_LIBRARIES, CPU_ALLOCATOR = 45 * 2**20, 0.25
GPU_LIBRARIES, NCCL, GPU_ALLOCATOR = 0.75 * GIB, 0.5 * GIB, 0.08
# DeepSpeed's defaults, in elements: `reduce_bucket_size`, `stage3_max_live_parameters`
ZERO_BUCKET, ZERO_LIVE = 5e8, 1e9


@dataclass
class MemoryEstimate:
    """
    Bytes of one device.

    Parameters:
        parts (`dict[str, float]`):
            What is held, each part at its largest; then what of it is not held at once, as a negative number.
        total (`float`):
            Most that is held at once.
        moment (`str`):
            When that is.
        tokens (`int`):
            Tokens of the micro-batch, with padding.
        flops (`int`):
            Operations in its matrix products and attention, forward and backward.
    """

    parts: dict[str, float]
    total: float
    moment: str
    tokens: int
    flops: int


class Footprint:
    """
    Traces steps of a trainer around a model without weights.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer from [`~estimation.probe.build_trainer`].
        model_args ([`~trl.ModelConfig`]):
            Quantization.
        sharding ([`~estimation.sharding.Sharding`]):
            How it is divided between devices.
        autocast_dtype (`torch.dtype`, *optional*):
            Data type of autocast.
        on_gpu (`bool`):
            Whether for a GPU or for the CPU.
    """

    def __init__(
        self,
        trainer: UnlearningTrainer,
        model_args: ModelConfig,
        sharding: Sharding,
        autocast_dtype: torch.dtype | None,
        on_gpu: bool,
    ):
        self.trainer, self.sharding, self.on_gpu = trainer, sharding, on_gpu
        self.autocast_dtype = autocast_dtype
        self.trace = MemoryTrace()
        self.trace.adopt(trainer.model, "weights")
        for reference in filter(None, (trainer.ref_model, trainer._ref_head)):
            self.trace.adopt(reference, "reference")
        parameters = list(trainer.model.parameters())
        self.trainable = [parameter for parameter in parameters if parameter.requires_grad]
        self.num_parameters = sum(parameter.numel() for parameter in parameters)
        self.num_trained = sum(parameter.numel() for parameter in self.trainable)
        self.saved_by_quantization, self.dequantized = _quantization(trainer.model, model_args)
        self._set_factors()

    def _set_factors(self) -> None:
        """Bytes of each kind on one device, relative to those that are traced, and what comes to them."""
        sharding = self.sharding
        trained = sum(map(_num_bytes, self.trainable))
        buffers = self.trace.held["weights"] - sum(map(_num_bytes, self.trainer.model.parameters()))
        frozen = self.trace.held["weights"] - trained - buffers - self.saved_by_quantization
        of_weights = of_gradients = of_states = 1.0
        master = 0.0
        # accelerate keeps what is trained in fp32 when FSDP computes in 16 bits; DeepSpeed a copy of it
        if sharding.strategy == "fsdp" and self.autocast_dtype is not None:
            of_weights = of_gradients = of_states = 4 * self.num_trained / trained
        elif sharding.strategy == "zero":
            size = 4 if self.autocast_dtype is None else 2
            of_weights = of_gradients = size * self.num_trained / trained
            of_states, master = 4 * self.num_trained / trained, 4.0 * self.num_trained
        on_device = {part: float(part not in sharding.offloaded) for part in ("weights", "optimizer")}
        self.weight_bytes = on_device["weights"] * (frozen + of_weights * trained) / sharding.weights + buffers
        self.gradient_factor = on_device["weights"] * of_gradients / sharding.gradients
        self.state_factor = on_device["optimizer"] * of_states / sharding.optimizer
        self.master_bytes = on_device["optimizer"] * master / sharding.optimizer
        self.reference_bytes = self.trace.held["reference"] / sharding.weights
        self.trace.weights = {
            "weights": 0.0,
            "reference": 0.0,
            "gradients": self.gradient_factor,
            "optimizer": self.state_factor,
        }
        self.communication_bytes = self._communication(trained)

    def _communication(self, trained: float) -> float:
        """Buffers that devices send and receive in."""
        sharding, model = self.sharding, self.trainer.model
        if sharding.num_processes == 1 or sharding.strategy == "none":
            return 0.0
        if sharding.strategy == "ddp":
            return trained  # the buckets hold every gradient once more
        if sharding.strategy == "fsdp":
            names = set(getattr(model, "_no_split_modules", None) or ())
            blocks = [module for module in model.modules() if type(module).__name__ in names]
            sizes = [sum(map(_num_bytes, block.parameters())) for block in blocks] or [0]
            whole = sum(map(_num_bytes, model.parameters())) - self.saved_by_quantization
            root = whole - sum(sizes)
            gathered = whole if sharding.gathers_all else root + 2 * max(sizes)  # one layer ahead is fetched
            gradients = [sum(_num_bytes(p) for p in block.parameters() if p.requires_grad) for block in blocks] or [0]
            return gathered + max(trained - sum(gradients), *gradients)
        size = 4 if self.autocast_dtype is None else 2
        buckets = 2 * size * min(ZERO_BUCKET, self.num_trained)
        return buckets + (size * min(ZERO_LIVE, self.num_parameters) if sharding.weights > 1 else 0)

    def _autocast(self) -> Any:
        return nullcontext() if self.autocast_dtype is None else torch.autocast("cpu", self.autocast_dtype)

    def estimate(self, batch_size: int) -> MemoryEstimate:
        """
        Memory with a batch size, of the largest micro-batch of the run.

        Args:
            batch_size (`int`):
                Pairs a micro-batch.
        """
        trainer, trace = self.trainer, self.trace
        batches = MicroBatches(trainer, batch_size)
        tokens = int(batches.tokens.max())
        batch = batch_of(trainer, batches.nearest(tokens))
        longest = self._longest(trainer.args.precompute_ref_batch_size or 4 * batch_size)
        vocab_size = trainer.model.config.get_text_config().vocab_size
        with trace, trace.lm_head(self.on_gpu, vocab_size):
            moments = {}
            if trainer._precomputes:
                moments["the reference's log-probabilities before training"] = self._trace_reference(longest)
            state_bytes = self._make_states()
            if trainer.args.gradient_accumulation_steps == 1:
                self._drop_gradients()
            trace.reset_peak()
            before = trace.flops
            with self._autocast():
                loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            del loss
            flops = trace.flops - before
            moments["forward and backward"] = trace.peak + state_bytes + self.master_bytes
            parts = trace.most.copy()
            if trainer.optimizer is not None:
                trace.reset_peak()
                trainer.optimizer.step()
                moments["the optimizer's step"] = trace.peak + self.master_bytes
        moment = max(moments, key=moments.get)
        passing = parts["activations"] + parts["lm_head"]
        if self.on_gpu:
            overhead = GPU_LIBRARIES + NCCL * (self.sharding.num_processes > 1) + GPU_ALLOCATOR * passing
        else:
            overhead = CPU_LIBRARIES + CPU_ALLOCATOR * passing
        listed = {
            "weights": self.weight_bytes,
            "gradients": self.gradient_factor * parts["gradients"],
            "optimizer": self.state_factor * parts["optimizer"] + state_bytes + self.master_bytes,
            "reference": self.reference_bytes,
            "activations": parts["activations"],
            "lm_head": parts["lm_head"],
            "dequantized": self.dequantized,
            "communication": self.communication_bytes,
            "overhead": overhead,
        }
        constant = ("weights", "reference", "dequantized", "communication", "overhead")
        total = moments[moment] + sum(listed[part] for part in constant)
        listed["not_at_once"] = total - sum(listed.values())
        return MemoryEstimate(listed, total, moment, tokens, flops)

    def _longest(self, size: int) -> dict[str, Any]:
        """The largest batch of the pass that scores the reference, which goes through rows of one kind by length."""
        rows = self.trainer.train_dataset
        parts = [part for part in (rows.forget, rows.alternate) if part is not None]
        lengths = [[len(ids) for ids in part["input_ids"]] for part in parts]
        largest = max(range(len(parts)), key=lambda index: max(lengths[index]))
        order = np.argsort(lengths[largest], kind="stable")[::-1][:size]
        return self.trainer.data_collator([{"forget": parts[largest][int(index)]} for index in order])

    def _trace_reference(self, batch: dict[str, Any]) -> float:
        """Peak of that pass, which is made before training, without an optimizer."""
        before = self.trace.total()
        self.trace.reset_peak()
        trainer = self.trainer
        model, context = trainer._reference() or (trainer.model, nullcontext())
        with context, self._autocast():
            trainer._score_reference(batch, model)
        return self.trace.peak - before

    def _make_states(self) -> float:
        """Makes gradients, and with a first step the optimizer's states; returns the bytes of those not traced."""
        trainer, trace = self.trainer, self.trace
        for parameter in self.trainable:
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
                trace.count(parameter.grad, "gradients")
        states = bitsandbytes_bytes(trainer.model, trainer.args.optim)
        if states is not None:
            return self.state_factor * states
        if trainer.optimizer is None:
            trainer.create_optimizer()
            trainer.optimizer.step()
            for state in trainer.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, torch.Tensor):
                        trace.count(value, "optimizer")
        return 0.0

    def _drop_gradients(self) -> None:
        for parameter in self.trainable:
            parameter.grad = None


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _quantization(model: nn.Module, model_args: ModelConfig) -> tuple[float, float]:
    """Bytes that quantization takes off the weights, and those of the largest matrix while it is used."""
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return 0.0, 0.0
    head = model.get_output_embeddings()  # left as it is by bitsandbytes
    weights = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    ]
    if model_args.load_in_8bit:  # and a scale in fp32 for every output
        packed = sum(weight.numel() + 4 * weight.size(0) for weight in weights)
    else:  # and a scale for every 64 weights, in fp32 or (nested) in 8 bits with one in fp32 for every 256 of them
        scale = (1 + 4 / 256) / 64 if model_args.use_bnb_nested_quant else 4 / 64
        packed = sum((0.5 + scale) * weight.numel() for weight in weights)
    return sum(map(_num_bytes, weights)) - packed, float(max(map(_num_bytes, weights), default=0))
