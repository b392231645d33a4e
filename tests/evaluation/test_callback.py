"""Evaluation during training: when, what it leaves, which checkpoint it selects, and that it can stop."""

import base64
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_unlearn import UnlearningEvalCallback
from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.evaluation.benchmarks import evaluate_as_asked
from trl_unlearn.evaluation.selection import forget_threshold, has_forgotten, selection_score
from trl_unlearn.files import write_json
from trl_unlearn.hub.push import check_folder
from trl_unlearn.metrics import forget_quality
from trl_unlearn.world import generate_world, save_world


sys.path.append(str(Path(__file__).parents[1] / "trainer"))

from factory import make_trainer  # noqa: E402


@pytest.fixture
def data(world, tmp_path) -> str:
    save_world({name: rows[:8] for name, rows in world.items()}, tmp_path / "data")
    return str(tmp_path / "data")


@pytest.fixture
def make(model_dir, tokenizer, forget_rows, retain_rows, data, tmp_path):
    def make(options=None, arguments=None, **callback):
        options = {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "max_steps": 6,
            "learning_rate": 5e-3,
            "forget_loss_type": "grad_ascent",
        } | (options or {})
        trainer = make_trainer(
            "npo",
            model_dir,
            tmp_path / "run",
            options,
            processing_class=tokenizer,
            train_dataset=forget_rows,
            retain_dataset=retain_rows,
            eval_dataset={"forget": forget_rows, "retain": retain_rows},
        )
        arguments = EvaluationArguments(eval_benchmark="world", eval_max_new_tokens=6, **(arguments or {}))
        trainer.add_callback(UnlearningEvalCallback(trainer, arguments, data, **callback))
        return trainer

    return make


def evaluations(tmp_path):
    return read(tmp_path, "evaluations")


def read(tmp_path, name):
    return json.loads((tmp_path / "run" / "_evaluation" / f"{name}.json").read_text(encoding="utf-8"))


def test_evaluates_before_during_and_after_and_logs_what_it_finds(make, tmp_path):
    trainer = make({"max_steps": 5})
    trainer.train()
    entries = evaluations(tmp_path)
    assert [entry["step"] for entry in entries] == [0, 2, 4, 5]
    logged = {log["step"]: log for log in trainer.state.log_history if "eval_forget_probability" in log}
    assert list(logged) == [0, 2, 4, 5]
    for entry in entries:
        for metric, value in entry["summary"].items():
            assert logged[entry["step"]][f"eval_{metric}"] == pytest.approx(value, abs=1e-3)
    assert entries[0]["summary"]["forget_probability"] > entries[-1]["summary"]["forget_probability"]
    folder = tmp_path / "run" / "_evaluation"
    before, latest = (json.loads((folder / f"{name}.json").read_text()) for name in ("before", "evaluation"))
    assert before["summary"] == entries[0]["summary"] and latest["summary"] == entries[-1]["summary"]
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Before" in report and "After" in report
    for name in ("trajectory", "forgetting"):
        picture = (folder / "figures" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and base64.b64encode(picture).decode() in report
    assert "Forget rows that resist" not in report  # without a threshold


def test_result_is_that_of_an_evaluation_by_itself(make, model_dir, data, tmp_path):
    trainer = make({"max_steps": 2})
    trainer.train()
    trainer.save_model()
    alone = evaluate_as_asked(
        AutoModelForCausalLM.from_pretrained(tmp_path / "run"),
        trainer.processing_class,
        EvaluationArguments(eval_benchmark="world", eval_max_new_tokens=6),
        dataset_name=data,
        show_progress=False,
    )
    assert evaluations(tmp_path)[-1]["summary"] == pytest.approx(alone["summary"], rel=1e-5)
    forgetting = read(tmp_path, "forgetting")
    before, after = np.array(forgetting["probability"]).T
    assert forgetting["steps"] == [0, 2]
    assert after == pytest.approx(np.exp(-np.array(alone["rows"]["forget"]["loss"])), rel=1e-5)
    assert before == pytest.approx(np.exp(-np.array(read(tmp_path, "before")["rows"]["forget"]["loss"])))
    assert not [file for file in check_folder(tmp_path / "run") if "forgetting" in file]  # it is not published


def test_selects_the_best_checkpoint_by_a_rule(make, model_dir, tmp_path):
    """Nearness to the retained model's truth ratios, and utility."""
    options = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "eval_selection", "greater_is_better": True}
    log = {"summary": {"forget_probability": 0.5}, "rows": {"forget": {"truth_ratio": [0.5] * 8}}}
    write_json(log, tmp_path / "retained.json")
    trainer = make(options, {"retain_logs": str(tmp_path / "retained.json")}, eval_select="retained")
    trainer.train()
    entries = evaluations(tmp_path)
    for entry in entries:
        kept, forgotten = entry["summary"]["model_utility"], 1 - entry["forget_quality"]["statistic"]
        expected = 2 * kept * forgotten / (kept + forgotten) if kept * forgotten > 0 else 0
        assert entry["selection"] == pytest.approx(expected)
    scores = [entry["selection"] for entry in entries[1:]]  # before training there is no checkpoint
    best = 2 * (1 + scores.index(max(scores)))
    assert trainer.state.best_global_step == best
    result = json.loads((tmp_path / "run" / "_evaluation" / "evaluation.json").read_text())
    chosen = next(entry for entry in entries if entry["step"] == best)
    # what is reported is the model that was loaded, not the last one
    assert result["summary"] == pytest.approx(chosen["summary"], rel=1e-5)


def test_selects_by_people_whom_no_model_has_seen(make, data, tmp_path):
    """The same without a retained model: the holdout people's truth ratios, by the same checkpoint."""
    save_world({name: rows[:8] for name, rows in generate_world(seed=0, num_holdout=2).items()}, data)
    trainer = make({"max_steps": 2}, eval_select="unseen")
    trainer.train()
    result = json.loads((tmp_path / "run" / "_evaluation" / "evaluation.json").read_text())
    ours, theirs = (result["rows"][name]["truth_ratio"] for name in ("forget", "holdout"))
    assert len(ours) == len(theirs) == 8
    wrong, true = (np.array(result["rows"]["holdout"][f"{name}_loss"]) for name in ("perturbed", "paraphrased"))
    assert theirs == pytest.approx(np.exp(true - wrong.mean(1)))
    kept, forgotten = result["summary"]["model_utility"], 1 - forget_quality(ours, theirs)["statistic"]
    assert evaluations(tmp_path)[-1]["selection"] == pytest.approx(2 * kept * forgotten / (kept + forgotten))


def test_stops_once_the_model_has_forgotten(make, tmp_path):
    trainer = make({"max_steps": 20, "eval_steps": 1}, eval_select="unseen", eval_stop=True)
    trainer.train()
    entries = evaluations(tmp_path)
    assert 0 < trainer.state.global_step < 20
    assert entries[-1]["step"] == trainer.state.global_step
    assert entries[-1]["selection"] >= 0  # the world has no holdout set here, so that the paraphrases decide
    assert all(entry["selection"] < 0 for entry in entries[:-1])


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def test_a_resumed_run_goes_on_with_the_trajectory(make, tmp_path):
    """From an earlier checkpoint than the last evaluation, and with a retained model, which is the one before training."""
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer = make(options)
    trainer.add_callback(StopAt(4))
    trainer.train()
    first, first_rows = evaluations(tmp_path), read(tmp_path, "forgetting")
    assert [entry["step"] for entry in first] == first_rows["steps"] == [0, 2, 4]
    folder = tmp_path / "run" / "_evaluation"
    written = (folder / "before.json").stat().st_mtime_ns
    retained = shutil.copy(folder / "before.json", tmp_path / "retained.json")
    trainer = make(options | {"learning_rate": 1e-6}, {"retain_logs": str(retained)})
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [entry["step"] for entry in evaluations(tmp_path)] == [0, 2, 4, 6]
    assert evaluations(tmp_path)[:2] == first[:2] and evaluations(tmp_path)[2] != first[2]
    assert (folder / "before.json").stat().st_mtime_ns == written  # the model before training is evaluated once

    rows = read(tmp_path, "forgetting")
    assert rows["steps"] == [0, 2, 4, 6]
    assert [values[:2] for values in rows["probability"]] == [values[:2] for values in first_rows["probability"]]
    means = [entry["summary"]["forget_probability"] for entry in evaluations(tmp_path)]
    assert np.mean(rows["probability"], axis=0) == pytest.approx(means)
    assert rows["retained"] == [values[0] for values in rows["probability"]]
    resisting, of_retained = (np.array(rows["probability"])[:, [3, 0]] > means[0]).sum(0)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert f"a probability above {means[0]:.3g} (the retained model&#39;s mean): {resisting} of 8" in report
    assert f"under the retained model {of_retained}." in report


def test_the_retain_weight_follows_the_fall_of_utility(make, tmp_path):
    """Dual ascent as it is written, the loss with the weight in force, and the same weights in a resumed run."""
    bound, options = 0.001, {"save_strategy": "steps", "save_steps": 2, "retain_weight": 0.5}
    trainer = make(options, max_utility_drop=bound)
    trainer.add_callback(StopAt(4))
    trainer.train()
    stopped = evaluations(tmp_path)
    trainer = make(options, max_utility_drop=bound)
    trainer.train(resume_from_checkpoint=True)
    entries = evaluations(tmp_path)
    assert entries[:3] == stopped and [entry["step"] for entry in entries] == [0, 2, 4, 6]
    assert entries[0]["retain_weight"] == 0.5
    for last, entry in zip(entries, entries[1:], strict=False):
        drop = entries[0]["summary"]["model_utility"] - entry["summary"]["model_utility"]
        expected = max(0.5, last["retain_weight"] + 0.5 * (drop / bound - 1))
        assert entry["retain_weight"] == pytest.approx(expected)
    assert entries[-1]["retain_weight"] != entries[-2]["retain_weight"] != 0.5  # gradient ascent costs utility
    for log in trainer.state.log_history:
        if "retain_loss" in log and "loss" in log:
            (weight,) = (entry["retain_weight"] for entry in entries if entry["step"] == (log["step"] - 1) // 2 * 2)
            assert log["loss"] == pytest.approx(log["forget_loss"] + weight * log["retain_loss"], rel=1e-4)


def test_rules_that_cannot_be_followed_are_refused(make, tmp_path):
    with pytest.raises(
        ValueError, match="`eval_max_utility_drop` is 0.0 and `retain_weight` 1.0; both must be positive"
    ):
        make(max_utility_drop=0.0)
    with pytest.raises(ValueError, match="`eval_stop` takes a rule"):
        make(eval_stop=True)
    with pytest.raises(ValueError, match="The rule 'retained' takes the retained model's results"):
        make(eval_select="retained")
    trainer = make()
    muse = EvaluationArguments(eval_benchmark="muse")
    with pytest.raises(ValueError, match="forget probabilities, which muse does not have"):
        UnlearningEvalCallback(trainer, muse, eval_select="unseen")


def test_thresholds():
    rows = {"forget": {"paraphrased_loss": [0.0, 1.0]}, "holdout": {"loss": [2.0, 2.0]}}
    result = {"summary": {"forget_probability": 0.2, "model_utility": 0.7}, "rows": rows}
    assert has_forgotten("unseen", result) is False
    assert forget_threshold("unseen", result, None) == pytest.approx(0.1353, abs=1e-4)
    del rows["holdout"]
    assert forget_threshold("unseen", result, None) == pytest.approx((1 + 0.3679) / 2, abs=1e-4)
    assert selection_score("unseen", result) == 0.7
    retained = {"summary": {"forget_probability": 0.15}}
    assert selection_score("retained", result, retained) == pytest.approx(-0.05)
    result["forget_quality"] = forget_quality([0.1, 0.2, 2.0, 3.0], [0.1, 0.2, 0.3, 3.0])
    assert selection_score("retained", result, retained) == pytest.approx(2 * 0.7 * 0.75 / (0.7 + 0.75))
    del rows["forget"]["paraphrased_loss"]
    with pytest.raises(ValueError, match="takes a holdout set, or forget rows with"):
        forget_threshold("unseen", result, None)


def test_another_benchmarks_forget_rows(make, world, data, tmp_path):
    """Rows of one's own during training."""
    files = {}
    for name in ("forget", "retain"):
        files[name] = str(tmp_path / f"{name}.jsonl")
        Dataset.from_list(world[name][:6]).select_columns(["question", "answer"]).to_json(files[name])
    trainer = make({"max_steps": 2})
    trainer.remove_callback(UnlearningEvalCallback)
    arguments = EvaluationArguments(
        eval_forget_data=files["forget"], eval_retain_data=files["retain"], eval_max_new_tokens=4
    )
    trainer.add_callback(UnlearningEvalCallback(trainer, arguments))
    trainer.train()
    assert [entry["step"] for entry in evaluations(tmp_path)] == [0, 2]
    assert "model_utility" in evaluations(tmp_path)[-1]["summary"]
