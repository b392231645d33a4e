"""Finished rows are found by what they are of, and a file that a crash has cut loses the cut batch only."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from trl_unlearn.evaluation.store import RowStore, model_digest


SCORED = [((1, 2), (3, 4)), ((1, 2), (5,))]
SCORES = [{"log_probabilities": [-0.1, -2.0000000000000004], "matches": [True, False]}, {"log_probabilities": [-1e-9]}]
CONTINUED = [((7, 8, 9), 4)]
NEW_IDS = [[1, 2, 3, 4]]


@pytest.fixture
def written(tmp_path):
    """A file of two batches."""
    store = RowStore(tmp_path, "model")
    store.add("score", SCORED, SCORES)
    store.add("generate", CONTINUED, NEW_IDS)
    return tmp_path / "rows-0.jsonl"


def found(directory, digest="model"):
    store = RowStore(directory, digest)
    return store.finished("score", SCORED), store.finished("generate", CONTINUED)


EVERYTHING = (dict(zip(SCORED, SCORES, strict=True)), dict(zip(CONTINUED, NEW_IDS, strict=True)))


def test_rows_are_found_again_to_the_bit_by_model_kind_and_tokens(written):
    assert found(written.parent) == EVERYTHING
    assert found(written.parent, "other model") == ({}, {})
    store = RowStore(written.parent, "model")
    assert store.finished("generate", SCORED) == {}
    assert store.finished("score", [((1, 2), (3,)), ((1, 2, 3), (4,)), SCORED[1]]) == {SCORED[1]: SCORES[1]}


def test_a_file_cut_anywhere_loses_no_whole_batch_and_can_be_gone_on_with(written):
    whole = written.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole) + 1):
        written.write_bytes(whole[:size])
        scores, new_ids = found(written.parent)
        # a line lacks nothing but its line break one byte before its end
        assert scores == (EVERYTHING[0] if size >= first - 1 else {})
        assert new_ids == (EVERYTHING[1] if size >= len(whole) - 1 else {})
        store = RowStore(written.parent, "model")
        if not scores:
            store.add("score", SCORED, SCORES)
        if not new_ids:
            store.add("generate", CONTINUED, NEW_IDS)
        assert found(written.parent) == EVERYTHING


GARBAGE = [
    b"\x00\xff\xfe",
    b"null",
    b"[1, 2]",
    b'"text"',
    b"{}",
    b'{"keys": 1, "values": 2}',
    b'{"keys": [[1]], "values": [2]}',
    b'{"keys": ["a", "b"], "values": [1]}',
    b'{"key": "a", "value": 1}',
    b"",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_breaks_nothing(garbage, written):
    whole = written.read_bytes()
    for content in (garbage + b"\n" + whole, whole + garbage + b"\n", whole + garbage):
        written.write_bytes(content)
        (written.parent / "rows-1.jsonl").write_bytes(garbage)
        assert found(written.parent) == EVERYTHING


def test_nothing_is_found_after_overwriting_and_other_files_stay(written):
    (written.parent / "rows-3.jsonl").write_bytes(written.read_bytes())
    (written.parent / "notes.txt").write_text("kept")
    RowStore(written.parent, "model", overwrite=True)
    assert found(written.parent) == ({}, {})
    assert [file.name for file in written.parent.iterdir()] == ["notes.txt"]


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = RowStore()
    store.add("score", SCORED, SCORES)
    assert store.finished("score", SCORED) == {}
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(written):
    store = RowStore(written.parent, "model")
    written.unlink()
    written.mkdir()
    with pytest.raises(OSError, match=r"Finished rows cannot be kept .*start again.*rows-0\.jsonl"):
        store.add("score", SCORED, SCORES)


def test_digest_is_of_the_weights_and_not_of_the_place(model_dir, tmp_path):
    def load(directory, **options):
        return AutoModelForCausalLM.from_pretrained(directory, **options)

    digest = model_digest(load(model_dir))
    assert len(digest) == 64
    load(model_dir).save_pretrained(tmp_path)
    assert model_digest(load(tmp_path)) == digest
    assert model_digest(load(model_dir, dtype=torch.bfloat16)) != digest
    model = load(model_dir)
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-6
    assert model_digest(model) != digest
    model = load(model_dir)
    model.config.rms_norm_eps *= 2
    assert model_digest(model) != digest


def test_digest_is_of_the_adapter_and_how_it_counts(model, lora_config):
    model = get_peft_model(model, lora_config)
    digests = {model_digest(model)}
    with model.disable_adapter():
        digests.add(model_digest(model))
    model.add_adapter("second", lora_config)
    digests.add(model_digest(model))
    model.set_adapter("second")
    digests.add(model_digest(model))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.set_scale("second", 3.0)
    digests.add(model_digest(model))
    assert len(digests) == 5
    assert model_digest(model) in digests
