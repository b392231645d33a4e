"""Finished rows on disk, so that an evaluation that was killed goes on where it stopped."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.tensor import DTensor


class RowStore:
    """
    Results of rows by their content: the model, what was computed and how, and the tokens.

    Each process appends to a file of its own, a line a batch, and a batch that was cut off by a crash is computed again,
    whole, since other batches round in other ways. What any number of processes have left is found by any other number of
    processes.

    Args:
        directory (`Path`, *optional*):
            Folder of the files, on a disk that all processes share. If `None`, nothing is kept.
        model_digest (`str`, *optional*):
            What [`model_digest`] gives. Rows of another model in the same folder are not used.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to remove what is in the folder first.
    """

    def __init__(self, directory: Path | None = None, model_digest: str | None = None, overwrite: bool = False):
        self.directory = directory
        self.model_digest = model_digest
        self._finished: dict[str, Any] = {}
        state = PartialState()
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            files = sorted(directory.glob("rows-*.jsonl"))
            if state.is_main_process:
                for file in files:
                    if overwrite:
                        file.unlink()
                    else:
                        self._finished.update(_read(file))
            state.wait_for_everyone()
            self._own_file = directory / f"rows-{state.process_index}.jsonl"

    def finished(self, kind: str, items: list[tuple]) -> dict[tuple, Any]:
        """Those of `items` whose results are there, the same on all processes."""
        if self.directory is None:
            return {}
        found = {item: self._finished.get(self._digest(kind, item)) for item in items}
        known = [[index for index, item in enumerate(items) if found[item] is not None], None]
        known[1] = [found[items[index]] for index in known[0]]
        if PartialState().num_processes > 1:  # only the main process has read the files
            broadcast_object_list(known)
        return {items[index]: value for index, value in zip(*known, strict=True)}

    def add(self, kind: str, items: list[tuple], values: list[Any]) -> None:
        """
        Keeps the results of a batch, on disk before this returns.

        Raises:
            OSError: If they cannot be written, for example because the disk is full.
        """
        if self.directory is None:
            return
        batch = {"keys": [self._digest(kind, item) for item in items], "values": values}
        try:
            with self._own_file.open("a+b") as file:
                if file.tell() > 0:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a crash has cut the last line
                        file.write(b"\n")
                file.write(json.dumps(batch).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            problem = (
                f"Finished rows cannot be kept ({error.strerror}). Those written before stay usable: make the file "
                "writable and start again to go on from them"
            )
            raise OSError(error.errno, problem, str(self._own_file)) from error

    def _digest(self, kind: str, item: tuple) -> str:
        return blake2b(repr((self.model_digest, kind, item)).encode(), digest_size=16).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    rows = {}
    for line in file.read_bytes().split(b"\n"):
        try:
            batch = json.loads(line)
            rows.update(dict(zip(batch["keys"], batch["values"], strict=True)))
        except (ValueError, KeyError, TypeError):  # empty, or cut by a crash
            continue
    return rows


def model_digest(model: nn.Module) -> str:
    """
    SHA-256 of the weights and the config of a model, wherever it was loaded from, with its adapters as they are in use.

    Sharded weights are gathered one by one, so that their digest is that of the whole model.
    """
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    digest = sha256(json.dumps(config).encode())
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):  # neither weights nor config say how an adapter counts
            use = (module.active_adapters, module.disable_adapters, getattr(module, "scaling", None))
            digest.update(f"{name} {use}".encode())
    state = PartialState()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0]):
        with _whole(tensor) as whole:
            if state.is_main_process:
                digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
                digest.update(whole.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy())
    digests = [digest.hexdigest()]
    if state.num_processes > 1:  # only the main process has hashed
        broadcast_object_list(digests)
    return digests[0]


@contextmanager
def _whole(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """All of a tensor, of which this process may hold a part; all processes must ask for it together."""
    if isinstance(tensor, DTensor):
        yield tensor.to(tensor.device_mesh.device_type).full_tensor()
    elif hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            yield tensor
    else:
        yield tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds a part of the weights only (FSDP2, ZeRO-3), so that all must run the model together."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())
