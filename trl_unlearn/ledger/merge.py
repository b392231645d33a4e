"""All requests of a ledger as one adapter or one whole model, with results and card, to be loaded and pushed."""

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .. import __version__
from ..hub.card import build_card, save_card
from ..hub.merge import merge_adapter
from ..hub.results import collect_results, load_results, save_results
from .adapters import add_adapters, find_base_of, load_base
from .ledger import Ledger
from .report import published_requests


def merge_ledger(
    path: str | Path,
    output_dir: str | Path,
    as_adapter: bool = False,
    publish_request_names: bool = False,
    base_model: str | None = None,
    dtype: str = "auto",
    device_map: Any = None,
) -> dict[str, float] | None:
    """
    Writes the requests that are applied as one model, or as one adapter whose rank is the sum of theirs.

    Args:
        path (`str` or `Path`):
            Folder of the ledger.
        output_dir (`str` or `Path`):
            Folder to write to. It must not exist or be empty, and is there whole or not at all.
        as_adapter (`bool`, *optional*, defaults to `False`):
            Whether to write an adapter.
        publish_request_names (`bool`, *optional*, defaults to `False`):
            Whether results and card have the names of the requests.
        base_model, dtype, device_map:
            As for [`load_ledger`].

    Returns:
        `dict[str, float]` or `None`: For a whole model, how far the merge moved the logits, as
        [`~hub.merge.merge_adapter`] says it.

    Raises:
        FileExistsError: If there is something in `output_dir`.
        ValueError: If no request is applied, or the base model is another one.

    Example:

    ```python
    >>> merge_ledger("outputs/ledger", "outputs/merged")["max_abs_difference"]
    2.1e-05
    ```
    """
    output_dir, ledger = Path(output_dir), Ledger.read(path)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} is there already and not empty. Give a new folder for what is merged.")
    if not ledger.applied:
        raise ValueError(f"No request in {path} is applied: there is nothing to merge into the base model.")
    base = find_base_of(ledger, base_model)
    folders = [ledger.folder(request.number) for request in ledger.in_use]
    model = add_adapters(load_base(base, dtype=dtype, device_map=device_map), folders)
    config = model.active_peft_config
    config.base_model_name_or_path, config.revision = base.name, base.commit

    adapter = output_dir.with_name(f".{output_dir.name}.adapter.{os.getpid()}")
    adapter.mkdir(parents=True)
    try:
        model.save_pretrained(adapter)
        AutoTokenizer.from_pretrained(folders[-1]).save_pretrained(adapter)
        results = _results(ledger, config.r, publish_request_names)
        save_results(results, adapter)
        save_card(build_card(results, files=os.listdir(adapter)), adapter)
        del model
        if as_adapter:
            adapter.replace(output_dir)
            return None
        return merge_adapter(str(adapter), output_dir, dtype=dtype, device_map=device_map)
    finally:
        shutil.rmtree(adapter, ignore_errors=True)


def _results(ledger: Ledger, rank: int, with_names: bool) -> dict[str, Any]:
    """The results of a ledger, from those of its requests."""
    runs = [load_results(ledger.folder(request.number)) for request in ledger.applied]
    methods = {run["method"]["name"]: run["method"] for run in runs}
    only = next(iter(methods.values())) if len(methods) == 1 else {"name": " and ".join(methods)}
    modules = {module for run in runs for module in run["adapter"]["target_modules"] or ()}
    return collect_results(
        method={"name": only["name"], "paper": only.get("paper")},
        base_model=runs[-1]["base_model"],
        adapter={"type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(modules)},
        data={"forget": {"dataset": None, "n": len({digest for r in ledger.applied for digest in r.rows})}},
        requests=published_requests(ledger, with_names),
        versions={
            "trl_unlearn": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("transformers", "peft", "torch")},
        },
    )
