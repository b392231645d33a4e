"""How strongly a text pulls at each weight of the model: what the GradNorm attack looks at."""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel


@torch.enable_grad()
def gradient_norms(
    model: PreTrainedModel, prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...]
) -> list[float]:
    """
    Euclidean norm of the gradient of a completion's mean negative log-likelihood, for each parameter tensor.

    All floating-point weights count, frozen ones too, so that a full model and an adapter on it can be compared. The
    `grad` of the parameters is not touched.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model in evaluation mode, on its device.
        prompt_ids (`tuple[int, ...]`):
            Token ids of the prompt.
        completion_ids (`tuple[int, ...]`):
            Token ids of the completion, the final EOS left out.

    Returns:
        `list[float]`: Norms of the tensors that the completion depends on.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        input_ids = torch.tensor([prompt_ids + completion_ids[:-1]], device=model.device)
        logits = model(input_ids=input_ids, use_cache=False).logits[0, len(prompt_ids) - 1 :].float()
        loss = F.cross_entropy(logits, torch.tensor(completion_ids, device=logits.device))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return [gradient.float().norm().item() for gradient in gradients if gradient is not None]
