"""MUSE's texts to fine-tune on, and its metrics without those texts."""

from typing import Any

import numpy as np
from datasets import Dataset

from ..data.loading import load_rows
from ..metrics import bootstrap_interval
from .arguments import AttackArguments


# Splits of the texts that may be kept, those of today first
_RETAIN = ("retain1", "retain2", "retain")


def muse_corpora(arguments: AttackArguments, corpus: str) -> tuple[Dataset, Dataset | None]:
    """The texts that MUSE wants forgotten, and those that may be kept."""
    name = arguments.eval_dataset or f"muse-bench/MUSE-{corpus}"
    splits = load_rows(name, "raw", None, arguments.eval_dataset_revision)
    if "forget" not in splits:
        raise ValueError(f"The configuration `raw` has the splits {', '.join(splits)}; expected one named `forget`.")
    retain = next((splits[split] for split in _RETAIN if split in splits), None)
    return splits["forget"], retain


def without_trained(result: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """A result of MUSE without the beginnings of texts that were trained on; questions do not say which text they are of."""
    columns = result["rows"]["forget_verbmem"]
    kept = [index for index, prompt in enumerate(columns["prompt"]) if not any(prompt in text for text in texts)]
    metrics = {
        "forget_verbmem": "score",
        "forget_extraction_strength": "extraction_strength",
        "forget_exact_memorization": "exact_memorization",
    }
    for metric, column in metrics.items():
        values = [columns[column][index] for index in kept if columns[column][index] is not None]
        if values:
            interval = bootstrap_interval(values)
            result["summary"][metric] = float(np.mean(values))
            result["intervals"][metric] = {key: interval[key] for key in ("n", "low", "high")}
        else:
            del result["summary"][metric], result["intervals"][metric]
    return result
