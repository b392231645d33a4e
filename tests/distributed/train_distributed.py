"""
Runs training commands, one after the other, on CPU processes as an accelerator's strategy would: what the tests launch.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml tests/distributed/train_distributed.py commands.json

On a CPU, accelerate silently takes FSDP and DeepSpeed for plain data parallelism. Here it does not, and what has been
trained is looked at: so many processes, and weights, gradients or optimizer in parts. `commands.json` is a list of
command lines, each the name of a module and its flags: most of the time of a process goes into its imports.
"""

import json
import os
import runpy
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from trl_unlearn.scripts import unlearn


SHARDED = {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}


def check(trainer) -> None:
    """Fails unless the trainer's model or optimizer was distributed as its launch asked for."""
    assert trainer.accelerator.num_processes == int(os.environ["WORLD_SIZE"]) > 1
    if not SHARDED & os.environ.keys():
        assert isinstance(trainer.model_wrapped, DistributedDataParallel)
        return
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        assert trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled
        for name, parameter in trainer.model.named_parameters():
            assert isinstance(parameter, DTensor), name
            assert parameter.to_local().numel() < parameter.numel(), name
        if trainer.ref_model is not None:  # its embeddings stay gathered, since no backward pass scatters them again
            for name, parameter in trainer.ref_model.model.layers.named_parameters():
                assert isinstance(parameter, DTensor), name
        return
    from deepspeed import DeepSpeedEngine

    engine, stage = trainer.model_wrapped, int(os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"])
    assert isinstance(engine, DeepSpeedEngine) and engine.zero_optimization_stage() == stage
    if stage == 3:
        for model in (trainer.model, trainer.ref_model):
            for name, parameter in model.named_parameters() if model is not None else ():
                assert parameter.ds_tensor.numel() <= parameter.ds_numel // 2 + 1, name
    else:
        parts = engine.optimizer.single_partition_of_fp32_groups
        assert sum(part.numel() for part in parts) < sum(p.numel() for p in engine.parameters() if p.requires_grad)


def main():
    if SHARDED & os.environ.keys():
        PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    commands = json.loads(Path(sys.argv[1]).read_text())
    end = unlearn.end
    for number, (module, *flags) in enumerate(commands, start=1):
        is_last = number == len(commands)
        unlearn.end = lambda trainer, is_last=is_last: (check(trainer), end(trainer) if is_last else None)
        sys.argv[1:] = flags
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
