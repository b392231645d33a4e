"""
The training of a request: on the base with all earlier ones, into a folder of the ledger, which lists it once it is
done.
"""

import json
import random
import secrets
import shutil
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import MISSING, Field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from tqdm import tqdm
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.loading import join_parts
from ..evaluation.arguments import EvaluationArguments
from ..evaluation.benchmarks import evaluate_sets, load_sets, splits_of
from ..files import write_json
from ..hub.load import fold_in
from ..hub.recipe import RECIPE_FILE
from ..trainer.publication import method_of
from .adapters import add_adapters, check_adds_up, load_adapter, load_base
from .base import QUANTIZED, check_base, find_base, identify
from .ledger import Ledger, Request
from .report import requests_table
from .rows import row_hashes, set_digest, without_rows


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import ModelConfig

    from ..scripts.unlearn import UnlearningScriptArguments
    from ..trainer.unlearning_config import UnlearningConfig
    from ..trainer.unlearning_trainer import UnlearningTrainer

# In the folder of a request that is not in the ledger yet: what its training is of
PENDING_FILE = "unlearn_request.json"
# Benchmarks whose forget set can be asked for again, row by row
_MEASURABLE = ("tofu", "world", "custom")
# Options that say where a forget set is, and which of all options name places
_FORGET_OPTIONS = (
    "dataset_name", "forget_config", "forget_split", "forget_mixture", "alternates_dataset_name", "alternates_config",
    "alternates_split", "alternates_column", "min_document_length",
)  # fmt: skip
_PLACES = ("dataset_name", "forget_mixture", "alternates_dataset_name", "eval_dataset", "eval_forget_data")
# Options of an adapter, and what PEFT calls them
_ADAPTER_OPTIONS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


def train_request(
    trainer_class: "type[UnlearningTrainer]",
    script_args: "UnlearningScriptArguments",
    training_args: "UnlearningConfig",
    model_args: "ModelConfig",
) -> None:
    """
    Trains a request as [`~scripts.unlearn.run`] does, and adds it to its ledger.

    Args:
        trainer_class (`type[UnlearningTrainer]`):
            Method.
        script_args ([`UnlearningScriptArguments`]):
            Data and evaluation; `ledger`, `request`, `ledger_mode` and `ledger_rehearsal`.
        training_args ([`UnlearningConfig`]):
            Configuration of the trainer. The ledger decides on `output_dir`.
        model_args ([`~trl.ModelConfig`]):
            Base model and adapter.

    Raises:
        SystemExit: If the request cannot be trained; the message says why.
    """
    from ..scripts.unlearn import run

    changes = PartialState().is_main_process and not script_args.dry_run
    with ExitStack() as stack:
        try:
            if changes:
                stack.enter_context(Ledger.read(script_args.ledger, new=True).locked())
            training = RequestTraining(script_args, training_args, model_args)
        except (OSError, ValueError) as error:
            sys.exit(f"trl-unlearn: {error}")
        run(trainer_class, script_args, training_args, model_args, training)
    if changes:
        Console().print(requests_table(training.ledger))


class RequestTraining:
    """
    A request in training, which the ledger does not list yet.

    Args:
        script_args ([`UnlearningScriptArguments`]):
            As for [`train_request`], as the others.
        training_args ([`UnlearningConfig`]):
            Its `output_dir` is set.
        model_args ([`~trl.ModelConfig`]):
            Base model and adapter.

    Raises:
        ValueError: If it is not a request that a ledger can hold.
    """

    def __init__(
        self,
        script_args: "UnlearningScriptArguments",
        training_args: "UnlearningConfig",
        model_args: "ModelConfig",
    ):
        if script_args.request is None:
            raise ValueError("A request of a ledger has a name, by which you find it again: give `--request`.")
        if not model_args.use_peft:
            raise ValueError(
                "A ledger keeps an adapter for each request, so that it can be undone: give `--use_peft true`."
            )
        if model_args.load_in_4bit or model_args.load_in_8bit:
            raise ValueError(f"{QUANTIZED}. Leave out `load_in_4bit` and `load_in_8bit` with a ledger.")
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "A ledger adds adapters to whole weights, which ZeRO-3 does not load. Use `ddp`, `fsdp2` or `zero2`."
            )
        if training_args.push_to_hub:
            raise ValueError(
                "The adapter of one request belongs to the model with all earlier ones. Leave out `push_to_hub`, and "
                "push what `trl-unlearn ledger merge` writes."
            )
        if not script_args.ledger_rehearsal >= 0:
            raise ValueError(
                "`ledger_rehearsal` is how many rows of earlier requests come with each of this one: 0 or more, got "
                f"{script_args.ledger_rehearsal}."
            )
        self.ledger = Ledger.read(script_args.ledger, new=True)
        self.number = self.ledger.next_number
        self.folder = self.ledger.folder(self.number)
        in_use = self.ledger.in_use
        self.continued = in_use[-1] if script_args.ledger_mode == "continued" and in_use else None
        self.folded = [request for request in in_use if request is not self.continued]
        self.arguments, self.dry_run, self.seed = script_args, script_args.dry_run, training_args.seed
        self.resumes = bool(training_args.resume_from_checkpoint)
        training_args.output_dir = str(self.folder)
        if hasattr(training_args, "logging_dir"):  # which transformers 4 has made of the other one
            training_args.logging_dir = str(self.folder / "runs")

        name = model_args.model_name_or_path
        if name is None:
            raise ValueError("There is no model to unlearn: give `model_name_or_path`, an id on the Hub or a path.")
        self.repository = find_base(name, model_args.model_revision)
        self.base = identify(self.repository)
        check_base(self.ledger, self.base)
        if self.continued is not None:
            self._check_adapter_options(model_args)

    def _check_adapter_options(self, model_args: "ModelConfig") -> None:
        """Refuses options for a new adapter where one is trained on that has others."""
        from peft import PeftConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        from ..scripts.unlearn import adapter_of

        asked = adapter_of(model_args)
        if asked.target_modules == "all-linear":  # an adapter is saved with their names
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**self.repository.source))
                asked = get_peft_model(model, asked).active_peft_config
        there = PeftConfig.from_pretrained(str(self.ledger.folder(self.continued.number)))
        for option in fields(model_args):
            name = _ADAPTER_OPTIONS.get(option.name)
            if name is None or getattr(model_args, option.name) == option.default:
                continue
            if getattr(asked, name) != getattr(there, name):
                raise ValueError(
                    f"`{option.name}` is {getattr(model_args, option.name)!r}, but `--ledger_mode continued` trains the "
                    f"adapter of {self.continued} on, with which it is {getattr(there, name)!r}. Leave it out, or give "
                    "this request an adapter of its own with `--ledger_mode own`."
                )

    def take_rows(self, forget: Dataset, retain: Dataset | None) -> tuple[Dataset, Dataset | None]:
        """
        Takes the rows of this request and of earlier ones out of the retain set, puts some of the earlier ones among the
        forget rows if that is asked for, and makes the folder ready.

        Args:
            forget ([`~datasets.Dataset`]):
                Forget set.
            retain ([`~datasets.Dataset`], *optional*):
                Retain set.

        Returns:
            `tuple`: The forget set with rows of earlier requests, and the retain set without rows that are to stay forgotten.

        Raises:
            ValueError: If no retain row is left, or rows of an earlier request are not where they were.
        """
        self.rows = row_hashes(forget, "forget")
        earlier = {digest for request in self.ledger.applied for digest in request.rows}
        if retain is not None:
            retain, left_out = without_rows(retain, earlier.union(self.rows), "retain")
            if PartialState().is_main_process and left_out:
                _say(
                    f"Left out of the retain set, since they are to be forgotten: {len(left_out)} rows, "
                    f"{sum(digest in earlier for digest in left_out)} of them of earlier requests."
                )
        if self.arguments.ledger_rehearsal > 0:
            forget = self._with_earlier_rows(forget)
        if not self.dry_run:
            self._make_folder()
        return forget, retain

    def _with_earlier_rows(self, forget: Dataset) -> Dataset:
        """The forget set, and after it rows of earlier requests that are drawn from all of them."""
        names, parts, taken = ["this request"], [forget], set(self.rows)
        for request in self.ledger.applied:
            parts.append(load_forget_rows(request, without=taken))
            names.append(str(request))
            taken.update(request.rows)
        rows = join_parts(parts, names, "forget")
        earlier = range(len(forget), len(rows))
        drawn = random.Random(self.seed).sample(
            earlier, min(round(self.arguments.ledger_rehearsal * len(forget)), len(earlier))
        )
        if PartialState().is_main_process and drawn:
            _say(f"Trained again with this request: {len(drawn)} of {len(earlier)} rows of earlier requests.")
        return rows.select([*range(len(forget)), *drawn])

    def _make_folder(self) -> None:
        pending = {
            "name": self.arguments.request,
            "base": self.base,
            "continues": self.continued and self.continued.number,
            "folded": [request.number for request in self.folded],
            "sha256": set_digest(self.rows, ""),
        }
        path = self.folder / PENDING_FILE
        there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if self.resumes and there != pending:
            raise ValueError(
                f"`resume_from_checkpoint` is given, but {self.folder} has no interrupted training of this very "
                "request"
                + (f" (there is one of {there['name']!r})" if there else "")
                + ": name, rows, base and earlier requests must be the same. Leave it out to start afresh."
            )
        if there is None and self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder}, where this request belongs, holds something that no request of this ledger has left. "
                "Move it away."
            )
        state = PartialState()
        state.wait_for_everyone()
        if state.is_main_process and not self.resumes:
            if there is not None:
                _say(f"{self.folder} has an interrupted training of {there['name']!r}: starting afresh.")
                for left in self.folder.iterdir():  # but the file that says that all this may be removed
                    if left.is_dir():
                        shutil.rmtree(left)
                    elif left != path:
                        left.unlink()
            write_json(pending, path)
        state.wait_for_everyone()

    def load_model(
        self, training_args: "UnlearningConfig", peft_config: "PeftConfig"
    ) -> "tuple[PreTrainedModel | PeftModel, PeftConfig | None]":
        """
        The base with the adapters of earlier requests.

        Args:
            training_args ([`UnlearningConfig`]):
                Its `model_init_kwargs` are taken.
            peft_config ([`~peft.PeftConfig`]):
                New adapter.

        Returns:
            `tuple`: The model that all earlier requests are folded into, and the new adapter; or, to continue the last
            request, the model with that one's adapter, and `None`.
        """
        options = {name: value for name, value in training_args.model_init_kwargs.items() if name != "revision"}
        training_args.model_init_kwargs = None  # they belong to a model that the trainer loads
        model = load_base(self.repository, **options)
        if self.folded:
            model = fold_in(add_adapters(model, [self.ledger.folder(request.number) for request in self.folded]))
        if self.continued is None:
            return model, peft_config
        return load_adapter(model, self.ledger.folder(self.continued.number), is_trainable=True), None

    check_adapter = staticmethod(check_adds_up)

    def record(self, trainer: "UnlearningTrainer") -> None:
        """
        Measures earlier requests on the model as it is now, and adds this one to the ledger.

        Args:
            trainer ([`UnlearningTrainer`]):
                Trainer that has trained and saved.
        """
        model = trainer.accelerator.unwrap_model(trainer.model)
        later = measure_requests(model, trainer.processing_class, self.ledger.requests, not trainer.args.disable_tqdm)
        if not trainer.is_world_process_zero():
            return
        callback = trainer._evaluation_callback()
        salt = secrets.token_hex(16)
        request = Request(
            number=self.number,
            name=self.arguments.request,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            method=method_of(trainer)["name"],
            recipe=f"{self.folder.name}/{RECIPE_FILE}",
            mode="own" if self.continued is None else "continued",
            continues=self.continued and self.continued.number,
            rows=self.rows,
            salt=salt,
            sha256=set_digest(self.rows, salt),
            data=_differing(
                self.arguments, (option for option in fields(self.arguments) if option.name in _FORGET_OPTIONS)
            ),
        )
        if callback is not None:
            request.results |= {"before": callback.before["summary"], "after": callback.latest["summary"]}
            if self.arguments.eval_benchmark in _MEASURABLE:
                forget = callback.latest["data"]["forget"]
                request.evaluation = _evaluation_of(self.arguments) | {"sha256": forget["sha256"]}
        for earlier in self.ledger.requests:
            if earlier.number in later:
                earlier.results["later"][str(self.number)] = later[earlier.number]
        self.ledger.base = self.ledger.base or self.base
        self.ledger.requests.append(request)
        self.ledger.write()
        (self.folder / PENDING_FILE).unlink()


def load_forget_rows(request: Request, without: Iterable[str] = ()) -> Dataset:
    """
    Loads the forget rows of a request from where they were when it was trained.

    Args:
        request ([`Request`]):
            Request.
        without (iterable of `str`, *optional*):
            Hashes of rows that are not wanted.

    Returns:
        [`~datasets.Dataset`]: The others, each once.

    Raises:
        ValueError: If one of its rows is not there any more.
    """
    from ..scripts.unlearn import UnlearningScriptArguments, load_training_sets

    try:
        rows, _ = load_training_sets(UnlearningScriptArguments(**request.data), with_retain=False)
        places = {digest: index for index, digest in enumerate(row_hashes(rows, "forget"))}
        missing = set(request.rows) - places.keys()
        if missing:
            raise ValueError(
                f"{len(missing)} of its {len(request.rows)} rows are not in {request.data['dataset_name']} any more."
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The rows of {request} cannot be trained again: {error} Put back what was there, or leave out "
            "`ledger_rehearsal`."
        ) from None
    return rows.select([places[digest] for digest in dict.fromkeys(request.rows) if digest not in without])


def measure_requests(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    requests: list[Request],
    show_progress: bool = True,
) -> dict[int, dict[str, float]]:
    """
    Evaluates a model on the forget sets of requests, each as it was evaluated when it was trained.

    A ledger keeps no texts, so that this takes the sets themselves: of a request whose set is not where it was, or
    another one by now, nothing is measured, and a warning says so.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        requests (`list[Request]`):
            Requests.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict[int, dict[str, float]]`: By number of the request, the summary of the metrics of its forget set.

    Example:

    ```python
    >>> ledger = Ledger.read("outputs/ledger")
    >>> measure_requests(*load_ledger("outputs/ledger"), ledger.requests)[1]["forget_probability"]
    0.04
    ```
    """
    measured = {}
    requests = [request for request in requests if request.evaluation is not None]
    for request in tqdm(requests, desc="Earlier requests", disable=not show_progress or not requests):
        evaluation = request.evaluation
        arguments = EvaluationArguments(**evaluation["arguments"])
        try:
            sets, _ = load_sets(arguments, splits_of(arguments)[0], evaluation["dataset_name"])
            result = evaluate_sets(model, tokenizer, arguments, {"forget": sets["forget"]}, show_progress=False)
            if result["data"]["forget"]["sha256"] != evaluation["sha256"]:
                raise ValueError("other rows stand there now")
        except (OSError, ValueError) as error:
            tqdm.write(f"What {request} is to forget cannot be measured again: {error}")
            continue
        measured[request.number] = result["summary"]
    return measured


def _evaluation_of(arguments: EvaluationArguments) -> dict[str, Any]:
    """How to evaluate the forget set again, from whatever folder."""
    # What is compared with, and what is kept, does not say whether it is forgotten
    bare = replace(arguments, eval_retain_data=None, eval_holdout_data=None, retain_logs=None, retain_model=None)
    return {
        "arguments": _differing(bare, fields(EvaluationArguments)),
        "dataset_name": _absolute(arguments.dataset_name),
    }


def _differing(arguments: EvaluationArguments, options: Iterable[Field]) -> dict[str, Any]:
    """Those of some options that differ from the defaults, with absolute paths."""
    differing = {}
    for option in options:
        value = getattr(arguments, option.name)
        if value != (option.default if option.default_factory is MISSING else option.default_factory()):
            differing[option.name] = _absolute(value) if option.name in _PLACES else value
    return differing


def _absolute(source: str | list[str]) -> str | list[str]:
    """A file, a folder, or a folder with a configuration, from whatever folder; what is on the Hub stays as it is."""
    if isinstance(source, list):
        return [_absolute(part) for part in source]
    name, colon, rest = (source, "", "") if Path(source).exists() else source.partition(":")
    return f"{Path(name).resolve()}{colon}{rest}" if Path(name).exists() else source


def _say(message: str) -> None:
    Console().print(message, highlight=False, markup=False)
