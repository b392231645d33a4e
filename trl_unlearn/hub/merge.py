"""Folds an adapter into its base, compares the logits before and after, and saves a whole model that can be pushed."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..evaluation.prompting import Prompting
from .card import build_card, save_card
from .load import find_base, fold_in, load_unlearned
from .repository import find_repository
from .results import load_results, save_results


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTIONS = (
    "What is the capital of France?",
    "Who wrote the novel about the white whale, and when was it published?",
    "How does a bicycle stay upright?",
    "Tell me about an author from Taipei.",
)
# Files of the adapter that hold for the merged model as well
_CARRIED_OVER = ("unlearn_recipe.yaml", "unlearning.png")
# Largest difference relative to the largest logit: what rounding can do, and far less than another model makes
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_IN_HALF_PRECISION = 5e-2


def merge_adapter(
    adapter: str,
    output_dir: str | Path,
    revision: str | None = None,
    subfolder: str | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    dtype: "str | torch.dtype" = "auto",
    device_map: Any = None,
    questions: tuple[str, ...] = QUESTIONS,
) -> dict[str, float]:
    """
    Merges an adapter into its base and saves the whole model, with its tokenizer and the adapter's results and card.

    Args:
        adapter (`str`):
            Adapter: an id on the Hub or a folder.
        output_dir (`str` or `Path`):
            Folder for the merged model. It must not exist or be empty, and is there whole or not at all.
        revision, subfolder, base_model, base_revision, dtype, device_map:
            As for [`load_unlearned`].
        questions (`tuple[str]`, *optional*):
            Prompts on which the logits are compared; four general questions by default.

    Returns:
        `dict[str, float]`: `max_abs_difference` of the logits before and after, over all tokens of the prompts and the
        vocabulary; `max_abs_logit` before; `same_top_token`, the share of positions where the likeliest token is the same;
        `num_positions`.

    Raises:
        FileExistsError: If there is something in `output_dir`.
        ValueError: If it is no adapter, the base is quantized, or the logits differ by more than rounding.

    Example:

    ```python
    >>> merge_adapter("me/Llama-3.2-1B-Instruct-tofu-forget10-NPO-lora", "merged")["max_abs_difference"]
    2.1e-05
    ```
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} is there already and not empty. Give a new folder for the merged model.")
    repository = find_repository(adapter, revision, subfolder)
    repository.check_weights()
    if not repository.is_adapter:
        raise ValueError(
            f"{repository} has no adapter_config.json: it is a whole model, and there is nothing to merge."
        )
    base = find_base(repository, base_model, base_revision)
    if quantization := base.read_json("config.json").get("quantization_config"):
        raise ValueError(
            f"The base {base} is quantized ({quantization.get('quant_method')}): merged weights would be rounded to other "
            "values than those that were unlearned. Give the same model unquantized: `--base_model org/name`."
        )
    model, tokenizer = load_unlearned(
        adapter, repository.commit, subfolder, base_model, base_revision, dtype=dtype, device_map=device_map
    )
    before = _logits(model, tokenizer, questions)
    model = fold_in(model)
    parity = _compare(before, _logits(model, tokenizer, questions))
    tolerance = _TOLERANCE.get(model.dtype, _TOLERANCE_IN_HALF_PRECISION)
    if not parity["max_abs_difference"] <= tolerance * parity["max_abs_logit"]:
        raise ValueError(
            f"After the merge, logits differ by up to {parity['max_abs_difference']:.3g} from those with the adapter, which "
            f"are up to {parity['max_abs_logit']:.3g}: more than rounding in {model.dtype} explains. Nothing was saved. Try "
            "`--dtype float32`; if that differs too, this adapter cannot be merged (for example one on tied embeddings)."
        )

    unfinished = output_dir.with_name(f".{output_dir.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        for name in filter(repository.has, _CARRIED_OVER):
            shutil.copyfile(repository.folder / name, unfinished / name)
        if results := load_results(repository.folder):
            results["adapter"] = (results["adapter"] or {}) | {"merged": True}
            if base.commit:
                results["base_model"] |= {"name": base.name, "revision": base.commit}
            save_results(results, unfinished)
            card = repository.folder / "README.md"
            existing = card.read_text(encoding="utf-8") if repository.has("README.md") else None
            save_card(build_card(results, existing=existing, files=os.listdir(unfinished)), unfinished)
        unfinished.replace(output_dir)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    return parity


@torch.no_grad()
def _logits(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", questions: tuple[str, ...]
) -> list[torch.Tensor]:
    prompting = Prompting(tokenizer)
    prompts = [prompting.encode_question(question, "Yes")[0] for question in questions]
    return [model(torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in prompts]


def _compare(before: list[torch.Tensor], after: list[torch.Tensor]) -> dict[str, float]:
    before, after = torch.cat(before), torch.cat(after)
    return {
        "max_abs_difference": (before - after).abs().max().item(),
        "max_abs_logit": before.abs().max().item(),
        "same_top_token": (before.argmax(-1) == after.argmax(-1)).float().mean().item(),
        "num_positions": len(before),
    }
