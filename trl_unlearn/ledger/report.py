"""A ledger as a table for the terminal, and what of it is published."""

from typing import Any

from rich.table import Table
from rich.text import Text

from .ledger import Ledger


# What is published of the evaluations of a request
METRICS = ("forget_probability", "forget_rougeL_recall", "model_utility")


def requests_table(ledger: Ledger) -> Table:
    """
    The requests of a ledger, one a row.

    Args:
        ledger ([`Ledger`]):
            Ledger.

    Returns:
        [`~rich.table.Table`]: Number, name, when, method, adapter, rows, state; the forget probability before and after
        its own training and when it was last measured; and the model utility after its training.
    """
    table = Table(title=f"Ledger {ledger.path}", box=None, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("", "Name", "Applied", "Method", "Adapter"):
        table.add_column(heading)
    table.add_column("Rows", justify="right")
    table.add_column("State")
    for heading in ("Forget\nprob.\nbefore", "\n\nafter", "\n\nlast", "Utility"):
        table.add_column(heading, justify="right")
    for request in ledger.requests:
        results = request.results
        cells = [
            str(request.number),
            request.name,
            request.date[:10],
            request.method,
            "own" if request.continues is None else f"of {request.continues}",
            f"{len(request.rows):,}",
            request.state,
            *(_number(moment, "forget_probability") for moment in (results["before"], results["after"], request.last)),
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
                    moment: {metric: summary[metric] for metric in METRICS if metric in (summary or {})}
                    for moment, summary in moments.items()
                },
            }
        )
    return published
