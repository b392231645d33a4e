"""The results of a run: plain numbers, nothing private, and a file that is read back as it was."""

import json
import math
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from example_run import NUMBERS, SECRET_TEXT, TOKEN, evaluation, run
from transformers import IntervalStrategy

from trl_unlearn.hub.results import RESULTS_FILE, aggregate, collect_results, hub_id, load_results, plain, save_results


def test_numbers_and_enums_become_plain():
    made = plain(
        {
            "numpy": np.float32(0.5),
            "double": np.float64(0.5),
            "torch": torch.tensor(2, dtype=torch.int8),
            "array": np.array([1.0, math.nan]),
            "enum": IntervalStrategy.NO,
            "path": PurePosixPath("/home/jane/model"),
            "nothing": None,
            "nan": math.nan,
            "infinite": torch.tensor(-math.inf),
            3: (True, "a"),
        }
    )
    assert made == {
        "numpy": 0.5,
        "double": 0.5,
        "torch": 2,
        "array": [1.0, None],
        "enum": "no",
        "path": "model",
        "nothing": None,
        "3": [True, "a"],
    }
    assert [type(made[name]) for name in ("numpy", "double", "torch", "enum")] == [float, float, int, str]


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/jane/model", "model"),
        ("/home/Jane Doe/model/", "model"),
        ("~/model", "model"),
        ("./runs/model", "model"),
        (r"C:\Users\jane\model", "model"),
        ("file:///home/jane/model", "model"),
        ("no rows in /home/jane/rows.json.", "no rows in LOCAL_PATH"),
        ("trl-unlearn npo --output_dir=/data/npo", "trl-unlearn npo --output_dir=LOCAL_PATH"),
        ("cache:/home/jane", "cache:LOCAL_PATH"),
        ("see file:///etc/passwd", "see LOCAL_PATH"),
        ("[/home/jane]", "[LOCAL_PATH"),
        ("[INST] {question} [/INST]{answer}", "[INST] {question} [/INST]{answer}"),
        (f"token {TOKEN}!", "token hf_***!"),
        # no paths
        ("https://huggingface.co/org/name", "https://huggingface.co/org/name"),
        ("org/name", "org/name"),
        ("−2/β · log π(y)/π_ref(y)", "−2/β · log π(y)/π_ref(y)"),
        ("hf_argparser", "hf_argparser"),
    ],
)
def test_texts_lose_tokens_and_paths(text, public):
    assert plain(text) == public


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("locuslab/TOFU", True),
        ("data", False),
        ("a/b/c", False),
        ("/home/a", False),
        ("../a", False),
        ("./a", False),
        (None, False),
        ("trl_unlearn/hub", False),  # a folder that is there
    ],
)
def test_ids_on_the_hub(name, is_one, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert hub_id(name) == (name if is_one else None)


def test_an_aggregate_has_the_numbers_and_no_rows():
    result = aggregate(evaluation())
    assert result["summary"] == NUMBERS and all(type(value) in (int, float) for value in result["summary"].values())
    assert result["intervals"] == {"forget_probability": {"n": 400, "low": pytest.approx(0.28), "high": 0.33}}
    assert result["model"] == {"name": "target", "revision": None, "base_model": None}
    assert "rows" not in result and "answers" not in result
    assert result == aggregate(result)
    assert aggregate(None) is None


def test_a_p_value_that_has_underflowed_stays_as_a_logarithm():
    quality = {"p_value": 0.0, "log10_p_value": -400.5, "statistic": 1.0, "n": 400, "n_retain": 400}
    assert aggregate(evaluation(forget_quality=quality))["forget_quality"] == {
        "log10_p_value": -400.5,
        "statistic": 1.0,
        "n": 400,
        "n_retain": 400,
    }
    # an evaluator that has only p
    quality = aggregate(evaluation(forget_quality={"p_value": 1e-200, "statistic": 0.9}))["forget_quality"]
    assert quality == {"p_value": 1e-200, "log10_p_value": pytest.approx(-200), "statistic": 0.9}
    # nothing finite: it is said, and not left out in silence
    result = aggregate(evaluation(forget_quality={"p_value": 0.0, "log10_p_value": -math.inf, "statistic": 1.0}))
    assert "forget_quality" not in result and "D = 1.0" in result["missing"]["forget_quality"]


def test_results_are_read_back_as_they_were(tmp_path):
    results = collect_results(**run())
    save_results(results, tmp_path)
    assert load_results(tmp_path) == results
    assert results["history"] == [
        {"step": 0, "epoch": 0, "eval_model_utility": 0.6, "eval_forget_probability": 0.9},
        {"step": 10, "epoch": 1.0, "loss": 1.5, "eval_model_utility": 0.5, "eval_forget_probability": 0.3},
    ]
    assert collect_results(method={"name": "NPO"})["evaluations"] == {"before": None, "after": None, "retained": None}


def test_the_file_holds_nothing_private(tmp_path):
    save_results(collect_results(**run()), tmp_path)
    text = (tmp_path / RESULTS_FILE).read_text()
    for private in (SECRET_TEXT, "Where?", "hf_A", "/home", "jane", "mine"):
        assert private not in text
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["data"]["retain"] == {
        "dataset": None, "config": None, "split": None, "revision": None, "n": 3600, "private": True
    }  # fmt: skip


def test_a_private_set_of_the_hub_is_not_named_anywhere():
    arguments = run()
    arguments["data"]["forget"]["private"] = True
    assert "TOFU" not in json.dumps(collect_results(**arguments))


def test_a_model_may_have_no_namespace_and_a_data_set_may_not():
    results = collect_results(
        method={"name": "NPO"}, base_model={"name": "gpt2"}, data={"forget": {"dataset": "data"}}
    )
    assert results["base_model"]["name"] == "gpt2"
    assert results["data"]["forget"]["dataset"] is None and results["data"]["forget"]["private"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has the schema None"),
        ('{"schema": 2}', "has the schema 2; this version of trl-unlearn reads 1"),
        ('{"schema": 1, "data": []}', "`data` in .* is a list; expected a dict"),
    ],
)
def test_a_file_that_cannot_be_read(text, message, tmp_path):
    (tmp_path / RESULTS_FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_results(tmp_path)


def test_a_folder_without_results(tmp_path):
    assert load_results(tmp_path) is None
