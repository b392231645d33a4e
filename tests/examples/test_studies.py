"""The papers' synthetic studies (examples/studies): what they draw and measure, and the commands with few steps."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy

import trl_unlearn
from trl_unlearn.data.encoding import encode_dataset


STUDIES = Path(trl_unlearn.__file__).parents[1] / "examples" / "studies"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def markov_chains():
    return load("markov_chains")


@pytest.fixture(scope="module")
def logistic():
    return load("logistic")


def run(study, output_dir, *flags):
    """The command; what it printed, and its results by study or experiment, and method."""
    command = [sys.executable, STUDIES / f"{study}.py", *flags, "--output_dir", output_dir]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-5000:]
    assert (output_dir / f"{study}.png").stat().st_size > 10_000
    rows = json.loads((output_dir / "results.json").read_text())["rows"]
    return process.stdout, rows


# ---------------------------------------------------------------------- Markov chains


@pytest.mark.parametrize("chain", ["retain", "forget_1", "forget_2"])
def test_sequences_follow_their_chain(markov_chains, chain):
    states = markov_chains.CHAINS[chain]
    matrix = markov_chains.transitions(states)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(10))
    torch.testing.assert_close(matrix[states][:, states].sum(dim=1), torch.full((3,), 0.8))
    sequences = markov_chains.draw_sequences(states, 20_000, 20, torch.Generator().manual_seed(0))
    counts = torch.zeros(10, 10).index_put_(
        (sequences[:, :-1].flatten(), sequences[:, 1:].flatten()), torch.ones(20_000 * 19), accumulate=True
    )
    # Even the rarest of the states is left 15,000 times: standard deviations are at most 0.004
    torch.testing.assert_close(counts / counts.sum(dim=1, keepdim=True), matrix, atol=0.02, rtol=0)
    first = torch.bincount(sequences[:, 0], minlength=10) / 20_000
    torch.testing.assert_close(first, matrix[states[0]], atol=0.02, rtol=0)


def test_trainers_see_the_states_and_no_end(markov_chains):
    """What reaches the model is what it was trained on: no EOS, and every state but the first is scored."""
    sequences = torch.cat([
        markov_chains.draw_sequences([3, 4, 5], 8, length, torch.Generator().manual_seed(0)) for length in (20, 5)
    ])  # fmt: skip
    encoded = encode_dataset(
        markov_chains.to_rows(sequences), markov_chains.build_tokenizer(), "forget", max_length=None
    )
    batch = markov_chains.collate(list(encoded))
    assert torch.equal(batch["input_ids"], sequences.clamp(min=0))
    assert torch.equal(batch["attention_mask"], (sequences >= 0).long())
    assert torch.equal(batch["labels"][:, 1:], sequences[:, 1:])
    assert (batch["labels"][:, 0] == -100).all()


def test_kl_of_chains(markov_chains):
    """It is 0 for the chain itself; for another it is what the rows say, averaged over the states that were left."""
    matrix, other = (markov_chains.transitions(markov_chains.CHAINS[chain]) for chain in ("forget_1", "retain"))
    sequences = markov_chains.draw_sequences([3, 4, 5], 50, 5, torch.Generator().manual_seed(0))
    left = sequences[:, :-1].clamp(min=0)
    assert markov_chains.mean_kl(matrix.log()[left], matrix.log()[left], sequences) == 0
    of_rows = entropy(matrix, other, axis=1)
    expected = of_rows[sequences[:, :4].flatten()].mean()
    assert markov_chains.mean_kl(matrix.log()[left], other.log()[left], sequences) == pytest.approx(expected, rel=1e-5)


def test_markov_chains_command(tmp_path):
    flags = "--seeds 3 --num_sequences 200 --num_eval_sequences 40 --epochs 3 --steps 3 --eval_steps 2"
    output, rows = run("markov_chains", tmp_path, *flags.split())
    assert [(row["experiment"], row["method"], row["beta"]) for row in rows] == [
        ("A", "NPO", 0.2), ("A", "SimNPO", 4.0), ("B", "NPO", 1.0), ("B", "SimNPO", 4.0),
    ]  # fmt: skip
    for row in rows:
        references, curve = row["references"], row["curve"]
        assert [point["step"] for point in curve] == [0, 2, 3]  # the last step too
        assert {"step": 0, **references["target"]} == curve[0]  # training begins with the target, whatever was before
        assert references["retain_chain"]["retain"] == 0
        assert references["retain_chain"]["forget_1"] > 0.3
        assert references["retrained"]["retrained_forget"] == pytest.approx(0, abs=1e-6)
        assert curve[-1]["forget_1"] > curve[0]["forget_1"]
        assert row["smallest_retrained_forget"] == min(point["retrained_forget"] for point in curve)
        assert row["method"] in output
    # One retrained model and one set of held-out sequences for both experiments, but for the second chain's lengths
    assert rows[0]["references"]["retrained"]["forget_1"] == rows[2]["references"]["retrained"]["forget_1"]
    # In B the target was not trained on the second chain
    target = rows[2]["references"]["target"]
    assert target["forget_2"] > target["forget_1"]


# ---------------------------------------------------------------------- logistic model


def test_labels_follow_the_logistic_model(logistic):
    generator = torch.Generator().manual_seed(0)
    identity = torch.eye(16, dtype=torch.float64)
    for forget, sign in ((False, 1), (True, -1)):
        features, labels = logistic.draw_rows(50_000, forget, identity, generator)
        assert set(labels.tolist()) == {-1.0, 1.0}
        # E σ(1 + N(0, 1)), by quadrature
        noise = np.linspace(-8, 8, 2001)
        expected = np.average(1 / (1 + np.exp(-1 - noise)), weights=np.exp(-(noise**2) / 2))
        assert (labels == sign).double().mean().item() == pytest.approx(expected, abs=0.01)
        # The ReLU of an input of mean ∓1 and variance 1
        mean = -1 if not forget else 1
        expected = np.average(np.maximum(noise + mean, 0), weights=np.exp(-(noise**2) / 2))
        assert features.mean().item() == pytest.approx(expected, abs=0.01)


def test_divergence_is_a_kl(logistic):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 128, dtype=torch.float64, generator=generator)
    reference, weights = torch.randn(2, 128, dtype=torch.float64, generator=generator) / 8
    p, q = (torch.sigmoid(features @ vector) for vector in (reference, weights))
    expected = entropy(torch.stack([p, 1 - p]), torch.stack([q, 1 - q])).mean()
    assert logistic.divergence(reference, weights, features) == pytest.approx(expected, rel=1e-9)
    assert logistic.divergence(reference, reference, features) == 0


def by_method(rows, study) -> dict[str, dict[int, dict]]:
    return {row["method"]: {point["step"]: point for point in row["curve"]} for row in rows if row["study"] == study}


def test_logistic_command(tmp_path):
    flags = "--seeds 0 1 --training_steps 1500 --steps 200 --divergence_steps 600"
    output, rows = run("logistic", tmp_path, *flags.split())
    assert len(rows) == 12
    for seed in (0, 1):
        of_seed = [row for row in rows if row["seed"] == seed]
        retrained, diverged = by_method(of_seed, "retrained"), by_method(of_seed, "divergence")
        assert list(retrained) == ["Gradient ascent", "NPO", "NPO + retain"]
        # At the reference the weight of a sequence is 1, whatever β: NPO begins as gradient ascent does
        first = [points[1]["moved"] for points in diverged.values()]
        assert first == pytest.approx([first[0]] * 3, rel=1e-9)
        assert all(points[0]["moved"] == 0 for points in diverged.values())
        last = [points[600]["moved"] for points in diverged.values()]
        assert last[0] > 2 * last[1] > 2 * last[2]
        assert retrained["NPO + retain"][200]["retain"] < retrained["NPO"][200]["retain"]
        assert retrained["NPO"][200]["forget"] < 0.5 * retrained["NPO"][0]["forget"]
    for name in ("Target", "Gradient ascent", "NPO + retain"):
        assert name in output


@pytest.mark.slow
def test_gradient_ascent_diverges_linearly_and_npo_logarithmically(tmp_path):
    _, rows = run("logistic", tmp_path, "--seeds", 0)
    diverged = by_method(rows, "divergence")
    for method, points in diverged.items():
        # Steps double twice: a line doubles its increase, a logarithm repeats it
        moved = [points[step]["moved"] for step in (2_500, 5_000, 10_000)]
        ratio = (moved[2] - moved[1]) / (moved[1] - moved[0])
        assert ratio == pytest.approx(2 if method == "Gradient ascent" else 1, abs=0.05)
    # What is kept: gradient ascent far from the retrained model, NPO near, and with a retain loss as near as before
    retrained = by_method(rows, "retrained")
    kept = [retrained[method][2_000]["retain"] for method in ("Gradient ascent", "NPO", "NPO + retain")]
    assert kept[0] > 5 * kept[1] > 15 * kept[2]


@pytest.mark.parametrize(
    ("study", "flag", "message"),
    [
        ("markov_chains", "--steps", "--steps must be at least 1, got 0"),
        ("logistic", "--divergence_steps", "--divergence_steps must be at least 2, got 0"),
    ],
)
def test_bad_options(study, flag, message):
    process = subprocess.run([sys.executable, STUDIES / f"{study}.py", flag, "0"], capture_output=True, text=True)
    assert process.returncode == 2
    assert message in process.stderr
