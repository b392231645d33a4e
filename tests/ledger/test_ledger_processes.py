"""Requests trained on several processes are those of one process."""

import json

import pytest
import torch
from command_line import LORA, flags_of, launch, weights_of

from trl_unlearn import load_ledger


# On a CPU, accelerate silently takes FSDP for plain data parallelism. Here it does not
TRAIN = """
import os
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from trl_unlearn.scripts import unlearn

if "ACCELERATE_USE_FSDP" in os.environ:
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
end = unlearn.end


def end_and_tell(trainer):
    assert trainer.accelerator.num_processes == 2
    adapter = [weight for name, weight in trainer.model.named_parameters() if "lora" in name]
    print("sharded" if all(isinstance(weight, DTensor) for weight in adapter) else "not sharded", flush=True)
    end(trainer)


unlearn.end = end_and_tell
unlearn.main("SimNPO")
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes(strategy, train_request, own_ledger, copy_of, requests_dir, model_dir, tmp_path):
    alone, together = copy_of(own_ledger, "alone"), copy_of(own_ledger, "together")
    train_request(alone, 4, per_device_train_batch_size=6, ledger_rehearsal=0.5)
    options = {
        "model_name_or_path": model_dir,
        "dataset_name": requests_dir / "forget-4.jsonl",
        "retain_dataset_name": requests_dir / "retain.jsonl",
        "forget_config": None,
        "retain_config": None,
        "eval_forget_data": requests_dir / "forget-4.jsonl",
        "eval_retain_data": requests_dir / "kept.jsonl",
        "eval_max_new_tokens": 4,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 3,
        "ledger": together,
        "request": "customer 4",
        "ledger_rehearsal": 0.5,
        **LORA,
    }
    (tmp_path / "train.py").write_text(TRAIN)
    flags = flags_of(together / "request-004", **options)
    output = launch(strategy, tmp_path / "train.py", *flags, on_accelerator=strategy != "ddp").stdout
    assert output.count("sharded") == 2 and output.count("not sharded") == (2 if strategy == "ddp" else 0)
    found, expected = (
        json.loads((path / "unlearn_ledger.json").read_text())["requests"] for path in (together, alone)
    )
    for request, other in zip(found, expected, strict=True):
        assert (
            request["rows"] == other["rows"] and request["results"]["later"].keys() == other["results"]["later"].keys()
        )
        for summary, their in zip(
            request["results"]["later"].values(), other["results"]["later"].values(), strict=True
        ):
            assert summary == pytest.approx(their, rel=1e-3, abs=1e-5)
    assert found[3]["results"]["after"] == pytest.approx(expected[3]["results"]["after"], rel=1e-3, abs=1e-5)
    adapter, other = weights_of(together / "request-004"), weights_of(alone / "request-004")
    assert adapter.keys() == other.keys()
    for name, weight in adapter.items():
        torch.testing.assert_close(weight, other[name], atol=1e-5, rtol=1e-3)
    load_ledger(together)
