"""MUSE's knowledge memorisation: how well the model answers questions on the forget set after ten worked examples."""

import re
from typing import Literal

from .rouge import rouge_l


# After worked examples a model goes on with the next question; that is no part of its answer.
_NEXT_QUESTION = re.compile(r"\n\n|\nQuestion|Question:")


def knowmem(
    predictions: list[str], references: list[str], convention: Literal["muse", "open-unlearning"] = "muse"
) -> dict[str, float | list[float]]:
    """
    ROUGE-L F1 between the model's answer, cut at a blank line or the next question, and the true one, and its mean.

    Defined in [MUSE](https://huggingface.co/papers/2407.06460).

    Args:
        predictions (`list[str]`):
            Greedy answers of 32 tokens after ten questions with their answers.
        references (`list[str]`):
            True answers.
        convention (`str`, *optional*, defaults to `"muse"`):
            `"muse"` compares the words as they stand, `"open-unlearning"` their stems.

    Returns:
        `dict`: `knowmem` (the mean) and `per_row`.

    Example:

    ```python
    >>> knowmem(["Paris\\n\\nQuestion: What is the capital of Italy?"], ["Paris"])["per_row"]
    [1.0]
    ```
    """
    if convention not in ("muse", "open-unlearning"):
        raise ValueError(f"`convention` is {convention!r}; expected 'muse' or 'open-unlearning'.")
    answers = [_NEXT_QUESTION.split(prediction, maxsplit=1)[0] for prediction in predictions]
    scores = rouge_l(answers, references, use_stemmer=convention == "open-unlearning")
    return {"knowmem": scores["rougeL_f1"], "per_row": scores["per_row_f1"]}
