"""The embedded world: unlearning end to end on two CPU cores. Its generator needs no torch, so that it starts fast."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .generate import generate_world, save_world
from .grammar import is_well_formed, leaks


__all__ = ["build_model", "generate_world", "is_well_formed", "leaks", "save_world", "train_tokenizer"]

if TYPE_CHECKING:
    from .model import build_model, train_tokenizer


def __getattr__(name: str) -> Any:
    if name not in ("build_model", "train_tokenizer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".model", __name__), name)
