"""The micro-batches of a run in the trainer's order: how large they are, and the rows of each."""

from math import ceil
from typing import Any

import numpy as np
import torch

from ..data.pairing import PairSampler
from ..trainer.unlearning_trainer import UnlearningTrainer


Pairs = list[tuple[int, int | None]]


def batch_of(trainer: UnlearningTrainer, pairs: Pairs) -> dict[str, Any]:
    """The batch that the trainer would make of these rows."""
    batch = trainer.data_collator([trainer.train_dataset[pair] for pair in pairs])
    if trainer._precomputes:
        batch["ref_logps"] = torch.zeros(sum(batch["num_rows"][:2]))
    if trainer.args.cache_ref_hidden_states:
        positions, _ = trainer._retain_positions(batch, sum(batch["num_rows"][:2]))
        config = trainer.model.config.get_text_config()
        batch["ref_hidden_states"] = torch.zeros(int(positions.sum()), config.hidden_size, dtype=trainer.model.dtype)
    return batch


class MicroBatches:
    """
    All micro-batches of a run, in the trainer's order: which are the largest, and how large they are on average.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer with its rows.
        batch_size (`int`):
            Pairs a micro-batch.
    """

    def __init__(self, trainer: UnlearningTrainer, batch_size: int):
        args, rows = trainer.args, trainer.train_dataset
        lengths = rows.lengths()
        sampler = PairSampler(
            len(rows),
            len(rows.retain or ()),
            args.data_seed if args.data_seed is not None else args.seed,
            args.pairing,
            lengths=lengths if args.bucket_by_length else None,
            bucket_size=batch_size,
        )
        self.pairs: list[Pairs] = []
        for sampler.epoch in range(max(ceil(args.num_train_epochs), 1)):
            epoch = list(sampler)
            epoch *= ceil(batch_size / len(epoch))  # one stand-in row, or fewer than a batch
            self.pairs += [epoch[start : start + batch_size] for start in range(0, len(epoch), batch_size)]
        self.rows_per_batch = batch_size * len(lengths)
        self.tokens = np.array([self._tokens(lengths, pairs, args.padding_free) for pairs in self.pairs])

    @staticmethod
    def _tokens(lengths: dict[str, np.ndarray], pairs: Pairs, padding_free: bool) -> int:
        forget, retain = zip(*pairs, strict=True)
        indices = {"forget": forget, "alternate": forget, "retain": retain}
        rows = np.concatenate([of_role[list(indices[role])] for role, of_role in lengths.items()])
        return int(rows.sum() if padding_free else rows.max() * len(rows))

    def nearest(self, tokens: float) -> Pairs:
        """The micro-batch whose padded size is nearest to `tokens`."""
        return self.pairs[int(np.abs(self.tokens - tokens).argmin())]
