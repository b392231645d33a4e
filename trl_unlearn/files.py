"""Writes files that are either there whole or not at all."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_text(text: str, path: str | Path) -> None:
    """Writes a text file, and the folders it stands in, under another name first."""
    unfinished = _unfinished(Path(path))
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_json(content: Any, path: str | Path) -> None:
    """Writes a JSON file in the same way."""
    write_text(json.dumps(content, indent=1), path)


def write_arrow(path: str | Path, column: str, batches: Iterable[list[bytes]]) -> None:
    """Writes a column of bytes for [`~datasets.Dataset.from_file`] in the same way, with one batch in memory at a time."""
    import pyarrow as pa  # which commands that only write text need not wait for

    unfinished = _unfinished(Path(path))
    schema = pa.schema({column: pa.large_binary()})
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for values in batches:
            writer.write_batch(pa.record_batch([pa.array(values, pa.large_binary())], schema=schema))
    unfinished.replace(path)


def _unfinished(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}")
