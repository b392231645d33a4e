"""
Shows the deletion requests of a ledger, undoes one, merges them, or tells which rows were part of one.

```bash
trl-unlearn ledger show
trl-unlearn ledger undo 3
trl-unlearn ledger merge outputs/merged
trl-unlearn ledger check rows.jsonl
```

Requests are added by training: `trl-unlearn simnpo --config … --use_peft true --ledger outputs/ledger --request
"customer 17"`.
"""

import argparse
import json
import sys
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="trl-unlearn ledger", description=__doc__.split("\n\n")[0].strip())
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--ledger", type=Path, default=Path("outputs/ledger"), help="Folder of the ledger. Default: outputs/ledger."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="show|undo|merge|check")
    commands.add_parser("show", parents=[common], help="Print the requests.")
    undo = commands.add_parser(
        "undo", parents=[common], help="Mark a request as undone: its adapter is not loaded any more."
    )
    undo.add_argument("number", type=int, metavar="N", help="Number of the request.")
    merge = commands.add_parser("merge", parents=[common], help="Write all applied requests as one model or adapter.")
    merge.add_argument("output_dir", metavar="OUT", help="New folder.")
    merge.add_argument("--adapter", action="store_true", help="Write one adapter instead of a whole model.")
    merge.add_argument(
        "--publish_request_names", action="store_true", help="Give the names of the requests in results and card."
    )
    merge.add_argument("--base_model", help="Id or folder of the base, if it is not where it was.")
    merge.add_argument("--dtype", default="auto", help="Data type to merge and save in. Default: the base's.")
    check = commands.add_parser("check", parents=[common], help="Tell which rows of a file are part of which request.")
    check.add_argument("file", metavar="FILE", help="Rows: a file, a folder, or id[:config[:split]] on the Hub.")
    check.add_argument("--json", action="store_true", help="Print one JSON object for programs, and nothing else.")
    return parser.parse_args()


def show(arguments: argparse.Namespace) -> None:
    """Prints the table of the requests."""
    from rich.console import Console

    from trl_unlearn.ledger.ledger import Ledger
    from trl_unlearn.ledger.report import requests_table

    Console().print(requests_table(Ledger.read(arguments.ledger)))


def undo(arguments: argparse.Namespace) -> None:
    """Undoes a request, and says what that means."""
    from trl_unlearn.ledger.ledger import Ledger

    with Ledger.read(arguments.ledger).locked():
        ledger = Ledger.read(arguments.ledger)
        request = ledger.undo(arguments.number)
    rest = ", ".join(str(request.number) for request in ledger.applied) or "none"
    print(
        f"Undone: {request}. The model is its base with the changes of the other requests ({rest}). What was merged "
        "or pushed before stays as it is."
    )


def merge(arguments: argparse.Namespace) -> None:
    """Merges, and says how to go on."""
    from accelerate import PartialState

    from trl_unlearn.ledger.merge import merge_ledger

    parity = merge_ledger(
        arguments.ledger,
        arguments.output_dir,
        arguments.adapter,
        arguments.publish_request_names,
        arguments.base_model,
        arguments.dtype,
        str(PartialState().device),
    )
    if parity is not None:
        print(
            f"Logits before and after the merge differ by at most {parity['max_abs_difference']:.3g} (the largest is "
            f"{parity['max_abs_logit']:.3g})."
        )
    print(f"Written to {arguments.output_dir}. To publish it: trl-unlearn push {arguments.output_dir} org/name")


def check(arguments: argparse.Namespace) -> None:
    """Prints by request how many and which rows of a file are part of it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trl_unlearn.data.loading import load_rows, parse_source
    from trl_unlearn.ledger.ledger import Ledger
    from trl_unlearn.ledger.rows import row_hashes

    ledger = Ledger.read(arguments.ledger)
    hashes = row_hashes(load_rows(*parse_source(arguments.file)), arguments.file)
    found = {}
    for request in ledger.requests:
        rows = set(request.rows)
        found[request.number] = [index for index, digest in enumerate(hashes) if digest in rows]
    if arguments.json:
        print(json.dumps({"num_rows": len(hashes), "requests": found}))
        return
    table = Table("", "Name", "State", "Rows found", "Their numbers, from 0", box=None)
    for request in ledger.requests:
        if rows := found[request.number]:
            cells = (str(request.number), request.name, request.state, str(len(rows)), ", ".join(map(str, rows)))
            table.add_row(*map(Text, cells))
    in_none = len(hashes) - len({index for rows in found.values() for index in rows})
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(f"{in_none} of {len(hashes)} rows are part of no request. Only the very same text is found.")


def main() -> None:
    arguments = parse_arguments()
    try:
        {"show": show, "undo": undo, "merge": merge, "check": check}[arguments.command](arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"trl-unlearn ledger: {error}")


if __name__ == "__main__":
    main()
