"""The list of requests, in one file that is always whole, and what it says about which adapters are in use."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..files import write_json


LEDGER_FILE = "unlearn_ledger.json"
SCHEMA = 1


@dataclass
class Request:
    """
    A request that was trained.

    Args:
        number (`int`):
            From 1 on; never given again.
        name (`str`):
            What the user calls it.
        date (`str`):
            When it was applied: UTC, ISO 8601.
        method (`str`):
            For example `"SimNPO"`.
        recipe (`str`):
            Path of its recipe in the ledger's folder.
        mode (`str`):
            `"own"`: an adapter of its own, or `"continued"`: the adapter of the request `continues`, trained on.
        continues (`int` or `None`):
            That request.
        rows (`list[str]`):
            SHA-256 of each forget row.
        salt (`str`):
            What the digest is made with, so that the rows cannot be guessed from it.
        sha256 (`str`):
            Digest of the set.
        data (`dict`):
            Where the forget set is: the options of the training command that say it and differ from the defaults, with
            absolute paths.
        state (`str`):
            `"applied"` or `"undone"`.
        evaluation (`dict` or `None`):
            How it was evaluated: the `arguments` that differ from the defaults, `dataset_name`, and `sha256` of the
            forget set of the evaluation.
        results (`dict`):
            `before` and `after`: summaries of the evaluations before and after its training; `later`: by the number of
            a later request, that of its forget set after that one.
    """

    number: int
    name: str
    date: str
    method: str
    recipe: str
    mode: Literal["own", "continued"]
    continues: int | None
    rows: list[str]
    salt: str
    sha256: str
    data: dict[str, Any]
    state: Literal["applied", "undone"] = "applied"
    evaluation: dict[str, Any] | None = None
    results: dict[str, Any] = field(default_factory=lambda: {"before": None, "after": None, "later": {}})

    def __str__(self) -> str:
        return f"request {self.number} ({self.name!r})"

    @property
    def last(self) -> dict[str, float]:
        """What was last measured on its forget set; empty if nothing was."""
        later = self.results["later"]
        return later[max(later, key=int)] if later else self.results["after"] or {}


@dataclass
class Ledger:
    """
    A folder with the requests of one base model.

    Args:
        path (`Path`):
            Folder.
        base (`dict` or `None`):
            `name` and `revision` (commit on the Hub) of the base model, or of one in a folder its `sha256`. `None`
            before the first request.
        requests (`list[Request]`):
            All requests, in order.

    Example:

    ```python
    >>> ledger = Ledger.read("outputs/ledger")
    >>> [request.number for request in ledger.requests if request.state == "applied"]
    [1, 2, 4]
    ```
    """

    path: Path
    base: dict[str, str | None] | None = None
    requests: list[Request] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path, new: bool = False) -> "Ledger":
        """
        Reads a ledger.

        Args:
            path (`str` or `Path`):
                Its folder.
            new (`bool`, *optional*, defaults to `False`):
                Whether there may be none yet.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is of another version, or no ledger.
        """
        path = Path(path)
        file = path / LEDGER_FILE
        if not file.is_file():
            if new:
                return cls(path)
            raise FileNotFoundError(
                f"There is no ledger in {path}: expected {LEDGER_FILE} there. Name its folder with `--ledger`; the "
                "first request that is trained with it makes one."
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"its schema is {content['schema']!r}; this version of trl-unlearn reads {SCHEMA}")
            return cls(path, content["base"], [Request(**entry) for entry in content["requests"]])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as a ledger: {error}. Restore it from a copy.") from None

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        entries = [asdict(request) for request in self.requests]
        write_json({"schema": SCHEMA, "base": self.base, "requests": entries}, self.path / LEDGER_FILE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Keeps other processes from changing the ledger; a process that ends, however it does, gives it free.

        Raises:
            ValueError: If another process is changing it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"Another process is working on the ledger {self.path}, for example training a request. Wait "
                    "until it has ended."
                ) from None
            yield

    @property
    def applied(self) -> list[Request]:
        """The requests that have not been undone."""
        return [request for request in self.requests if request.state == "applied"]

    @property
    def in_use(self) -> list[Request]:
        """Those whose adapters add up to what is loaded: all that are applied, without those that were trained on."""
        continued = {request.continues for request in self.applied}
        return [request for request in self.applied if request.number not in continued]

    @property
    def next_number(self) -> int:
        """The number of the request that comes next."""
        return len(self.requests) + 1

    def folder(self, number: int) -> Path:
        """The output folder of a request's training."""
        return self.path / f"request-{number:03d}"

    def undo(self, number: int) -> Request:
        """
        Marks a request as undone, so that its adapter is not loaded any more.

        Args:
            number (`int`):
                Number of the request.

        Returns:
            [`Request`]: The request.

        Raises:
            ValueError: If there is no such request, it is undone already, or later requests were trained on its
            adapter.

        Example:

        ```python
        >>> Ledger.read("outputs/ledger").undo(3)
        ```
        """
        request = next((request for request in self.requests if request.number == number), None)
        if request is None:
            raise ValueError(
                f"There is no request {number} in {self.path}. There are "
                f"{', '.join(str(r.number) for r in self.requests) or 'none'}."
            )
        if request.state == "undone":
            raise ValueError(f"There is nothing to undo: {request} is undone already.")
        builders = self._trained_on(request)
        if builders:
            raise ValueError(
                f"It cannot be undone: {', '.join(map(str, builders))} trained the adapter of {request} on, and "
                "what each of them changed cannot be told apart any more. Undo the last of them first, or train the "
                "others anew without it, with `--ledger_mode own`, in another ledger."
            )
        request.state = "undone"
        self.write()
        return request

    def _trained_on(self, request: Request) -> list[Request]:
        builders = [request]
        for later in self.applied:
            if later.continues in [builder.number for builder in builders]:
                builders.append(later)
        return builders[1:]
