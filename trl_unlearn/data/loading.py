"""Loads rows from the Hub, a folder or a file, and never an older copy of what is on disk."""

import hashlib
import re
from pathlib import Path

import datasets

from .formats import FORMATS, infer_format


_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(
    dataset_name: str, config: str | None = None, split: str | None = "train", revision: str | None = None
) -> datasets.Dataset | datasets.DatasetDict:
    """
    [`~datasets.load_dataset`] that also takes a file, and reads a local folder again when it has changed.

    `datasets` caches what it has read from a folder with `configs` in its README under the folder's name and that README
    (seen with 5.2). Edited files, or another folder of the same name, are then silently not read: with a forget set, the
    wrong rows would be unlearned. Here each state of a folder has a cache of its own.

    Args:
        dataset_name (`str`):
            Id on the Hub, path of a folder in the Hub's layout, or path of a file (`.jsonl`, `.json`, `.csv`,
            `.parquet`).
        config (`str`, *optional*):
            Configuration.
        split (`str`, *optional*, defaults to `"train"`):
            Split; `None` for all of them.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        [`~datasets.Dataset`], or [`~datasets.DatasetDict`] of all splits: The rows.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is empty or of another type.
    """
    path = Path(dataset_name)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise ValueError(f"{path} is a {path.suffix or 'nameless'} file; expected one of {', '.join(_BUILDERS)}.")
        if not path.read_bytes().strip():
            raise ValueError(f"{path} is empty: it has no rows.")
        return datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train")
    if path.suffix in _BUILDERS:
        raise FileNotFoundError(f"{path} is not there.")
    if not path.is_dir():
        return datasets.load_dataset(dataset_name, config, split=split, revision=revision)
    state = [str(path.resolve())]
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        state.append(f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}")
    digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    cache_dir = str(Path(datasets.config.HF_DATASETS_CACHE) / f"folder-{digest}")
    return datasets.load_dataset(dataset_name, config, split=split, cache_dir=cache_dir)


def load_mixture(first: tuple[str, str | None, str], others: list[str], name: str) -> datasets.Dataset:
    """
    One set from several: the rows of `first`, and after them those of the others.

    Args:
        first (`tuple[str, str | None, str]`):
            Data set, configuration and split, as for [`load_rows`].
        others (`list[str]`):
            Further sets, each as [`parse_source`] reads it.
        name (`str`):
            Name of the set in messages.

    Returns:
        [`~datasets.Dataset`]: All rows; of several sets, with the columns that they share.

    Raises:
        ValueError: If their columns are of different kinds.
    """
    parts = [load_rows(*first), *(load_rows(*parse_source(source)) for source in others)]
    return join_parts(parts, [first[0], *others], name)


def join_parts(parts: list[datasets.Dataset], sources: list[str], name: str) -> datasets.Dataset:
    """As [`load_mixture`], of sets that are loaded already; `sources` says in messages where each comes from."""
    if len(parts) == 1:
        return parts[0]
    kinds = [infer_format(part, name) for part in parts]
    if len(set(kinds)) > 1:
        listed = "; ".join(
            f"{source}: {', '.join(FORMATS[kind])}" for source, kind in zip(sources, kinds, strict=True)
        )
        raise ValueError(
            f"The parts of the {name} set have columns of different kinds ({listed}). Rename or rewrite them."
        )
    shared = set.intersection(*(set(part.column_names) for part in parts))
    return datasets.concatenate_datasets(
        [part.select_columns([column for column in part.column_names if column in shared]) for part in parts]
    )


def parse_source(source: str) -> tuple[str, str | None, str]:
    """
    What `id[:config[:split]]` stands for; the path of a file or folder stands for itself.

    Example:

    ```python
    >>> parse_source("locuslab/TOFU:retain90")
    ('locuslab/TOFU', 'retain90', 'train')
    ```
    """
    if Path(source).exists() or Path(source).suffix in _BUILDERS:
        return source, None, "train"
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    return name, config or None, split or "train"


def hub_source(dataset: datasets.Dataset) -> tuple[str, str] | None:
    """Id and commit of the data set on the Hub that rows were loaded from; `None` of all others."""
    # datasets keeps no other trace of it: the cache of rows from the Hub lies at namespace___name/config/version/commit
    place = r"([^/\\]+)___([^/\\]+)[/\\][^/\\]+[/\\][^/\\]+[/\\]([0-9a-f]{40})[/\\][^/\\]+"
    found = {
        match and match.groups() for match in (re.search(place, file["filename"]) for file in dataset.cache_files)
    }
    if len(found) != 1 or None in found:
        return None
    ((namespace, name, commit),) = found
    return f"{namespace}/{name}", commit


def commit_of(dataset: datasets.Dataset) -> str | None:
    """The commit that rows from the Hub were read at; `None` for local ones."""
    source = hub_source(dataset)
    return None if source is None else source[1]
