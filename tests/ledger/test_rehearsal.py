"""Rows of earlier requests that are trained again with a later one: which, from where, and that they stay forgotten."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest


def read(ledger) -> dict:
    return json.loads((ledger / "unlearn_ledger.json").read_text())


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_rows(rows: list[dict], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def plan(train_request, capsys):
    """A function that returns what a dry run of the fourth request prints, in one line."""

    def run(ledger, **options) -> str:
        capsys.readouterr()
        train_request(ledger, 4, dry_run=True, **options)
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.mark.parametrize(("share", "drawn"), [(0.5, 3), (1.0, 6), (9.0, 18)])
def test_how_many_rows_are_trained_again(share, drawn, own_ledger, plan):
    """The request and each of the three earlier ones have 6 rows."""
    output = plan(own_ledger, ledger_rehearsal=share)
    assert f"Trained again with this request: {drawn} of 18 rows of earlier requests." in output
    assert f"Forget {6 + drawn} rows" in output


def test_rows_that_are_not_trained_again(own_ledger, copy_of, ledger_command, requests_dir, plan, tmp_path):
    """Those of undone requests, and those that this request asks for too, which come once."""
    assert "Trained again" not in plan(own_ledger)
    ledger = copy_of(own_ledger)
    ledger_command("undo", "2", "--ledger", ledger)
    assert "12 of 12 rows" in plan(ledger, ledger_rehearsal=9)
    first, own = (rows_of(requests_dir / f"forget-{number}.jsonl") for number in (1, 4))
    asked = write_rows([*own, first[2]], tmp_path / "asked.jsonl")
    output = plan(ledger, ledger_rehearsal=9, dataset_name=asked)
    assert "11 of 11 rows" in output and "Forget 18 rows" in output


@pytest.mark.slow
def test_earlier_requests_stay_forgotten(own_ledger, copy_of, train_request):
    """The same request with and without, on what the three before it asked to forget."""
    ends = {}
    for share in (0.0, 9.0):
        ledger = copy_of(own_ledger, f"ledger-{share}")
        train_request(ledger, 4, ledger_rehearsal=share, forget_weight=4, num_train_epochs=10)
        *earlier, last = read(ledger)["requests"]
        assert len(last["rows"]) == 6  # only what was asked for
        ends[share] = [request["results"]["later"]["4"]["forget_probability"] for request in earlier]
        before = [request["results"]["later"]["3"]["forget_probability"] for request in earlier[:2]]
    assert np.mean(ends[9.0]) < 0.8 * np.mean(ends[0.0])
    assert all(end < start for end, start in zip(ends[9.0], before, strict=False))


def test_rows_are_checked(train_request, requests_dir, plan, tmp_path):
    ledger = tmp_path / "ledger"
    file = Path(shutil.copy(requests_dir / "forget-1.jsonl", tmp_path))
    train_request(ledger, 1, dataset_name=str(file), max_steps=1)
    rows = rows_of(file)
    write_rows([*rows_of(requests_dir / "kept.jsonl"), *rows[::-1]], file)  # others beside them do no harm
    assert "6 of 6 rows of earlier requests" in plan(ledger, ledger_rehearsal=1)
    write_rows([*rows[:4], rows[4] | {"answer": "x"}, rows[5]], file)
    with pytest.raises(
        SystemExit, match=r"The rows of request 1 \('customer 1'\) .* 1 of its 6 rows are not in .*jsonl"
    ):
        train_request(ledger, 4, ledger_rehearsal=1)
    file.unlink()
    with pytest.raises(SystemExit, match=f"{file} is not there. Put back .* or leave out `ledger_rehearsal`"):
        train_request(ledger, 4, ledger_rehearsal=1)
    assert not list((ledger / "request-002").glob("*"))


def test_sets_are_found_from_another_folder(train_request, requests_dir, capsys, tmp_path, monkeypatch):
    """Rows of two files, with alternates of a third, that were all given relative to where the first was trained."""
    rows = {number: rows_of(requests_dir / f"forget-{number}.jsonl") for number in (1, 2, 4)}
    for number in (1, 2):
        write_rows(rows[number], tmp_path / f"{number}.jsonl")
    alternates = [row | {"alternates": ["Nobody knows."]} for row in [*rows[1], *rows[2], *rows[4]]]
    write_rows(alternates[:12], tmp_path / "alternates.jsonl")
    own = write_rows(alternates[12:], tmp_path / "own.jsonl")
    monkeypatch.chdir(tmp_path)
    options = {"forget_mixture": ["2.jsonl"], "alternates_dataset_name": "alternates.jsonl", "max_steps": 1}
    train_request("ledger", 1, "AltPO", dataset_name="1.jsonl", **options)
    (request,) = read(tmp_path / "ledger")["requests"]
    assert request["data"] == {
        "dataset_name": str(tmp_path / "1.jsonl"),
        "forget_mixture": [str(tmp_path / "2.jsonl")],
        "alternates_dataset_name": str(tmp_path / "alternates.jsonl"),
    }
    monkeypatch.chdir("/")
    capsys.readouterr()
    train_request(tmp_path / "ledger", 4, "AltPO", dataset_name=own, ledger_rehearsal=2, dry_run=True)
    output = " ".join(capsys.readouterr().out.split())
    assert "12 of 12 rows of earlier requests" in output and "Forget 18 rows" in output
