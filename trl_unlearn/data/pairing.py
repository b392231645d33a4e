"""Which retain row goes with which forget row: a pure function of seed and epoch, whoever asks and whenever."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load
from torch.utils.data import Sampler
from transformers import TrainerCallback

from .collator import ROLES


# Batches that are sorted by length together
_BUCKETS = 50


class StoredRows:
    """
    Tensors of some rows of a data set, read from a file when they are asked for.

    Args:
        dataset ([`~datasets.Dataset`]):
            One column of bytes, each a tensor in the format of safetensors.
        places (`np.ndarray`):
            For each row of the data set that they belong to, where in `dataset` it stands; -1 where it does not.
    """

    def __init__(self, dataset: Dataset, places: np.ndarray):
        self.dataset = dataset
        self.places = places

    def __getitem__(self, index: int) -> torch.Tensor:
        place = int(self.places[index])
        if place < 0:
            raise ValueError(
                f"Of retain row {index} no hidden states of the reference were computed: when the trainer was made, the run was "
                "shorter. Set `num_train_epochs` or `max_steps` before, and not on the trainer."
            )
        (values,) = self.dataset[place].values()
        (tensor,) = load(values).values()
        return tensor


class UnlearningRows(torch.utils.data.Dataset):
    """
    Forget, alternate and retain rows under one index.

    An index is a pair `(forget position, retain position)`, or a triple with the pair's share, as [`PairSampler`] yields
    them; a plain integer stands for the same position in all parts that are present (evaluation sets have one part, or
    forget and alternate rows). Rows stay in their memory-mapped data sets.

    Args:
        forget ([`~datasets.Dataset`], *optional*):
            Tokenized forget rows.
        retain ([`~datasets.Dataset`], *optional*):
            Tokenized retain rows.
        alternate ([`~datasets.Dataset`], *optional*):
            Tokenized alternate rows. The set then has one element per alternate.
        owners (`np.ndarray` of shape `(len(alternate),)`, *optional*):
            Index of the forget row that each alternate belongs to.
    """

    def __init__(
        self,
        forget: Dataset | None = None,
        retain: Dataset | None = None,
        alternate: Dataset | None = None,
        owners: np.ndarray | None = None,
    ):
        self.forget = forget
        self.retain = retain
        self.alternate = alternate
        self.owners = owners
        self.ref_hidden_states: StoredRows | None = None  # of the retain rows, where they are cached

    def __len__(self) -> int:
        return len(next(part for part in (self.alternate, self.forget, self.retain) if part is not None))

    def lengths(self) -> dict[str, np.ndarray]:
        """Tokens of each row, by role and position in a pair: an AltPO pair is an alternate, with its forget row."""
        lengths = {
            role: np.array([len(ids) for ids in rows["input_ids"]])
            for role in ROLES
            if (rows := getattr(self, role)) is not None
        }
        if self.owners is not None:
            lengths["forget"] = lengths["forget"][self.owners]
        return lengths

    def __getitem__(self, index: int | tuple[int, int | None] | tuple[int, int | None, float]) -> dict[str, Any]:
        forget_index, retain_index, *share = index if isinstance(index, tuple) else (index, index)
        row: dict[str, Any] = {"share": share[0]} if share else {}
        if self.alternate is not None:
            row["alternate"] = self.alternate[forget_index]
            forget_index = int(self.owners[forget_index])
        if self.forget is not None:
            row["forget"] = self.forget[forget_index]
        if self.retain is not None:
            row["retain"] = self.retain[retain_index]
            if self.ref_hidden_states is not None:
                row["retain"]["ref_hidden_states"] = self.ref_hidden_states[retain_index]
        return row


class PairSampler(Sampler[tuple]):
    """
    One epoch of `(forget position, retain position)` pairs.

    Every forget position comes once an epoch, shuffled. With `"fresh"` pairing, retain rows are walked through without
    replacement *across* epochs: the retain set is shuffled, used up, and shuffled again. With `"fixed"` pairing each
    forget position keeps one retain row for the whole run, as in the NPO and SimNPO authors' code.

    The order depends on `seed` and `epoch` alone, so that it is the same on all processes and after a resume. There is
    deliberately no `set_epoch`: accelerate calls it on some samplers and versions and not on others.
    [`PairSamplerCallback`] sets `epoch`.

    On several processes, accelerate would fill up the last batch of an epoch with rows of its beginning, which would then
    be forgotten twice. So it is filled up here, and its pairs are triples with a share, the weight of the pair in the sum
    over its process: the number of processes divided by that of real pairs, or 0 for those that fill up. The mean over the
    processes is then that over the real pairs.

    Args:
        num_forget (`int`):
            Number of forget positions.
        num_retain (`int`):
            Number of retain rows; 0 without a retain set.
        seed (`int`):
            Seed.
        pairing (`str`, *optional*, defaults to `"fresh"`):
            `"fresh"` or `"fixed"`.
        batch_size (`int`, *optional*, defaults to `1`):
            Pairs of a batch on all processes together, if the last batch is to be filled up.
        num_processes (`int`, *optional*, defaults to `1`):
            Number of processes.
        lengths (`dict[str, np.ndarray]`, *optional*):
            What [`UnlearningRows.lengths`] gives, if pairs of about the same length are to be in one batch.
        bucket_size (`int`, *optional*, defaults to `1`):
            Pairs of such a batch, on all processes together.
    """

    def __init__(
        self,
        num_forget: int,
        num_retain: int,
        seed: int,
        pairing: str = "fresh",
        batch_size: int = 1,
        num_processes: int = 1,
        lengths: dict[str, np.ndarray] | None = None,
        bucket_size: int = 1,
    ):
        self.num_forget = num_forget
        self.num_retain = num_retain
        self.seed = seed
        self.pairing = pairing
        self.num_last = num_forget % batch_size
        self.num_missing = -num_forget % batch_size
        self.num_processes = num_processes
        self.lengths = lengths
        self.bucket_size = bucket_size
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_forget + self.num_missing

    def __iter__(self) -> Iterator[tuple]:
        forget = np.random.default_rng([self.seed, 0, self.epoch]).permutation(self.num_forget)
        if self.num_retain == 0:
            retain: list[int | None] = [None] * self.num_forget
        elif self.pairing == "fixed":
            retain = [_fixed_partner(int(index), self.num_retain) for index in forget]
        else:
            start = self.epoch * self.num_forget
            rounds, offsets = np.divmod(np.arange(start, start + self.num_forget), self.num_retain)
            walks = {
                walk: np.random.default_rng([self.seed, 1, walk]).permutation(self.num_retain)
                for walk in np.unique(rounds)
            }
            retain = [int(walks[walk][offset]) for walk, offset in zip(rounds, offsets, strict=True)]
        pairs = list(zip(forget.tolist(), retain, strict=True))
        if self.lengths is not None:
            pairs = self._in_buckets(pairs)
        if self.num_missing == 0:
            return iter(pairs)
        first_last = self.num_forget - self.num_last
        last = [(*pair, self.num_processes / self.num_last) for pair in pairs[first_last:]]
        return iter([*pairs[:first_last], *last, *[(*pairs[0], 0.0)] * self.num_missing])

    def _in_buckets(self, pairs: list[tuple]) -> list[tuple]:
        """
        The same pairs, in batches of about the same length, in random order; an incomplete batch stays the last.

        A pair is as long as its longest row, since they are padded alike. Only some tens of batches are sorted together, so
        that those of a large forget set are not always the same.
        """
        positions = {"forget": [forget for forget, _ in pairs], "retain": [retain for _, retain in pairs]}
        positions["alternate"] = positions["forget"]
        longest = np.max([lengths[positions[role]] for role, lengths in self.lengths.items()], axis=0)
        size = self.bucket_size
        order = [
            index
            for start in range(0, len(pairs), _BUCKETS * size)
            for index in start + np.argsort(-longest[start : start + _BUCKETS * size], kind="stable")
        ]
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        num_whole = len(order) // size
        shuffled = np.random.default_rng([self.seed, 2, self.epoch]).permutation(num_whole)
        batches[:num_whole] = [batches[index] for index in shuffled]
        return [pairs[index] for batch in batches for index in batch]


def _fixed_partner(forget_index: int, num_retain: int) -> int:
    """The retain row of a forget row in the authors' code, `TOFU/data_module.py` of the NPO repository."""
    generator = torch.Generator().manual_seed(forget_index)
    return (forget_index + int(torch.randint(0, num_retain, (1,), generator=generator))) % num_retain


class PairSamplerCallback(TrainerCallback):
    """Tells the sampler which epoch begins, in a fresh run and in one resumed in the middle of an epoch alike."""

    def __init__(self, sampler: PairSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.epoch = int(state.epoch)
