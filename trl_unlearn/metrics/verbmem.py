"""MUSE's verbatim memorisation: how well the model continues a text of the forget set word for word."""

from typing import Literal

from .rouge import rouge_l


def verbmem(
    predictions: list[str], references: list[str], convention: Literal["muse", "open-unlearning"] = "muse"
) -> dict[str, float | list[float]]:
    """
    ROUGE-L F1 between the model's continuation of each forget text and the true one, and its mean.

    Defined in [MUSE](https://huggingface.co/papers/2407.06460).

    Args:
        predictions (`list[str]`):
            Greedy continuations of 128 tokens.
        references (`list[str]`):
            True continuations. MUSE cuts them to 128 tokens, open-unlearning leaves them whole. Tokens are the
            tokenizer's, so the cut is the caller's.
        convention (`str`, *optional*, defaults to `"muse"`):
            `"muse"` compares the words as they stand, `"open-unlearning"` their stems.

    Returns:
        `dict`: `verbmem` (the mean) and `per_row`.

    Example:

    ```python
    >>> verbmem(["the cat sat"], ["the cat sits"])["per_row"]
    [0.6666666666666666]
    ```
    """
    if convention not in ("muse", "open-unlearning"):
        raise ValueError(f"`convention` is {convention!r}; expected 'muse' or 'open-unlearning'.")
    scores = rouge_l(predictions, references, use_stemmer=convention == "open-unlearning")
    return {"verbmem": scores["rougeL_f1"], "per_row": scores["per_row_f1"]}
