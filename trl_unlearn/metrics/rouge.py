"""How much of the reference answer a generated answer repeats: its words, and the longest subsequence of them."""

import numpy as np


def rouge_l(predictions: list[str], references: list[str], use_stemmer: bool = True) -> dict[str, float | list[float]]:
    """
    ROUGE-L recall and F1, and ROUGE-1 recall, as `rouge_score` computes them.

    TOFU reports the recall, MUSE the F1.

    Args:
        predictions (`list[str]`):
            Generated answers.
        references (`list[str]`):
            True answers, in the same order.
        use_stemmer (`bool`, *optional*, defaults to `True`):
            Whether to compare the stems of the words, as TOFU and open-unlearning do, or the words, as MUSE does.

    Returns:
        `dict`: `rougeL_recall` and `rougeL_f1` (the means), `per_row_recall`, `per_row_f1` and `per_row_rouge1_recall`.

    Example:

    ```python
    >>> rouge_l(["They play the viola."], ["They play the cello."])["rougeL_recall"]
    0.75
    ```
    """
    from rouge_score.rouge_scorer import RougeScorer  # with nltk, half a second at the start of every command

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=use_stemmer)
    scores = [
        scorer.score(target=reference, prediction=prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    recall = [float(score["rougeL"].recall) for score in scores]
    f1 = [float(score["rougeL"].fmeasure) for score in scores]
    return {
        "rougeL_recall": float(np.mean(recall)),
        "rougeL_f1": float(np.mean(f1)),
        "per_row_recall": recall,
        "per_row_f1": f1,
        "per_row_rouge1_recall": [float(score["rouge1"].recall) for score in scores],
    }
