"""From data set to pushed adapter and back, by users who write ten lines, and by those whose run is interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers
from folders import Client
from huggingface_hub import ModelCard

from trl_unlearn.hub.push import PUBLISHED
from trl_unlearn.recipes import recipe_path
from trl_unlearn.world import save_world


HERE = Path(__file__).parent
REPOSITORY = "endtoend/base-world-forget-NPO-lora"
ADAPTER = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "unlearn_recipe.yaml",
    "unlearn_results.json",
    *(["special_tokens_map.json"] if transformers.__version__ < "5" else []),
}


@pytest.fixture(scope="module")
def hub(hub_server, world, model_dir, tmp_path_factory):
    """The test Hub with a base model and data, and a folder to run in."""
    data = tmp_path_factory.mktemp("data") / "world"
    save_world({name: rows[:8] for name, rows in world.items()}, data)
    for kind, name, source in (("datasets", "endtoend/world", data), ("models", "endtoend/base", Path(model_dir))):
        files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
        hub_server.repository(kind, name).commit(files)
    base = hub_server.repository("models", "endtoend/base")
    base.commit({"README.md": b"---\nlicense: llama3.2\n---\n"})
    hub_server.token("endtoend")
    return hub_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(hub, folder):
    def run(*command, check=True):
        result = subprocess.run(
            [sys.executable, *map(str, command)],
            env=os.environ | hub.environment(folder / "home", hub.token("endtoend")) | {"TQDM_DISABLE": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture(scope="module")
def output(run, folder):
    """What ten lines have pushed."""
    return run(HERE / "ten_lines.py")


def files_of(hub, repo_id):
    return {name: file for name, file in hub.repository("models", repo_id).files().items() if name != ".gitattributes"}


def test_ten_lines(output, hub, folder):
    lines = (HERE / "ten_lines.py").read_text().split("\n\n\n")[1].splitlines()
    assert sum(not re.match(r"    |\)", line) for line in lines if line) <= 10  # statements
    files = files_of(hub, REPOSITORY)
    assert set(files) == ADAPTER | {"unlearning.png"}
    assert files == {name: (folder / "outputs" / name).read_bytes() for name in files}
    assert len(hub.repository("models", REPOSITORY).commits) == 2  # one commit, with everything
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "endtoend/base"
    assert config["revision"] == hub.repository("models", "endtoend/base").branches["main"]


def test_the_card_tells_what_was_done(output, hub):
    card = ModelCard(files_of(hub, REPOSITORY)["README.md"].decode())
    assert card.data.base_model == "endtoend/base"
    assert card.data.license == "llama3.2"
    assert card.data.datasets == ["endtoend/world"]
    assert card.data.library_name == "peft"
    assert {"npo", "lora", "unlearning", "world"} <= set(card.data.tags)
    assert "| Before | After |" in card.text
    assert f"revision `{hub.repository('datasets', 'endtoend/world').branches['main'][:12]}`, 8 rows" in card.text
    for part in ("Method", "History", "Run", "Limits", "Versions", "Citation"):
        assert f"\n## {part}\n" in card.text, part
    results = json.loads(files_of(hub, REPOSITORY)["unlearn_results.json"])
    assert results["evaluations"]["before"]["summary"] != results["evaluations"]["after"]["summary"]
    assert {entry["step"] for entry in results["history"]} >= {0, 2, 4}
    assert results["run"]["seconds"] > 0 and results["run"]["peak_memory_bytes"] > 1e6
    assert results["seeds"] == {"training": 42, "data": None}
    assert results["hyperparameters"]["learning_rate"] == 1e-2


def test_the_cards_python_runs_and_its_numbers_are_those_of_the_model(output, hub, run, folder):
    """Each block by itself in a process that knows nothing of the run; then an evaluation of what the first has loaded."""
    card = ModelCard(files_of(hub, REPOSITORY)["README.md"].decode())
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 2
    script = folder / "read_back.py"
    script.write_text(
        "import json\n"
        f"exec({blocks[1]!r}, {{}})\n"
        f"names = {{}}\nexec({blocks[0]!r}, names)\n"
        "from trl_unlearn.evaluation.arguments import EvaluationArguments\n"
        "from trl_unlearn.evaluation.benchmarks import evaluate_as_asked\n"
        "arguments = EvaluationArguments(eval_benchmark='world', eval_max_new_tokens=8)\n"
        "result = evaluate_as_asked(names['model'], names['tokenizer'], arguments, dataset_name='endtoend/world')\n"
        "json.dump(result['summary'], open('read_back.json', 'w'))\n"
    )
    run(script)
    summary = json.loads((folder / "read_back.json").read_text())
    on_card = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert on_card == pytest.approx(summary, rel=0, abs=1e-6)
    assert len(on_card) > 10


def test_a_merged_model_is_pushed_as_one(output, hub, run, folder):
    run("-m", "trl_unlearn.scripts.merge", REPOSITORY, "merged")
    run("-m", "trl_unlearn.scripts.push", "merged", "endtoend/merged")
    files = files_of(hub, "endtoend/merged")
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "unlearn_results.json"} <= set(files)
    assert not [name for name in files if name.startswith("adapter")]
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation) == ("endtoend/base", "finetune")
    assert card.data.library_name == "transformers"
    adapter = ModelCard(files_of(hub, REPOSITORY)["README.md"].decode())
    numbers = [
        {result.metric_name: result.metric_value for result in page.data.eval_results} for page in (card, adapter)
    ]
    assert numbers[0] == numbers[1]


def test_the_recipe_repeats_the_run(output, hub, run, folder):
    (folder / "recipe.yaml").write_bytes(files_of(hub, REPOSITORY)["unlearn_recipe.yaml"])
    flags = ["--output_dir", "repeated", "--push_to_hub", "True", "--hub_model_id", "endtoend/repeated"]
    run("-m", "trl_unlearn.scripts.npo", "--config", "recipe.yaml", *flags)
    files = files_of(hub, "endtoend/repeated")
    assert files == {name: (folder / "repeated" / name).read_bytes() for name in ADAPTER | {"unlearning.png"}}
    first, second = (
        json.loads((folder / name / "unlearn_results.json").read_text())["evaluations"]["after"]["summary"]
        for name in ("outputs", "repeated")
    )
    assert second == pytest.approx(first, rel=1e-6)


@pytest.mark.slow
def test_killed_between_save_and_push(hub, run, folder):
    """And before that, one of two pushes in the background has failed, which is told."""
    hub.fail("commit", status=403)
    result = run(HERE / "run_interrupted.py", "killed", check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]
    assert re.search(r"checkpoint-1 was not pushed\. .*may not|checkpoint-1 was not pushed\..*403", result.stderr)
    assert f"trl-unlearn push {folder}/killed/checkpoint-1 endtoend/killed" in result.stderr
    assert "checkpoint-2 was not pushed" not in result.stderr
    titles = [commit.title for commit in hub.repository("models", "endtoend/killed").commits.values()]
    assert titles == ["initial commit", "Training in progress, step 2"]
    assert set(files_of(hub, "endtoend/killed")) == ADAPTER  # of checkpoint-2, among whose files is optimizer.pt
    assert (folder / "killed" / "checkpoint-2" / "optimizer.pt").exists()
    run("-m", "trl_unlearn.scripts.push", "killed", "endtoend/killed")
    files = files_of(hub, "endtoend/killed")
    assert files == {name: (folder / "killed" / name).read_bytes() for name in ADAPTER}


@pytest.mark.slow
def test_bad_token_before_training_and_a_full_disk_after_it(hub, run, folder):
    """In Python nothing is lost either: the same trainer pushes once there is room, its edited card too."""
    output = run(HERE / "run_interrupted.py", "full").stdout
    assert (
        "BEFORE TRAINING: It cannot be pushed to base-world-forget-NPO-lora: the Hub does not know the token" in output
    )
    told = re.search(r"FULL: (.*?)\nCOMMIT", output, re.DOTALL)[1]
    assert "saving to full failed" in told and "File too large" in told
    command = told.splitlines()[-1].split()
    assert command == ["trl-unlearn", "push", f"{folder}/full/checkpoint-2", "endtoend/full"]
    oid = re.search(r"COMMIT: (\w+)", output)[1]
    repository = hub.repository("models", "endtoend/full")
    assert repository.private
    assert "Write to me." in repository.commits[oid].files["README.md"].decode()
    client = Client(hub.environment(folder / "home"))
    answer = client.call("command", arguments=[command[2], "endtoend/from-checkpoint"], token=hub.token("endtoend"))
    client.close()
    assert answer["error"] is None
    assert set(files_of(hub, "endtoend/from-checkpoint")) == ADAPTER


def test_a_recipe_killed_resumed_evaluated_and_pushed(hub, run, folder):
    """As it is launched, with flags for what is elsewhere; the second command goes on where the first was killed."""
    command = ["-m", "accelerate.commands.launch", "--config_file", recipe_path("accelerate/single.yaml")]
    command += ["-m", "trl_unlearn.scripts.simnpo", "--config", recipe_path("world/llama-0.5m/simnpo.yaml")]
    command += ["--model_name_or_path=endtoend/base", "--dataset_name=endtoend/world", "--retain_logs=none"]
    command += ["--output_dir=resumed", "--max_steps=20", "--per_device_train_batch_size=4", "--eval_steps=10"]
    command += ["--save_strategy=steps", "--save_steps=2", "--eval_max_new_tokens=8", "--push_to_hub"]
    command += ["--hub_model_id=endtoend/resumed"]
    log = folder / "resumed.log"
    with log.open("wb") as file:
        killed = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | hub.environment(folder / "home", hub.token("endtoend")),
            cwd=folder,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    while not (folder / "resumed" / "checkpoint-4" / "trainer_state.json").exists():
        assert killed.poll() is None, log.read_text()
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (folder / "resumed" / "model.safetensors").exists()
    before = (folder / "resumed" / "_evaluation" / "before.json").read_bytes()

    output = run(*command, "--resume_from_checkpoint=true")
    assert re.search(r"Model utility +↑", output.stdout)
    assert (folder / "resumed" / "_evaluation" / "before.json").read_bytes() == before
    state = json.loads((folder / "resumed" / "trainer_state.json").read_text())
    assert state["global_step"] == 20
    evaluations = json.loads((folder / "resumed" / "_evaluation" / "evaluations.json").read_text())
    assert [evaluation["step"] for evaluation in evaluations] == [0, 10, 20]
    files = files_of(hub, "endtoend/resumed")
    assert {"model.safetensors", "README.md", "unlearn_recipe.yaml", "unlearning.png"} <= set(files)
    results = json.loads(files["unlearn_results.json"])["evaluations"]
    assert results["before"]["summary"] == json.loads(before)["summary"] != results["after"]["summary"]


def test_nothing_of_all_this_leaks(output, hub, world, folder):
    """No token, no path of this machine, no forget row, and no file that is not listed, at any commit."""
    answers = [row["answer"] for row in world["forget"][:8]]
    repositories = [
        repository
        for (kind, name), repository in hub.repositories.items()
        if kind == "models" and name.startswith("endtoend/") and name != "endtoend/base"
    ]
    names = set()
    for repository in repositories:
        for commit in repository.commits.values():
            for name, content in commit.files.items():
                names.add(name)
                text = content.decode(errors="replace")
                assert "hf_write" not in text and "hf_wrong" not in text
                assert str(folder) not in text and "/tmp/" not in text and str(Path.home()) + "/" not in text
                assert not any(answer in text for answer in answers), name
    listed = {name for pattern in PUBLISHED for name in names if Path(name).match(pattern)}
    assert names - {".gitattributes"} == listed
    for path in folder.rglob("*"):  # nor is the token in a file that stays here: training_args.bin of each checkpoint
        if path.is_file() and "home" not in path.parts:
            assert b"hf_write" not in path.read_bytes() and b"hf_wrong" not in path.read_bytes(), path


@pytest.mark.slow
def test_a_private_data_set_is_not_named(hub, run, folder):
    """On the page of the model, that is: whoever may not read the data set need not know that it is there."""
    source = hub.repository("datasets", "endtoend/world")
    hub.repository("datasets", "endtoend/hidden").commit(source.files())
    hub.repository("datasets", "endtoend/hidden").private = True
    script = (
        "from datasets import load_dataset\n"
        "from trl_unlearn.trainer.publication import source_of\n"
        "for name in ('world', 'hidden'):\n"
        "    print(source_of(load_dataset(f'endtoend/{name}', 'forget', split='train')))"
    )
    public, private = run("-c", script).stdout.splitlines()[-2:]
    assert "'endtoend/world'" in public and "'private': False" in public
    assert private == "{'dataset': None, 'n': 8, 'private': True}"
    flags = ["--model_name_or_path", "endtoend/base", "--forget_config", "forget", "--retain_config", "retain"]
    flags += ["--max_steps", "1", "--report_to", "none", "--save_strategy", "no"]
    for name in ("world", "hidden"):
        run("-m", "trl_unlearn.scripts.npo", "--dataset_name", f"endtoend/{name}", "--output_dir", name, *flags)
        recipe = (folder / name / "unlearn_recipe.yaml").read_text()
        assert ("dataset_name: endtoend/world" in recipe) == (name == "world")
        assert "hidden" not in recipe + (folder / name / "README.md").read_text()
