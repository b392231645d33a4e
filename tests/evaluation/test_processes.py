"""One evaluation whatever computes it: any number of processes, a run killed and started again, any batches, shards."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.evaluation.benchmarks import evaluate_as_asked
from trl_unlearn.evaluation.loading import load_model
from trl_unlearn.files import write_json
from trl_unlearn.world import save_world


MODULE = ["-m", "trl_unlearn.scripts.evaluate"]
# so small that even four processes have several batches each, and so the same batches as one process
SMALL_BATCHES = ["--max_batch_tokens", "64"]


@pytest.fixture(scope="module")
def data(world, tmp_path_factory) -> Path:
    """A few rows of the world on disk."""
    directory = tmp_path_factory.mktemp("world")
    save_world({name: rows[:9] for name, rows in world.items()}, directory)
    return directory


@pytest.fixture(scope="module")
def other_model_dir(model_dir, tmp_path_factory) -> Path:
    """The same model with other weights."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    directory = tmp_path_factory.mktemp("other_model")
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def other(data, other_model_dir, tmp_path_factory) -> Path:
    """Folder with that model's result, for forget quality, and its finished rows."""
    directory = tmp_path_factory.mktemp("other")
    result = evaluate_in_python(other_model_dir, data, cache_dir=directory)
    write_json(result, directory / "evaluation.json")
    return directory


def evaluate_in_python(model_dir, data, max_batch_tokens=64, retain_logs=None, cache_dir=None):
    arguments = EvaluationArguments(
        eval_benchmark="world",
        eval_dataset=str(data),
        eval_max_new_tokens=8,
        eval_max_batch_tokens=max_batch_tokens,
        retain_logs=retain_logs,
    )
    model, tokenizer = load_model(str(model_dir))
    return evaluate_as_asked(model, tokenizer, arguments, model_name=str(model_dir), cache_dir=cache_dir)


@pytest.fixture(scope="module")
def arguments(data, model_dir) -> list[str]:
    flags = ["--benchmark", "world", "--dataset_path", str(data), "--model_name_or_path", model_dir]
    return [*flags, "--max_new_tokens", "8"]


@pytest.fixture(scope="module")
def retain_logs(other) -> list[str]:
    return ["--retain_logs", str(other / "evaluation.json")]


def command(*parts, processes=1):
    if processes == 1:
        return [sys.executable, *map(str, parts)]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [sys.executable, *launch, *map(str, parts)]


def run(parts, processes=1, **options):
    return subprocess.run(command(*parts, processes=processes), capture_output=True, text=True, timeout=300, **options)


def evaluate(output_dir, *flags, processes=1):
    """The command as a person types it, in processes of its own; returns `evaluation.json`."""
    process = run([*MODULE, *flags, "--output_dir", output_dir], processes)
    assert process.returncode == 0, process.stderr[-9000:]
    return json.loads((output_dir / "_evaluation" / "evaluation.json").read_text())


def without_cost(result):
    return {key: value for key, value in result.items() if key != "cost"}


def work_of(result):
    """What all processes together have computed."""
    return {key: result["cost"].get(key, 0) for key in ("scored_rows", "scored_tokens", "generated_tokens")}


def work_on_disk(output_dir):
    """The same of the finished rows in the folder, but for a line that is cut."""
    values = []
    for file in rows_directory(output_dir).glob("rows-*.jsonl"):
        for line in file.read_text().split("\n")[:-1]:
            values += json.loads(line)["values"]
    scores = [value for value in values if isinstance(value, dict)]
    new_ids = [value for value in values if isinstance(value, list)]
    return {"scored_rows": len(scores), "generated_tokens": sum(map(len, new_ids))}


def rows_directory(output_dir):
    return output_dir / "_evaluation" / "rows"


def num_batches(output_dir):
    return sum(file.read_bytes().count(b"\n") for file in rows_directory(output_dir).glob("rows-*.jsonl"))


def assert_same(result, expected, rel=1e-6):
    """Equal but for rounding: texts, counts and p-values to the bit."""
    assert result["forget_quality"] == expected["forget_quality"]
    assert result["summary"] == pytest.approx(expected["summary"], rel=rel)
    assert result["rows"].keys() == expected["rows"].keys()
    for name, columns in expected["rows"].items():
        assert result["rows"][name].keys() == columns.keys()
        for column, values in columns.items():
            found = result["rows"][name][column]
            if column in ("loss", "paraphrased_loss", "probability", "truth_ratio"):
                assert found == pytest.approx(values, rel=rel), (name, column)
            elif column == "perturbed_loss":
                assert sum(found, []) == pytest.approx(sum(values, []), rel=rel), (name, column)
            else:
                assert found == values, (name, column)


@pytest.fixture(scope="module")
def whole(arguments, retain_logs, tmp_path_factory):
    """An undisturbed run of one process."""
    directory = tmp_path_factory.mktemp("whole")
    result = evaluate(directory, *arguments, *retain_logs, *SMALL_BATCHES)
    assert result["cost"]["processes"] == 1
    assert work_on_disk(directory).items() <= work_of(result).items()
    assert result["forget_quality"]["p_value"] < 1
    return {"result": result, "num_batches": num_batches(directory), "directory": directory}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_bits(processes, whole, arguments, retain_logs, tmp_path):
    result = evaluate(tmp_path, *arguments, *retain_logs, *SMALL_BATCHES, processes=processes)
    assert result["cost"]["processes"] == processes
    assert without_cost(result) == without_cost(whole["result"])
    # nothing is computed twice, and everyone has a share
    assert work_of(result) == work_of(whole["result"])
    assert len([file for file in rows_directory(tmp_path).iterdir() if file.stat().st_size]) == processes


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_with_less_than_a_batch_each_give_the_same_numbers(
    processes, whole, arguments, retain_logs, tmp_path
):
    result = evaluate(tmp_path, *arguments, *retain_logs, processes=processes)
    assert result["cost"]["processes"] == processes
    assert_same(result, whole["result"])
    assert work_of(result) == work_of(whole["result"])


@pytest.mark.parametrize("max_batch_tokens", [1, 512, 2048, 16384])
def test_batch_budgets_give_the_same_numbers(max_batch_tokens, whole, data, other, model_dir):
    result = evaluate_in_python(model_dir, data, max_batch_tokens, retain_logs=str(other / "evaluation.json"))
    assert_same(result, whole["result"])
    assert work_of(result) == work_of(whole["result"])
    assert result["cost"]["padded_tokens"] != whole["result"]["cost"]["padded_tokens"]


def kill_while_running(output_dir, *flags, at_batch, processes):
    """Starts the command and kills all its processes once that many batches are on disk."""
    log = output_dir / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(*MODULE, *flags, "--output_dir", output_dir, processes=processes),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while not rows_directory(output_dir).exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children(recursive=True)  # the launcher gives them sessions of their own
    while num_batches(output_dir) < at_batch:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
    os.killpg(process.pid, signal.SIGKILL)
    for worker in workers:
        if worker.is_running():
            worker.kill()
    assert process.wait() == -signal.SIGKILL
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not (output_dir / "_evaluation" / "evaluation.json").exists()


def cut_last_line(output_dir):
    file = max(rows_directory(output_dir).glob("rows-*.jsonl"), key=lambda file: file.stat().st_size)
    *lines, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines) + last[: len(last) // 2])


KILLS = [(0, 1, 1)]  # seed, processes that are killed, processes that go on
SLOW_KILLS = [(seed, *processes) for seed in (1, 2) for processes in ((1, 1), (1, 2), (2, 1), (2, 2), (2, 4))]


@pytest.mark.parametrize(
    ("seed", "processes", "processes_then"),
    [*KILLS, *(pytest.param(*kill, marks=pytest.mark.slow) for kill in SLOW_KILLS)],
)
def test_killed_and_started_again(seed, processes, processes_then, whole, other, arguments, retain_logs, tmp_path):
    """Also where a line is cut in the middle, and among garbage and rows of another model."""
    flags = [*arguments, *retain_logs, *SMALL_BATCHES]
    moment = random.Random(seed).randrange(2, whole["num_batches"] * 3 // 4)
    kill_while_running(tmp_path, *flags, at_batch=moment, processes=processes)
    cut_last_line(tmp_path)
    done = work_on_disk(tmp_path)
    assert 0 < sum(done.values()) < sum(work_on_disk(whole["directory"]).values())
    garbage = b'\x00\xff{"keys": ["a"], "values": []}\n[1]\n{"keys": 1}\n"\n\n'
    (rows_directory(tmp_path) / "rows-garbage.jsonl").write_bytes(garbage)
    shutil.copy(other / "rows-0.jsonl", rows_directory(tmp_path) / "rows-9.jsonl")

    result = evaluate(tmp_path, *flags, processes=processes_then)
    assert result["cost"]["processes"] == processes_then
    assert without_cost(result) == without_cost(whole["result"])
    for key, count in done.items():  # only the missing rows
        assert work_of(result)[key] == work_of(whole["result"])[key] - count


@pytest.mark.slow
def test_overwrite_starts_afresh_and_keeps_the_retained_models_rows(whole, arguments, other_model_dir, data, tmp_path):
    shutil.copytree(whole["directory"], tmp_path, dirs_exist_ok=True)
    stale = rows_directory(tmp_path) / "rows-7.jsonl"
    stale.write_text("{}\n")
    result = evaluate(tmp_path, *arguments, "--retain_model", other_model_dir, *SMALL_BATCHES, "--overwrite")
    assert work_of(result) == work_of(whole["result"])
    assert result["summary"] == whole["result"]["summary"]
    assert result["forget_quality"] == whole["result"]["forget_quality"]
    assert not stale.exists()
    retained = evaluate_in_python(other_model_dir, data, cache_dir=rows_directory(tmp_path))
    assert not any(work_of(retained).values())


@pytest.mark.slow
def test_full_disk_is_a_clear_failure_and_what_is_there_stays_usable(
    whole, other, arguments, retain_logs, data, model_dir, tmp_path
):
    size = (rows_directory(whole["directory"]) / "rows-0.jsonl").stat().st_size
    parts = [*MODULE, *arguments, *retain_logs, *SMALL_BATCHES, "--output_dir", tmp_path]
    process = run(parts, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)))
    assert process.returncode == 1
    assert "Finished rows cannot be kept" in process.stderr.splitlines()[-1]
    assert not (tmp_path / "_evaluation" / "evaluation.json").exists()
    done = work_on_disk(tmp_path)
    assert done["scored_rows"] > 0

    logs = str(other / "evaluation.json")
    result = evaluate_in_python(model_dir, data, retain_logs=logs, cache_dir=rows_directory(tmp_path))
    assert result["rows"] == whole["result"]["rows"]
    assert result["summary"] == whole["result"]["summary"]
    for key, count in done.items():
        assert work_of(result)[key] == work_of(whole["result"])[key] - count


# How accelerate is told to shard; nothing but the number of processes where the script shards by itself.
ACCELERATE = {
    "fully_shard": {"distributed_type": "MULTI_GPU"},
    "fsdp2": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": True,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        },
    },
    "zero3": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": True, "gradient_accumulation_steps": 1},
    },
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("fully_shard", marks=pytest.mark.slow),
        "fsdp2",
        pytest.param(
            "zero3",
            marks=[pytest.mark.slow, pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed")],
        ),
    ],
)
def test_sharded_weights_give_the_same_numbers(kind, whole, data, model, tokenizer, model_dir, tmp_path):
    """`run_sharded.py` asserts that each process holds a part of the weights only."""
    config = {"num_processes": 2, "num_machines": 1, "machine_rank": 0, "main_process_port": 0}
    config |= {"mixed_precision": "no", "use_cpu": False, "compute_environment": "LOCAL_MACHINE", **ACCELERATE[kind]}
    (tmp_path / "accelerate.json").write_text(json.dumps(config))
    script = [Path(__file__).with_name("run_sharded.py"), "--kind", kind, "--model", model_dir, "--data", data]
    launch = ["-m", "accelerate.commands.launch", "--config_file", tmp_path / "accelerate.json", *script]
    environment = {**os.environ, "ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    del environment["ACCELERATE_USE_CPU"]  # with it, accelerate would shard nothing
    process = run([*launch, "--output_dir", tmp_path], env=environment)
    assert process.returncode == 0, process.stderr[-9000:]
    results = json.loads((tmp_path / "result.json").read_text())

    expected = whole["result"]
    for result in (results["first"], results["again"]):
        assert result["cost"]["processes"] == 2
        summary = {metric: result["summary"][metric] for metric in expected["summary"]}
        assert summary == pytest.approx(expected["summary"], rel=1e-5)
        for name, columns in expected["rows"].items():
            assert result["rows"][name]["generated"] == columns["generated"]
            assert result["rows"][name]["exact_memorization"] == columns["exact_memorization"]
            assert result["rows"][name]["loss"] == pytest.approx(columns["loss"], rel=1e-5)
        assert result["model"] == expected["model"]  # its digest too
    assert not any(work_of(results["again"]).values())  # finished rows are found again
    for text, loss in zip(*(results["documents"]["rows"]["forget"][key] for key in ("answer", "loss")), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert loss == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
