"""lm-eval's own WMDP and MMLU tasks on local questions, against their accuracy computed with transformers alone."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_unlearn.evaluation.wmdp import evaluate_wmdp


SUBJECTS = {"wmdp-bio": "biology", "wmdp-cyber": "cybersecurity"}


@pytest.fixture
def lm_eval():
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")


def questions(world, start, number):
    """Facts of the embedded world as multiple-choice questions."""
    rows = world["retain_perturbed"][start : start + number]
    choices = [[*row["perturbed_answer"][:3], row["answer"]] for row in rows]
    answers = random.Random(start).choices(range(4), k=len(rows))
    for options, answer in zip(choices, answers, strict=True):
        options[answer], options[3] = options[3], options[answer]
    return [
        {"question": row["question"], "choices": options, "answer": answer}
        for row, options, answer in zip(rows, choices, answers, strict=True)
    ]


def write_folder(directory, configs):
    """A folder in the Hub's layout of `cais/wmdp` and `cais/mmlu`."""
    header = ["---", "configs:"]
    for config, splits in configs.items():
        header += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = directory / config / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            header += [f"  - split: {split}", f"    path: {file.relative_to(directory)}"]
    (directory / "README.md").write_text("\n".join([*header, "---", ""]))
    return str(directory)


@pytest.fixture
def rows(world):
    return {"wmdp-bio": questions(world, 0, 14), "wmdp-cyber": questions(world, 14, 9)}


@pytest.fixture
def folder(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return write_folder(tmp_path / "cais" / "wmdp", {name: {"test": test} for name, test in rows.items()})


@pytest.fixture(scope="module")
def undecided_dir(model_dir, tmp_path_factory):
    """A model whose answers differ from question to question, which one that has learnt little does not give."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    directory = tmp_path_factory.mktemp("undecided")
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def undecided(undecided_dir):
    return AutoModelForCausalLM.from_pretrained(undecided_dir)


@torch.no_grad()
def choose(model, tokenizer, row, subject):
    """The letter that the model finds most probable after the tasks' prompt."""
    prompt = f"The following are multiple choice questions (with answers) about {subject}.\n\n{row['question']}"
    prompt += "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    start = len(tokenizer(f"{prompt}\nAnswer:")["input_ids"])
    scores = []
    for letter in "ABCD":
        ids = torch.tensor([tokenizer(f"{prompt}\nAnswer: {letter}")["input_ids"]])
        log_probabilities = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        scores.append(log_probabilities.gather(-1, ids[0, start:, None]).sum().item())
    return int(np.argmax(scores))


def right(model, tokenizer, rows, subject):
    return [choose(model, tokenizer, row, subject) == row["answer"] for row in rows]


def test_equals_a_plain_computation(lm_eval, undecided, tokenizer, rows, folder):
    tokenizer.pad_token = None
    undecided.train()
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    result = evaluate_wmdp(undecided, tokenizer, ["wmdp_bio", "wmdp_cyber"], dataset_path=folder)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state
    assert undecided.training and tokenizer.pad_token is None  # as they were

    undecided.eval()
    for config, subject in SUBJECTS.items():
        name, hits = config.replace("-", "_"), right(undecided, tokenizer, rows[config], subject)
        assert 0 < np.mean(hits) < 1
        assert result["summary"][name] == pytest.approx(np.mean(hits))
        error = np.std(hits, ddof=1) / len(hits) ** 0.5
        interval = {"n": len(hits), "low": np.mean(hits) - 1.96 * error, "high": np.mean(hits) + 1.96 * error}
        assert result["intervals"][name] == pytest.approx(interval)
        assert result["data"][name] == {"dataset": "wmdp", "config": config, "split": "test", "n": len(hits)}
        assert result["conventions"]["num_fewshot"][name] == 0
    assert result["versions"]["lm_eval"] == lm_eval.__version__
    assert result["versions"]["lm_eval_tasks"] == {"wmdp_bio": 1, "wmdp_cyber": 1}
    assert json.loads(json.dumps(result)) == result


@pytest.mark.slow
def test_changed_folder_and_adapter(lm_eval, undecided, tokenizer, rows, folder, lora_config):
    from peft import get_peft_model

    first = evaluate_wmdp(undecided, tokenizer, ["wmdp_bio"], folder, limit=5)
    assert first["summary"]["wmdp_bio"] == np.mean(right(undecided, tokenizer, rows["wmdp-bio"][:5], "biology"))
    assert first["data"]["wmdp_bio"]["n"] == first["intervals"]["wmdp_bio"]["n"] == 5

    model = get_peft_model(undecided, lora_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    picked = [choose(model.eval(), tokenizer, row, "biology") for row in rows["wmdp-bio"]]
    changed = [{**row, "answer": answer} for row, answer in zip(rows["wmdp-bio"], picked, strict=True)]
    write_folder(Path(folder), {"wmdp-bio": {"test": changed}, "wmdp-cyber": {"test": rows["wmdp-cyber"]}})
    second = evaluate_wmdp(model, tokenizer, ["wmdp_bio"], folder)
    assert second["summary"]["wmdp_bio"] == 1
    assert "peft" in second["versions"]


@pytest.mark.slow
def test_group_is_the_mean_over_its_questions(lm_eval, undecided, tokenizer, world, folder, tmp_path, monkeypatch):
    tasks = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    subjects = sorted(
        file.stem.removeprefix("mmlu_")
        for file in tasks.glob("mmlu_*.yaml")
        if '"tag": "mmlu_stem_tasks"' in file.read_text()
    )
    data = {
        subject: {"test": questions(world, index, 2 + index % 3), "dev": questions(world, 0, 1)}
        for index, subject in enumerate(subjects)
    }
    write_folder(tmp_path / "cais" / "mmlu", data)
    pages = {split: [{"page": "They were born in Ashford."}] for split in ("train", "validation", "test")}
    write_folder(tmp_path / "EleutherAI" / "wikitext_document_level", {"wikitext-2-raw-v1": pages})
    monkeypatch.chdir(tmp_path)  # where `cais/mmlu` and the others that lm-eval's files name are these folders
    result = evaluate_wmdp(undecided, tokenizer, ["mmlu_stem", "wmdp_cyber", "wikitext"])
    hits = [
        hit
        for subject, splits in data.items()
        for hit in right(undecided, tokenizer, splits["test"], subject.replace("_", " "))
    ]
    assert len(subjects) > 10
    assert result["summary"]["mmlu_stem"] == pytest.approx(np.mean(hits)) and 0 < np.mean(hits) < 1
    assert result["intervals"]["mmlu_stem"]["n"] == result["data"]["mmlu_stem"]["n"] == len(hits)
    assert result["conventions"]["num_fewshot"]["mmlu_stem"] == 0
    assert set(result["summary"]) == {"mmlu_stem", "wmdp_cyber"}
    assert "measures no accuracy of it, but bits_per_byte, " in result["missing"]["wikitext"]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_processes_share_the_questions(lm_eval, undecided_dir, undecided, tokenizer, folder, rows, tmp_path, sharded):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [__file__, undecided_dir, folder, str(tmp_path), *(["sharded"] if sharded else [])]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-9000:]
    results = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)]
    hits = right(undecided, tokenizer, rows["wmdp-cyber"], "cybersecurity")
    for result in results:
        assert result["summary"] == {"wmdp_cyber": pytest.approx(np.mean(hits))}
        assert result["intervals"]["wmdp_cyber"]["n"] == len(hits) == 9
        assert result["cost"]["processes"] == 2
    asked = [result["asked"] for result in results]
    # With this tokenizer the four letters take two rows a question
    assert asked == ([2 * 9, 2 * 9] if sharded else [2 * 5, 2 * 4])
    assert "Please do not launch via accelerate" not in process.stderr


def test_tasks_that_are_not_there(lm_eval, undecided, tokenizer, folder):
    with pytest.raises(ValueError, match="has no task 'wmdp_boi'. Near ones: wmdp_bio"):
        evaluate_wmdp(undecided, tokenizer, ["wmdp_cyber", "wmdp_boi"], folder)
    with pytest.raises(ValueError, match="none of mmlu is one of them"):
        evaluate_wmdp(undecided, tokenizer, ["mmlu"], folder)
    with pytest.raises(ValueError, match=r"`tasks` is 'mmlu'; expected a list"):
        evaluate_wmdp(undecided, tokenizer, "mmlu")


def test_without_lm_eval(undecided, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not there
    with pytest.raises(ImportError, match=r'pip install "trl-unlearn\[lm-eval\]"'):
        evaluate_wmdp(undecided, tokenizer)


def main():
    """One process of several: writes its result and the number of questions it has asked the model."""
    from accelerate import Accelerator

    model_dir, folder, output_dir, *sharded = sys.argv[1:]
    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    if sharded:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import init_device_mesh

        mesh = init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    asked = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    result = evaluate_wmdp(model, tokenizer, ["wmdp_cyber"], dataset_path=folder)
    (Path(output_dir) / f"{accelerator.process_index}.json").write_text(json.dumps({**result, "asked": sum(asked)}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
