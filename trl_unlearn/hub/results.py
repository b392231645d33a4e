"""What was unlearned, how and with what results: one dict without rows, texts, tokens or local paths, and its file."""

import json
import math
import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from ..files import write_json


RESULTS_FILE = "unlearn_results.json"
SCHEMA = 1

# A Hub token, wherever it stands.
TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}|hf_(?:oauth|jwt|app)_[\w.-]{16,}")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOCAL_PATH = re.compile(r"~\w*[/\\]|\.{1,2}[/\\]|/|[A-Za-z]:[/\\]|\\\\|file:")
# The same inside a text. A slash after a letter, a digit or a bracket is a division, a URL or a relative path, and one before
# capitals in brackets a tag, as Llama-2's `[/INST]`.
_PATH_IN_TEXT = re.compile(
    r"file://\S+|(?<![A-Za-z])[A-Za-z]:[/\\][^\s'\"`]+|(?<!\S)\\\\[^\s'\"`]+|~\w*/[^\s'\"`]*|"
    r"(?<![\w./<)\]}])(?!/[A-Z]+\])/(?=[\w.@])[^\s'\"`<>|]*"
)
# What stays of an evaluation. Anything else could hold rows or texts.
_KEPT = (
    "schema", "benchmark", "split", "model", "retain_reference", "summary", "intervals", "forget_quality", "missing",
    "conventions", "prompt", "generation", "shots", "versions", "data", "cost", "selected_step",
)  # fmt: skip
# What stays of a measurement under attack, beside its numbers
_MEASURED = ("variant", "step", "trained", "quantizer", "share")
_KINDS = {
    "method": dict, "base_model": dict, "adapter": dict, "data": dict, "hyperparameters": dict, "seeds": dict,
    "history": list, "evaluations": dict, "run": dict, "versions": dict, "eval_results": dict,
    "requests": list,
}  # fmt: skip


def hub_id(name: Any) -> str | None:
    """
    A name if it is that of a repository on the Hub, with its namespace.

    Args:
        name (`Any`):
            Name or path, as given by a user.

    Returns:
        `str` or `None`: The name; `None` for a path, for a name without a namespace, and for a folder that is there.

    Example:

    ```python
    >>> hub_id("locuslab/TOFU"), hub_id("outputs/my/data")
    ('locuslab/TOFU', None)
    ```
    """
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def plain(value: Any) -> Any:
    """
    What JSON and YAML hold as it is: Python's own numbers and texts, without tokens and local paths.

    Args:
        value (`Any`):
            Nested dicts and lists of numbers (NumPy's and torch's too), texts, enums, paths.

    Returns:
        The same with NumPy and torch scalars and arrays as numbers and lists, without the keys whose values are not
        finite (`None` in lists), paths as the names of their files, and `hf_***` in place of tokens.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if hasattr(value, "tolist"):  # NumPy and torch; before `float`, of which NumPy's is a subclass
        return plain(value.tolist())
    if isinstance(value, dict):
        parts = {_public(str(key)): (part, plain(part)) for key, part in value.items()}
        return {key: made for key, (part, made) in parts.items() if made is not None or part is None}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool):
        return value
    return int(value) if isinstance(value, int) else _public(str(value))


def aggregate(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """
    What of an evaluation may be published: its numbers and how they were computed, never a row.

    Args:
        evaluation (`dict`, *optional*):
            Result of an evaluation, or what this function made of one.

    Returns:
        `dict` or `None`: The same without `rows` and whatever else is not known to be without texts; data sets that are
        not on the Hub without their names. A p-value that has underflowed to 0 is left out: `log10_p_value` has it.
    """
    if evaluation is None:
        return None
    result = {key: plain(evaluation[key]) for key in _KEPT if key in evaluation}
    result["summary"] = _numbers(result.get("summary"))
    result["intervals"] = {
        metric: interval
        for metric, interval in (result.get("intervals") or {}).items()
        if all(interval.get(key) is not None for key in ("n", "low", "high"))
    }
    result["missing"] = result.get("missing") or {}
    if quality := result.pop("forget_quality", None):
        quality = _numbers(quality)
        if quality.get("p_value") == 0:
            del quality["p_value"]
        if "log10_p_value" not in quality and "p_value" in quality:
            quality["log10_p_value"] = math.log10(quality["p_value"])
        if {"log10_p_value", "statistic"} <= quality.keys():
            result["forget_quality"] = quality
        else:
            result["missing"]["forget_quality"] = f"log10 p is not finite (D = {quality.get('statistic')})"
    if attacks := evaluation.get("attacks"):
        result["attacks"] = {name: _attack(attack) for name, attack in plain(attacks).items()}
    result["data"] = {name: _published(source) for name, source in (result.get("data") or {}).items()}
    for key in ("model", "retain_reference"):
        if name := (result.get(key) or {}).get("name"):
            result[key]["name"] = hub_id(name) or PurePath(name).name
    if (base := (result.get("model") or {}).get("base_model")) is not None:
        result["model"]["base_model"] = hub_id(base)
    return result


def collect_results(
    *,
    method: dict[str, Any],
    base_model: dict[str, Any] | None = None,
    adapter: dict[str, Any] | None = None,
    data: dict[str, dict[str, Any] | None] | None = None,
    hyperparameters: dict[str, Any] | None = None,
    seeds: dict[str, int | None] | None = None,
    history: Iterable[dict[str, Any]] = (),
    evaluations: dict[str, dict[str, Any] | None] | None = None,
    run: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
    eval_results: dict[str, str] | None = None,
    requests: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """
    The results of an unlearning run, from which card, metadata and tables are made.

    Args:
        method (`dict`):
            `name`; `paper` with `title`, `id` (arXiv) and `citation`; `objective`, a formula of one line.
        base_model (`dict`, *optional*):
            `name` (id on the Hub), `revision` (commit), `license` (as on the base's card).
        adapter (`dict`, *optional*):
            `type` (`"LORA"`), `r`, `lora_alpha`, `target_modules`, and `merged=True` if it has been merged into the
            weights. `None` for a model whose own weights were trained.
        data (`dict`, *optional*):
            `forget`, `retain` and `alternates`, each with `dataset` (id on the Hub), `config`, `split`, `revision`, `n`
            (rows) and `private`. Of what is private or not on the Hub, only the number of rows is kept.
        hyperparameters (`dict`, *optional*):
            The method's own options, and those that differ from the defaults.
        seeds (`dict`, *optional*):
            `training` and `data`.
        history (`Iterable[dict]`, *optional*):
            Numbers by `step`, for example evaluations and losses. Entries of the same step become one.
        evaluations (`dict`, *optional*):
            `before`, `after` and `retained`: results of evaluations, of which the rows are dropped.
        run (`dict`, *optional*):
            `hardware`, `processes`, `seconds`, `peak_memory_bytes` and `command`, which repeats the run.
        versions (`dict`, *optional*):
            Versions of the packages.
        eval_results (`dict`, *optional*):
            `benchmark` (id of a data set on the Hub's list of benchmarks), `task_id`, and `metric` if the task is not
            called like one. For `.eval_results/*.yaml`.
        requests (`Iterable[dict]`, *optional*):
            What [`~ledger.report.published_requests`] gives, of a model that several deletion requests were applied to.

    Returns:
        `dict`: The results, with `"schema"` and every key of the above.
    """
    given = data or {}
    base_model, evaluations = plain(base_model or {}), evaluations or {}
    hidden = {source.get("dataset") for source in given.values() if source and source.get("private")} - {None}
    data = {name: _published(plain(source), hidden) if source else None for name, source in given.items()}
    steps: dict[Any, dict[str, Any]] = {}
    for entry in history:
        steps.setdefault(entry["step"], {}).update(_numbers(plain(entry)))
    aggregates = {name: aggregate(evaluations.get(name)) for name in ("before", "after", "retained")}
    for result in filter(None, aggregates.values()):
        result["data"] = {name: _published(source, hidden) for name, source in result["data"].items()}
    return {
        "schema": SCHEMA,
        "method": {"name": "Unlearning", "paper": None, "objective": None, **plain(method)},
        "base_model": {
            "name": base_model.get("name") if _is_model_id(base_model.get("name")) else None,
            "revision": base_model.get("revision"),
            "license": base_model.get("license"),
        },
        "adapter": plain(adapter),
        "data": {"forget": None, "retain": None, "alternates": None, **data},
        "hyperparameters": plain(hyperparameters or {}),
        "seeds": plain(seeds or {}),
        "history": [steps[step] for step in sorted(steps)],
        "evaluations": aggregates,
        "run": plain(run or {}),
        "versions": plain(versions or {}),
        "eval_results": plain(eval_results),
        "requests": [plain(request) for request in requests],
    }


def save_results(results: dict[str, Any], directory: str | Path) -> None:
    """
    Writes `unlearn_results.json`.

    Args:
        results (`dict`):
            What [`collect_results`] returned.
        directory (`str` or `Path`):
            Folder of the model.
    """
    write_json(plain(results), Path(directory) / RESULTS_FILE)


def load_results(directory: str | Path) -> dict[str, Any] | None:
    """
    Reads `unlearn_results.json`.

    Args:
        directory (`str` or `Path`):
            Folder of the model.

    Returns:
        `dict` or `None`: The results, `None` if the folder has none.

    Raises:
        ValueError: If the file is not JSON, of another schema, or a part of it is of another kind.
    """
    path = Path(directory) / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Delete it, or evaluate and save the model again.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has the schema {schema!r}; this version of trl-unlearn reads {SCHEMA}. Install the version that wrote it, "
            "or evaluate and save the model again."
        )
    for key, kind in _KINDS.items():
        if not isinstance(content.get(key), kind | None):
            raise ValueError(
                f"`{key}` in {path} is a {type(content[key]).__name__}; expected a {kind.__name__}. Evaluate and save the "
                "model again."
            )
    return collect_results(
        **{key: content[key] for key in _KINDS if content.get(key) is not None}
        | {"method": content.get("method") or {}}
    )


def _attack(attack: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": attack["settings"],
        "results": {
            model: [
                {key: part[key] for key in _MEASURED if key in part}
                | {key: _numbers(part[key]) for key in ("summary", "forget_quality") if key in part}
                for part in parts
            ]
            for model, parts in attack["results"].items()
        },
        "missing": attack["missing"],
    }


def _is_model_id(name: Any) -> bool:
    """Unlike a data set, a model may still be named without a namespace, as `gpt2`."""
    return isinstance(name, str) and bool(
        hub_id(name) or (re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) and not Path(name).exists())
    )


def _published(source: dict[str, Any], hidden: Iterable[str] = ()) -> dict[str, Any]:
    """Where rows come from, without the names of what others cannot read."""
    private = bool(source.get("private")) or source.get("dataset") in hidden or hub_id(source.get("dataset")) is None
    names = {
        key: None if private else source.get(key) for key in ("dataset", "config", "split", "revision")
    }  # fmt: skip
    return {**names, **{key: source[key] for key in ("n", "sha256") if key in source}, "private": private}


def _numbers(values: Any) -> dict[str, float]:
    return {
        name: value
        for name, value in plain(values or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _public(text: str) -> str:
    """A text without tokens and local paths; of a text that is a path, the name of the file."""
    if _LOCAL_PATH.match(text) and "\n" not in text and not re.search(r"\s[/~-]", text):
        text = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return TOKEN.sub("hf_***", _PATH_IN_TEXT.sub("LOCAL_PATH", text))
