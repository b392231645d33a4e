"""What an evaluation leaves on disk."""

from pathlib import Path
from typing import Any

from ..files import write_json
from .logs import write_muse_logs, write_tofu_logs
from .report import write_answers, write_report, write_rows


# The leading underscore keeps what is in it, forget-set text, out of a push to the Hub.
EVALUATION_DIR = "_evaluation"


def write_results(result: dict[str, Any], results: dict[str, dict[str, Any]], directory: Path) -> None:
    """
    Writes `evaluation.json`, the report, the rows, the answers, and the logs of open-unlearning where it has such.

    Args:
        result (`dict`):
            The evaluation.
        results (`dict[str, dict]`):
            By name, what the report shows side by side: the evaluation itself, and maybe those of the model before
            unlearning and of the retained model.
        directory (`Path`):
            Folder, which is made.
    """
    write_json(result, directory / "evaluation.json")
    if result["benchmark"] == "tofu":
        write_tofu_logs(result, directory)
    if result["benchmark"] == "muse":
        write_muse_logs(result, directory)
    write_report(results, directory)
    if any(result["rows"].values()):
        write_rows(results, directory / "rows.parquet")
        write_answers(results, directory / "answers.md")
