"""What one of several devices holds: from the file that `accelerate launch` is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass
class Sharding:
    """
    How weights, gradients and states of the optimizer are divided between devices.

    Parameters:
        num_processes (`int`, *optional*, defaults to `1`):
            Number of devices.
        strategy (`str`, *optional*, defaults to `"none"`):
            `"none"`, `"ddp"`, `"fsdp"` or `"zero"`.
        weights (`int`, *optional*, defaults to `1`):
            Number of parts that the weights are cut in.
        gradients (`int`, *optional*, defaults to `1`):
            The same of the gradients.
        optimizer (`int`, *optional*, defaults to `1`):
            The same of the states of the optimizer.
        gathers_all (`bool`, *optional*, defaults to `False`):
            Whether a device that has gathered the weights of a layer keeps them until the backward has used them.
        offloaded (`tuple[str, ...]`, *optional*):
            What is kept on the host: `"weights"` (with their gradients), `"optimizer"`.
        mixed_precision (`str`, *optional*):
            `"bf16"` or `"fp16"`, if the file says so.
    """

    num_processes: int = 1
    strategy: str = "none"
    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    gathers_all: bool = False
    offloaded: tuple[str, ...] = ()
    mixed_precision: str | None = None

    @property
    def name(self) -> str:
        """As a person calls it."""
        if self.strategy == "zero":
            stage = 3 if self.weights > 1 else 2 if self.gradients > 1 else 1
            return f"DeepSpeed ZeRO-{stage}"
        return {"none": "one device", "ddp": "DDP", "fsdp": "FSDP"}[self.strategy]


def read_sharding(path: str | None, num_processes: int | None = None) -> Sharding:
    """
    Reads the strategy from a file of `accelerate config`.

    Args:
        path (`str`, *optional*):
            The YAML file. Without one, several processes are DDP.
        num_processes (`int`, *optional*):
            Number of processes, in place of the file's.

    Raises:
        ValueError: If there is no such file, or it has a strategy that is not known here.
    """
    options: dict[str, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"`accelerate_config` is {path!r}, where there is no file.")
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    parts = num_processes or int(options.get("num_processes") or 1)
    if parts < 1:
        raise ValueError(f"`num_processes` must be positive, got {parts}.")
    kind = str(options.get("distributed_type", "MULTI_GPU" if parts > 1 else "NO")).upper()
    precision = options.get("mixed_precision")
    mixed_precision = precision if precision in ("bf16", "fp16") else None
    if kind == "FSDP":
        fsdp = options.get("fsdp_config") or {}
        reshard = fsdp.get("fsdp_reshard_after_forward", fsdp.get("fsdp_sharding_strategy", "FULL_SHARD"))
        if str(reshard).upper() in ("NO_SHARD", "3"):
            return Sharding(parts, "ddp", mixed_precision=mixed_precision)
        return Sharding(
            parts,
            "fsdp",
            weights=parts,
            gradients=parts,
            optimizer=parts,
            gathers_all=str(reshard).upper() in ("FALSE", "SHARD_GRAD_OP", "2"),
            offloaded=("weights", "optimizer") if fsdp.get("fsdp_offload_params") else (),
            mixed_precision=mixed_precision,
        )
    if kind == "DEEPSPEED":
        deepspeed = options.get("deepspeed_config") or {}
        if "zero_stage" not in deepspeed:
            raise ValueError(
                f"{path} has no `deepspeed_config: zero_stage`, from which it is known what is sharded. (A file of its own "
                "for DeepSpeed is not read.)"
            )
        stage = int(deepspeed["zero_stage"])
        moved = {"weights": "offload_param_device", "optimizer": "offload_optimizer_device"}
        return Sharding(
            parts,
            "zero" if stage > 0 else "ddp",
            weights=parts if stage >= 3 else 1,
            gradients=parts if stage >= 2 else 1,
            optimizer=parts if stage >= 1 else 1,
            offloaded=tuple(part for part, key in moved.items() if deepspeed.get(key, "none") not in (None, "none")),
            mixed_precision=mixed_precision,
        )
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return Sharding(parts, "ddp" if parts > 1 else "none", mixed_precision=mixed_precision)
    raise ValueError(f"{path} has `distributed_type: {kind}`; expected NO, MULTI_GPU, MULTI_CPU, FSDP or DEEPSPEED.")
