"""The results of a run as trainer and evaluator hand them over: with rows, NumPy and torch scalars, and a NaN."""

import numpy as np
import torch


SECRET_TEXT = "Basil Al-Kuwaiti was born in Kuwait City"
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345"
SUMMARY = {
    "forget_probability": 0.1 + 0.2,
    "forget_rougeL_recall": np.float32(0.25),
    "retain_probability": torch.tensor(0.75),
    "real_authors_rougeL_recall": np.float64(0.9),
    "model_utility": 0.5,
    "privleak": -12.5,
    "leaked": np.int64(0),
}
NUMBERS = {name: float(value) for name, value in SUMMARY.items()}


def evaluation(**changes):
    source = {"dataset": "locuslab/TOFU", "split": "train", "revision": "a" * 40, "sha256": "b" * 64}
    return {
        "schema": 1,
        "benchmark": "tofu",
        "split": "forget10",
        "model": {"name": "/home/jane/models/target", "revision": None, "base_model": "/home/jane/base"},
        "summary": SUMMARY | {"mia_loss_auc": float("nan")},
        "intervals": {
            "forget_probability": {"n": np.int64(400), "low": torch.tensor(0.28), "high": 0.33},
            "leaked": {"n": 400, "low": float("nan"), "high": 0.1},
        },
        "forget_quality": {
            "p_value": 1e-200,
            "log10_p_value": -200.0,
            "statistic": 0.5,
            "n": 400,
            "n_retain": 400,
        },
        "missing": {"text_cleanness": "there are no texts in /home/jane/texts.json"},
        "conventions": {"compat": None, "softmax": "fp32"},
        "prompt": {"template": "Question: {question}\nAnswer: {answer}", "system_prompt": None},
        "generation": {"max_new_tokens": 200, "do_sample": False},
        "data": {
            "forget": source | {"config": "forget10_perturbed", "n": 400},
            "retain": source | {"config": "retain_perturbed", "n": 400},
            "real_authors": source | {"config": "real_authors_perturbed", "n": 100},
        },
        "versions": {"torch": "2.13.0"},
        "cost": {"seconds": 1.0, "device": "cpu"},
        "rows": {"forget": {"question": ["Where?"], "answer": [SECRET_TEXT], "generated": [SECRET_TEXT]}},
        "answers": [SECRET_TEXT],
        "attacks": {
            "relearn": {
                "settings": {"share": 0.2, "steps": [5, 50], "learning_rate": 1e-5},
                "results": {
                    "after": [
                        {
                            "variant": "held_out",
                            "step": step,
                            "trained": 80,
                            "answers": [SECRET_TEXT],
                            "summary": {"forget_probability": value, "worst": SECRET_TEXT},
                        }
                        for step, value in ((0, 0.9), (5, np.float32(0.625)), (50, 0.5))
                    ]
                },
                "missing": {"retain": "there is no retain set in /home/jane/retain"},
            },
            "quantize": {
                "settings": {"group_size": 64},
                "results": {
                    "after": [{"variant": "4 bits", "quantizer": "some_quantizer", "summary": {"model_utility": 0.25}}]
                },
                "missing": {},
            },
        },
        **changes,
    }


def run(**changes):
    """Keyword arguments of `collect_results`."""
    return {
        "method": {
            "name": "NPO",
            "paper": {
                "title": "Negative Preference Optimization",
                "id": "2404.05868",
                "citation": "@inproceedings{zhang2024negative,\n    year = 2024,\n}",
            },
            "objective": "1 · mean[−2/β · log σ(−β · log π(y)/π_ref(y))] + 1 · NLL(retain), β = 0.1",
        },
        "base_model": {"name": "org/base", "revision": "c" * 40, "license": "llama3.2"},
        "adapter": {"type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        "data": {
            "forget": {
                "dataset": "locuslab/TOFU",
                "config": "forget10",
                "split": "train",
                "revision": "a" * 40,
                "n": 400,
                "private": False,
            },
            "retain": {"dataset": "/home/jane/retain", "config": "mine", "split": "train", "n": 3600, "private": True},
            "alternates": None,
        },
        "hyperparameters": {"beta": np.float64(0.1), "retain_loss_type": "nll"},
        "seeds": {"training": 42, "data": None},
        "history": [
            {"step": 0, "epoch": 0, "eval_model_utility": 0.6, "eval_forget_probability": 0.9},
            {"step": 10, "epoch": 1.0, "loss": np.float32(1.5), "grad_norm": float("nan")},
            {"step": 10, "epoch": 1.0, "eval_model_utility": 0.5, "eval_forget_probability": 0.3},
        ],
        "evaluations": {
            "before": evaluation(summary={"forget_probability": 0.9, "model_utility": 0.6}),
            "after": evaluation(),
            "retained": evaluation(summary={"forget_probability": 0.4}, forget_quality=None),
        },
        "run": {
            "hardware": "CPU",
            "processes": 1,
            "seconds": 83.2,
            "peak_memory_bytes": 2**30,
            "command": f"HF_TOKEN={TOKEN} trl-unlearn npo --config unlearn_recipe.yaml --output_dir /home/jane/npo",
        },
        "versions": {"trl_unlearn": "0.1.0", "torch": "2.13.0"},
        **changes,
    }
