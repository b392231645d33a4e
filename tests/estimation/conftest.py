"""A recipe of a tiny model, and the estimates of it that the tests share."""

import json
import sys

import pytest

from trl_unlearn.scripts.estimate import main
from trl_unlearn.world import save_world


@pytest.fixture(scope="session")
def data_dir(world, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("data")
    save_world({name: world[name][:24] for name in ("forget", "retain")}, directory)
    return str(directory)


@pytest.fixture(scope="session")
def recipe(model_dir, data_dir, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "npo.yaml"
    path.write_text(
        f"model_name_or_path: {model_dir}\ndtype: float32\ndataset_name: {data_dir}\nforget_config: forget\n"
        "retain_config: retain\nper_device_train_batch_size: 4\ngradient_accumulation_steps: 2\n"
        "gradient_checkpointing: false\nreport_to: none\n"
        f"output_dir: {path.parent / 'run'}\n"
    )
    return str(path)


@pytest.fixture(scope="session")
def known() -> dict[tuple[str, ...], dict]:
    return {}


@pytest.fixture
def estimated(recipe, known, monkeypatch, capsys):
    """What the command prints as JSON, for the recipe and further flags."""

    def run(*flags):
        flags = flags if "--tflops" in flags or "--gpu" in flags else ("--tflops", "1", *flags)
        if flags not in known:
            monkeypatch.setattr(sys, "argv", ["trl-unlearn estimate", "--config", recipe, *flags, "--json"])
            capsys.readouterr()
            main()
            known[flags] = json.loads(capsys.readouterr().out)
        return known[flags]

    return run
