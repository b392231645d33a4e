"""Which retain row comes with which forget row, when, and on which process; and how they lie in a batch."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerControl, TrainerState
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_unlearn.data.collator import UnlearningCollator
from trl_unlearn.data.pairing import PairSampler, PairSamplerCallback, UnlearningRows


AUTHORS = json.loads((Path(__file__).parents[1] / "fixtures" / "authors_losses.json").read_text())["fixed_pairing"]
SIZES = [(6, 4), (6, 6), (6, 17), (5, 100), (7, 1), (1, 3), (40, 3960)]


def epoch(num_forget, num_retain, seed=0, number=0, pairing="fresh"):
    sampler = PairSampler(num_forget, num_retain, seed, pairing)
    sampler.epoch = number
    return list(sampler)


# ---------------------------------------------------------------- the stream of pairs


@pytest.mark.parametrize("pairing", ["fresh", "fixed"])
@pytest.mark.parametrize("num_forget, num_retain", [*SIZES, (6, 0)])
def test_an_epoch_is_one_pass_over_the_forget_set(num_forget, num_retain, pairing):
    for number in range(3):
        pairs = epoch(num_forget, num_retain, number=number, pairing=pairing)
        assert len(pairs) == len(PairSampler(num_forget, num_retain, 0, pairing)) == num_forget
        assert sorted(forget for forget, _ in pairs) == list(range(num_forget))
        for forget, retain in pairs:
            assert type(forget) is int
            assert retain is None if num_retain == 0 else type(retain) is int and 0 <= retain < num_retain


@pytest.mark.parametrize("num_forget, num_retain", SIZES)
def test_retain_rows_are_used_up_before_any_comes_again(num_forget, num_retain):
    """Across epochs: every block of the stream that is as long as the retain set is a permutation of it."""
    num_epochs = 2 + 3 * num_retain // num_forget
    stream = [retain for number in range(num_epochs) for _, retain in epoch(num_forget, num_retain, number=number)]
    blocks = [stream[start : start + num_retain] for start in range(0, len(stream), num_retain)]
    assert len(blocks) > 3
    for block in blocks[:-1]:
        assert sorted(block) == list(range(num_retain))
    assert len(set(blocks[-1])) == len(blocks[-1])
    if num_retain > 5:
        assert all(one != two for one, two in pairwise(blocks[:-1]))  # shuffled again each time


@pytest.mark.parametrize("pairing", ["fresh", "fixed"])
@pytest.mark.parametrize("num_forget, num_retain", [(6, 4), (6, 17), (40, 3960)])
def test_the_order_depends_on_seed_and_epoch_alone(num_forget, num_retain, pairing):
    sampler = PairSampler(num_forget, num_retain, seed=3, pairing=pairing)
    epochs = []
    for number in range(4):
        sampler.epoch = number
        np.random.seed(number)  # the global states play no part
        torch.manual_seed(number)
        epochs.append(list(sampler))
        assert list(sampler) == epochs[-1]
    for number in reversed(range(4)):  # any epoch, in any order, by an object that saw no other
        assert epoch(num_forget, num_retain, 3, number, pairing) == epochs[number]
    assert len({tuple(pairs) for pairs in epochs}) == 4
    assert epoch(num_forget, num_retain, 4, 0, pairing) != epochs[0]


def test_forget_and_retain_rows_are_shuffled_apart():
    """A permutation of both by the same random numbers would pair equal positions in every epoch."""
    for number in range(3):
        pairs = epoch(100, 100, number=number)
        assert sum(forget == retain for forget, retain in pairs) < 10


def test_the_global_random_states_are_left_alone():
    state, torch_state = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    epoch(20, 30)
    epoch(20, 30, pairing="fixed")
    assert np.random.get_state()[1].tolist() == state
    assert torch.get_rng_state().tolist() == torch_state


@pytest.mark.parametrize("split", AUTHORS)
def test_the_fixed_pairing_is_the_authors(split):
    expected = AUTHORS[split]
    partners = dict(epoch(expected["n_forget"], expected["n_retain"], pairing="fixed"))
    assert [partners[index] for index in range(10)] == expected["first10"]
    assert len(set(partners.values())) == expected["distinct_retain"]


def test_the_fixed_pairing_stays_whatever_the_seed():
    pairs = [epoch(50, 30, seed, number, "fixed") for seed in range(2) for number in range(2)]
    assert all(dict(one) == dict(pairs[0]) for one in pairs)
    assert len({tuple(one) for one in pairs}) == 4  # the order of the forget rows does change


@pytest.mark.parametrize("state_epoch, number", [(0, 0), (1.0, 1), (2.875, 2), (7.0000001, 7)])
def test_the_callback_sets_the_epoch_also_in_the_middle_of_one(state_epoch, number):
    sampler = PairSampler(6, 17, seed=0)
    PairSamplerCallback(sampler).on_epoch_begin(None, TrainerState(epoch=state_epoch), TrainerControl())
    assert list(sampler) == epoch(6, 17, number=number)


# ---------------------------------------------------------------- data loaders and processes


def rows(num, first=0):
    """Tokenized rows whose first token says which row they are."""
    ids = [[first + i] + [9] * (i % 3 + 1) for i in range(num)]
    return Dataset.from_dict({"input_ids": ids, "labels": [[-100, *row[1:]] for row in ids]})


def collator(**options):
    return UnlearningCollator(DataCollatorForLanguageModeling(pad_token_id=0, **options))


def pairs_of(batch):
    """The pairs in a batch, read back from its tokens."""
    num_forget, _, num_retain = batch["num_rows"]
    first = batch["input_ids"][:, 0].tolist()
    return list(zip(first[:num_forget], [token - 1000 for token in first[-num_retain:]], strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_prepared_data_loader_gives_the_stream(num_workers):
    data, sampler = UnlearningRows(rows(10), rows(7, first=1000)), PairSampler(10, 7, seed=5)
    loader = DataLoader(data, 4, sampler=sampler, collate_fn=collator(), num_workers=num_workers)
    loader = Accelerator().prepare(loader)
    for number in range(3):
        sampler.epoch = number
        assert [pair for batch in loader for pair in pairs_of(batch)] == epoch(10, 7, 5, number)


@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("num_forget, batch_size", [(16, 2), (24, 3), (10, 2), (7, 2)])
def test_the_shards_of_the_processes_make_up_the_stream(num_forget, batch_size, num_processes):
    """Each process has a sampler of its own. A last round that is not full is filled up from the beginning."""
    data = UnlearningRows(rows(num_forget), rows(5, first=1000))
    for number in range(2):
        shards = []
        for index in range(num_processes):
            sampler = PairSampler(num_forget, 5, seed=1)
            sampler.epoch = number
            batches = BatchSampler(sampler, batch_size, drop_last=False)
            shard = BatchSamplerShard(batches, num_processes, index)
            shards.append([pairs_of(b) for b in DataLoader(data, batch_sampler=shard, collate_fn=collator())])
        united = [pair for one_round in zip(*shards, strict=True) for batch in one_round for pair in batch]
        stream = epoch(num_forget, 5, 1, number)
        assert united[:num_forget] == stream
        assert len(united) % (num_processes * batch_size) == 0
        assert len(united) - num_forget < num_processes * batch_size
        assert set(united[num_forget:]) <= set(stream)


def test_the_sizes_of_batches_and_processes_do_not_change_the_stream():
    streams = []
    for batch_size, num_processes in ((1, 1), (8, 1), (4, 2), (2, 4)):
        shards = []
        for index in range(num_processes):
            batches = BatchSampler(PairSampler(16, 5, seed=1), batch_size, drop_last=False)
            shards.append(list(BatchSamplerShard(batches, num_processes, index)))
        streams.append([pair for one_round in zip(*shards, strict=True) for batch in one_round for pair in batch])
    assert all(stream == streams[0] for stream in streams)


# ---------------------------------------------------------------- rows


def test_a_pair_of_indices_takes_a_forget_and_a_retain_row():
    data = UnlearningRows(rows(4), rows(9, first=1000))
    assert len(data) == 4
    row = data[(2, 7)]
    assert list(row) == ["forget", "retain"]
    assert row["forget"]["input_ids"][0] == 2 and row["retain"]["input_ids"][0] == 1007


def test_an_alternate_brings_the_forget_row_it_belongs_to():
    owners = np.array([0, 0, 1, 3, 3])
    data = UnlearningRows(rows(4), rows(9, first=1000), rows(5, first=500), owners)
    assert len(data) == 5  # one element for each alternate; question 2 has none
    for index, owner in enumerate(owners):
        row = data[(index, 8)]
        assert set(row) == {"forget", "alternate", "retain"}
        assert row["alternate"]["input_ids"][0] == 500 + index
        assert row["forget"]["input_ids"][0] == owner
        assert row["retain"]["input_ids"][0] == 1008


@pytest.mark.parametrize(
    "parts, roles",
    [
        ({"forget": rows(3)}, {"forget": 1}),
        ({"retain": rows(3, first=1000)}, {"retain": 1001}),
        (
            {"forget": rows(2), "alternate": rows(3, 500), "owners": np.array([0, 0, 1])},
            {"forget": 0, "alternate": 501},
        ),
    ],
    ids=["forget", "retain", "alternates"],
)
def test_a_plain_index_takes_that_row_of_the_parts_there_are(parts, roles):
    data = UnlearningRows(**parts)
    assert len(data) == 3
    assert {role: row["input_ids"][0] for role, row in data[1].items()} == roles


def test_without_a_retain_set_the_sampler_pairs_with_nothing():
    data = UnlearningRows(rows(3))
    assert [list(data[pair]) for pair in PairSampler(3, 0, seed=0)] == [["forget"]] * 3


# ---------------------------------------------------------------- batches


@pytest.fixture
def examples():
    owners = np.array([0, 0, 1, 2])
    data = UnlearningRows(rows(3), rows(5, first=1000), rows(4, first=500), owners)
    return [data[(1, 4)], data[(3, 0)], data[(2, 2)]]


def test_rows_lie_role_by_role_in_a_batch(examples):
    batch = collator()(examples)
    assert batch["num_rows"] == (3, 3, 3)
    assert batch["input_ids"][:, 0].tolist() == [0, 2, 1, 501, 503, 502, 1004, 1000, 1002]
    assert "ref_logps" not in batch


def test_batches_are_padded_to_their_longest_row(examples):
    batch = collator()(examples)
    lengths = [len(example[role]["input_ids"]) for role in ("forget", "alternate", "retain") for example in examples]
    assert len(set(lengths)) > 1
    assert batch["input_ids"].shape == batch["labels"].shape == (9, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for ids, labels, length in zip(batch["input_ids"], batch["labels"], lengths, strict=True):
        assert ids[length:].tolist() == [0] * (max(lengths) - length)
        assert labels[0] == -100 and labels[length:].tolist() == [-100] * (max(lengths) - length)
        assert labels[1:length].tolist() == ids[1:length].tolist()
    assert collator(pad_to_multiple_of=8)(examples)["input_ids"].shape == (9, 8)


@pytest.mark.parametrize("role", ["forget", "retain"])
def test_batches_of_one_role(role):
    batch = collator()([UnlearningRows(**{role: rows(4)})[index] for index in (3, 0)])
    assert batch["num_rows"] == ((2, 0, 0) if role == "forget" else (0, 0, 2))
    assert batch["input_ids"][:, 0].tolist() == [3, 0]


def test_precomputed_reference_scores_come_with_their_rows():
    forget = rows(3).add_column("ref_logps", [-1.5, -2.5, -3.5])
    alternate = rows(4, first=500).add_column("ref_logps", [-10.0, -11.0, -12.0, -13.0])
    data = UnlearningRows(forget, rows(5, first=1000), alternate, np.array([0, 0, 1, 2]))
    batch = collator()([data[(3, 1)], data[(1, 0)]])
    assert batch["ref_logps"].tolist() == [-3.5, -1.5, -13.0, -11.0]  # in the order of the rows, none for retain rows
    assert batch["ref_logps"].dtype == torch.float32
    assert batch["num_rows"] == (2, 2, 2)


def test_rows_without_padding_follow_each_other(examples):
    batch = collator(padding_free=True)(examples)
    flat = [example[role] for role in ("forget", "alternate", "retain") for example in examples]
    assert batch["num_rows"] == (3, 3, 3)
    assert "attention_mask" not in batch
    assert batch["input_ids"].tolist() == [[token for row in flat for token in row["input_ids"]]]
    assert batch["labels"].tolist() == [[label for row in flat for label in row["labels"]]]
    assert batch["seq_idx"].tolist() == [[index for index, row in enumerate(flat) for _ in row["input_ids"]]]
    assert batch["position_ids"].tolist() == [[place for row in flat for place in range(len(row["input_ids"]))]]


def test_a_collator_of_ones_own_sees_ids_and_labels_only(examples):
    seen = []

    def collate(rows):
        seen.extend(rows)
        return {"input_ids": torch.zeros(len(rows), 1), "mine": "kept"}

    examples[0]["forget"]["ref_logps"] = -1.0
    batch = UnlearningCollator(collate)(examples)
    assert len(seen) == 9 and all(set(row) == {"input_ids", "labels"} for row in seen)
    assert batch["mine"] == "kept" and batch["num_rows"] == (3, 3, 3)


@pytest.mark.parametrize("num_retain", [0, 300])
def test_buckets_change_the_order_of_the_pairs_and_nothing_else(num_retain):
    rng = np.random.default_rng(0)
    lengths = {"forget": rng.integers(5, 200, 403)}
    if num_retain:
        lengths["retain"] = rng.integers(5, 200, num_retain)

    def padded(pairs):
        longest = [max(of_role[pair[i]] for i, of_role in enumerate(lengths.values())) for pair in pairs]
        return sum(4 * max(longest[start : start + 4]) for start in range(0, len(pairs) - 3, 4))

    epochs = []
    for number in range(2):
        plain, bucketed = (
            PairSampler(403, num_retain, 1),
            PairSampler(403, num_retain, 1, lengths=lengths, bucket_size=4),
        )
        plain.epoch = bucketed.epoch = number
        epochs.append((list(plain), list(bucketed)))
        assert sorted(epochs[-1][0]) == sorted(epochs[-1][1]) and list(bucketed) == epochs[-1][1]
        assert padded(epochs[-1][1]) < 0.8 * padded(epochs[-1][0])
    batches = [{frozenset(pairs[start : start + 4]) for start in range(0, 400, 4)} for _, pairs in epochs]
    assert len(batches[0] & batches[1]) < 5  # other rows together in each epoch
    firsts = [max(lengths["forget"][pair[0]] for pair in pairs[:4]) for _, pairs in epochs]
    assert firsts[0] != firsts[1]  # and batches in another order


@pytest.mark.parametrize(("num_forget", "batch_size", "processes"), [(11, 8, 2), (2, 8, 4), (16, 8, 2), (17, 12, 3)])
def test_a_filled_up_batch_has_the_mean_of_its_real_pairs(num_forget, batch_size, processes):
    """Each pair comes once, and the processes' sums of shares, averaged, weigh the real pairs alike."""
    pairs = list(PairSampler(num_forget, 5, seed=1))
    sampler = PairSampler(num_forget, 5, 1, "fresh", batch_size, processes)
    filled = list(sampler)
    assert len(filled) == len(sampler) and len(filled) % batch_size == 0
    assert [pair[:2] for pair in filled[:num_forget]] == pairs
    assert all(pair[2] == 0 for pair in filled[num_forget:])
    last = filled[-batch_size:] if num_forget % batch_size else []
    assert all(len(pair) == 2 for pair in filled[: len(filled) - len(last)])
    real = [pair[2] for pair in last if pair[2] > 0]
    assert len(real) == num_forget % batch_size
    assert all(share == processes / len(real) for share in real)
