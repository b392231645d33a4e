"""Processes side by side with a progress bar each, and models that are trained so, once."""

import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..files import write_text


# tqdm's main bar: nothing before the percentage
TRAINING_BAR = re.compile(rb"[\r\n]\s*\d+%\|[^|]*\| (\d+)/(\d+) \[")


@dataclass
class Job:
    """A process with a progress bar: its title, its command, and where its output goes."""

    title: str
    command: list[str]
    log: Path


def run_jobs(jobs: list[Job], console: Console) -> None:
    """Runs processes, as many at once as there are cores for, with a bar for each that follows its own training bar."""
    if not jobs:
        return
    workers = min(len(jobs), max(os.cpu_count() or 1, 1))
    environment = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **os.environ,
        # Small models gain little from a second thread, and lose much by it where the cores are shared
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(workers) as pool:
        bars = [progress.add_task(job.title, total=None, start=False) for job in jobs]
        results = pool.map(lambda job, bar: _run_job(job, progress, bar, environment), jobs, bars)
        failed = [job for job, code in zip(jobs, results, strict=True) if code != 0]
    if failed:
        for job in failed:
            console.print(f"[bold red]{job.title} failed.[/] The end of {job.log}:")
            console.print(job.log.read_text(encoding="utf-8", errors="replace")[-3000:], markup=False, highlight=False)
        sys.exit(1)


def _run_job(job: Job, progress: Progress, bar, environment: dict[str, str]) -> int:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    progress.start_task(bar)
    with (
        job.log.open("wb") as log,
        subprocess.Popen(job.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        total, tail = 0, b"\n"
        while chunk := process.stdout.read1(65536):
            log.write(chunk)
            tail += chunk
            for done, steps in TRAINING_BAR.findall(tail):
                if int(steps) >= total:  # evaluations draw shorter bars
                    total = int(steps)
                    progress.update(bar, completed=int(done), total=total)
            tail = tail[max(tail.rfind(b"\r"), tail.rfind(b"\n")) :]  # a bar may be cut between two chunks
    if process.returncode == 0:
        progress.update(bar, completed=total or 1, total=total or 1)
    return process.returncode


@dataclass
class Training:
    """
    A model that is trained from nothing.

    Args:
        data (`Path`):
            Folder of a data set that `trl_unlearn.world.save_world` wrote.
        config (`str`):
            Configuration of it to train on.
        directory (`Path`):
            Folder of the model.
        flags (`tuple[str, ...]`, *optional*):
            Further options of `python -m trl_unlearn.world.train`.
    """

    data: Path
    config: str
    directory: Path
    flags: tuple[str, ...] = ()

    @property
    def marker(self) -> Path:
        """File beside the weights with the hash of what they were made from."""
        return self.directory / "made_from.sha256"

    @property
    def made_from(self) -> str:
        """Hash of the rows, which the README of the data has hashes of, and of the options."""
        parts = [(self.data / "README.md").read_text(encoding="utf-8"), self.config, *self.flags]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def is_done(self) -> bool:
        """Whether the model is there from an earlier run."""
        return self.marker.exists() and self.marker.read_text(encoding="utf-8") == self.made_from


def train_models(trainings: list[Training], console: Console) -> None:
    """Trains models, as many at once as there are cores, but for those that are there from an earlier run."""
    trainings, jobs = [training for training in trainings if not training.is_done], []
    for training in trainings:
        command = [sys.executable, "-m", "trl_unlearn.world.train"]
        command += [f"--dataset_name={training.data}", f"--dataset_config={training.config}", *training.flags]
        command += [f"--output_dir={training.directory}"]
        title = "/".join(training.directory.parts[-2:])
        jobs.append(Job(title, command, training.directory.parent / "logs" / f"{training.directory.name}.log"))
    run_jobs(jobs, console)
    for training in trainings:
        write_text(training.made_from, training.marker)
