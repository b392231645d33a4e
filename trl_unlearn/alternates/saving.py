"""Alternates as a data set on disk and on the Hub, with a card that says how they were made."""

import os
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from huggingface_hub import CommitInfo

from ..files import write_json, write_text
from ..hub.markdown import as_code, as_markdown, as_number, fence
from ..hub.push import push_dataset
from ..hub.results import hub_id
from .filters import REASONS
from .instructions import INSTRUCTIONS


# What is written beside the data set and never published: finished samples, the report, incomplete alternates
WORK_DIR = "_alternates"
_DATA = "data/train-00000-of-00001.parquet"
_MARK = "<!-- made by trl-unlearn alternates -->"


def save_alternates(dataset: Dataset, report: dict[str, Any], directory: str | Path) -> None:
    """
    Writes alternates as `load_dataset(directory, split="train")` reads them, in the layout of the Hub.

    No file is ever half-written, and the README, which tells of the data, comes last.

    Args:
        dataset ([`~datasets.Dataset`]):
            Forget set with a column `alternates`.
        report (`dict`):
            What [`generate_alternates`] or [`idk_alternates`] gives, and maybe `model`, the name that the model was loaded
            by, and `forget`, what [`~trainer.publication.source_of`] gives of the forget set.
        directory (`str` or `Path`):
            Folder.

    Raises:
        FileExistsError: If the folder holds another data set or a model.
        OSError: If it cannot be written, for example because the disk is full.
    """
    directory = Path(directory)
    check_directory(directory)
    path = directory / _DATA
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = BytesIO()  # a disk that is full while pyarrow writes ends the whole process (seen with pyarrow 26)
        dataset.to_parquet(content)
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(path)
        digest = sha256(content.getvalue()).hexdigest()
        write_text(_card(report, digest), directory / "README.md")
        write_json(report, directory / WORK_DIR / "report.json")
    except OSError as error:
        raise OSError(
            error.errno,
            f"The alternates cannot be written ({error.strerror or error}). Finished samples are kept: make room, and start "
            "again to go on from them",
            str(directory),
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def check_directory(directory: str | Path) -> None:
    """Refuses a folder in which a README tells of something else."""
    readme = Path(directory) / "README.md"
    if readme.exists() and _MARK not in readme.read_text(encoding="utf-8"):
        raise FileExistsError(f"{directory} holds something other than alternates to be replaced: it has a README.md.")


def push_alternates(directory: str | Path, repo_id: str, private: bool = True) -> CommitInfo:
    """
    Pushes a folder that [`save_alternates`] has written: the data with the forget set's own text, and the card.

    Args:
        directory (`str` or `Path`):
            Folder.
        repo_id (`str`):
            Repository, made if it is not there.
        private (`bool`, *optional*, defaults to `True`):
            What the repository must be.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit.

    Raises:
        PushError: If it fails, for whatever reason; everything is still on disk.
    """
    return push_dataset(directory, ["README.md", _DATA], repo_id, private, "Alternates made by trl-unlearn")


def _card(report: dict[str, Any], digest: str) -> str:
    """The README; nothing in it was written by the model or comes from a row."""
    # datasets caches a local folder by its name and this metadata alone: without the hash, others would be read again.
    config = {
        "config_name": "default",
        "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
        "description": f"sha256 {digest}",
    }
    metadata = {"configs": [config], "tags": ["trl-unlearn", "machine-unlearning", "altpo"]}
    facts = {"Rows": as_number(report["rows"]), "Alternates a row": as_number(report["num_alternates"])}
    forget = report.get("forget") or {}
    if forget.get("dataset"):
        place = [forget["dataset"], forget["config"], forget["split"], f"commit {forget['revision']}"]
        facts["Forget set"] = as_markdown(", ".join(place))
    if report["source"] == "idk":
        facts["Source"] = "answers that say “I do not know”, drawn for each row"
    else:
        name = hub_id(report.get("model"))
        facts["Written by"] = "a model that is not on the Hub" if name is None else as_code(name)
        facts["Samples"] = as_number(report["samples"])
        facts["Kept"] = as_number(report["kept"])
        facts |= {f"Rejected: {meaning}": as_number(report["rejected"][reason]) for reason, meaning in REASONS.items()}
        facts["Cut at a stop string"] = as_number(report["cut"])
        facts["Rounds"] = as_number(report["rounds"])
        facts["Filled up with “I do not know”"] = as_number(report["filled"])
    settings = report["settings"]
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n{_MARK}",
        "# Alternate answers for unlearning",
        "**Every row has the question and the answer that are to be forgotten.** Whoever may read this data set can read "
        "them.",
        "Other answers to the questions of a forget set, towards which "
        "[AltPO](https://huggingface.co/papers/2409.13474) moves a model. The columns are the forget set's and "
        "`alternates`, a list of texts.",
        fence(
            "from datasets import load_dataset\nfrom trl_unlearn import AltPOConfig, AltPOTrainer\n\n"
            'forget = load_dataset("ORG/NAME", split="train")\n'
            'trainer = AltPOTrainer(MODEL, args=AltPOConfig("altpo"), train_dataset=forget, retain_dataset=RETAIN)',
            "python",
        ),
        "## How it was made",
        "With `trl-unlearn alternates`.",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]),
        fence(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "yaml"),
    ]
    if settings.get("instruction") in INSTRUCTIONS or settings.get("instruction") == "by length of the answer":
        parts.append("What the model was asked:")
        names = [settings["instruction"]] if settings["instruction"] in INSTRUCTIONS else list(INSTRUCTIONS)
        parts += [f"`{name}`\n\n{fence(INSTRUCTIONS[name], 'text')}" for name in names]
    return "\n\n".join(parts) + "\n"
