"""
Runs a training command with weights sharded over CPU processes: what the tests launch.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml tests/distributed/train_sharded.py trl_unlearn.scripts.npo …

On a CPU, accelerate silently takes FSDP and DeepSpeed for plain data parallelism. Here it does not, and what has been
trained is looked at: so many processes, and weights, gradients or optimizer in parts.
"""

import os
import runpy
import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from trl_unlearn.scripts import unlearn


def check(trainer) -> None:
    """Fails unless the trainer's model or optimizer was sharded as its launch asked for."""
    assert trainer.accelerator.num_processes == int(os.environ["WORLD_SIZE"]) > 1
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        assert trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled
        for name, parameter in trainer.model.named_parameters():
            assert isinstance(parameter, DTensor), name
            assert parameter.to_local().numel() < parameter.numel(), name
        return
    from deepspeed import DeepSpeedEngine

    engine, stage = trainer.model_wrapped, int(os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"])
    assert isinstance(engine, DeepSpeedEngine) and engine.zero_optimization_stage() == stage
    if stage == 3:
        for name, parameter in trainer.model.named_parameters():
            assert parameter.ds_tensor.numel() <= parameter.ds_numel // 2 + 1, name
    else:
        parts = engine.optimizer.single_partition_of_fp32_groups
        assert sum(part.numel() for part in parts) < sum(p.numel() for p in engine.parameters() if p.requires_grad)


def main():
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    end = unlearn.end

    def check_and_end(trainer):
        check(trainer)
        end(trainer)

    unlearn.end = check_and_end
    torch.set_num_threads(1)
    module, *sys.argv[1:] = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
