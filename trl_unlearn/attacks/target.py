"""Which models are attacked, and what is asked of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.benchmarks import evaluate_as_asked, evaluate_sets, load_sets
from ..evaluation.prompting import Prompting
from .arguments import AttackArguments


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass
class Subject:
    """
    A model that is attacked.

    Args:
        name (`str`):
            `"before"` unlearning, `"after"` it, or `"retained"`.
        load (`Callable`):
            Loads it and its tokenizer anew.
        result (`dict`):
            Its evaluation as it is.
    """

    name: str
    load: Callable[[], Loaded]
    result: dict[str, Any]


@dataclass
class Target:
    """
    What is asked of an attacked model.

    Args:
        arguments ([`AttackArguments`]):
            How to evaluate and attack.
        split (`str` or `None`):
            Split of the benchmark.
        retained (`dict` or `None`):
            The retained model's evaluation.
        cache_dir (`Path` or `None`):
            Folder for finished rows.
    """

    arguments: AttackArguments
    split: str | None
    retained: dict[str, Any] | None
    cache_dir: Path | None

    def __post_init__(self):
        self.has_rows = self.arguments.eval_benchmark in ("tofu", "world", "custom")
        self.sets = load_sets(self.arguments, self.split)[0] if self.has_rows else {}

    def evaluate(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        model_name: str | None = None,
        keep_rows: bool = True,
    ) -> dict[str, Any]:
        """Everything, as without attacks. To keep the rows of weights that nobody will see again is of no use."""
        arguments = replace(self.arguments, retain_model=None, retain_logs=None)
        return evaluate_as_asked(
            model,
            processing_class,
            arguments,
            self.split,
            model_name=model_name,
            retained=self.retained,
            cache_dir=self.cache_dir if keep_rows else None,
        )

    def evaluate_forget(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        forget: Dataset,
        keep_rows: bool = True,
    ) -> dict[str, Any]:
        """The metrics of some forget rows alone."""
        cache_dir = self.cache_dir if keep_rows else None
        return evaluate_sets(model, processing_class, self.arguments, {"forget": forget}, cache_dir=cache_dir)

    def prompting(self, processing_class: PreTrainedTokenizerBase) -> Prompting:
        """How rows become tokens."""
        if not self.has_rows:
            return Prompting(processing_class, compat=self.arguments.eval_compat)
        return Prompting(
            processing_class,
            self.arguments.eval_question_answer_template,
            self.arguments.eval_system_prompt,
            self.arguments.eval_chat_template_kwargs,
            self.arguments.eval_compat,
        )


def identity(result: dict[str, Any]) -> dict[str, Any]:
    """What the numbers of an evaluation depend on."""
    rows = {name: [source.get("n"), source.get("sha256")] for name, source in result.get("data", {}).items()}
    keys = ("benchmark", "split", "conventions", "prompt", "generation")
    return {
        "model": result.get("model", {}).get("sha256"),
        "rows": rows,
        **{key: result.get(key) for key in keys},
    }
