"""How much a model forgets at the same loss of what it should keep: unlearned and original weights, mixed until that is so."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def evaluate_at_retention(
    model: PreTrainedModel,
    original: PreTrainedModel,
    evaluate: Callable[[PreTrainedModel], dict[str, Any]],
    retention: float = 0.95,
    metric: str = "retain_extraction_strength",
    num_halvings: int = 6,
) -> dict[str, Any]:
    """
    Evaluates a mixture of the model before and after unlearning, as near to the unlearned one as keeps enough.

    Methods that forget more and keep less cannot be ranked by either number. Here every method is drawn back, with weights
    `original + α (unlearned − original)`, until a metric of the retain set is at a share of what it was, and compared by what
    it has forgotten there, after [Unlearning with Control](https://huggingface.co/papers/2406.09179). For an adapter that is
    merged into its base this scales the adapter.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Unlearned model. Its weights are changed meanwhile, and are as they were when this returns.
        original ([`~transformers.PreTrainedModel`]):
            Model before unlearning, with the same parameters.
        evaluate (`Callable`):
            From a model to its evaluation, with a `summary`, as [`evaluate_unlearning`] gives it.
        retention (`float`, *optional*, defaults to `0.95`):
            Share of the metric that is kept.
        metric (`str`, *optional*, defaults to `"retain_extraction_strength"`):
            Metric of the summary that says how much is kept.
        num_halvings (`int`, *optional*, defaults to `6`):
            Evaluations that α is found with, each of which halves where it may lie; 6 give it to 0.016.

    Returns:
        `dict`: `alpha`, between 0 (nothing unlearned) and 1; `retention`, the share that is kept there; and `result`, the
        evaluation there.

    Example:

    ```python
    >>> evaluate = lambda model: evaluate_unlearning(model, tokenizer, forget, retain)
    >>> at_95 = evaluate_at_retention(model, original, evaluate)
    >>> at_95["result"]["summary"]["forget_extraction_strength"]
    ```
    """
    unlearned = [parameter.detach().clone() for parameter in model.parameters()]

    def evaluate_at(alpha: float) -> tuple[float, dict[str, Any]]:
        for parameter, before, after in zip(model.parameters(), original.parameters(), unlearned, strict=True):
            parameter.copy_(before.to(parameter) if alpha == 0 else torch.lerp(before.to(parameter), after, alpha))
        result = evaluate(model)
        return result["summary"][metric], result

    try:
        kept, result = evaluate_at(1.0)
        before, result_before = evaluate_at(0.0)
        low, high = (0.0, before, result_before), (1.0, kept, result)
        if kept >= retention * before:
            low = high
        else:
            for _ in range(num_halvings):
                alpha = (low[0] + high[0]) / 2
                middle = (alpha, *evaluate_at(alpha))
                low, high = (middle, high) if middle[1] >= retention * before else (low, middle)
        alpha, kept, result = low
        return {"alpha": alpha, "retention": kept / before, "result": result}
    finally:
        for parameter, after in zip(model.parameters(), unlearned, strict=True):
            parameter.copy_(after)
