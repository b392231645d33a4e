"""One forward over a batch of rows: log-probabilities per row, with only the label positions sent to the LM head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PretrainedConfig, PreTrainedModel

from .._trl import ChunkedDivergenceFunction
from .chunked_head import Head, chunked_kl, chunked_nll


# Entries of a batch that are not arguments of the model.
_NOT_MODEL_INPUTS = {"labels", "num_rows", "ref_logps", "ref_hidden_states", "share"}


@contextmanager
def forward_hook(module: nn.Module, hook: Callable) -> Iterator[None]:
    """Runs `hook(module, args, output)` after each forward of `module` within the context."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def row_of_positions(inputs: dict[str, Any]) -> torch.Tensor:
    """The row that each position belongs to, of the shape of the labels, whether rows are padded or concatenated."""
    labels = inputs["labels"]
    if "seq_idx" in inputs:  # padding-free: all rows stand in one
        return inputs["seq_idx"].long()
    return torch.arange(labels.size(0), device=labels.device)[:, None].expand_as(labels)


def label_positions(inputs: dict[str, Any]) -> torch.Tensor:
    """Mask of the positions that predict a label, of shape `(batch, length - 1)`: position `t` predicts label `t + 1`."""
    return inputs["labels"][:, 1:] != -100


def take_positions(hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states at the positions of a mask, which may be shorter than the rows, of shape `(tokens, hidden size)`."""
    return hidden_states[:, : positions.size(1)][positions.to(hidden_states.device)]


def take_rows(inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The rows `start` to `stop` of a padded batch."""
    taken = {key: value[start:stop] for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    taken["num_rows"] = (stop - start,)
    return taken


def score_rows(
    model: nn.Module,
    causal_lm: PreTrainedModel,
    inputs: dict[str, Any],
    on_hidden_states: Callable[[torch.Tensor], None] | None = None,
    num_graded_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """
    Log-probabilities of the labelled tokens, summed per row.

    Most positions are prompt or padding, so a hook on the backbone hands on only those that predict a label: to TRL's fused
    LM head, which would else project every position where there is no Triton. On a CPU the hook scores them itself, and
    hands on nothing.

    Args:
        model (`nn.Module`):
            Model to call, possibly wrapped (DDP, FSDP, DeepSpeed, PEFT), with TRL's fused LM head added.
        causal_lm ([`~transformers.PreTrainedModel`]):
            The causal language model inside `model`.
        inputs (`dict[str, Any]`):
            Batch of an [`~data.collator.UnlearningCollator`].
        on_hidden_states (`Callable`, *optional*):
            Called with the backbone's hidden states, of shape `(batch, length, hidden size)`, while the parameters of
            the LM head are gathered.
        num_graded_rows (`int`, *optional*):
            Rows, from the first, whose log-probabilities need a gradient, where it costs less to know. If `None`, all.

    Returns:
        `tuple`: Log-probabilities in nats and numbers of labelled tokens, both of shape `(rows,)` and in fp32, and the
        model's output.
    """
    predicts = label_positions(inputs)
    rows = row_of_positions(inputs)[:, 1:][predicts]
    labels = inputs["labels"][:, 1:][predicts]
    in_chunks = scores_in_chunks(model, causal_lm, labels.device)
    token_nll: list[torch.Tensor] = []

    def keep_label_positions(module, args, output):
        hidden_states = output.last_hidden_state
        if on_hidden_states is not None:
            on_hidden_states(hidden_states)
        taken = take_positions(hidden_states, predicts)
        if in_chunks:
            head = lm_head(causal_lm)
            num_graded = len(rows) if num_graded_rows is None else int((rows < num_graded_rows).sum())
            token_nll.append(chunked_nll(head, taken[:num_graded], labels[:num_graded]))
            with torch.no_grad():
                token_nll.append(chunked_nll(head, taken[num_graded:], labels[num_graded:]))
            taken = taken[:0]
        output.last_hidden_state = taken.unsqueeze(0)
        return output

    with forward_hook(_backbone(causal_lm), keep_label_positions):
        output = model(
            **_model_inputs(inputs),
            shift_labels=(labels[:0] if in_chunks else labels).unsqueeze(0),
            fused_lm_head=True,
            use_cache=False,
        )
    token_logps = -torch.cat(token_nll).float() if in_chunks else output.log_probs.squeeze(0).to(rows.device)
    zeros = torch.zeros(sum(inputs["num_rows"]), dtype=torch.float32, device=rows.device)
    return zeros.index_add(0, rows, token_logps), zeros.index_add(0, rows, torch.ones_like(token_logps)), output


def _model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in inputs.items() if key not in _NOT_MODEL_INPUTS}


def hidden_states_of_labels(causal_lm: PreTrainedModel, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """
    What the LM head would be given at the positions that predict a label, without running it.

    Args:
        causal_lm ([`~transformers.PreTrainedModel`]):
            Causal language model whose weights are all on its device.
        inputs (`dict[str, Any]`):
            Batch of an [`~data.collator.UnlearningCollator`].

    Returns:
        `tuple[torch.Tensor]`: For each row, of shape `(labels, hidden size)`.
    """
    predicts = label_positions(inputs)
    rows = row_of_positions(inputs)[:, 1:][predicts]
    hidden_states = _backbone(causal_lm)(**_model_inputs(inputs), use_cache=False).last_hidden_state
    lengths = torch.bincount(rows, minlength=sum(inputs["num_rows"]))
    return take_positions(hidden_states, predicts).split(lengths.tolist())


def scores_in_chunks(model: nn.Module, causal_lm: PreTrainedModel, device: torch.device) -> bool:
    """
    Whether the chunked head takes the place of TRL's fused one, which knows soft-caps, and weights that are sharded: those
    are gathered for the backward of what the model returns, and the chunked head's losses do not pass through there.
    """
    sharded = isinstance(model, FSDPModule) or hasattr(causal_lm.get_output_embeddings().weight, "ds_tensor")
    return device.type == "cpu" and _softcap(causal_lm) is None and not sharded


def _backbone(causal_lm: PreTrainedModel) -> nn.Module:
    """What gives the hidden states. Some vision-language models of transformers 4 do not tell: there it is `model`."""
    return causal_lm.model if causal_lm.base_model is causal_lm else causal_lm.base_model


class FrozenHead(nn.Module):
    """A copy of an LM head's weights, which stays when the model is trained."""

    def __init__(self, head: Head):
        super().__init__()
        self.weight, self.bias = (
            x if x is None else nn.Parameter(x.detach().clone(), requires_grad=False) for x in (head.weight, head.bias)
        )


def lm_head(causal_lm: PreTrainedModel, frozen: FrozenHead | None = None) -> Head:
    """
    The LM head of a model as it is now: with the adapter that is switched on, and gathered if FSDP2 has sharded it. Or as it
    was, with the weights of a frozen copy.
    """
    head = frozen or causal_lm.get_output_embeddings()
    weight, bias = (
        parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        for parameter in (head.weight, head.bias)
    )
    config = causal_lm.config.get_text_config()
    return Head(weight, bias, _logit_scale(config), _softcap(causal_lm))


def _softcap(causal_lm: PreTrainedModel) -> float | None:
    return getattr(causal_lm.config.get_text_config(), "final_logit_softcapping", None)


def _logit_scale(config: PretrainedConfig) -> float:
    """The factor between LM head and softmax, which each architecture calls by another name."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    if getattr(config, "logits_scaling", None) is not None:  # Granite divides by it, HyperCLOVA X multiplies
        return config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    return 1.0


def token_kl(
    head: Head, hidden_states: torch.Tensor, ref_head: Head, ref_hidden_states: torch.Tensor, in_chunks: bool = False
) -> torch.Tensor:
    """
    KL(reference ‖ model) of next-token distributions, without either model's full logits.

    Args:
        head ([`Head`]):
            LM head of the model.
        hidden_states (`torch.Tensor`):
            Hidden states of the model, of shape `(tokens, hidden size)`.
        ref_head ([`Head`]):
            LM head of the reference; no gradient flows to it.
        ref_hidden_states (`torch.Tensor`):
            Hidden states of the reference, of shape `(tokens, hidden size of the reference)`.
        in_chunks (`bool`, *optional*, defaults to `False`):
            What [`scores_in_chunks`] says.

    Returns:
        `torch.Tensor`: KL divergences in nats, of shape `(tokens,)`, in fp32 or more.
    """
    if in_chunks:
        return chunked_kl(head, hidden_states, ref_head, ref_hidden_states)
    kl, _ = ChunkedDivergenceFunction.apply(
        hidden_states,
        head.weight,
        head.bias,
        ref_hidden_states,
        ref_head.weight,
        ref_head.bias,
        0.0,  # forward KL
        1.0,  # temperature
        head.scale,
        head.softcap,
        ref_head.scale,
        ref_head.softcap,
    )
    return kl
