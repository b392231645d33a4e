"""The Python of the README and the examples, unchanged, with the names that stand there, against the test Hub."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trl_unlearn.world import save_world


ROOT = Path(__file__).parents[2]
TARGET = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"


@pytest.fixture(scope="module")
def run(hub_server, world, model_dir, tmp_path_factory):
    """TOFU and its target by their names on the Hub, in small."""
    folder = tmp_path_factory.mktemp("readme")
    forget, retain = world["forget_perturbed"], world["retain_perturbed"][:8]
    sets = {
        "forget10": [{"question": row["question"], "answer": row["answer"]} for row in forget],
        "retain90": [{"question": row["question"], "answer": row["answer"]} for row in retain],
        "forget10_perturbed": forget,
        "retain_perturbed": retain,
    }
    save_world(sets, folder / "tofu")
    for kind, name, source in (("datasets", "locuslab/TOFU", folder / "tofu"), ("models", TARGET, Path(model_dir))):
        files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
        hub_server.repository(kind, name).commit(files)
    environment = os.environ | hub_server.environment(folder / "home", hub_server.token("me"))

    def run(*command):
        process = subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment | {"TQDM_DISABLE": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    return run


def test_readme_from_training_to_loading(hub_server, run, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    train, publish = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "readme.py").write_text(train + publish + "print(type(model).__name__)\n", encoding="utf-8")
    assert run(tmp_path / "readme.py").split()[-1] == "PeftModelForCausalLM"
    (name,) = re.findall(r"load_unlearned\(\s*\"(.*?)\"", publish)
    files = hub_server.repository("models", name).files()
    assert {"adapter_model.safetensors", "README.md", "unlearn_results.json", "unlearn_recipe.yaml"} <= set(files)
    assert f"base_model: {TARGET}".encode() in files["README.md"]


@pytest.mark.slow
@pytest.mark.parametrize("example", ["simnpo.py", "npo.py", "evaluate.py"])
def test_examples_with_their_own_names(example, run):
    run(ROOT / "examples" / example)
