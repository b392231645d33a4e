"""Time of a training step: measured on a few layers of the model's own shapes, or from operations and a stated speed."""

import time
from dataclasses import dataclass
from statistics import median

import psutil
import torch
from torch import nn

from ..trainer.unlearning_trainer import UnlearningTrainer
from .batches import MicroBatches, Pairs, batch_of
from .memory import Footprint, MemoryEstimate
from .probe import Probe


@dataclass
class Gpu:
    """
    What a GPU's data sheet says.

    Parameters:
        memory_gib (`float`):
            Memory.
        tflops (`float`):
            Dense matrix products in bf16, in 10^12 operations a second (half of what is given "with sparsity").
        bandwidth (`float`):
            Bandwidth of the memory, in GB/s.
    """

    memory_gib: float
    tflops: float
    bandwidth: float


# NVIDIA's data sheets, as of 2024. The memory is what CUDA reports, a little less than the name says.
GPUS = {
    "A10": Gpu(22.1, 125, 600),
    "A100-40GB": Gpu(39.4, 312, 1555),
    "A100-80GB": Gpu(79.1, 312, 2039),
    "H100-80GB": Gpu(79.1, 989, 3350),
    "H200": Gpu(139.8, 989, 4800),
    "L4": Gpu(22.0, 121, 300),
    "L40S": Gpu(44.4, 362, 864),
    "RTX4090": Gpu(23.6, 165, 1008),
}
# The part of that speed that training steps of a few thousand tokens reach in PyTorch: an assumption, which is printed.
UTILIZATION = 0.4
# Beyond this a micro-batch would take many seconds on a CPU
MOST_FLOPS = 4e11


@dataclass
class StepTime:
    """
    Seconds of the parts of a step on one device.

    Parameters:
        micro_batch (`float`):
            Forward and backward of a micro-batch of the mean size.
        optimizer (`float`):
            Step of the optimizer.
    """

    micro_batch: float
    optimizer: float


def time_step(
    probe: Probe,
    footprint: Footprint,
    batches: MicroBatches,
    flops: float,
    memory: MemoryEstimate,
    gpu: str | None,
    tflops: float | None,
) -> tuple[StepTime | None, str]:
    """
    Time of a micro-batch of the mean size and of the optimizer's step.

    Args:
        probe ([`~estimation.probe.Probe`]):
            Makes trainers, to measure with.
        footprint ([`~estimation.memory.Footprint`]):
            Size of the model.
        batches ([`~estimation.batches.MicroBatches`]):
            Micro-batches.
        flops (`float`):
            Operations per token of a micro-batch.
        memory ([`~estimation.memory.MemoryEstimate`]):
            Memory.
        gpu (`str`, *optional*):
            Key of `GPUS`, or `"here"`; the CPU if `None`.
        tflops (`float`, *optional*):
            Speed in place of a measurement or an assumption.

    Returns:
        `tuple[StepTime | None, str]`: Time, if it can be told, and what it was derived from.
    """
    mean = float(batches.tokens.mean())
    sheet = GPUS.get(gpu)
    # The optimizer reads and writes each of these
    touched = 2 * sum(memory.parts[part] for part in ("gradients", "optimizer")) + 8 * footprint.num_trained
    optimizer = touched / (sheet.bandwidth * 1e9) if sheet is not None else 0.0
    if tflops is not None:
        return StepTime(flops * mean / tflops / 1e12, optimizer), f"{tflops:g} TFLOP/s, as given"
    if sheet is not None:
        speed = UTILIZATION * sheet.tflops
        how = f"{speed:.0f} TFLOP/s, {UTILIZATION:.0%} of the {sheet.tflops:g} in NVIDIA's data sheet of the {gpu} (bf16)"
        return StepTime(flops * mean / speed / 1e12, optimizer), how
    return _measure(probe, footprint, batches, flops, torch.device("cpu" if gpu is None else "cuda"))


def _measure(
    probe: Probe, footprint: Footprint, batches: MicroBatches, flops: float, device: torch.device
) -> tuple[StepTime | None, str]:
    """
    Times real steps: with all layers if that takes seconds, else with one layer and with three, continued in a line to all.

    On a CPU with one thread, the time of the processor is taken: on a machine with other work, the clock would measure that
    as well.
    """
    num_layers = probe.config.get_text_config().num_hidden_layers
    mean = float(batches.tokens.mean())
    size = footprint.trainer.args.per_device_train_batch_size
    counts = [num_layers]
    if flops * mean > MOST_FLOPS:
        counts = sorted({1, min(3, num_layers)})
        if device.type == "cpu":
            size = max(int(size * MOST_FLOPS / (flops * mean)), 1)
    measured = MicroBatches(footprint.trainer, size)
    pairs = measured.nearest(mean * size / footprint.trainer.args.per_device_train_batch_size)
    with torch.device("meta"):
        needed = 4 * sum(_num_bytes(probe.model(num_layers=count)) for count in counts)
    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if needed > free / 2 or flops * float(measured.tokens.mean()) > 10 * MOST_FLOPS:
        return None, "not estimated: the model is too large to be timed here; give `tflops`, or `gpu`"
    steps = {
        count: _Step(probe.trainer(device.type, num_layers=count), pairs, footprint.autocast_dtype, device)
        for count in counts
    }
    for step in steps.values():
        step.run()  # the first one allocates
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    started = time.perf_counter()
    # In turns, so that what else runs on the machine meets all alike
    while len(times[counts[0]]) < 3 or (time.perf_counter() - started < 4 and len(times[counts[0]]) < 20):
        for count, step in steps.items():
            times[count].append(step.run())
    micro_batch, optimizer = (
        _continued({count: median(run[part] for run in runs) for count, runs in times.items()}, num_layers)
        for part in (0, 1)
    )
    micro_batch *= mean / steps[counts[0]].tokens
    clock = "processor time" if _one_thread(device) else "by the clock"
    layers = "all layers" if counts == [num_layers] else f"1 and {counts[-1]} of {num_layers} layers, continued to all"
    how = f"measured here ({device.type}, {torch.get_num_threads()} thread(s), {clock}) with {layers}"
    return StepTime(micro_batch, optimizer), how


def _num_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _continued(times: dict[int, float], num_layers: int) -> float:
    first, last = min(times), max(times)
    per_layer = max(times[last] - times[first], 0.0) / max(last - first, 1)
    return times[first] + (num_layers - first) * per_layer


def _one_thread(device: torch.device) -> bool:
    return device.type == "cpu" and torch.get_num_threads() == 1


class _Step:
    """Real steps of a trainer, timed."""

    def __init__(self, trainer: UnlearningTrainer, pairs: Pairs, dtype: torch.dtype | None, device: torch.device):
        self.trainer, self.device = trainer, device
        for model in filter(None, (trainer.model, trainer.ref_model, trainer._ref_head)):
            model.to(device)
        self.batch = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in batch_of(trainer, pairs).items()
        }
        self.tokens = self.batch["input_ids"].numel()
        self.autocast = {"device_type": device.type, "dtype": dtype, "enabled": dtype is not None}
        self.optimizer = trainer.create_optimizer()

    def run(self) -> tuple[float, float]:
        """Seconds of forward and backward, and of the optimizer's step."""
        marks = [self._now()]
        with torch.autocast(**self.autocast):
            loss = self.trainer.compute_loss(self.trainer.model, dict(self.batch))
        loss.backward()
        marks.append(self._now())
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(self._now())
        return marks[1] - marks[0], marks[2] - marks[1]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if _one_thread(self.device) else time.perf_counter()
