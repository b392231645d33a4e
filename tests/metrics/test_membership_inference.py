"""The attacks score as open-unlearning and MUSE do, the right way up, and PrivLeak agrees in both directions."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from trl_unlearn.metrics import (
    MUSE_RETAIN_AUC,
    gradnorm_score,
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    probability,
    reference_score,
    zlib_score,
)


FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics.json").read_text(encoding="utf-8"))
ORACLE = Path(__file__).parents[3] / "shared" / "oracles" / "metrics_small.json"
needs_oracle = pytest.mark.skipif(not ORACLE.exists(), reason="the evaluators' logits are not next to this repository")


def scores_of(attack, split):
    tokens = FIXTURE["tokens"][split]
    log_probabilities = tokens["log_probabilities"]
    nll, counts = [-sum(row) for row in log_probabilities], [len(row) for row in log_probabilities]
    without_eos = {key: [row[:-1] for row in tokens[key]] for key in ("log_probabilities", "mu", "sigma")}
    if attack == "loss":
        return loss_score(nll, counts)
    if attack == "zlib":
        texts = [" ".join(f"w{token}" for token in row if token != 1) for row in tokens["labels"]]
        return zlib_score(nll, counts, texts)
    if attack == "reference":
        return reference_score(nll, [-sum(row) for row in tokens["reference_log_probabilities"]], counts)
    if attack == "min_k_plus_plus":
        return min_k_plus_plus_score(without_eos["log_probabilities"], without_eos["mu"], without_eos["sigma"])
    return min_k_score(without_eos["log_probabilities"], k=float(attack.removeprefix("min_k_")))


@pytest.mark.parametrize("attack", ["loss", "zlib", "min_k_0.4", "min_k_0.2", "min_k_plus_plus", "reference"])
def test_attacks_equal_open_unlearning(attack):
    case = FIXTURE["membership_inference"][attack]
    forget, holdout = scores_of(attack, "forget"), scores_of(attack, "holdout")
    name = attack.rstrip(".0123456789").rstrip("_")
    for split, result in (("forget", forget), ("holdout", holdout)):
        assert result["per_row"] == pytest.approx(case[split], abs=1e-6)
        assert result[name] == pytest.approx(case[f"{split}_mean"], abs=1e-6)
    result = membership_auc(forget["per_row"], holdout["per_row"])
    assert result == {"auc": pytest.approx(case["auc"], abs=1e-12), "n_forget": 6, "n_holdout": 4}


def test_probability_equals_open_unlearning():
    rows = FIXTURE["tokens"]["forget"]["log_probabilities"]
    result = probability([-sum(row) for row in rows], [len(row) for row in rows])
    assert result["per_row"] == pytest.approx(FIXTURE["probability"]["per_row"], abs=1e-6)
    assert result["probability"] == pytest.approx(FIXTURE["probability"]["mean"], abs=1e-6)


def tiny_logits(input_ids):
    """The tiny model of the GradNorm case: an embedding and a linear layer, equal but not tied."""
    weight, bias = np.array(FIXTURE["gradnorm"]["weight"]), np.array(FIXTURE["gradnorm"]["bias"])
    return weight[input_ids] @ weight.T + bias


def tiny_gradient_norms(input_ids, labels):
    """Norms of the gradient of the mean loss, the last label left out, by embedding, linear layer and bias."""
    weight, input_ids, labels = np.array(FIXTURE["gradnorm"]["weight"]), np.array(input_ids), np.array(labels)
    positions = np.flatnonzero(labels != -100)[:-1]
    context = input_ids[positions - 1]
    of_logits = np.exp(log_softmax(tiny_logits(context), axis=1))
    of_logits[range(len(positions)), labels[positions]] -= 1
    of_logits /= len(positions)
    of_embedding = np.zeros_like(weight)
    np.add.at(of_embedding, context, of_logits @ weight)
    gradients = of_embedding, of_logits.T @ weight[context], of_logits.sum(axis=0)
    return [np.linalg.norm(gradient) for gradient in gradients]


def test_gradnorm_equals_open_unlearning():
    case = FIXTURE["gradnorm"]
    scores = {
        split: gradnorm_score([tiny_gradient_norms(**row) for row in case[split]]) for split in ("forget", "holdout")
    }
    for split, result in scores.items():
        assert result["per_row"] == pytest.approx(case[f"{split}_scores"], abs=1e-6)
        assert result["gradnorm"] == pytest.approx(np.mean(case[f"{split}_scores"]), abs=1e-6)
    auc = membership_auc(scores["forget"]["per_row"], scores["holdout"]["per_row"])["auc"]
    assert auc == pytest.approx(case["auc"], abs=1e-12)


def test_auc_is_high_when_the_forget_texts_are_remembered():
    assert membership_auc(forget_scores=[0.1, 0.2, 0.3], holdout_scores=[1.0, 2.0])["auc"] == 1.0
    assert membership_auc(forget_scores=[1.0, 2.0], holdout_scores=[0.1, 0.2, 0.3])["auc"] == 0.0
    assert membership_auc(forget_scores=[1.0, 1.0], holdout_scores=[1.0])["auc"] == 0.5


def test_min_k_plus_plus_of_a_certain_token():
    result = min_k_plus_plus_score([[0.0], [-1.0]], mu=[[0.0], [0.0]], sigma=[[0.0], [0.0]])
    assert result["per_row"] == pytest.approx([0.0, 1000.0])


def test_privleak_agrees_in_both_directions():
    case = FIXTURE["privleak"]
    for corpus in ("News", "Books"):
        retain_auc = MUSE_RETAIN_AUC[corpus]
        muse = privleak(case["forget_scores"], case["holdout_scores"], retain_auc, auc_convention="muse")
        ours = privleak(case["forget_scores"], case["holdout_scores"], 1 - retain_auc)
        assert muse["privleak"] == pytest.approx(case[corpus], abs=1e-9)
        assert ours["privleak"] == pytest.approx(case[corpus], abs=1e-9)
        assert (muse["auc"], ours["auc"]) == (case["muse_auc"], case["auc"])
        assert (muse["retain_auc"], muse["n_forget"], muse["n_holdout"]) == (retain_auc, 8, 8)
    default = privleak(case["forget_scores"], case["holdout_scores"], retain_auc=0.5)["privleak"]
    assert default == pytest.approx(case["default"], abs=1e-6)
    # Where the two sets change places, so does the sign: the difference relative to an AUC of one half.
    swapped = privleak(case["holdout_scores"], case["forget_scores"], retain_auc=0.5)["privleak"]
    assert swapped == pytest.approx(case["relative_difference"], abs=1e-6)


def test_privleak_says_what_it_expects():
    with pytest.raises(ValueError, match="'sklearn'; expected 'open-unlearning' or 'muse'"):
        privleak([1.0], [2.0], retain_auc=0.5, auc_convention="sklearn")
    with pytest.raises(ValueError, match="`retain_auc` is 1.0, from which no relative distance"):
        privleak([1.0], [2.0], retain_auc=1.0)


@needs_oracle
@pytest.mark.parametrize("split", ["forget", "holdout"])
def test_the_fixture_is_what_the_logits_give(split):
    inputs = json.loads(ORACLE.read_text(encoding="utf-8"))["inputs"]
    tokens, row = FIXTURE["tokens"][split], 0
    for batch, reference in zip(inputs[split], inputs[f"reference_model_{split}"], strict=True):
        for labels, logits, reference_logits in zip(
            np.array(batch["labels"]), np.array(batch["logits"]), np.array(reference["logits"]), strict=True
        ):
            positions = np.flatnonzero(labels != -100)
            targets = labels[positions]
            scores = log_softmax(logits[positions - 1], axis=1)
            mu = (np.exp(scores) * scores).sum(axis=1)
            sigma = np.sqrt((np.exp(scores) * scores**2).sum(axis=1) - mu**2)
            own = scores[range(len(targets)), targets]
            reference_own = log_softmax(reference_logits[positions - 1], axis=1)[range(len(targets)), targets]
            assert targets.tolist() == tokens["labels"][row]
            assert (scores.argmax(axis=1) == targets).tolist() == tokens["matches"][row]
            assert tokens["log_probabilities"][row] == pytest.approx(own, abs=1e-6)
            assert tokens["reference_log_probabilities"][row] == pytest.approx(reference_own, abs=1e-6)
            assert tokens["mu"][row] == pytest.approx(mu, abs=1e-6)
            assert tokens["sigma"][row] == pytest.approx(sigma, abs=2e-6)  # the fixture's is a difference in float32
            row += 1
    assert row == len(tokens["labels"])


@needs_oracle
def test_scores_equal_those_of_muse():
    for case in json.loads(ORACLE.read_text(encoding="utf-8"))["muse_inference"]["out"]:
        text = case["text"]
        ids = np.array([2] + [3 + ord(character) % 8 for character in text])
        row = log_softmax(tiny_logits(ids[:-1]), axis=1)[range(len(text)), ids[1:]]
        assert loss_score([-row.sum()], [len(row)])["loss"] == pytest.approx(case["PPL"], abs=1e-6)
        zlib = zlib_score([-row.sum()], [len(row)], [text])["zlib"]
        assert zlib == pytest.approx(case["PPL/zlib"], abs=1e-6)
        for percent in (5, 10, 20, 30, 40, 50, 60):
            if case[f"Min-{percent}%"] is not None:  # MUSE takes the mean of nothing where ours takes one token
                result = min_k_score([row], k=percent / 100)["min_k"]
                assert result == pytest.approx(case[f"Min-{percent}%"], abs=1e-6)
