"""What the tests of the studies share."""

import importlib.util
from pathlib import Path

import pytest


STUDIES = Path(__file__).parents[2] / "examples" / "studies"


@pytest.fixture
def load(monkeypatch):
    """Loads a study as it is when it is run: with the folder it stands in on the path."""
    monkeypatch.syspath_prepend(STUDIES)

    def load_study(name: str):
        spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load_study
