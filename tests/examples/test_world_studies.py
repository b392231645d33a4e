"""The studies on trained models (examples/studies): what they compute, and the commands on tiny worlds with few steps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, spearmanr

import trl_unlearn
from trl_unlearn import NPOConfig, NPOTrainer, SimNPOConfig, SimNPOTrainer
from trl_unlearn.data.encoding import encode_dataset
from trl_unlearn.world import generate_world


STUDIES = Path(trl_unlearn.__file__).parents[1] / "examples" / "studies"
TINY_WORLD = ("--num_people", 8, "--training_epochs", 6)


def run(study, output_dir, *flags):
    """The command; what it printed, and its results."""
    command = [sys.executable, STUDIES / f"{study}.py", *flags, "--output_dir", output_dir]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-5000:]
    assert (output_dir / f"{study}.png").stat().st_size > 10_000
    return process.stdout, json.loads((output_dir / "results.json").read_text())["rows"]


# ---------------------------------------------------------------------- what they share


def test_completions_are_scored_with_their_eos(load, model, tokenizer, forget_rows):
    completions = load("common").Completions(forget_rows, tokenizer)
    log_probs = completions.log_probs(model)
    nll = completions.nll(log_probs)
    assert log_probs.shape == (completions.lengths.sum(), model.config.vocab_size)
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(len(log_probs)))
    encoded = encode_dataset(forget_rows, tokenizer, "forget", max_length=None)
    for row, of_row, length in zip(encoded, nll, completions.lengths, strict=True):  # alone, by transformers' own loss
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        assert length == (labels != -100).sum()
        with torch.no_grad():
            expected = model(input_ids=ids, labels=labels).loss * length
        torch.testing.assert_close(of_row, expected, rtol=1e-4, atol=1e-4)


def test_a_run_is_made_once_for_the_same_options(load, tmp_path):
    once, calls = load("common").once, []

    def count():
        calls.append(1)
        return {"calls": len(calls)}

    path = tmp_path / "runs" / "run.json"
    assert once(path, {"steps": 1}, count) == once(path, {"steps": 1}, count) == {"calls": 1}
    assert once(path, {"steps": 2}, count) == {"calls": 2}


# ---------------------------------------------------------------------- divergence


def test_crossing(load):
    curve = [{"step": step, "forget": value} for step, value in ((0, 0.0), (2, 0.01), (6, 100.0), (9, 0.5))]
    crossing = load("divergence").crossing
    assert crossing(curve, "forget", 1.0) == pytest.approx(4)  # half of the way from 0.01 to 100, in logarithms
    assert crossing(curve, "forget", 100.0) == pytest.approx(6)
    assert crossing(curve, "forget", 0.005) == 2
    assert crossing(curve, "forget", 101) is None


@pytest.mark.slow
def test_divergence_command(tmp_path):
    flags = ("--seeds", 0, "--betas", 0.5, 50, "--steps", 8, "--sgd_learning_rate", 0.02, "--adamw_learning_rate", 1e-3,
             *TINY_WORLD, "--worlds_dir", tmp_path / "worlds")  # fmt: skip
    output, rows = run("divergence", tmp_path, *flags)
    assert [(row["optimizer"], row["beta"]) for row in rows] == [
        (optimizer, beta) for optimizer in ("sgd", "adamw_torch") for beta in (None, 0.5, 50)
    ]
    assert "Gradient ascent" in output
    for optimizer in ("sgd", "adamw_torch"):
        ascent, *npo = (row["curve"] for row in rows if row["optimizer"] == optimizer)
        for curve in (ascent, *npo):
            steps = [point["step"] for point in curve]
            assert steps[:2] == [0, 1]
            assert {4, 8} <= set(steps) or curve[-1]["forget"] >= 200  # where a run ends
            for name in ("forget", "retain", "moved"):  # measured from the start itself
                assert curve[0][name] == pytest.approx(0, abs=1e-6)
            assert curve[-1]["forget"] > 0.01 and curve[-1]["nll_risen"] > 0
        # At the start, NPO is gradient ascent, whatever β: the first step is the same
        for curve in npo:
            assert curve[1]["moved"] == pytest.approx(ascent[1]["moved"], rel=0.05)
        # Then the larger β is, the less far it goes
        ends = [curve[-1]["nll_risen"] for curve in (ascent, *npo)]
        assert ends[0] > ends[1] > ends[2]


# ---------------------------------------------------------------------- gradient weights


@pytest.mark.parametrize("method", ["NPO", "SimNPO"])
def test_weights_are_those_of_the_papers(load, tmp_path, model, tokenizer, forget_rows, method):
    config, trainer_class = {"NPO": (NPOConfig, NPOTrainer), "SimNPO": (SimNPOConfig, SimNPOTrainer)}[method]
    args = config(str(tmp_path), beta=0.7, retain_weight=0.0, report_to="none")
    trainer = trainer_class(model=model, args=args, train_dataset=forget_rows, processing_class=tokenizer)
    logps, ref_logps = torch.tensor([-3.0, -20.0, -9.0]), torch.tensor([-1.0, -20.0, -12.0])
    lengths = torch.tensor([4.0, 30.0, 9.0])
    weights = load("gradient_weights").weights_of(trainer, logps, lengths, ref_logps)
    if method == "NPO":
        expected = 2 * torch.sigmoid(0.7 * (logps - ref_logps))
    else:
        expected = 2 * torch.sigmoid(0.7 * logps / lengths) / lengths
    torch.testing.assert_close(weights, expected)


def test_correlations(load):
    study = load("gradient_weights")
    run = {"method": "SimNPO", "lengths": [5, 10, 20], "curve": [{"nll": [1.0, 1.0, 1.0]}]}
    point = {"nll": [11.0, 1.0, 41.0], "weights": [0.2, 0.1, 0.05]}
    described = study.describe(run, point)
    assert described["length"] == pytest.approx(-1)
    assert described["difficulty"] == pytest.approx(1)  # 0.2, 0.1 and 0.05 nats a token
    assert described["spread"] == pytest.approx(np.std([4, 2, 1]) / np.mean([4, 2, 1]))
    assert described["smoothing_spread"] == pytest.approx(0)  # without the length, all are the same
    assert described["risen"] == pytest.approx((2 + 0 + 2) / 3)
    values, others = np.random.default_rng(0).normal(size=(2, 20))
    assert study.correlation(values, others) == spearmanr(values, others).statistic
    assert study.correlation(np.full(20, 0.3) + 1e-7 * values, others) is None


@pytest.mark.slow
def test_gradient_weights_command(tmp_path):
    flags = (
        "--seeds",
        3,
        "--data",
        "world",
        "--epochs",
        2,
        "--eval_steps",
        1,
        *TINY_WORLD,
        "--worlds_dir",
        tmp_path / "w",
    )
    output, rows = run("gradient_weights", tmp_path, *flags)
    assert [(row["data"], row["seed"], row["method"]) for row in rows] == [("world", 3, "NPO"), ("world", 3, "SimNPO")]
    npo, simnpo = rows
    assert npo["lengths"] == simnpo["lengths"] and len(npo["lengths"]) == 24
    assert npo["curve"][0]["nll"] == simnpo["curve"][0]["nll"]  # the same target
    assert npo["curve"][0]["weights"] == pytest.approx([1.0] * 24, abs=1e-5)  # at the reference
    lengths, nll = (np.array(values) for values in (simnpo["lengths"], simnpo["curve"][-1]["nll"]))
    assert simnpo["curve"][-1]["weights"] == pytest.approx(2 / (1 + np.exp(2.5 * nll / lengths)) / lengths, rel=1e-4)
    for row in rows:
        assert [point["step"] for point in row["curve"]] == [0, 1, 2, 3, 4]  # 24 rows in batches of 16, twice
        assert sum(row["curve"][-1]["nll"]) > sum(row["curve"][0]["nll"])
    assert "Embedded world, SimNPO" in output and "TOFU" not in output


# ---------------------------------------------------------------------- sizes


def test_smaller_splits_of_a_world(load):
    """The same rows and the same questions for all, but those of the people that are no longer to be forgotten."""
    study = load("sizes")
    world = generate_world(seed=2, num_people=12, num_forget=6)
    people = list(dict.fromkeys(row["person"] for row in world["forget"]))
    split = study.split_world(world, 2)

    def people_of(config):
        return {row["person"] for row in split[config]}

    def texts(rows):
        return sorted((row["question"], row["answer"]) for row in rows)

    assert people_of("forget") == people_of("forget_perturbed") == set(people[:2])
    assert len(split["forget"]) == 2 * 24 and len(split["forget_perturbed"]) == 2 * 8
    assert len(people_of("retain")) == 10 and not people_of("retain") & people_of("forget")
    assert texts(split["retained_model"]) == texts(split["retain"] + world["world_facts"])
    assert texts(split["retained_model"] + split["forget"]) == texts(world["full"])
    for config in ("full", "retain_perturbed", "world_facts_perturbed"):  # one target, and one utility
        assert split[config] == world[config]
    assert not people_of("retain_perturbed") & set(people)
    # Every name of a forgotten person is some kept person's too
    kept_names = {name for person in people_of("retain") for name in person.split()}
    assert all(name in kept_names for person in people[:2] for name in person.split())


def test_critical_distance(load):
    study = load("sizes")
    for num, distance in zip((8, 24), study.critical_distance(np.array([8, 24])), strict=True):
        at, beyond = (ks_2samp(*study.samples_at(round(distance * num) + extra, num)) for extra in (0, 1))
        assert at.statistic == pytest.approx(distance)
        assert at.pvalue > 0.05 > beyond.pvalue


@pytest.mark.slow
def test_sizes_command(tmp_path):
    flags = ("--seeds", 3, "--forgotten", 2, 1, "--methods", "NPO", "AltPO", "--epochs", 1, *TINY_WORLD)
    output, rows = run("sizes", tmp_path, *flags)
    assert [(row["size"], row["method"], row["steps"]) for row in rows] == [
        (1, "NPO", 2), (1, "AltPO", 8), (2, "NPO", 3), (2, "AltPO", 15),
    ]  # fmt: skip
    for row in rows:
        assert row["before"]["forget_quality"]["n"] == row["before"]["forget_quality"]["n_retain"] == 8 * row["size"]
        first = next(other for other in rows if other["size"] == row["size"])
        assert row["before"]["summary"] == pytest.approx(first["before"]["summary"], rel=1e-5)
        assert row["evaluation"]["summary"] != row["before"]["summary"]
    # The same target is asked the same about those who are kept, whatever the size
    utilities = [row["before"]["summary"]["model_utility"] for row in rows]
    assert utilities == pytest.approx([utilities[0]] * 4, rel=1e-5)
    for text in ("1 of 8", "2 of 8", "Retained", "AltPO"):
        assert text in output


@pytest.mark.parametrize(
    ("study", "flags", "message"),
    [
        ("divergence", ["--betas", "0"], "--betas must be positive, got 0"),
        ("divergence", ["--steps", "1"], "--steps must be at least 2, got 1"),
        ("gradient_weights", ["--eval_steps", "0"], "--eval_steps must be at least 1, got 0"),
        ("sizes", ["--forgotten", "60"], "of 64 people from 1 to 48 can be forgotten"),
    ],
)
def test_bad_options(study, flags, message):
    process = subprocess.run([sys.executable, STUDIES / f"{study}.py", *flags], capture_output=True, text=True)
    assert process.returncode == 2
    assert message in process.stderr
