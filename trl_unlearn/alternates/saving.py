"""Alternates as a data set on disk and on the Hub, with a card that says how they were made."""

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi, get_token

from ..files import write_json, write_text
from ..hub.markdown import as_code, as_markdown, as_number, fence
from ..hub.push import PushError
from ..hub.results import TOKEN, hub_id
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
        dataset.to_parquet(unfinished)
        digest = sha256(unfinished.read_bytes()).hexdigest()
        unfinished.replace(path)
        write_text(_card(dataset, report, digest), directory / "README.md")
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


def check_hub(repo_id: str, private: bool) -> str:
    """
    Makes the data set repository if it is not there, so that a push will be possible after hours of work.

    Args:
        repo_id (`str`):
            Repository; without a namespace, it is the token's user's.
        private (`bool`):
            Whether it is private.

    Returns:
        `str`: Its id with the namespace.

    Raises:
        PushError: If it cannot be pushed to, or is public where a private one was asked for, or the other way round.
    """
    if get_token() is None:
        raise PushError(
            f"It cannot be pushed to {repo_id}: there is no token. Log in with `hf auth login`, or set HF_TOKEN to a token "
            "that may write (https://huggingface.co/settings/tokens)."
        )
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        is_private = bool(api.dataset_info(repo_id).private)
    except Exception as error:
        raise PushError(f"It cannot be pushed to {repo_id}: {_first_line(error)}") from error
    if is_private != private:
        there, wanted = ("private", "public") if is_private else ("public", "private")
        raise PushError(
            f"{repo_id} exists and is {there}, and you asked for a {wanted} one. Give another name, or make it {wanted} "
            f"yourself: {api.endpoint}/datasets/{repo_id}/settings. The data set contains the text of the forget set."
        )
    return repo_id


def push_alternates(directory: str | Path, repo_id: str, private: bool = True) -> CommitInfo:
    """
    Pushes a folder that [`save_alternates`] has written: the data with the forget set's own text, and the card.

    Args:
        directory (`str` or `Path`):
            Folder.
        repo_id (`str`):
            Repository, made if it is not there.
        private (`bool`, *optional*, defaults to `True`):
            Whether it is private.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit.

    Raises:
        PushError: If it fails, for whatever reason; everything is still on disk.
    """
    repo_id = check_hub(repo_id, private)
    try:
        return HfApi().upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=directory,
            allow_patterns=["README.md", _DATA],
            delete_patterns="data/*",
            commit_message="Alternates made by trl-unlearn",
        )
    except Exception as error:
        raise PushError(
            f"{_first_line(error)}\nNothing is lost: the alternates are in {Path(directory).resolve()}. The same command "
            "started again pushes them, and draws nothing anew."
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0] or "no further message"
    return TOKEN.sub("hf_***", f"{type(error).__name__}: {text}")


def _card(dataset: Dataset, report: dict[str, Any], digest: str) -> str:
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
        facts["Written by"] = as_code(hub_id(report.get("model")) or "a model that is not on the Hub")
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
        "them; the alternates are false.",
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
