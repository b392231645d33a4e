"""Reads evaluation files, whoever's evaluator wrote them, and writes them as open-unlearning does."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..files import write_json
from ..metrics import membership_auc, model_utility, normalized_probability, probability, truth_ratio


SCHEMA = 1
_ACCEPTED = (
    "Accepted are evaluation.json of trl-unlearn, TOFU_EVAL.json or MUSE_EVAL.json of open-unlearning, and "
    "eval_log_aggregated.json of TOFU."
)
_UTILITY_SETS = ("real_authors", "world_facts")
_UTILITY_COLUMNS = ("probability", "rougeL_recall", "truth_ratio")
_MEMORIZATION = ("exact_memorization", "extraction_strength")
_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm")
# A metric of open-unlearning: the set whose rows it has, their keys with our columns, and our name of its aggregate.
_Metric = tuple[str, dict[str, str], str | None]
_ROUGE = {"rouge1_recall": "rouge1_recall", "rougeL_recall": "rougeL_recall"}
_TEXTS = {"input": "prompt", "ground_truth": "answer", "generation": "generated"}


def _tofu_metrics() -> dict[str, _Metric]:
    metrics: dict[str, _Metric] = {}
    for prefix, name in (("forget", "forget"), ("retain", "retain"), ("ra", "real_authors"), ("wf", "world_facts")):
        paraphrased = {"prob": "paraphrased_probability", "avg_loss": "paraphrased_loss"}
        perturbed = {"prob": "perturbed_probability", "avg_loss": "perturbed_loss"}
        rouge = _ROUGE | {"rougeL_f1": "rougeL_f1"} | _TEXTS
        ratio = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        metrics |= {
            f"{prefix}_Q_A_Prob": (name, {"prob": "probability", "avg_loss": "loss"}, f"{name}_probability"),
            f"{prefix}_Q_A_PARA_Prob": (name, paraphrased, None),
            f"{prefix}_Q_A_PERT_Prob": (name, perturbed, None),
            f"{prefix}_Q_A_ROUGE": (name, rouge, f"{name}_rougeL_recall"),
            ratio: (name, {"score": "truth_ratio"}, f"{name}_truth_ratio"),
        }
        if name in _UTILITY_SETS:  # whose probability is the one normalised by the perturbed answers
            metrics[f"{prefix}_Q_A_Prob"] = (name, {"prob": "answer_probability", "avg_loss": "loss"}, None)
            metrics[f"{prefix}_Q_A_Prob_normalised"] = (name, {"prob": "probability"}, f"{name}_probability")
    return metrics | {metric: ("forget", {"score": metric}, f"forget_{metric}") for metric in _MEMORIZATION}


_TOFU_METRICS = _tofu_metrics()
_MUSE_TEXT_METRICS: dict[str, _Metric] = {
    f"{name}_ROUGE": (name, _ROUGE | {"rougeL_f1": "score"} | _TEXTS, name)
    for name in ("forget_verbmem", "forget_knowmem", "retain_knowmem")
}
_MUSE_METRICS = _MUSE_TEXT_METRICS | {
    metric: ("forget_verbmem", {"score": metric}, f"forget_{metric}") for metric in _MEMORIZATION
}
_AGGREGATES = {  # metrics without rows of their own, or whose rows are not kept
    "model_utility": "model_utility",
    "privleak": "privleak",
    "forget_Q_A_gibberish": "text_cleanness",
    "forget_gibberish": "text_cleanness",
} | {f"mia_{attack}": f"mia_{attack}_auc" for attack in _ATTACKS}

_TOFU_FILES = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}
_TOFU_COLUMNS = {
    "avg_gt_loss": "loss",
    "num_token_gt": "num_tokens",
    "rouge1_recall": "rouge1_recall",
    "rougeL_recall": "rougeL_recall",
    "avg_paraphrased_loss": "paraphrased_loss",
    "average_perturb_loss": "perturbed_loss",
}
_TOFU_TEXTS = ("prompt", "generated", "answer")


def read_log(path: str | Path) -> dict[str, Any]:
    """
    Reads an evaluation file of this package, of open-unlearning or of TOFU.

    Rows of the other two are renamed to this package's columns and put in the order of their indices, and the summary is
    computed again from them, so that it has the same metrics whoever wrote the log. Logs of open-unlearning are
    summarised in their convention, with 1e-10 added to each denominator; their own numbers come out. What a log has only
    as a single number is taken over as it is, and metrics unknown here are left out.

    Args:
        path (`str` or `Path`):
            `evaluation.json` of this package, `TOFU_EVAL.json` or `MUSE_EVAL.json` of open-unlearning, or
            `eval_log_aggregated.json` of TOFU.

    Returns:
        `dict`: A result, as `evaluation.json` holds it: `summary` (one number a metric), `rows` (for each set its columns,
        one value a row), and in converted logs `schema`, `benchmark`, `conventions` and maybe `forget_quality`. Of a
        forget quality which open-unlearning logged, only the p-value is known, and `statistic` and `n_retain` are `None`.
        Its logs have probabilities in single precision; those are kept, in the columns `answer_probability` (utility
        sets, beside the normalised `probability`), `paraphrased_probability` and `perturbed_probability`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is none of these, has no rows, or was made by a newer version of this package.

    Example:

    ```python
    >>> read_log("saves/eval/tofu_Llama-3.2-1B-Instruct_retain90/TOFU_EVAL.json")["summary"]["model_utility_arithmetic"]
    ```
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file. {_ACCEPTED}")
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file, or not a complete one ({error}). {_ACCEPTED}") from None
    if not isinstance(log, dict):
        raise ValueError(f"{path} is not an evaluation log: it holds a JSON {type(log).__name__}. {_ACCEPTED}")

    if isinstance(log.get("rows"), dict) and isinstance(log.get("summary"), dict):
        if log.get("schema", SCHEMA) > SCHEMA:
            raise ValueError(
                f"{path} was made by a newer version of trl-unlearn: its schema is {log['schema']}, and this version reads "
                f"up to {SCHEMA}. Upgrade trl-unlearn."
            )
        return log
    if any(isinstance(log.get(file), dict) for file in _TOFU_FILES):
        return _from_tofu(log)
    known = {"forget_quality", *_TOFU_METRICS, *_MUSE_METRICS, *_AGGREGATES}.intersection(log)
    if any(isinstance(log[metric], dict) for metric in known):
        return _from_open_unlearning({metric: log[metric] for metric in known})
    if known:
        raise ValueError(
            f"{path} is a summary: one number a metric and no rows. Give TOFU_EVAL.json or MUSE_EVAL.json next to it."
        )
    if "summary" in log:
        raise ValueError(f"{path} has a summary and no rows. Give evaluation.json as the evaluation wrote it.")
    raise ValueError(f"{path} is not an evaluation log: it has the keys {sorted(log)[:5]}. {_ACCEPTED}")


def write_tofu_logs(result: dict[str, Any], directory: str | Path) -> None:
    """
    Writes `TOFU_EVAL.json` and `TOFU_SUMMARY.json` as open-unlearning does, with what the result has of their metrics.

    `TOFU_EVAL.json` can be given to open-unlearning as `retain_logs_path`. Numbers are those of the result, in its
    conventions. Utility sets other than `real_authors` and `world_facts` have no name there and are left out, and with
    them a model utility that was averaged over them.

    Args:
        result (`dict`):
            A result on TOFU or on data laid out like it, as [`read_log`] returns it.
        directory (`str` or `Path`):
            Where to write the two files; made if needed.
    """
    rows = result["rows"]
    logs = _to_open_unlearning(result, _TOFU_METRICS)
    if "retain" in rows and set(rows) - {"forget", "retain", "holdout"} != set(_UTILITY_SETS):
        logs.pop("model_utility", None)
    if "forget_quality" in result:
        logs["forget_quality"] = {"agg_value": result["forget_quality"]["p_value"]}
    if "text_cleanness" in result["summary"]:
        logs["forget_Q_A_gibberish"] = {"agg_value": result["summary"]["text_cleanness"]}
    shown = {"forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio", "forget_quality", "forget_Q_A_gibberish"}
    _write_logs(logs, shown, Path(directory), "TOFU")


def write_muse_logs(result: dict[str, Any], directory: str | Path) -> None:
    """
    Writes `MUSE_EVAL.json` and `MUSE_SUMMARY.json` as open-unlearning does, with what the result has of their metrics.

    Args:
        result (`dict`):
            A result on MUSE, as [`read_log`] returns it.
        directory (`str` or `Path`):
            Where to write the two files; made if needed.
    """
    logs = _to_open_unlearning(result, _MUSE_METRICS)
    if "text_cleanness" in result["summary"]:
        logs["forget_gibberish"] = {"agg_value": result["summary"]["text_cleanness"]}
    _write_logs(logs, set(_MUSE_METRICS) | {"forget_gibberish"}, Path(directory), "MUSE")


def _from_tofu(log: dict[str, Any]) -> dict[str, Any]:
    rows = {}
    for file, name in _TOFU_FILES.items():
        logged = {key: _in_order(column) for key, column in log.get(file, {}).items()}
        if not logged:
            continue
        columns = {column: logged[key] for key, column in _TOFU_COLUMNS.items() if key in logged}
        if "generated_text" in logged:
            texts = zip(*logged["generated_text"], strict=True)
            columns |= {column: list(values) for column, values in zip(_TOFU_TEXTS, texts, strict=True)}
        if "loss" in columns and name not in _UTILITY_SETS:
            columns["probability"] = probability(columns["loss"], 1)["per_row"]
        if "perturbed_loss" in columns:
            if "loss" in columns and name in _UTILITY_SETS:
                share = normalized_probability(columns["loss"], 1, columns["perturbed_loss"], 1)
                columns["probability"] = share["per_row"]
            columns["truth_ratio"] = truth_ratio(columns["paraphrased_loss"], columns["perturbed_loss"])["per_row"]
        rows[name] = columns
    return {
        "schema": SCHEMA,
        "benchmark": "tofu",
        "summary": _summarize(rows, "exact"),
        "conventions": {"compat": "tofu"},
        "rows": rows,
    }


def _from_open_unlearning(log: dict[str, Any]) -> dict[str, Any]:
    is_muse = any(metric in log for metric in _MUSE_TEXT_METRICS)
    metrics = _MUSE_METRICS if is_muse else _TOFU_METRICS
    rows: dict[str, dict[str, list]] = {}
    for metric, (name, keys, _) in metrics.items():
        entries = _in_order(log.get(metric, {}).get("value_by_index", {}))
        for key, column in keys.items():
            if entries and key in entries[0]:
                rows.setdefault(name, {})[column] = [entry[key] for entry in entries]
    for attack in _ATTACKS:
        for name in ("forget", "holdout"):
            entries = _in_order(log.get(f"mia_{attack}", {}).get(name, {}).get("value_by_index", {}))
            if entries:  # the loss of the forget rows is there already when their probability was logged
                rows.setdefault(name, {}).setdefault(attack, [entry["score"] for entry in entries])
    for name, columns in rows.items():
        if name in _UTILITY_SETS and "loss" in columns:  # the answer itself stands for the paraphrase
            columns.setdefault("paraphrased_loss", columns["loss"])
        if "paraphrased_loss" in columns and "perturbed_loss" in columns:
            losses = columns["paraphrased_loss"], columns["perturbed_loss"]
            columns["truth_ratio"] = truth_ratio(*losses, convention="open-unlearning")["per_row"]

    summary = _summarize(rows, "open-unlearning")
    names = {metric: name for metric, (_, _, name) in metrics.items()} | _AGGREGATES
    for metric, name in names.items():
        if name is not None and name not in summary and log.get(metric, {}).get("agg_value") is not None:
            summary[name] = log[metric]["agg_value"]
    result = {
        "schema": SCHEMA,
        "benchmark": "muse" if is_muse else "tofu",
        "summary": summary,
        "conventions": {"compat": "open-unlearning"},
        "rows": rows,
    }
    p_value = log.get("forget_quality", {}).get("agg_value")
    if p_value is not None:
        result["forget_quality"] = {
            "p_value": p_value,
            "log10_p_value": math.log10(p_value) if p_value > 0 else None,
            "statistic": None,
            "n": len(rows["forget"]["truth_ratio"]) if "truth_ratio" in rows.get("forget", {}) else None,
            "n_retain": None,
        }
    return result


def _in_order(values: dict[str, Any]) -> list:
    """The values of an object by row index, whose keys may be in any order ("0", "1", "10", "2")."""
    return [values[index] for index in sorted(values, key=int)]


def _summarize(rows: dict[str, dict[str, list]], convention: Literal["exact", "open-unlearning"]) -> dict[str, float]:
    """What can be computed from the rows, in the order in which to show it."""
    summary: dict[str, float] = {}
    arithmetic: dict[str, float] = {}  # the truth ratios of model utility with the other mean
    for name in ("forget", "retain", *_UTILITY_SETS):
        columns = rows.get(name, {})
        for column in ("probability", "rougeL_recall"):
            if column in columns:
                summary[f"{name}_{column}"] = float(np.mean(columns[column]))
        if "paraphrased_loss" in columns and "perturbed_loss" in columns:
            losses = columns["paraphrased_loss"], columns["perturbed_loss"]
            aggregation = "forget" if name == "forget" else "retain"
            ratio = truth_ratio(*losses, aggregation, convention=convention)
            summary[f"{name}_truth_ratio"] = ratio["truth_ratio"]
            if name == "forget":
                share = truth_ratio(*losses, "probability", convention=convention)
                summary["forget_truth_ratio_probability"] = share["truth_ratio"]
            else:
                ratio = truth_ratio(*losses, aggregation, "arithmetic", convention)
                arithmetic[f"{name}_truth_ratio"] = ratio["truth_ratio"]
    for name, _, _ in _MUSE_TEXT_METRICS.values():
        if "score" in rows.get(name, {}):
            summary[name] = float(np.mean(rows[name]["score"]))
    for column in _MEMORIZATION:
        for name in ("forget", "forget_verbmem"):
            scores = [score for score in rows.get(name, {}).get(column, []) if score is not None]
            if scores:
                summary[f"forget_{column}"] = float(np.mean(scores))

    kept = [f"{name}_{column}" for name in ("retain", *_UTILITY_SETS) for column in _UTILITY_COLUMNS]
    if all(metric in summary for metric in kept):
        summary["model_utility"] = model_utility([summary[metric] for metric in kept])["model_utility"]
        scores = [(summary | arithmetic)[metric] for metric in kept]
        summary["model_utility_arithmetic"] = model_utility(scores)["model_utility"]
    for attack in _ATTACKS:
        forget, holdout = (rows.get(name, {}).get(attack) for name in ("forget", "holdout"))
        if forget and holdout:
            summary[f"mia_{attack}_auc"] = membership_auc(forget, holdout)["auc"]
    return summary


def _to_open_unlearning(result: dict[str, Any], metrics: dict[str, _Metric]) -> dict[str, Any]:
    summary, logs = result["summary"], {}
    rows = {name: dict(columns) for name, columns in result["rows"].items()}
    for name, columns in rows.items():
        if name in _UTILITY_SETS and columns.get("paraphrased_loss") == columns.get("loss"):
            columns.pop("paraphrased_loss", None)  # the answer itself, see above
        for column, loss in (
            ("answer_probability", "loss"),
            ("paraphrased_probability", "paraphrased_loss"),
            ("perturbed_probability", "perturbed_loss"),
        ):
            if loss in columns:
                columns.setdefault(column, np.exp(-np.array(columns[loss])).tolist())
    for metric, (name, keys, aggregate) in metrics.items():
        columns = {key: rows[name][column] for key, column in keys.items() if column in rows.get(name, {})}
        if aggregate in summary:
            logs[metric] = {"agg_value": summary[aggregate]}
        elif aggregate is None and columns:
            logs[metric] = {"agg_value": float(np.mean(columns["prob"]))}
        else:
            continue
        if columns:
            logs[metric]["value_by_index"] = _by_index(columns)
    for attack in _ATTACKS:
        if f"mia_{attack}_auc" not in summary:
            continue
        auc = summary[f"mia_{attack}_auc"]
        logs[f"mia_{attack}"] = {"auc": auc, "agg_value": auc}
        scores = {name: rows.get(name, {}).get(attack) for name in ("forget", "holdout")}
        if all(scores.values()):
            logs[f"mia_{attack}"] |= {
                name: {"agg_value": float(np.mean(values)), "value_by_index": _by_index({"score": values})}
                for name, values in scores.items()
            }
    for metric in ("model_utility", "privleak"):
        if metric in summary:
            logs[metric] = {"agg_value": summary[metric]}
    return logs


def _by_index(columns: dict[str, list]) -> dict[str, dict[str, Any]]:
    entries = zip(*columns.values(), strict=True)
    return {str(index): dict(zip(columns, entry, strict=True)) for index, entry in enumerate(entries)}


def _write_logs(logs: dict[str, Any], shown: set[str], directory: Path, benchmark: str) -> None:
    shown = shown | {"model_utility", "privleak", *_MEMORIZATION, *(f"mia_{attack}" for attack in _ATTACKS)}
    write_json(dict(sorted(logs.items())), directory / f"{benchmark}_EVAL.json")
    aggregates = {metric: logs[metric]["agg_value"] for metric in sorted(shown & set(logs))}
    write_json(aggregates, directory / f"{benchmark}_SUMMARY.json")
