"""Memory and time of a recipe before it is run."""

import warnings
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from trl import ModelConfig

from ..scripts.unlearn import UnlearningScriptArguments
from ..trainer.plan import plan_of
from ..trainer.unlearning_config import UnlearningConfig
from ..trainer.unlearning_trainer import UnlearningTrainer
from .batches import MicroBatches
from .memory import GIB, Footprint, MemoryEstimate
from .probe import Probe
from .sharding import Sharding
from .timing import GPUS, StepTime, time_step


@dataclass
class Estimate:
    """
    What [`estimate`] finds, per device.

    Parameters:
        memory (`dict[str, float]`):
            Bytes: each part at its largest, `not_at_once` (negative: what of it is not held at the same time), and `total`.
        peak_moment (`str`):
            When the most memory is held.
        run (`dict[str, float]`):
            Parameters, steps, and tokens a micro-batch with padding; where the data could be read, also rows, epochs and
            tokens of the run.
        time (`dict[str, float]` or `None`):
            Seconds of a `micro_batch`, of the `optimizer`, of a `step`, of the pass for the `reference` before training,
            and of the run (`total`), as far as they are known.
        verdict (`dict[str, Any]` or `None`):
            `device_memory`, whether it `fits`, and the largest `per_device_train_batch_size` that does, with the
            `gradient_accumulation_steps` that keep the effective batch (`None` if none does).
        assumptions (`list[str]`):
            What was assumed.
    """

    memory: dict[str, float]
    peak_moment: str
    run: dict[str, float]
    time: dict[str, float] | None
    verdict: dict[str, Any] | None
    assumptions: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate(
    trainer_class: type[UnlearningTrainer],
    script_args: UnlearningScriptArguments,
    training_args: UnlearningConfig,
    model_args: ModelConfig,
    sharding: Sharding | None = None,
    tokens_per_row: int | None = None,
    gpu: str | None = None,
    device_memory_gib: float | None = None,
    tflops: float | None = None,
) -> Estimate:
    """
    Estimates memory and time of a training from shapes alone.

    The trainer's own step is run once on tensors that have shapes but no data, and every tensor is counted. Of the model
    only its configuration is read.

    Args:
        trainer_class (`type[UnlearningTrainer]`):
            Method.
        script_args ([`UnlearningScriptArguments`]):
            Data.
        training_args ([`UnlearningConfig`]):
            Configuration of the trainer, made with `use_cpu=True`: nothing is trained.
        model_args ([`~trl.ModelConfig`]):
            Model, quantization and adapter.
        sharding ([`~estimation.sharding.Sharding`], *optional*):
            Devices. Defaults to one.
        tokens_per_row (`int`, *optional*):
            Length of all rows, in place of those of the data, which is then not read.
        gpu (`str`, *optional*):
            Key of [`~estimation.timing.GPUS`] to estimate for, or `"here"` for this machine's. If `None`, the CPU.
        device_memory_gib (`float`, *optional*):
            Memory that it should fit into. Defaults to the GPU's.
        tflops (`float`, *optional*):
            10^12 operations a second that are reached, in place of a measurement or an assumption.

    Returns:
        [`Estimate`]: Bytes, seconds, and what was assumed.

    Raises:
        ValueError: If model, data or options cannot be estimated; the message says what to do.
    """
    if device_memory_gib is None and gpu is not None:
        on_board = torch.cuda.get_device_properties(0).total_memory / GIB if gpu == "here" else GPUS[gpu].memory_gib
        device_memory_gib = on_board
    sharding = sharding or Sharding()
    training_args = copy(training_args)
    mixed_precision = "bf16" if training_args.bf16 else "fp16" if training_args.fp16 else sharding.mixed_precision
    autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}[mixed_precision]
    probe = Probe(trainer_class, script_args, training_args, model_args, tokens_per_row)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # What is sharded computes with weights in 16 bits; else autocast casts those in fp32
        trainer = probe.trainer("meta", dtype=autocast_dtype if sharding.strategy in ("fsdp", "zero") else None)
        footprint = Footprint(trainer, model_args, sharding, autocast_dtype, on_gpu=gpu is not None)
        try:
            memory = footprint.estimate(training_args.per_device_train_batch_size)
        except DynamicOutputShapeException as error:
            raise ValueError(
                f"`{type(trainer._causal_lm(trainer.model)).__name__}` computes with shapes that depend on the data, as "
                "mixtures of experts do in transformers 4, and cannot be estimated from shapes alone. Use transformers 5, or "
                "measure a short run with `max_steps=3`."
            ) from error
        flops = memory.flops / memory.tokens  # per token of a micro-batch
        batches = MicroBatches(trainer, training_args.per_device_train_batch_size)
        verdict = None
        if device_memory_gib is not None:
            verdict = _verdict(footprint, memory, device_memory_gib * GIB)
        step_time, how = time_step(probe, footprint, batches, flops, memory, gpu, tflops)
    run = _run(trainer, batches, sharding, flops, has_data=probe.rows is None)
    return Estimate(
        memory={**memory.parts, "total": memory.total},
        peak_moment=memory.moment,
        run=run,
        time=None if step_time is None else _seconds(trainer, step_time, batches, run),
        verdict=verdict,
        assumptions=[*probe.assumptions, f"Time: {how}.", *_assumptions(trainer, model_args, footprint, memory)],
    )


def _run(
    trainer: UnlearningTrainer,
    batches: MicroBatches,
    sharding: Sharding,
    flops: float,
    has_data: bool,
) -> dict[str, float]:
    """Size of the run. How many rows and thus steps there are is only known from the data."""
    trainer.args = copy(trainer.args)
    trainer.args.per_device_train_batch_size *= sharding.num_processes  # as if one device took them all
    plan = plan_of(trainer)
    if not has_data:
        names = {"parameters", "trainable_parameters", "pairs_per_step"}
        if trainer.args.max_steps > 0:
            names.add("steps")
        plan = {name: plan[name] for name in names}
    mean = float(batches.tokens.mean())
    return {
        **plan,
        "devices": sharding.num_processes,
        "mean_tokens_per_micro_batch": mean,
        "most_tokens_per_micro_batch": int(batches.tokens.max()),
        "flops_per_micro_batch": flops * mean,
    }


def _seconds(
    trainer: UnlearningTrainer, time: StepTime, batches: MicroBatches, run: dict[str, float]
) -> dict[str, float]:
    step = trainer.args.gradient_accumulation_steps * time.micro_batch + time.optimizer
    seconds = {"micro_batch": time.micro_batch, "optimizer": time.optimizer, "step": step}
    if "steps" in run:
        rows = 0.0
        if trainer._precomputes and "pairs" in run:
            rows += run["forget_rows"] + run["alternate_rows"]
        if trainer.args.cache_ref_hidden_states and "pairs" in run:
            rows += min(run["retain_rows"], run["epochs"] * run["pairs"])
        if rows > 0:
            # A forward is a third of forward and backward, and a quarter where the forward is done twice
            share = 1 / (4 if trainer.args.gradient_checkpointing else 3)
            seconds["reference"] = share * rows / run["devices"] * time.micro_batch / batches.rows_per_batch
        seconds["total"] = run["steps"] * step + seconds.get("reference", 0.0)
    return seconds


def _verdict(footprint: Footprint, memory: MemoryEstimate, device_memory: float) -> dict[str, Any]:
    """Whether it fits, and the largest batch that does while the effective batch stays as it is."""
    args = footprint.trainer.args
    asked, effective = (
        args.per_device_train_batch_size,
        args.per_device_train_batch_size * args.gradient_accumulation_steps,
    )
    sizes = [size for size in range(1, effective + 1) if effective % size == 0]
    fits = {asked: memory.total <= device_memory}
    low, high = -1, len(sizes)  # the largest known to fit, the smallest known not to
    while high - low > 1:
        # The batch asked for is known, and the larger ones are near
        middle = sizes.index(asked) if low < sizes.index(asked) < high and asked in fits else (low + high) // 2
        size = sizes[middle]
        if size not in fits:
            args.gradient_accumulation_steps = effective // size
            fits[size] = footprint.estimate(size).total <= device_memory
        low, high = (middle, high) if fits[size] else (low, middle)
    args.gradient_accumulation_steps = effective // asked
    largest = sizes[low] if low >= 0 else None
    return {
        "device_memory": device_memory,
        "fits": fits[asked],
        "per_device_train_batch_size": largest,
        "gradient_accumulation_steps": None if largest is None else effective // largest,
    }


def _assumptions(
    trainer: UnlearningTrainer, model_args: ModelConfig, footprint: Footprint, memory: MemoryEstimate
) -> list[str]:
    """What holds for this run, in sentences."""
    args, sharding = trainer.args, footprint.sharding
    lines = [
        "Memory: every tensor of the trainer's own step, counted while it is held, in the largest micro-batch; attention as "
        "PyTorch's fused kernels keep it.",
        f"Beside tensors: {memory.parts['overhead'] / GIB:.2f} GiB for "
        + ("CUDA's context, cuBLAS and NCCL" if footprint.on_gpu else "libraries that are loaded later")
        + " and for what the allocator holds in reserve.",
    ]
    if not footprint.on_gpu and is_peft_model(trainer.model):
        lines.append(
            "With an adapter, glibc may hold up to 2.5 times this between tensors (measured). MALLOC_MMAP_THRESHOLD_=1048576 in "
            "the environment makes it give them back, and a step slower by up to a half."
        )
    if footprint.on_gpu:
        lines.append("LM head: TRL's Triton kernels, which work in place.")
    if sharding.num_processes > 1:
        lines.append(
            f"{sharding.name} on {sharding.num_processes} devices: by formula, not measured; the time counts no communication."
        )
    if sharding.strategy == "fsdp" and footprint.autocast_dtype is not None:
        lines.append(
            "FSDP: what is trained is kept in fp32, gathered in 16 bits, one layer ahead of the one that computes."
        )
    if sharding.strategy == "zero":
        lines.append("ZeRO: 16-bit weights and gradients, fp32 weights and states (Rajbhandari et al., 2020).")
    if sharding.offloaded:
        lines.append(f"On the host, and not counted: {' and '.join(sharding.offloaded)}.")
    if str(args.optim).startswith("paged") or "paged" in str(getattr(args.optim, "value", "")):
        lines.append("The optimizer's states are paged: in memory shared with the host, and not counted.")
    if model_args.load_in_4bit or model_args.load_in_8bit:
        lines.append("Quantized weights: bitsandbytes' formats; the time is that of weights that are not.")
    for name in ("activation_offloading", "use_liger_kernel", "torch_compile", "forget_sharpness"):
        if getattr(args, name, False):
            lines.append(f"`{name}` is not taken into account.")
    lines.append("Not counted: evaluation during training, saving, and the loading of the weights.")
    return lines
