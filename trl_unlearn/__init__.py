"""Trainers that make a language model forget. Names are imported on first use, so that `import trl_unlearn` is fast."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0.dev0"

_MODULES = {
    "AltPOConfig": "trainer.altpo_config",
    "AltPOTrainer": "trainer.altpo_trainer",
    "NPOConfig": "trainer.npo_config",
    "NPOTrainer": "trainer.npo_trainer",
    "SimNPOConfig": "trainer.simnpo_config",
    "SimNPOTrainer": "trainer.simnpo_trainer",
    "UnlearningConfig": "trainer.unlearning_config",
    "UnlearningTrainer": "trainer.unlearning_trainer",
    "UnlearningEvalCallback": "evaluation.callback",
    "MissingAlternatesError": "alternates.generate",
    "altpo_loss": "losses",
    "estimate": "estimation.estimate",
    "evaluate_unlearning": "evaluation.evaluate",
    "generate_alternates": "alternates.generate",
    "idk_alternates": "alternates.idk",
    "join_alternates": "data.joining",
    "PushError": "hub.push",
    "load_ledger": "ledger.adapters",
    "load_unlearned": "hub.load",
    "metric_path": "metrics.paths",
    "npo_loss": "losses",
    "push_folder": "hub.push",
    "simnpo_loss": "losses",
}

__all__ = ["__version__", *_MODULES]

if TYPE_CHECKING:
    from .alternates.generate import MissingAlternatesError, generate_alternates
    from .alternates.idk import idk_alternates
    from .data.joining import join_alternates
    from .estimation.estimate import estimate
    from .evaluation.callback import UnlearningEvalCallback
    from .evaluation.evaluate import evaluate_unlearning
    from .hub.load import load_unlearned
    from .hub.push import PushError, push_folder
    from .ledger.adapters import load_ledger
    from .losses import altpo_loss, npo_loss, simnpo_loss
    from .metrics.paths import metric_path
    from .trainer.altpo_config import AltPOConfig
    from .trainer.altpo_trainer import AltPOTrainer
    from .trainer.npo_config import NPOConfig
    from .trainer.npo_trainer import NPOTrainer
    from .trainer.simnpo_config import SimNPOConfig
    from .trainer.simnpo_trainer import SimNPOTrainer
    from .trainer.unlearning_config import UnlearningConfig
    from .trainer.unlearning_trainer import UnlearningTrainer


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
