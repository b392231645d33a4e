"""`trl-unlearn alternates` as a person types it: any number of processes, a kill, a full disk, and what is wrong with input."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import psutil
import pytest
import yaml
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer

from trl_unlearn import idk_alternates
from trl_unlearn.alternates.saving import save_alternates
from trl_unlearn.data.loading import load_rows
from trl_unlearn.scripts.alternates import AlternatesScriptArguments, alternates
from trl_unlearn.scripts.parsing import RecipeParser
from trl_unlearn.world import save_world


MODULE = ["-m", "trl_unlearn.scripts.alternates"]


@pytest.fixture(scope="module")
def data(world, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    save_world({name: rows[:6] for name, rows in world.items()}, directory)
    return directory


@pytest.fixture(scope="module")
def flags(data, model_dir) -> list[str]:
    """A model that does not follow the instruction, so that most rows are drawn several times; batches of two or three rows."""
    flags = ["--model_name_or_path", model_dir, "--dataset_name", str(data), "--forget_config", "forget"]
    flags += ["--num_alternates", "3", "--max_new_tokens", "32", "--stop_strings", ".", "--max_rounds", "40"]
    return [*flags, "--max_batch_tokens", "800"]


def command(*parts, processes=1):
    if processes == 1:
        return [sys.executable, *MODULE, *map(str, parts)]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [sys.executable, *launch, *MODULE, *map(str, parts)]


def run(*parts, processes=1, check=True, **options):
    environment = {**os.environ, "COLUMNS": "100"}
    process = subprocess.run(
        command(*parts, processes=processes), capture_output=True, text=True, timeout=300, env=environment, **options
    )
    assert not check or process.returncode == 0, process.stderr[-5000:]
    return process


def make(*parts):
    """The same in this process, which has loaded everything already."""
    alternates(*RecipeParser(AlternatesScriptArguments).parse([*map(str, parts)]))


def published(directory: Path) -> dict[str, bytes]:
    """What the folder has beside the finished samples."""
    files = [file for file in directory.rglob("*") if file.is_file() and "_alternates" not in file.parts]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def report(directory: Path) -> dict:
    return json.loads((directory / "_alternates" / "report.json").read_text())


def num_batches(directory: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in (directory / "_alternates").glob("rows-*.jsonl"))


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    """An undisturbed run of one process, with what it has printed."""
    directory = tmp_path_factory.mktemp("whole")
    with (directory / "stdout.txt").open("w") as file, redirect_stdout(file):
        make(*flags, "--output_dir", directory / "out")
    return directory / "out"


def test_the_folder_is_a_data_set_and_the_table_says_what_became_of_the_samples(whole, data, model_dir):
    assert set(published(whole)) == {"README.md", "data/train-00000-of-00001.parquet"}
    made = load_rows(str(whole))
    forget = load_rows(str(data), "forget")
    assert made.remove_columns("alternates")[:] == forget.remove_columns("alternates")[:]
    assert all(len(texts) == 3 for texts in made["alternates"])
    counts = report(whole)
    assert counts["kept"] == 18 == counts["samples"] - sum(counts["rejected"].values())
    assert counts["rounds"] > 1 and counts["cut"] >= 18

    shown = (whole.parent / "stdout.txt").read_text()
    assert re.search(rf"Samples +│ +{counts['samples']} │", shown)
    for phrase in ("no end within the limit of tokens", "still has the true facts", "Rounds", "Tokens a second"):
        assert phrase in shown
    assert f"forget: {made['answer'][0]}" in shown and f"alternate: {made['alternates'][0][0]}" in shown

    card = (whole / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    for place in (str(whole), str(data), model_dir, Path(model_dir).name):
        assert place not in card
    for row in made:  # and no text of a row
        assert not any(text in card for text in (row["question"], row["answer"]))
    assert f"| Samples | {counts['samples']} |" in card
    assert "**Every row has the question and the answer that are to be forgotten.**" in card


def test_two_processes_give_the_same_bits(whole, flags, tmp_path):
    run(*flags, "--output_dir", tmp_path, processes=2)
    assert published(tmp_path) == published(whole)
    cost, expected = report(tmp_path)["cost"], report(whole)["cost"]
    assert cost["processes"] == 2
    assert cost["generated_tokens"] == expected["generated_tokens"]
    assert all((tmp_path / "_alternates" / f"rows-{process}.jsonl").stat().st_size for process in (0, 1))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_started_again_gives_the_same_bits(processes, whole, flags, tmp_path):
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command(*flags, "--output_dir", tmp_path / "out", processes=processes),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 200
    # in the second round or later
    at_batch = num_batches(whole) // 2
    while num_batches(tmp_path / "out") < at_batch:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for worker in workers:
        if worker.is_running():
            worker.kill()
    process.wait()
    assert not published(tmp_path / "out")
    done = num_batches(tmp_path / "out")
    assert at_batch <= done < num_batches(whole)

    make(*flags, "--output_dir", tmp_path / "out")
    assert published(tmp_path / "out") == published(whole)
    assert num_batches(tmp_path / "out") == num_batches(whole)
    assert report(tmp_path / "out")["cost"]["generated_tokens"] < report(whole)["cost"]["generated_tokens"]


@pytest.mark.slow
def test_full_disk_is_told_and_finished_samples_stay_usable(whole, flags, tmp_path):
    size = (whole / "_alternates" / "rows-0.jsonl").stat().st_size
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))  # noqa: E731
    process = run(*flags, "--output_dir", tmp_path, check=False, preexec_fn=limit)
    assert process.returncode == 1
    assert "Finished rows cannot be kept" in process.stderr.splitlines()[-1]
    assert 0 < num_batches(tmp_path) < num_batches(whole)
    make(*flags, "--output_dir", tmp_path)
    assert published(tmp_path) == published(whole)


def test_full_disk_while_the_data_set_is_written(tmp_path):
    """In this process, whose own output is shorter than the limit."""
    rng = random.Random(0)
    rows = [{"question": f"Which number is {n}?", "answer": rng.randbytes(2000).hex()} for n in range(500)]
    dataset, counts = idk_alternates(Dataset.from_list(rows), 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"The alternates cannot be written .File too large.. Finished samples are kept"
        ):
            save_alternates(dataset, counts, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not published(tmp_path)
    save_alternates(dataset, counts, tmp_path)
    assert load_rows(str(tmp_path))[:] == dataset[:]


def test_missing_alternates_are_named_and_what_there_is_is_kept(flags, tmp_path, capsys):
    with pytest.raises(SystemExit, match="^trl-unlearn alternates: 4 of 6 rows .* rejected: .* `max_rounds`"):
        make(*flags, "--output_dir", tmp_path, "--max_rounds", "1")
    assert "no end within the limit of tokens" in capsys.readouterr().out  # the table of counts
    assert not published(tmp_path)
    there = load_dataset("json", data_files=str(tmp_path / "_alternates" / "incomplete.jsonl"), split="train")
    assert 0 < sum(map(len, there["alternates"])) < 18

    make(*flags, "--output_dir", tmp_path, "--max_rounds", "1", "--fill_with_idk")
    assert all(len(texts) == 3 for texts in load_rows(str(tmp_path))["alternates"])
    assert report(tmp_path)["cost"].get("generated_tokens", 0) == 0
    assert f"| Filled up with “I do not know” | {report(tmp_path)['filled']} |" in (tmp_path / "README.md").read_text()


def test_a_config_file_and_flags_that_win(data, tmp_path):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"source": "idk", "dataset_name": str(data), "forget_config": "forget", "num_alternates": 4})
    )
    make("--config", tmp_path / "config.yaml", "--num_alternates", "2", "--output_dir", tmp_path / "out")
    assert [len(texts) for texts in load_rows(str(tmp_path / "out"))["alternates"]] == [2] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--source", "idk"], "`--source idk`, which takes no model"),
        (["--num_alternates", "0"], "`num_alternates` is 0"),
        (["--max_new_tokens", "2"], "`max_new_tokens` is 2"),
        (["--few_shot_file", "{tmp_path}/corrupt.jsonl"], "Line 1 of .*corrupt.jsonl is no JSON"),
        (["--output_dir", "{model_dir}/.."], "holds something other than alternates"),
        (
            ["--dataset_name", "{tmp_path}/rows.jsonl", "--forget_config", "None"],
            r"columns \['question'\]. Accepted are",
        ),
        (["--model_name_or_path", "{tmp_path}/base"], "no chat template"),
    ],
)
def test_what_is_wrong_is_said(change, message, flags, model_dir, tmp_path, capsys):
    (tmp_path / "corrupt.jsonl").write_text("{")
    (tmp_path / "rows.jsonl").write_text('{"question": "Who?"}\n')
    (tmp_path / "README.md").write_text("# Mine\n")
    if "base" in change[-1]:
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        tokenizer.chat_template = None
        (tmp_path / "base").mkdir()
        for file in Path(model_dir).iterdir():
            if "chat_template" not in file.name:
                (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
        tokenizer.save_pretrained(tmp_path / "base")
    change = [part.format(tmp_path=tmp_path, model_dir=tmp_path / "sub") for part in change]
    (tmp_path / "sub").mkdir()
    with pytest.raises((ValueError, FileExistsError, SystemExit)) as caught:
        make(*flags, "--output_dir", tmp_path / "out", *change)
    assert re.search(message, f"{caught.value} {capsys.readouterr().err}")
    assert not (tmp_path / "out" / "data").exists()
