"""A ledger as a table for the terminal, and what of it is published."""

from typing import Any

from rich.table import Table
from rich.text import Text

from .ledger import Ledger


# What is shown and published of a request's forget set
METRICS = {"forget_probability": "prob.", "forget_rougeL_recall": "ROUGE-L"}


def requests_table(ledger: Ledger) -> Table:
    """
    The requests of a ledger, one a row.

    Args:
        ledger ([`Ledger`]):
            Ledger.

    Returns:
        [`~rich.table.Table`]: Number, name, when, method, adapter, rows, state; the forget metrics before and after
        its own training and when they were last measured; and the model utility after it.
    """
    metrics = [
        (metric, label)
        for metric, label in METRICS.items()
        if any(metric in (request.results["after"] or {}) for request in ledger.requests)
    ]
    table = Table(title=f"Ledger {ledger.path}", box=None, title_justify="left")
    for heading in ("", "Name", "When (UTC)", "Method", "Adapter"):
        table.add_column(heading)
    table.add_column("Rows", justify="right")
    table.add_column("State")
    for _, label in metrics:
        for moment in ("before", "after", "last"):
            table.add_column(f"{label}\n{moment}", justify="right")
    table.add_column("Utility\nafter", justify="right")
    for request in ledger.requests:
        results = request.results
        moments = (results["before"], results["after"], request.last)
        cells = [
            str(request.number),
            request.name,
            request.date[:16].replace("T", " "),
            request.method,
            "own" if request.mode == "own" else f"continues {request.continues}",
            f"{len(request.rows):,}",
            request.state,
            *(_number(moment, metric) for metric, _ in metrics for moment in moments),
            _number(results["after"], "model_utility"),
        ]
        # As plain text: a name is no markup
        table.add_row(*map(Text, cells), style="dim" if request.state == "undone" else None)
    return table


def _number(summary: dict[str, float] | None, metric: str) -> str:
    return f"{summary[metric]:.2f}" if summary and metric in summary else "–"


def published_requests(ledger: Ledger, with_names: bool = False) -> list[dict[str, Any]]:
    """
    What others may know of the requests: counts and digests, and no hash of a row, which could be found by trial.

    Args:
        ledger ([`Ledger`]):
            Ledger.
        with_names (`bool`, *optional*, defaults to `False`):
            Whether to give their names.

    Returns:
        `list[dict]`: For each request `number`, `date`, `method`, `mode`, `n`, `sha256`, `state`, maybe `name`, and
        the forget metrics and the utility `before` and `after` its training and when they were `last` measured.
    """
    wanted = [*METRICS, "model_utility"]
    published = []
    for request in ledger.requests:
        moments = {"before": request.results["before"], "after": request.results["after"], "last": request.last}
        published.append(
            {
                "number": request.number,
                **({"name": request.name} if with_names else {}),
                "date": request.date,
                "method": request.method,
                "mode": request.mode,
                "n": len(request.rows),
                "sha256": request.sha256,
                "state": request.state,
                **{
                    moment: {metric: summary[metric] for metric in wanted if metric in (summary or {})}
                    for moment, summary in moments.items()
                },
            }
        )
    return published
