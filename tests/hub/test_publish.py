"""The maintainers' command: the wheel works, and the Hub has the package, the recipes and the metrics as they are here."""

import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "utils" / "publish.py")
LOAD = """
import sys, evaluate
metric = evaluate.load(f"{sys.argv[1]}/forget_quality", module_type="metric")
print(metric.compute(predictions=[0.1, 0.2], retain_truth_ratios=[0.9, 1.0])["statistic"])
"""


@pytest.mark.slow
def test_dry_run_uploads_nothing(hub_server, client):
    output = client([sys.executable, SCRIPT, "--organization", "publisher-dry", "--dry_run"]).stdout
    assert "works where nothing but it is installed" in " ".join(output.split())
    assert "publisher-dry/forget_quality" in output
    assert not [name for name in hub_server.repositories if "publisher-dry" in str(name)]


@pytest.mark.slow
def test_mirrors_package_recipes_and_metrics(hub_server, client):
    token = hub_server.token("publisher")
    for _ in range(2):  # once more changes nothing and fails nothing
        client([sys.executable, SCRIPT, "--organization", "publisher"], token=token)
    package = hub_server.repository("models", "publisher/trl-unlearn").files()
    assert package["trl_unlearn/losses.py"] == (ROOT / "trl_unlearn" / "losses.py").read_bytes()
    assert [name for name in package if name.startswith("dist/trl_unlearn-") and name.endswith(".whl")]
    assert not [name for name in package if name.startswith(("tests/", ".venv", "outputs/")) or "__pycache__" in name]
    recipes = hub_server.repository("datasets", "publisher/recipes").files()
    local = {path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}
    assert local <= set(recipes)
    metrics = [
        path.name for path in (ROOT / "trl_unlearn" / "metrics" / "modules").iterdir() if (path / "app.py").exists()
    ]
    assert len(metrics) == 7
    for name in metrics:
        assert {"app.py", "README.md", "requirements.txt", f"{name}.py"} <= set(
            hub_server.repository("spaces", f"publisher/{name}").files()
        )
    assert client(LOAD, "publisher", token=token).stdout.split()[-1] == "1.0"
