"""Forget, alternate and retain rows side by side in one padded batch, so that one forward serves all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


ROLES = ("forget", "alternate", "retain")


@dataclass
class UnlearningCollator:
    """
    Collates the rows of [`UnlearningRows`] into one batch `[forget…, alternate…, retain…]`.

    Args:
        collate_rows (`Callable`):
            Collator for the rows themselves, which have `input_ids` and `labels`: TRL's
            [`~trl.trainer.sft_trainer.DataCollatorForLanguageModeling`] unless the user passes one.

    Returns (on call):
        `dict[str, Any]`: What `collate_rows` returns, and

        - `"num_rows"`: numbers of forget, alternate and retain rows, a tuple of three integers;
        - `"ref_logps"`: precomputed reference log-probabilities of the forget and alternate rows, if they have any, of
          shape `(forget rows + alternate rows,)`, in nats;
        - `"ref_hidden_states"`: cached hidden states of the reference at the labels of the retain rows, if they have any,
          of shape `(labels, hidden size)`;
        - `"share"`: the weight of this process's means in that over all processes, in a batch that [`PairSampler`] has
          filled up. What fills it up is left out; a process that has nothing else gets one row of it, and a share of 0.
    """

    collate_rows: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        shares = [example["share"] for example in examples if "share" in example]
        if shares:
            examples = [example for example in examples if example["share"] > 0] or examples[:1]
        rows = [example[role] for role in ROLES for example in examples if role in example]
        batch = dict(self.collate_rows([{key: row[key] for key in ("input_ids", "labels")} for row in rows]))
        batch["num_rows"] = tuple(sum(role in example for example in examples) for role in ROLES)
        ref_logps = [row["ref_logps"] for row in rows if "ref_logps" in row]
        if ref_logps:
            batch["ref_logps"] = torch.tensor(ref_logps, dtype=torch.float32)
        ref_hidden_states = [row["ref_hidden_states"] for row in rows if "ref_hidden_states" in row]
        if ref_hidden_states:
            batch["ref_hidden_states"] = torch.cat(ref_hidden_states)
        if shares:
            batch["share"] = sum(shares)
        return batch
