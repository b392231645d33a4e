"""Data sets as folders in the Hub's layout: a file a split, and a README that names them."""

import json
from pathlib import Path

from datasets import Dataset


def write_folder(
    directory: Path, configs: dict[str, dict[str, list[dict]]], names: dict[str, str] | None = None, file_type="json"
) -> str:
    """Writes rows by configuration and split, with the splits renamed by `names`, and returns the folder."""
    header = ["---", "configs:"]
    for config, splits in configs.items():
        header += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            split = (names or {}).get(split, split)
            file = directory / config / f"{split}.{file_type}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if file_type == "parquet":
                Dataset.from_list(rows).to_parquet(file)
            else:
                file.write_text(json.dumps(rows))
            header += [f"  - split: {split}", f"    path: {file.relative_to(directory)}"]
    (directory / "README.md").write_text("\n".join([*header, "---", ""]))
    return str(directory)
