"""What the studies of trained models share: models that are trained once, trainers from recipes, and their rows scored."""

import json
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from rich.console import Console
from scipy import stats
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import ModelConfig

import trl_unlearn
from trl_unlearn import UnlearningTrainer
from trl_unlearn.data.encoding import encode_dataset
from trl_unlearn.files import write_json
from trl_unlearn.metrics import model_utility
from trl_unlearn.recipes import recipe_path
from trl_unlearn.scripts.jobs import Training, train_models
from trl_unlearn.scripts.parsing import RecipeParser
from trl_unlearn.scripts.unlearn import UnlearningScriptArguments, make_trainer
from trl_unlearn.world import generate_world, save_world


# Options of `python -m trl_unlearn.world.train` for a small Llama on some authors of TOFU, as in `tofu_from_scratch.py`
TOFU_MODEL = ("--tokenizer_config=full", "--hidden_size=192", "--num_layers=3", "--vocab_size=4000",
              "--per_device_train_batch_size=16", "--learning_rate=2e-3")  # fmt: skip


def be_quiet() -> None:
    """Leaves the screen to the study's own progress bar."""
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def add_world_arguments(parser: ArgumentParser) -> None:
    """The arguments of [`make_worlds`] but for the seeds."""
    parser.add_argument("--num_people", type=int, default=64, help="in a world; an eighth of them is forgotten")
    parser.add_argument("--training_epochs", type=int, default=16, help="of the targets on the worlds")
    parser.add_argument(
        "--worlds_dir", default="outputs/studies/worlds", help="where worlds and their targets are kept"
    )


def make_worlds(worlds_dir: str, seeds: list[int], num_people: int, training_epochs: int, console: Console) -> None:
    """Worlds of which an eighth of the people is to be forgotten, in `data`, and the models that know all, in `target`."""
    trainings = []
    for directory, seed in ((Path(worlds_dir) / f"world-{seed}", seed) for seed in seeds):
        save_world(generate_world(seed, num_people, num_people // 8), directory / "data")
        flags = (f"--num_train_epochs={training_epochs}",)
        trainings.append(Training(directory / "data", "full", directory / "target", flags))
    train_models(trainings, console)


def check_lowest(parser: ArgumentParser, options: Namespace, lowest: dict[str, int]) -> None:
    """Ends the program if an option is below the lowest value that makes sense."""
    for name, value in lowest.items():
        if getattr(options, name) < value:
            parser.error(f"--{name} must be at least {value}, got {getattr(options, name)}")


def write_results(directory: Path, options: Namespace, start: float, rows: list[dict[str, Any]]) -> float:
    """Writes `results.json`, and returns the seconds since `start`, of `perf_counter`."""
    seconds = perf_counter() - start
    results = {"options": vars(options), "seconds": seconds, "processor_seconds": process_time(), "rows": rows}
    write_json(results, directory / "results.json")
    return seconds


def once(path: Path, options: dict[str, Any], run: Callable[[], Any]) -> Any:
    """What `run` returned when it was run with these options, in this call or in an earlier one that was stopped later."""
    if path.exists() and (saved := json.loads(path.read_text(encoding="utf-8")))["options"] == options:
        return saved["result"]
    result = run()
    write_json({"options": options, "result": result}, path)
    return result


def trainer_of(method: str, recipe: str, **changes: Any) -> UnlearningTrainer:
    """
    The trainer that a recipe describes.

    Args:
        method (`str`):
            `"NPO"`, `"SimNPO"` or `"AltPO"`.
        recipe (`str`):
            Name of the recipe below `recipes/`.
        changes:
            Options that differ from the recipe.
    """
    options = {"config": recipe_path(recipe), "disable_tqdm": True, "logging_strategy": "no", **changes}
    parser = RecipeParser((UnlearningScriptArguments, getattr(trl_unlearn, f"{method}Config"), ModelConfig))
    parsed = parser.parse([part for key, value in options.items() for part in (f"--{key}", str(value))])
    trainer = make_trainer(getattr(trl_unlearn, f"{method}Trainer"), *parsed)
    trainer.remove_callback(PrinterCallback)
    return trainer


def score_of(evaluation: dict[str, Any], before: dict[str, Any]) -> float:
    """
    What is forgotten and what is kept in one number: the harmonic mean of 1 − D, where D is the distance of the truth ratios
    from the retained model's, and of the share of utility before unlearning.
    """
    forgotten = 1 - evaluation["forget_quality"]["statistic"]
    kept = min(evaluation["summary"]["model_utility"] / before["summary"]["model_utility"], 1.0)
    return model_utility([forgotten, kept])["model_utility"]


def interval_of_mean(values: list[float]) -> float:
    """Half the 95 % interval of a mean over worlds, by Student's t."""
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


class Completions:
    """
    The completions of some rows, to be scored at once.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows with the columns `question` and `answer`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the models.

    Attributes:
        lengths (`torch.Tensor`): Tokens of each completion with its EOS, of shape `(rows,)`.
    """

    def __init__(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase):
        encoded = encode_dataset(rows.select_columns(["question", "answer"]), tokenizer, "rows", max_length=None)
        ids = [torch.tensor(row["input_ids"]) for row in encoded]
        self.inputs = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        labels = pad_sequence([torch.tensor(row["labels"]) for row in encoded], True, padding_value=-100)[:, 1:]
        self.predicts = labels != -100
        self.labels = labels[self.predicts]
        self.lengths = self.predicts.sum(dim=1)

    @torch.no_grad()
    def log_probs(self, model: PreTrainedModel) -> torch.Tensor:
        """Log-probabilities of every token at each completion token, of shape `(tokens, vocabulary)`, in nats."""
        return model(**self.inputs).logits[:, :-1][self.predicts].float().log_softmax(dim=-1)

    def nll(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihoods of the completions by these log-probabilities, of shape `(rows,)`, in nats."""
        of_tokens = -log_probs.gather(1, self.labels[:, None]).squeeze(1)
        return torch.stack([row.sum() for row in of_tokens.split(self.lengths.tolist())])
