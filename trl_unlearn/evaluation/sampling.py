"""
Draws tokens with random numbers that belong to a sample and not to the batch it happens to be in.

The number for a token is a hash of the seed, the prompt, the repeat, the step and the token. Added to the logits as Gumbel
noise, it makes the largest one a draw from the softmax. Of all ways to draw this one moves least when logits round in
another way: two runs differ with a probability of about the total variation between their distributions (some 1e-7 a token in
fp32), whatever the size of the vocabulary; with the inverse of the cumulative distribution, it grows with the number of
likely tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


# SplitMix64 (Steele, Lea and Flood, 2014), its constants as signed integers: integer arithmetic is the same on every device.
_STEP, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = 52  # so that the middle of each interval is a double


@dataclass(frozen=True)
class Sampling:
    """
    How continuations are drawn.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed.
        temperature (`float`, *optional*, defaults to `1.0`):
            What logits are divided by.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of the probability that the tokens to draw from have together, the likeliest first.
        top_k (`int`, *optional*, defaults to `0`):
            Number of tokens to draw from, the likeliest first; 0 for all.
    """

    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"`temperature` is {self.temperature}; expected a number above 0.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p}; expected a number above 0 and up to 1, which is all tokens.")
        if self.top_k < 0:
            raise ValueError(f"`top_k` is {self.top_k}; expected 0, which is all tokens, or a positive number.")

    def keys(self, samples: Sequence[tuple]) -> torch.Tensor:
        """A number of 64 bits for each sample, of shape `(len(samples),)`."""
        digests = [blake2b(repr((self.seed, sample)).encode(), digest_size=8).digest() for sample in samples]
        return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])

    def perturb(self, logits: torch.Tensor, keys: torch.Tensor, step: int) -> torch.Tensor:
        """
        Logits whose largest one is a draw.

        Args:
            logits (`torch.Tensor` of shape `(num_samples, vocab_size)`):
                Logits of the next token.
            keys (`torch.Tensor` of shape `(num_samples,)`):
                What [`keys`] gives.
            step (`int`):
                Number of tokens that have been drawn before.

        Returns:
            `torch.Tensor`: In fp64, of the shape of `logits`.
        """
        logits = logits.float()
        for warper in self._warpers:
            logits = warper(None, logits)
        device = "cpu" if logits.device.type == "mps" else logits.device  # MPS has no fp64
        rows = _mix(keys.to(device) + torch.tensor(step + 1, device=device) * _STEP)
        tokens = torch.arange(1, logits.shape[-1] + 1, device=device) * _STEP
        numbers = _shift(_mix(rows[:, None] + tokens), 64 - _BITS)
        uniform = (numbers.double() + 0.5) * 2.0**-_BITS
        return logits.to(device).double() - (-uniform.log()).log()

    @property
    def _warpers(self) -> LogitsProcessorList:
        warpers = LogitsProcessorList()
        if self.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(float(self.top_p)))
        return warpers


class SamplingProcessor(LogitsProcessor):
    """
    The same for [`~transformers.GenerationMixin.generate`], which then takes the largest.

    Args:
        sampling ([`Sampling`]):
            How continuations are drawn.
        keys (`torch.Tensor` of shape `(num_samples,)`):
            What [`Sampling.keys`] gives.
        prompt_length (`int`):
            Number of tokens before the first that is drawn, padding counted in.
    """

    def __init__(self, sampling: Sampling, keys: torch.Tensor, prompt_length: int):
        self.sampling = sampling
        self.sample_keys = keys
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_length
        return self.sampling.perturb(scores, self.sample_keys, step).to(scores.device)


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shift(state, 30)) * _FIRST
    state = (state ^ _shift(state, 27)) * _SECOND
    return state ^ _shift(state, 31)


def _shift(state: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, filled with zeros; PyTorch's repeats the sign."""
    return (state >> bits) & (2 ** (64 - bits) - 1)
