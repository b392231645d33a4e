"""
DDP, FSDP2 and DeepSpeed ZeRO-2 and 3 on two CPU processes do what one process does, and save what it saves.

Tolerances: 2e-5 of a metric's mean size for every step, 4e-6 on average with signs kept, 1e-5 for each weight.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import accelerate
import pytest
import torch
from command_line import (
    LORA,
    METRICS,
    assert_same_logs,
    assert_same_series,
    flags_of,
    launch,
    logs_of,
    train,
    trajectory,
    weights_of,
)
from packaging.version import Version

from trl_unlearn import load_unlearned
from trl_unlearn.world import save_world


KL = {"retain_loss_type": "kl"}
RESIDENT = {"precompute_ref_log_probs": False}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1}
EVALUATION = {"eval_strategy": "steps", "eval_steps": 2, "eval_benchmark": "world", "eval_max_new_tokens": 8}
# What is trained: the method and its options. `resumed` goes on from the middle of an epoch of `checkpoints`.
RUNS = {
    f"{weights}-{reference}-{retain}": ("NPO", of_weights | of_reference | of_retain)
    for weights, of_weights in (("full", {}), ("lora", LORA))
    for reference, of_reference in (("precomputed", {}), ("resident", RESIDENT))
    for retain, of_retain in (("nll", {}), ("kl", KL))
}
RUNS |= {
    "simnpo": ("SimNPO", {"gradient_checkpointing": True}),
    "altpo": ("AltPO", {"num_train_epochs": 1}),
    "altpo-lora-kl": ("AltPO", {"num_train_epochs": 1} | LORA | KL),
    "last-batch": ("NPO", {"forget_config": "eleven"} | KL | RESIDENT),  # not divisible by the batch of 8
    "evaluated": ("NPO", EVALUATION),
    "evaluated-lora-kl": ("NPO", EVALUATION | LORA | KL),
    "cached": ("NPO", {"cache_ref_hidden_states": True} | KL),
    "sharp": (  # in one step a batch of 8 pairs and one of 3
        "NPO",
        {"forget_sharpness": 0.3, "gradient_accumulation_steps": 2, "forget_config": "eleven"} | KL | RESIDENT,
    ),
    "checkpoints": ("NPO", CHECKPOINTS | KL | RESIDENT),
    "resumed": ("NPO", CHECKPOINTS | KL | RESIDENT),
    "checkpoints-lora": ("NPO", CHECKPOINTS | LORA),
    "resumed-lora": ("NPO", CHECKPOINTS | LORA),
}
ORDINARY = ["full-resident-kl", "checkpoints-lora", "resumed-lora"]
WHOLE_ONLY = ["cached", "sharp"]  # refused where the model is sharded
LOADS_ADAPTERS = Version(accelerate.__version__) >= Version("1.15.0")
NEEDS_DEEPSPEED = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed, which is not installed")


@pytest.fixture(scope="module")
def command(world, model_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    save_world(
        {name: rows[:9] for name, rows in world.items()}
        | {"forget": world["forget"][:16], "eleven": world["forget"][:11], "retain": world["retain"][:30]},
        directory,
    )
    return {"model_name_or_path": model_dir, "dataset_name": directory}


def options_of(name, directory):
    method, options = RUNS[name]
    if name.startswith("resumed"):  # after 3 steps of 2 an epoch
        checkpoint = directory / name.replace("resumed", "checkpoints") / "checkpoint-3"
        options = options | {"resume_from_checkpoint": checkpoint}
    return method, options


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The folder of a run on one process."""
    directory = tmp_path_factory.mktemp("whole")

    def run(name):
        if not (directory / name).exists():
            if name.startswith("resumed"):
                run(name.replace("resumed", "checkpoints"))
            method, options = options_of(name, directory)
            train(method, directory / name, **command, **options)
        return directory / name

    return run


def assert_same_run(found: Path, expected: Path) -> None:
    """Logs, evaluations, files and the saved model, as `load_unlearned` loads it without accelerate."""
    logs, expected_logs = logs_of(found), logs_of(expected)
    evaluated = [metric for metric in ("eval_forget_loss", "eval_forget_logps/forget") if trajectory(logs, metric)]
    assert_same_logs(logs, expected_logs, [*METRICS, *evaluated])
    weights, expected_weights = weights_of(found), weights_of(expected)
    assert weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert not list(found.glob("*.bin.index.json")) and not list(found.glob("pytorch_model*"))
    files = {path.name for path in expected.iterdir()} - {"runs"}
    assert files <= {path.name for path in found.iterdir()}
    assert {"README.md", "unlearn_results.json", "unlearn_recipe.yaml", "tokenizer.json"} <= files
    results, expected_results = (
        json.loads((folder / "unlearn_results.json").read_text()) for folder in (found, expected)
    )
    for moment in ("before", "evaluation") if (expected / "_evaluation").exists() else ():
        summary, of_whole = (
            json.loads((folder / "_evaluation" / f"{moment}.json").read_text())["summary"]
            for folder in (found, expected)
        )
        assert summary == pytest.approx(of_whole, rel=1e-4), moment
    assert results["run"]["processes"] > expected_results["run"]["processes"] == 1
    (model, tokenizer), (whole_model, _) = (
        load_unlearned(str(folder), base_model=base_model_of(folder)) for folder in (found, expected)
    )
    inputs = tokenizer("Where does she live?", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, whole_model(**inputs).logits, rtol=1e-3, atol=1e-3)


def base_model_of(folder: Path) -> str | None:
    adapter = folder / "adapter_config.json"
    return json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.exists() else None


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        pytest.param("fsdp2", ORDINARY, id="fsdp2-some"),
        *(
            pytest.param(strategy, list(RUNS), id=strategy, marks=[pytest.mark.slow, *marks])
            for strategy, marks in (
                ("ddp", ()),
                ("fsdp2", ()),
                ("zero2", (NEEDS_DEEPSPEED,)),
                ("zero3", (NEEDS_DEEPSPEED,)),
            )
        ),
    ],
)
def test_two_processes_do_what_one_does(strategy, names, command, whole, tmp_path):
    """`train_distributed.py` asserts that weights, gradients or optimizer really are in parts."""
    names = [name for name in names if LOADS_ADAPTERS or (strategy, name) != ("fsdp2", "resumed-lora")]
    names = [name for name in names if strategy == "ddp" or name not in WHOLE_ONLY]
    commands = []
    for name in names:
        method, options = options_of(name, tmp_path)
        flags = flags_of(tmp_path / name, **command, **options | {"per_device_train_batch_size": 4})
        commands.append([f"trl_unlearn.scripts.{method.lower()}", *flags])
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    script = Path(__file__).with_name("train_distributed.py")
    launch(strategy, script, tmp_path / "commands.json", on_accelerator=strategy != "ddp")
    for name in names:
        assert_same_run(tmp_path / name, whole(name))


@pytest.mark.skipif(LOADS_ADAPTERS, reason="this accelerate loads adapters from FSDP checkpoints")
def test_an_adapter_that_fsdp_would_not_load_is_refused(command, tmp_path):
    commands = []
    for name in ("checkpoints-lora", "resumed-lora"):
        method, options = options_of(name, tmp_path)
        flags = flags_of(tmp_path / name, **command, **options | {"per_device_train_batch_size": 4})
        commands.append([f"trl_unlearn.scripts.{method.lower()}", *flags])
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    script = Path(__file__).with_name("train_distributed.py")
    with pytest.raises(AssertionError, match="does not load adapters from FSDP checkpoints"):
        launch("fsdp2", script, tmp_path / "commands.json", on_accelerator=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE_ONLY)
def test_what_needs_whole_weights_is_refused_where_they_are_sharded(name, command, tmp_path):
    method, options = options_of(name, tmp_path)
    flags = flags_of(tmp_path / name, **command, **options | {"per_device_train_batch_size": 4})
    (tmp_path / "commands.json").write_text(json.dumps([[f"trl_unlearn.scripts.{method.lower()}", *flags]]))
    script = Path(__file__).with_name("train_distributed.py")
    with pytest.raises(AssertionError, match="is not supported with FSDP and DeepSpeed"):
        launch("fsdp2", script, tmp_path / "commands.json", on_accelerator=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "batch_size", "forget"),
    [(2, 4, "eleven"), (4, 2, "two")],
    ids=["eleven-rows-on-two", "two-rows-on-four"],
)
def test_no_row_is_forgotten_twice_where_rows_do_not_fill_the_processes(
    processes, batch_size, forget, command, world, tmp_path
):
    """Through `accelerate launch` as a user types it; an epoch's last batch holds what one process would have."""
    save_world(
        {"forget": world["forget"][: {"eleven": 11, "two": 2}[forget]], "retain": world["retain"][:30]}, tmp_path
    )
    options = command | {"dataset_name": tmp_path, "eval_strategy": "epoch"}
    expected = train("NPO", tmp_path / "whole", **options)
    flags = flags_of(tmp_path / "found", **options | {"per_device_train_batch_size": batch_size})
    launch("ddp", "-m", "trl_unlearn.scripts.npo", *flags, processes=processes)
    found = logs_of(tmp_path / "found")
    assert_same_run(tmp_path / "found", tmp_path / "whole")
    assert_same_series(trajectory(found, "rewards/forget"), trajectory(expected, "rewards/forget"), 1e-4, 1e-4)


def test_too_few_rows_for_a_whole_batch_are_an_error_before_training(command, tmp_path):
    with pytest.raises(ValueError, match="The forget set has 16 rows, fewer than the 32 of one batch on 1 processes"):
        train("NPO", tmp_path, **command, per_device_train_batch_size=32, dataloader_drop_last=True)
