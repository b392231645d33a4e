"""
Compares evaluated models by their logs alone: no model, no data set and no accelerator is needed.

```bash
trl-unlearn compare outputs/npo/_evaluation/evaluation.json outputs/simnpo/_evaluation/evaluation.json \
    --retain_logs outputs/retain90/_evaluation/evaluation.json --output_dir outputs/comparison
```

A log is `evaluation.json` of this package, `TOFU_EVAL.json` of open-unlearning or `eval_log_aggregated.json` of TOFU. Logs
of different evaluators can stand side by side, but forget quality is only computed between equal numbers of rows.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from trl_unlearn.evaluation.report import RETAINED, summary_table, write_answers, write_report, write_rows


# Parts of a path that say nothing of the model
UNINFORMATIVE = ("_evaluation", "evaluation", "TOFU_EVAL", "MUSE_EVAL", "eval_log_aggregated")


def display_names(paths: list[Path]) -> list[str]:
    """
    The shortest ends of the paths that are all different, without what all logs are called anyway.

    Args:
        paths (`list[Path]`):
            Different logs.

    Returns:
        `list[str]`: One name a log.

    Example:

    ```python
    >>> display_names([Path("runs/npo/_evaluation/evaluation.json"), Path("runs/simnpo/_evaluation/evaluation.json")])
    ['npo', 'simnpo']
    ```
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"A log is given twice: {', '.join(map(str, paths))}. Give each log once.")
    ends = [[part for part in path.resolve().with_suffix("").parts if part not in UNINFORMATIVE] for path in paths]
    for length in range(1, max(map(len, ends)) + 1):
        names = ["/".join(end[-length:]) for end in ends]
        if len({RETAINED, *names}) == 1 + len(names):
            return names
    return [str(path) for path in paths]


def compare(results: dict[str, dict[str, Any]], retained: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """
    Adds what takes two models, the forget quality and PrivLeak of each result against the retained model's.

    Args:
        results (`dict[str, dict]`):
            By display name, results of evaluations.
        retained (`dict`, *optional*):
            Result of the retained model. Without it, the results are left as they are.

    Returns:
        `dict[str, dict]`: The results with `forget_quality` and `summary["privleak"]` where the logs allow them and a reason
        in `missing` where not, and after them as `"Retained"` the retained model's, compared with itself.

    Raises:
        ValueError: If a result has another number of forget rows than the retained model's.
    """
    if retained is None:
        return results
    compared = {}
    for name, result in {**results, RETAINED: retained}.items():
        logged = {**result, "summary": dict(result["summary"]), "missing": dict(result.get("missing", {}))}
        summary, missing = logged["summary"], logged["missing"]
        # Whatever stands there was measured against the retained model that the log was made with
        for part, metric in ((logged, "forget_quality"), (summary, "privleak")):
            part.pop(metric, None)
            missing.pop(metric, None)
        if quality := _forget_quality(name, result, retained):
            logged["forget_quality"] = quality
        else:
            missing["forget_quality"] = "It takes forget truth ratios, which this log or the retained model's lacks."
        auc, retain_auc = (part["summary"].get("mia_min_k_auc") for part in (result, retained))
        if auc is not None and retain_auc is not None and retain_auc < 1:
            # `metrics.privleak` without the scores: AUCs of `metrics.membership_auc` are one minus MUSE's
            summary["privleak"] = (retain_auc - auc) / (1 - retain_auc) * 100
        elif "privleak" in result["summary"]:
            missing["privleak"] = "It takes the Min-K% AUC of both logs, and that of the retained model below 1."
        compared[name] = logged
    return compared


def _forget_quality(name: str, result: dict[str, Any], retained: dict[str, Any]) -> dict[str, Any] | None:
    ratios, retain_ratios = (part["rows"].get("forget", {}).get("truth_ratio") for part in (result, retained))
    if ratios is None or retain_ratios is None:
        return None
    if len(ratios) != len(retain_ratios):
        raise ValueError(
            f"'{name}' has {len(ratios)} forget rows and the retained model's log {len(retain_ratios)}: they are of "
            "different splits or evaluators, and cannot be compared. Evaluate both models on the same forget set."
        )
    from trl_unlearn.metrics import forget_quality

    return forget_quality(ratios, retain_ratios)


def as_json(results: dict[str, dict[str, Any]], logs: dict[str, Path]) -> dict[str, Any]:
    """
    What `--json` prints: for each model its log, both utilities, its forget quality, and everything of its summary.

    Args:
        results (`dict[str, dict]`):
            By display name, what [`compare`] returns.
        logs (`dict[str, Path]`):
            By display name, the logs that they were read from.

    Returns:
        `dict`: By display name `log`, `model_utility`, `model_utility_arithmetic`, `forget_quality` (`None` each where the
        log does not allow them), `summary` and `missing`.
    """
    return {
        name: {
            "log": str(logs[name]),
            "model_utility": result["summary"].get("model_utility"),
            "model_utility_arithmetic": result["summary"].get("model_utility_arithmetic"),
            "forget_quality": result.get("forget_quality"),
            "summary": result["summary"],
            "missing": result.get("missing", {}),
        }
        for name, result in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="trl-unlearn compare", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="Evaluation logs of the models to compare.")
    parser.add_argument(
        "--retain_logs",
        type=Path,
        metavar="LOG",
        help="Evaluation log of the retained model, for forget quality and PrivLeak. None: both as they are in the logs.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object for programs, and nothing else.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="Folder for report.html, rows.parquet, answers.md and figures. These hold forget-set text.",
    )
    arguments = parser.parse_args()

    from trl_unlearn.evaluation.logs import read_log

    try:
        logs = dict(zip(display_names(arguments.logs), arguments.logs, strict=True))
        retained = read_log(arguments.retain_logs) if arguments.retain_logs else None
        results = compare({name: read_log(path) for name, path in logs.items()}, retained)
        evaluators = {
            name: result.get("conventions", {}).get("compat") or "trl-unlearn" for name, result in results.items()
        }
        if len(set(evaluators.values())) > 1:
            listed = ", ".join(f"{name}: {evaluator}" for name, evaluator in evaluators.items())
            print(f"Warning: these logs follow the conventions of different evaluators ({listed}).", file=sys.stderr)
        if arguments.output_dir:
            write_report(results, arguments.output_dir)
            write_rows(results, arguments.output_dir / "rows.parquet")
            write_answers(results, arguments.output_dir / "answers.md")
    except (OSError, ValueError) as error:
        sys.exit(f"trl-unlearn compare: {error}")
    if arguments.json:
        print(json.dumps(as_json(results, {**logs, RETAINED: arguments.retain_logs}), indent=1))
        return
    console = Console()
    console.print(summary_table(results))
    if arguments.output_dir:
        console.print(f"Written to {arguments.output_dir}: report.html, rows.parquet, answers.md, figures.")


if __name__ == "__main__":
    main()
