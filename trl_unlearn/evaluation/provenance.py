"""What the numbers of an evaluation depend on beside its rows, and what they cost."""

import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel

from .. import __version__
from .generate import generation_settings
from .plan import Plan
from .prompting import Prompting


def describe(
    model: PreTrainedModel,
    prompting: Prompting,
    max_new_tokens: int,
    truth_ratio_question: str | None = None,
    digest: str | None = None,
) -> dict[str, Any]:
    """What the numbers of a result depend on beside the rows."""
    compat = prompting.compat
    settings = generation_settings(model, prompting.processing_class, own=compat == "open-unlearning")
    return {
        "conventions": {
            "compat": compat,
            "attention_mask": "all tokens but padding"
            if compat != "open-unlearning"
            else "all tokens that differ from the padding token",
            "softmax": "fp32",
            "truth_ratio": "geometric mean over the perturbed answers"
            + (" and 1e-10 in denominators" if compat == "open-unlearning" else ""),
            "truth_ratio_question": truth_ratio_question,
            "extraction_strength": "1/n where the last token is wrong" if compat == "open-unlearning" else "exact",
            "rows": "the first 300 of each set, cut at 200 tokens" if compat == "tofu" else "all",
        },
        "prompt": {
            "template": "the tokenizer's chat template" if prompting.is_chat else prompting.template,
            "system_prompt": prompting.system_prompt,
            "chat_template_kwargs": prompting.chat_template_kwargs,
        },
        "generation": {
            "max_new_tokens": max_new_tokens,
            **({"max_new_tokens_count": "the prompt counted in"} if compat == "tofu" else {}),
            **settings,
        },
        "model": {
            "dtype": str(model.dtype).removeprefix("torch."),
            "sha256": digest,
            "attention": model.config._attn_implementation,
        },
        "versions": {
            "trl_unlearn": __version__,
            "python": platform.python_version(),
            **{
                package: version(package)
                for package in ("torch", "transformers", "datasets", "accelerate", "rouge_score", "scipy")
            },
            **({"peft": version("peft")} if isinstance(model, PeftModel) else {}),
        },
    }


def cost(plan: Plan) -> dict[str, Any]:
    """What a plan has computed, on what, with the most memory that this process has held at once."""
    if torch.cuda.is_available():
        device, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        device, peak = "cpu", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {**plan.cost, "processes": PartialState().num_processes, "device": device, "peak_memory_bytes": peak}


def shown_name(name_or_path: str) -> str:
    """An id on the Hub as it is, and only the last part of a path, which may tell more than it should."""
    return Path(name_or_path).resolve().name if Path(name_or_path).exists() else name_or_path
