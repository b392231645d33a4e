"""Loads a configuration of a data set, from the Hub or from a folder, and never an older copy of the folder."""

import hashlib
from pathlib import Path

import datasets


def load_rows(dataset_name: str, config: str | None, split: str = "train") -> datasets.Dataset:
    """
    [`~datasets.load_dataset`], but a local folder that has changed is read again.

    `datasets` caches what it has read from a folder with `configs` in its README under the folder's name and that README
    (seen with 5.2). Edited files, or another folder of the same name, are then silently not read: with a forget set, the
    wrong rows would be unlearned. Here each state of a folder has a cache of its own.

    Args:
        dataset_name (`str`):
            Id on the Hub, or path of a folder in the Hub's layout.
        config (`str`, *optional*):
            Configuration.
        split (`str`, *optional*, defaults to `"train"`):
            Split.

    Returns:
        [`~datasets.Dataset`]: The rows.
    """
    cache_dir = None
    folder = Path(dataset_name)
    if folder.is_dir():
        state = [str(folder.resolve())]
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            state.append(f"{file.relative_to(folder)} {file.stat().st_size} {file.stat().st_mtime_ns}")
        digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
        cache_dir = str(Path(datasets.config.HF_DATASETS_CACHE) / f"folder-{digest}")
    return datasets.load_dataset(dataset_name, config, split=split, cache_dir=cache_dir)
