"""`--dry_run --push_to_hub` says where a run would be pushed, and changes nothing there."""

import sys

import pytest

from trl_unlearn.world import save_world


@pytest.fixture
def command(world, model_dir, tmp_path) -> list[str]:
    save_world({name: rows[:9] for name, rows in world.items()}, tmp_path / "data")
    flags = [f"--model_name_or_path={model_dir}", f"--dataset_name={tmp_path / 'data'}", "--forget_config=forget"]
    flags += ["--retain_config=retain", f"--output_dir={tmp_path / 'run'}", "--eval_benchmark=world", "--dry_run"]
    flags += ["--push_to_hub", "--hub_private_repo=true", "--report_to=none"]
    return [sys.executable, "-m", "trl_unlearn.scripts.npo", *flags]


def test_a_dry_run_changes_nothing(command, hub_server, client, tmp_path):
    result = client([*command, "--hub_model_id=planned"], token=hub_server.token("planner"), COLUMNS="200")
    assert "Pushed to  planner/planned (private) at the end: weights" in result.stdout
    assert "Steps      10 = 10 epochs of 1" in result.stdout
    assert not list((tmp_path / "run").glob("*"))
    assert {"GET"} <= {request.method for request in hub_server.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize(
    ("flags", "role", "message"),
    [
        (["--hub_model_id=planned"], "read", "the token of reader may only read"),
        (["--forget_config=forgotten"], "write", "BuilderConfig 'forgotten' not found. Available: ["),
    ],
)
def test_what_would_fail_is_said(flags, role, message, command, hub_server, client, tmp_path):
    result = client([*command, *flags], token=hub_server.token("reader", role), check=False)
    assert result.returncode == 1
    assert f"trl-unlearn: {message}" in result.stderr.replace("It cannot be pushed to planned: ", "")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
