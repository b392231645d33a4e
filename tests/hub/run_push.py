"""A client of the test Hub that stays alive: one JSON request a line in, one answer a line out."""

import contextlib
import json
import os
import sys
import time

from trl_unlearn.hub.push import check_push, push_folder
from trl_unlearn.scripts import push


def command(arguments: list[str], token: str) -> str:
    """What a person types after `trl-unlearn push`, logged in with `token`."""
    os.environ["HF_TOKEN"] = token
    sys.argv = ["trl-unlearn push", *arguments]
    try:
        push.main()
    except SystemExit as error:
        raise RuntimeError(str(error.code)) from error
    finally:
        os.environ["HF_TOKEN"] = ""


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes out there
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        answer = {"value": None, "error": None, "kind": None}
        try:
            function = {"push_folder": push_folder, "check_push": check_push, "command": command}[request["function"]]
            with contextlib.redirect_stdout(sys.stderr):
                value = function(**request["arguments"])
            answer["value"] = getattr(value, "oid", value)
        except Exception as error:
            answer |= {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(answer | {"seconds": time.monotonic() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
