"""The three forget losses as pure functions: tensors in, one loss per sequence out.

How they relate. All three are `(2 / beta) * softplus(beta * x)` of one number `x` per sequence that grows when the
model likes the forget answer more:

| loss | `x` | needs |
|---|---|---|
| NPO | log-ratio of model to reference on the forget answer | a reference |
| SimNPO | log-probability *per token* of the forget answer, plus the margin `gamma` | nothing |
| AltPO | NPO's log-ratio, minus the same log-ratio on an alternate answer | a reference and alternates |

So NPO is AltPO without the alternate, and SimNPO is NPO with the reference replaced by the length. As `beta` tends to 0
the gradient of NPO tends to that of gradient ascent. The factor `2 / beta`, which DPO does not have, keeps the size of
the gradient independent of `beta`; at the reference, NPO and AltPO are `(2 / beta) * log(2)` whatever the data.
"""

import torch
import torch.nn.functional as F


def npo_loss(logps: torch.Tensor, ref_logps: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    Negative Preference Optimization: gradient ascent that slows down as the model leaves the reference.

    $$\ell = -\frac{2}{\beta} \log \sigma\left(-\beta \log \frac{\pi_\theta(y \mid x)}{\pi_\mathrm{ref}(y \mid x)}\right)$$

    The NPO loss of [Negative Preference Optimization](https://huggingface.co/papers/2404.05868). The weight of a sequence
    in the gradient is \\( 2 \sigma(\beta \log(\pi_\theta / \pi_\mathrm{ref})) \\): 1 at the reference, and it goes to 0
    when the answer has become unlikely.

    Args:
        logps (`torch.Tensor`):
            Log-probabilities of the forget completions under the model, summed over tokens, in nats, of shape
            `(batch,)`.
        ref_logps (`torch.Tensor`):
            The same under the frozen reference, of shape `(batch,)`.
        beta (`float`):
            Inverse temperature. Small values approach gradient ascent, large ones stop earlier.

    Returns:
        `torch.Tensor`: Losses of shape `(batch,)`.

    Example:

    ```python
    >>> npo_loss(torch.tensor([-10.0]), torch.tensor([-10.0]), beta=0.1)
    tensor([13.8629])
    ```
    """
    return -F.logsigmoid(-beta * (logps - ref_logps)) * 2 / beta


def simnpo_loss(logps: torch.Tensor, lengths: torch.Tensor, beta: float, gamma: float = 0.0) -> torch.Tensor:
    r"""
    Simple NPO: the reference is replaced by the length of the answer.

    $$\ell = -\frac{2}{\beta} \log \sigma\left(-\beta \left(\frac{\log \pi_\theta(y \mid x)}{|y|} + \gamma\right)\right)$$

    The SimNPO objective of [Simplicity Prevails](https://huggingface.co/papers/2410.07163). The margin stands inside `beta`, as in
    the authors' code; the paper writes it outside, so `gamma_paper = beta * gamma`. open-unlearning calls it `delta`.

    Args:
        logps (`torch.Tensor`):
            Log-probabilities of the forget completions under the model, summed over tokens, in nats, of shape
            `(batch,)`.
        lengths (`torch.Tensor`):
            Number of completion tokens, EOS included, of shape `(batch,)`. Must not contain 0.
        beta (`float`):
            Inverse temperature, on log-probabilities per token, hence larger than NPO's.
        gamma (`float`, *optional*, defaults to `0.0`):
            Margin in nats per token. A sequence is pushed at half strength when its log-probability per token is
            `-gamma`.

    Returns:
        `torch.Tensor`: Losses of shape `(batch,)`.

    Example:

    ```python
    >>> simnpo_loss(torch.tensor([-10.0]), torch.tensor([5]), beta=2.5)
    tensor([0.0054])
    ```
    """
    return -F.logsigmoid(-beta * (logps / lengths + gamma)) * 2 / beta


def altpo_loss(
    alternate_logps: torch.Tensor,
    forget_logps: torch.Tensor,
    ref_alternate_logps: torch.Tensor,
    ref_forget_logps: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    r"""
    Alternate Preference Optimization: away from the forget answer, towards a plausible other one.

    $$\ell = -\frac{2}{\beta} \log \sigma\left(
        \beta \log \frac{\pi_\theta(y_a \mid x)}{\pi_\mathrm{ref}(y_a \mid x)}
      - \beta \log \frac{\pi_\theta(y_f \mid x)}{\pi_\mathrm{ref}(y_f \mid x)}\right)$$

    The objective of [Alternate Preference Optimization](https://huggingface.co/papers/2409.13474): DPO with the alternate
    as chosen and the forget answer as rejected, times `2 / beta`. Several alternates of one question are several rows;
    nothing is averaged inside the sigmoid.

    Args:
        alternate_logps (`torch.Tensor`):
            Log-probabilities of the alternate completions under the model, summed over tokens, in nats, of shape
            `(batch,)`.
        forget_logps (`torch.Tensor`):
            The same for the forget completions, of shape `(batch,)`.
        ref_alternate_logps (`torch.Tensor`):
            The alternates under the frozen reference, of shape `(batch,)`.
        ref_forget_logps (`torch.Tensor`):
            The forget completions under the frozen reference, of shape `(batch,)`.
        beta (`float`):
            Inverse temperature.

    Returns:
        `torch.Tensor`: Losses of shape `(batch,)`.

    Example:

    ```python
    >>> logps = torch.tensor([-10.0])
    >>> altpo_loss(logps, logps, logps, logps, beta=0.1)
    tensor([13.8629])
    ```
    """
    return (
        -F.logsigmoid(beta * ((alternate_logps - ref_alternate_logps) - (forget_logps - ref_forget_logps))) * 2 / beta
    )
