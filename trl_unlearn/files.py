"""Writes files that are either there whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(text: str, path: str | Path) -> None:
    """Writes a text file, and the folders it stands in, under another name first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_json(content: Any, path: str | Path) -> None:
    """Writes a JSON file in the same way."""
    write_text(json.dumps(content, indent=1), path)
