"""An adapter that makes a model forget can be taken off, or added in part or twice."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from .not_applicable import NotApplicable


@contextmanager
def scaled_adapter(model: PreTrainedModel | PeftModel, scale: float) -> Iterator[None]:
    """
    Multiplies what an adapter adds to the weights, for a while.

    Args:
        model ([`~peft.PeftModel`]):
            Model with its adapter.
        scale (`float`):
            Factor; 0 leaves the base, and 1 the model as it is.

    Raises:
        NotApplicable: If the model has no adapter, or one that is not LoRA and cannot be scaled.

    Example:

    ```python
    >>> with scaled_adapter(model, 0.5):
    ...     result = evaluate_unlearning(model, tokenizer, forget, retain)
    ```
    """
    if not isinstance(model, PeftModel):
        raise NotApplicable("the model is no adapter, but whole")
    if scale == 0:
        with model.disable_adapter():
            yield
    elif any(isinstance(module, LoraLayer) for module in model.modules()):
        with rescale_adapter_scale(model, scale):
            yield
    else:
        kind = model.active_peft_config.peft_type.value
        raise NotApplicable(f"an adapter of the type {kind} has no scale; it can only be taken off (scale 0)")
