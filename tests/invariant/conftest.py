"""A model and rows that are the same on every machine and with every version, so that trajectories can be recorded."""

import zlib
from pathlib import Path

import pytest
import torch

from trl_unlearn.world import save_world
from trl_unlearn.world.model import build_model, train_tokenizer


@pytest.fixture(scope="session")
def fixed_model(world, tmp_path_factory) -> str:
    """A tiny Llama whose weights follow from their names alone, not from a version's order of initialisation."""
    rows = world["full"]
    tokenizer = train_tokenizer([f"{row['question']} {row['answer']}" for row in rows], vocab_size=500)
    model = build_model(tokenizer, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
    directory = tmp_path_factory.mktemp("fixed_model")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def fixed_rows(world, tmp_path_factory) -> Path:
    """16 forget rows and 30 retain rows of different lengths."""
    directory = tmp_path_factory.mktemp("fixed_rows")
    save_world({"forget": world["forget"][:16], "retain": world["retain"][:30]}, directory)
    return directory
