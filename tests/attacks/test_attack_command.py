"""`trl-unlearn attack` and `evaluate --attacks`: what they write and print, and that they go on where they were killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hub_layout import write_folder

from trl_unlearn.attacks.arguments import AttackArguments
from trl_unlearn.hub.card import build_card
from trl_unlearn.hub.results import aggregate, collect_results
from trl_unlearn.scripts.attack import AttackScriptArguments
from trl_unlearn.scripts.evaluate import EvaluateScriptArguments, evaluate


SHORT = {"eval_max_new_tokens": 8, "relearn_steps": [1, 3], "sample_counts": [1, 2], "relearn_learning_rate": 1e-3}
FLAGS = ["--max_new_tokens", "8", "--relearn_steps", "1", "2", "--sample_counts", "1", "2", "--benchmark", "world"]


def read(directory, *parts) -> dict:
    return json.loads(Path(directory, "_evaluation", *parts, "evaluation.json").read_text(encoding="utf-8"))


def variants(result, attack, model="after"):
    return list(dict.fromkeys(part["variant"] for part in result["attacks"][attack]["results"][model]))


@pytest.fixture(scope="module")
def attacked(adapter_dir, target_dir, data_dir, tmp_path_factory):
    """All attacks on an adapter, by its command; the output and the folder."""
    directory = tmp_path_factory.mktemp("attack")
    command = [sys.executable, "-m", "trl_unlearn.scripts.attack", "--model_name_or_path", adapter_dir, *FLAGS]
    command += ["--dataset_path", data_dir, "--retain_model", target_dir, "--output_dir", str(directory)]
    command += ["--relearn_subsets", "random", "retain"]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert process.returncode == 0, process.stderr[-3000:]
    return process, directory


def test_all_attacks_on_all_models(attacked, adapter_dir, target_dir):
    process, directory = attacked
    result = read(directory)
    attacks = result["attacks"]
    assert list(attacks) == ["relearn", "quantize", "sample", "paraphrase", "adapter"]
    for model in ("before", "after", "retained"):
        assert variants(result, "relearn", model) == ["random", "retain"]
        assert variants(result, "quantize", model) == ["8 bits", "4 bits"]
        assert variants(result, "sample", model) == ["k = 1", "k = 2"]
        assert variants(result, "paraphrase", model) == ["paraphrased questions"]
    assert variants(result, "adapter") == ["scale 0", "scale 0.5", "scale 2"]
    assert attacks["adapter"]["results"].keys() == {"after"}
    assert all(attack["missing"] == {} for attack in attacks.values())

    curve = [part for part in attacks["relearn"]["results"]["after"] if part["variant"] == "random"]
    assert [part["step"] for part in curve] == [0, 1, 2] and {part["trained"] for part in curve} == {3}
    assert {part["intervals"]["forget_probability"]["n"] for part in curve} == {13}
    everyone = [part for part in attacks["relearn"]["results"]["after"] if part["variant"] == "retain"]
    assert everyone[0]["summary"]["forget_probability"] == pytest.approx(
        result["summary"]["forget_probability"], rel=1e-5
    )
    settings = attacks["relearn"]["settings"]
    assert (settings["learning_rate"], settings["lora_r"]) == (1e-2, 4)  # as it was unlearned
    # without the adapter it is the base, which here is the retained model too
    base = attacks["adapter"]["results"]["after"][0]
    assert base["forget_quality"]["p_value"] == pytest.approx(1)
    assert base["summary"]["forget_probability"] > result["summary"]["forget_probability"] + 0.1
    assert "rows" not in json.dumps(attacks)
    before, retained = (attacks["quantize"]["results"][model] for model in ("before", "retained"))
    assert [part["summary"] for part in before] == [part["summary"] for part in retained]


def test_what_is_printed_and_drawn(attacked):
    process, directory = attacked
    result = read(directory)
    assert max(len(line.rstrip()) for line in process.stdout.splitlines()) <= 80
    assert re.search(r"ROUGE-L strength Leaked *\n", process.stdout)
    assert re.search(r"No attack +Before", process.stdout)
    curve = result["attacks"]["relearn"]["results"]["after"][:3]
    assert [(part["variant"], part["step"]) for part in curve] == [("random", 0), ("random", 1), ("random", 2)]
    shown = max(part["summary"]["forget_probability"] for part in curve[1:])
    assert re.search(rf"Relearn, random +Before .*\n +After .* {shown:.3f} ", process.stdout)
    for title in ("Quantize, 4 bits", "Sample, k = 2", "Paraphrased questions", "Adapter, scale 0.5"):
        assert title in process.stdout
    assert "Relearning, retain (after)" in process.stderr and "Relearning, retain (before)" in process.stderr
    assert "Relearning, retain (retained)" not in process.stderr  # which is the same model as before
    folder = directory / "_evaluation"
    assert (folder / "figures" / "relearning.png").stat().st_size > 10_000
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h2>Attacks</h2>" in page and f'<td class="number">{shown:.3f}</td>' in page
    assert "fine-tuned on random forget rows (random), on the retain set (retain)." in page and "Before" in page
    assert page.count(">Relearn, random</th>") == 1 and 'rowspan="3">Relearn, random</th>' in page
    assert '<th class="number">After</th>' in page  # the table of all metrics has the names of that of the attacks


def test_the_card_has_the_numbers_and_no_text(attacked, people):
    _, directory = attacked
    result = read(directory)
    # whatever else an evaluation may hold, a number is a number
    result["attacks"]["sample"]["results"]["after"][0] |= {"texts": ["SECRET"], "variant": "k = 1"}
    result["attacks"]["sample"]["results"]["after"][0]["summary"] |= {"worst": "SECRET"}
    results = collect_results(method={"name": "NPO"}, evaluations={"after": result, "before": None})
    assert json.dumps(aggregate(results["evaluations"]["after"])) == json.dumps(results["evaluations"]["after"])
    for text in (json.dumps(results), str(build_card(results))):
        assert "SECRET" not in text
        for row in people["forget"]:
            assert row["question"] not in text and row["answer"] not in text and row["person"] not in text
    card = build_card(results).text
    assert "## Attacks" in card and "round to nearest, 16 levels per group of 64" in card
    part = result["attacks"]["quantize"]["results"]["after"][1]["summary"]
    assert re.search(
        rf"\| Quantize, 4 bits \| Before \|.*\n\|  \| After \|.* {part['forget_probability']:.3f} \|", card
    )
    assert "learning rate `0.01`" in card
    del result["attacks"]
    assert "## Attacks" not in build_card(collect_results(method={"name": "NPO"}, evaluations={"after": result})).text


def test_what_is_finished_is_not_run_again(attacked, adapter_dir, target_dir, data_dir, capsys):
    _, directory = attacked
    earlier = read(directory)
    arguments = AttackScriptArguments(
        model_name_or_path=adapter_dir, output_dir=str(directory), eval_benchmark="world", eval_dataset=data_dir,
        retain_model=target_dir, relearn_subsets=["random", "shortest"], eval_max_new_tokens=8, relearn_steps=[1, 2],
        sample_counts=[1, 2],
    )  # fmt: skip
    evaluate(arguments)
    later, bars = read(directory), capsys.readouterr().err
    assert "Relearning, shortest (after)" in bars
    assert "Relearning, random" not in bars and "Sampling" not in bars
    for attack in ("quantize", "sample", "paraphrase", "adapter"):
        assert later["attacks"][attack] == earlier["attacks"][attack]
    assert variants(later, "relearn") == ["random", "shortest"]
    random = [
        [part for part in result["attacks"]["relearn"]["results"]["after"] if part["variant"] == "random"]
        for result in (earlier, later)
    ]
    assert random[0] == random[1]


def test_a_second_command_adds_to_the_first(attacked, adapter_dir, target_dir, data_dir, tmp_path):
    """What is finished is read, what is asked anew replaced, and what is of another model dropped."""
    _, directory = attacked
    earlier = read(directory)
    arguments = EvaluateScriptArguments(
        model_name_or_path=adapter_dir, output_dir=str(directory), eval_benchmark="world", eval_dataset=data_dir,
        attacks=["quantize"], quantize_bits=[4], **SHORT,
    )  # fmt: skip
    evaluate(arguments)
    later = read(directory)
    assert variants(later, "quantize") == ["4 bits"] and later["attacks"]["relearn"] == earlier["attacks"]["relearn"]
    assert (
        later["attacks"]["quantize"]["results"]["after"][0]["summary"]
        == earlier["attacks"]["quantize"]["results"]["after"][1]["summary"]
    )
    evaluate(replace(arguments, attacks=[]))
    assert read(directory)["attacks"] == later["attacks"]
    evaluate(replace(arguments, attacks=[], model_name_or_path=target_dir))
    assert "attacks" not in read(directory)


@pytest.mark.slow
def test_goes_on_where_it_was_killed(unlearned_dir, data_dir, tmp_path):
    command = [sys.executable, "-m", "trl_unlearn.scripts.evaluate", "--model_name_or_path", unlearned_dir, *FLAGS]
    command += ["--dataset_path", data_dir, "--output_dir", str(tmp_path), "--attacks", "relearn", "adapter"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    path = tmp_path / "_evaluation" / "evaluation.json"
    deadline = time.time() + 600
    while time.time() < deadline and process.poll() is None:
        if path.exists() and "shortest" in path.read_text(encoding="utf-8"):
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    first = json.loads(path.read_text(encoding="utf-8"))  # whole, wherever the kill came
    found = variants(first, "relearn")
    assert found[:2] == ["random", "shortest"] and len(found) < 4

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    for subset in ("random", "shortest", "held_out", "retain"):
        assert (f"Relearning, {subset} (after)" in again.stderr) == (subset not in found)
    second = read(tmp_path)
    settings = second["attacks"]["relearn"]["settings"]
    assert (settings["learning_rate"], settings["lora_r"]) == (1e-3, 0)  # as it was unlearned
    done = first["attacks"]["relearn"]["results"]["after"]
    assert second["attacks"]["relearn"]["results"]["after"][: len(done)] == done
    assert variants(second, "relearn") == ["random", "shortest", "held_out", "retain"]
    assert set(second["attacks"]["adapter"]["missing"].values()) == {"the model is no adapter, but whole"}
    assert "Left out: adapter (scale 0, scale 0.5, scale 2)" in " ".join(again.stdout.split())


def test_rows_of_ones_own(unlearned_dir, people, tmp_path):
    rows = {
        name: [
            {"prompt": row["question"], "completion": " " + row["answer"], "who": row["person"], "what": index // 4}
            for index, row in enumerate(people[name][:48:3])
        ]
        for name in ("forget", "retain")
    }
    files = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
    for name, file in files.items():
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
    arguments = AttackScriptArguments(
        model_name_or_path=unlearned_dir, output_dir=str(tmp_path), eval_forget_data=files["forget"],
        eval_retain_data=files["retain"], **(SHORT | {"attacks": ["relearn", "paraphrase"], "relearn_steps": [1]}),
    )  # fmt: skip
    evaluate(arguments)
    attacks = read(tmp_path)["attacks"]
    assert variants(read(tmp_path), "relearn") == ["random", "shortest", "retain"]
    assert "--attack_group_column" in attacks["relearn"]["missing"]["held_out"]
    assert "no column `paraphrased_question`" in attacks["paraphrase"]["missing"]["paraphrased questions"]
    grouped = replace(arguments, attack_group_column="who", attacks=["relearn"], relearn_subsets=["held_out"])
    evaluate(grouped)
    (start, *_) = read(tmp_path)["attacks"]["relearn"]["results"]["after"]
    assert start["trained"] == 8 and start["intervals"]["forget_probability"]["n"] == 8
    evaluate(replace(grouped, attack_group_column="what"))  # is not taken for what was found with another column
    (start, *_) = read(tmp_path)["attacks"]["relearn"]["results"]["after"]
    assert start["trained"] == 4


def test_muse(unlearned_dir, people, tmp_path):
    def questions(rows):
        return [{"question": row["question"], "answer": row["answer"]} for row in rows]

    def texts(rows):
        return [{"text": " ".join(row["answer"] for row in rows[start : start + 4])} for start in range(0, 24, 4)]

    forget, retain = people["forget"], people["retain"]
    beginnings = [text["text"].split() for text in texts(forget)]
    folder = write_folder(
        tmp_path / "MUSE-Small",
        {
            "verbmem": {"forget": [{"prompt": " ".join(words[:5]), "gt": " ".join(words[5:])} for words in beginnings]},
            "knowmem": {
                "forget_qa": questions(forget[:3]), "forget_qa_icl": questions(forget[8:10]),
                "retain_qa": questions(retain[:3]), "retain_qa_icl": questions(retain[8:10]),
            },
            "privleak": {name: texts(rows) for name, rows in {"forget": forget, "retain": retain, "holdout": retain[24:]}.items()},
            "raw": {"forget": texts(forget), "retain1": texts(retain), "holdout": texts(retain[24:])},
        },
    )  # fmt: skip
    arguments = AttackScriptArguments(
        model_name_or_path=unlearned_dir, output_dir=str(tmp_path), eval_benchmark="muse", eval_dataset=folder,
        **(SHORT | {"quantize_bits": [4], "relearn_subsets": ["random", "held_out", "retain"], "eval_max_new_tokens": None}),
    )  # fmt: skip
    evaluate(arguments)
    result = read(tmp_path)
    attacks = result["attacks"]
    assert variants(result, "relearn") == ["random", "retain"]
    for subset, n in (("random", 5), ("retain", 6)):
        curve = [part for part in attacks["relearn"]["results"]["after"] if part["variant"] == subset]
        assert [part["step"] for part in curve] == [0, 1, 3]
        assert curve[0]["intervals"]["forget_verbmem"]["n"] == n  # of texts that were not trained on
        assert curve[2]["summary"] != curve[0]["summary"]
    assert "forget_verbmem" in attacks["quantize"]["results"]["after"][0]["summary"]
    assert "nothing says which rows belong together" in attacks["relearn"]["missing"]["held_out"]
    assert "MUSE has no paraphrased questions" in attacks["paraphrase"]["missing"]["paraphrased questions"]
    assert "MUSE has no questions with whole answers" in attacks["sample"]["missing"]["samples"]


@pytest.mark.slow
def test_wmdp(adapter_dir, people, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")
    rows = [
        {"question": row["question"], "choices": [row["answer"], *row["perturbed_answer"][:3]], "answer": 0}
        for row in people["forget_perturbed"]
    ]
    folder = write_folder(tmp_path / "wmdp", {"wmdp-bio": {"test": rows}}, file_type="parquet")
    evaluate(
        AttackScriptArguments(
            model_name_or_path=adapter_dir, output_dir=str(tmp_path), eval_benchmark="wmdp", eval_dataset=folder,
            eval_splits=["wmdp_bio"], adapter_scales=[0.0],
        )
    )  # fmt: skip
    result = read(tmp_path)
    attacks = result["attacks"]
    (base,) = attacks["adapter"]["results"]["after"]
    # what bits do to the base is seen beside the base
    assert variants(result, "quantize", "before") == ["8 bits", "4 bits"]
    assert abs(attacks["quantize"]["results"]["before"][0]["summary"]["wmdp_bio"] - base["summary"]["wmdp_bio"]) < 0.2
    assert base["intervals"]["wmdp_bio"]["n"] == len(rows)
    assert "no forget rows to fine-tune on" in attacks["relearn"]["missing"]["random"]
    assert "WMDP has no paraphrased questions" in attacks["paraphrase"]["missing"]["paraphrased questions"]


@pytest.mark.slow
def test_how_it_is_relearned_follows_the_unlearning(unlearned_dir, adapter_dir, data_dir, tmp_path):
    common = {
        "output_dir": str(tmp_path),
        "eval_benchmark": "world",
        "eval_dataset": data_dir,
        "eval_max_new_tokens": 2,
    }
    common |= {"attacks": ["relearn"], "relearn_subsets": ["random"], "relearn_steps": [1]}
    cases = [
        ({"model_name_or_path": unlearned_dir}, 1e-3, 0),
        ({"model_name_or_path": unlearned_dir, "relearn_lora_r": 2}, 1e-4, 2),
        ({"model_name_or_path": adapter_dir, "relearn_lora_r": 0}, 1e-5, 0),
        ({"model_name_or_path": adapter_dir, "relearn_learning_rate": 2e-4}, 2e-4, 4),
    ]
    for options, learning_rate, lora_r in cases:
        evaluate(AttackScriptArguments(**common, **options))
        settings = read(tmp_path)["attacks"]["relearn"]["settings"]
        assert (settings["learning_rate"], settings["lora_r"]) == (learning_rate, lora_r), options


def test_what_is_wrong_is_said_before_any_work(unlearned_dir, data_dir, tmp_path):
    arguments = AttackScriptArguments(
        model_name_or_path=unlearned_dir,
        output_dir=str(tmp_path / "out"),
        eval_benchmark="world",
        eval_dataset=data_dir,
    )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(replace(arguments, original_model=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="`--attack_group_column` is whom, and the forget set has the columns"):
        evaluate(replace(arguments, attack_group_column="whom"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attack_group_column": "who", "eval_benchmark": "muse"},
            "`attack_group_column` is for rows, which muse does not",
        ),
        ({"attacks": ["relern"]}, "`attacks` has relern; expected some of relearn, quantize"),
        ({"relearn_subsets": ["all"]}, "`relearn_subsets` has all; expected some of random"),
        ({"quantize_bits": [3]}, "`quantize_bits` has 3; expected some of 8, 4"),
        ({"relearn_steps": []}, r"`relearn_steps` is \[\]; expected numbers from 1 up"),
        ({"sample_counts": [0, 1]}, r"`sample_counts` is \[0, 1\]"),
        ({"relearn_share": 1.0}, "`relearn_share` is 1.0; expected a number between 0 and 1"),
        ({"relearn_batch_size": 0}, "`relearn_batch_size` is 0; expected a number above 0"),
        ({"relearn_lora_r": -1}, "`relearn_lora_r` is -1; expected a rank"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        AttackArguments(**({"eval_benchmark": "world"} | options))


@pytest.mark.slow
def test_not_under_fsdp(unlearned_dir, data_dir, tmp_path):
    from command_line import launch

    # On a CPU accelerate takes any sharding for plain data parallelism, unless it thinks of accelerators.
    lines = ["from accelerate import PartialState", "from accelerate.utils import DistributedType"]
    lines += ["PartialState._prepare_backend = lambda *args: ('gloo', DistributedType.MULTI_GPU)"]
    lines += ["from trl_unlearn.scripts.attack import main", "main()"]
    (tmp_path / "attack.py").write_text("\n".join(lines))
    flags = ["--model_name_or_path", unlearned_dir, "--output_dir", tmp_path, "--dataset_path", data_dir, *FLAGS]
    process = launch("fsdp2", tmp_path / "attack.py", *flags, on_accelerator=True, check=False)
    assert process.returncode != 0 and "without FSDP and DeepSpeed" in process.stderr


@pytest.mark.slow
def test_two_processes_find_what_one_finds(unlearned_dir, data_dir, tmp_path):
    from command_line import launch

    flags = ["--model_name_or_path", unlearned_dir, "--dataset_path", data_dir, *FLAGS, "--relearn_subsets", "retain"]
    results = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        launch("ddp", "-m", "trl_unlearn.scripts.attack", *flags, "--output_dir", output, processes=processes)
        results.append(read(output)["attacks"])
    one, two = results
    for attack in ("quantize", "sample", "paraphrase"):
        for found, expected in zip(two[attack]["results"]["after"], one[attack]["results"]["after"], strict=True):
            assert found["summary"] == pytest.approx(expected["summary"], rel=1e-4)
    starts = [found["relearn"]["results"]["after"][0]["summary"]["forget_probability"] for found in results]
    ends = [found["relearn"]["results"]["after"][-1]["summary"]["forget_probability"] for found in results]
    assert starts[0] == pytest.approx(starts[1], rel=1e-4) and ends[0] == pytest.approx(ends[1], rel=0.2)
    assert ends[0] != starts[0]
