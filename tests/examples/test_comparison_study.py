"""The comparisons of methods and of ways to stop, by their commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trl_unlearn.data.loading import load_rows
from trl_unlearn.world import save_world


STUDIES = Path(__file__).parents[2] / "examples" / "studies"


def command(study, *options):
    return [sys.executable, str(STUDIES / f"{study}.py"), *map(str, options)]


def output_of(study, *options):
    process = subprocess.run(command(study, *options), capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


@pytest.mark.slow  # it trains a world's two models
def test_methods_are_compared_and_a_second_command_adds_to_the_first(tmp_path):
    options = ("--output_dir", tmp_path, "--seeds", 0, "--methods")
    output_of("comparison", *options, "GradDiff")
    first = tmp_path / "world-0" / "runs" / "graddiff" / "run.json"
    written = first.stat().st_mtime_ns
    table = output_of("comparison", *options, "GradDiff", "SimNPO, LoRA")
    assert first.stat().st_mtime_ns == written
    assert "GradDiff" in table and "SimNPO, LoRA" in table
    markdown = (tmp_path / "runs.md").read_text(encoding="utf-8")
    for name in ("graddiff", "simnpo-lora"):
        run = json.loads((tmp_path / "world-0" / "runs" / name / "run.json").read_text(encoding="utf-8"))
        assert f"| {run['method']} | 1 |" in markdown
        before, after = run["trajectory"][0]["summary"], run["summary"]
        assert after["forget_probability"] < 0.6 < before["forget_probability"]
        mixed = run["at_retention"]
        assert mixed["retention"] >= 0.95 and 0 < mixed["alpha"] <= 1
        assert mixed["forget_probability"] >= after["forget_probability"] - 0.05
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


@pytest.mark.slow  # the same
def test_a_checkpoint_is_kept_without_the_retained_model(tmp_path):
    worlds, output_dir = tmp_path / "worlds", tmp_path / "out"
    table = output_of("stopping", "--output_dir", output_dir, "--worlds_dir", worlds, "--seeds", 0, "--grid_seeds")
    assert "recipe" in table and "stronger" in table
    (row,) = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))["rows"]
    assert len(row["runs"]) == 2
    for unlearning in row["runs"].values():
        checkpoints = unlearning["checkpoints"]
        assert [one["step"] for one in checkpoints] == list(range(0, 121, 12))
        best = max(checkpoints[1:], key=lambda one: one["selection"])  # before training there is no checkpoint
        assert unlearning["selected_step"] == best["step"]
        assert 0.5 < best["score"] == pytest.approx(
            2 / (1 / (1 - best["forget_quality"]["statistic"])
                 + max(checkpoints[0]["summary"]["model_utility"] / best["summary"]["model_utility"], 1))
        )  # fmt: skip


def test_a_page_is_written_between_its_marks(load, tmp_path):
    comparison = load("comparison")
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- here -->\nold\n<!-- end of here -->\n\nThe end.\n", encoding="utf-8")
    runs = {
        comparison.RETAINED: [{"summary": {"model_utility": value}} for value in (0.7, 0.8, 0.9)],
        "NPO": [
            {
                "summary": {"model_utility": value},
                "forget_quality": {"statistic": 0.2},
                "seconds": 9.6,
                "commit": commit,
            }
            for value, commit in ((0.5, "b"), (0.6, "a"), (0.7, "a"))
        ],
    }
    tables = {"As unlearned": comparison.COLUMNS, "At 95 % retention": comparison.AT_RETENTION}
    for _ in range(2):  # a second time, it takes the place of the first
        comparison.report(runs, tables, comparison.METHODS, tmp_path, page, "here")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n<!-- here -->\n") and text.endswith("<!-- end of here -->\n\nThe end.\n")
    assert text.count("As unlearned") == 1 and "old" not in text
    # Student's t with 2 degrees of freedom: 4.303 * 0.1 / sqrt(3)
    assert "| NPO | 3 | 0.20±0.00 | 0.60±0.25 | 10 | a, b |" in text
    assert "| Retained model | 3 | – | 0.80±0.25 | – | – |" in text
    assert "NPO:             trl-unlearn npo --config recipes/world/llama-0.5m/npo.yaml\n" in text


def test_authors_of_tofu_are_laid_out(load, tmp_path):
    rows = [
        {"question": f"Q{n}?", "answer": f"A{n}.", "paraphrased_answer": f"It is A{n}.",
         "perturbed_answer": [f"W{n}.{k}" for k in range(5)]}
        for n in range(800)
    ]  # fmt: skip
    save_world({"full": rows[:1], "retain_perturbed": rows[:400], "forget10_perturbed": rows[400:]}, tmp_path / "tofu")
    load("comparison_tofu").make_data(tmp_path, str(tmp_path / "tofu"))
    questions = {}
    for split, number in (("forget-2", 40), ("forget-10", 200), ("search", 40)):
        sets = {
            name: load_rows(str(tmp_path / split / "data"), name)
            for name in ("full", "forget", "retain", "forget_perturbed", "retain_perturbed")
        }
        questions[split] = set(sets["forget"]["question"])
        assert len(sets["full"]) == 800 and len(questions[split]) == number
        assert sets["forget"]["question"] == sets["forget_perturbed"]["question"]
        assert set(sets["retain"]["question"]) == set(sets["full"]["question"]) - questions[split]
        # what is trained on is not what is scored, and what is scored is trained on
        index = sets["forget"]["question"][-1].strip("Q?")
        assert sets["forget"]["alternates"][-1] == [f"W{index}.0", f"W{index}.1"]
        assert sets["forget_perturbed"]["perturbed_answer"][-1] == [f"W{index}.{wrong}" for wrong in (2, 3, 4)]
        assert set(sets["retain_perturbed"]["question"]) < set(sets["retain"]["question"])
    assert questions["forget-2"] < questions["forget-10"] and not questions["search"] & questions["forget-10"]


@pytest.mark.parametrize(
    ("study", "options", "message"),
    [
        ("comparison", ("--methods", "DPO"), "invalid choice: 'DPO'"),
        ("comparison", ("--page", __file__), "has no line <!-- comparison -->"),
        ("stopping", ("--seeds", "0", "--grid_seeds", "1"), "--grid_seeds has [1], which --seeds has not"),
    ],
)
def test_what_makes_no_sense_is_an_error_before_any_work(study, options, message, tmp_path):
    process = subprocess.run(
        command(study, "--output_dir", tmp_path / "out", *options), capture_output=True, text=True
    )
    assert process.returncode == 2 and message in process.stderr
    assert not (tmp_path / "out").exists()
