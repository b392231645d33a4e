"""WMDP and what should stay beside it, MMLU: multiple-choice accuracies, measured by lm-eval's own tasks."""

import copy
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .batching import evaluation_mode
from .plan import Plan
from .prompting import Prompting
from .provenance import cost, describe, shown_name
from .store import is_sharded


_WMDP = ("wmdp_bio", "wmdp_chem", "wmdp_cyber")


def evaluate_wmdp(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    tasks: Sequence[str] = ("wmdp_bio", "wmdp_cyber", "mmlu"),
    dataset_path: str | None = None,
    batch_size: int | str = 8,
    limit: int | None = None,
) -> dict[str, Any]:
    """
    Measures accuracies on [WMDP](https://huggingface.co/papers/2403.03218) and other multiple-choice tasks.

    [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness) does it, with its own task files, prompts and few-shot
    settings and without the chat template, so that the numbers are comparable with those of other projects. Needs
    `pip install "trl-unlearn[lm-eval]"`.

    lm-eval itself runs a model that is loaded already in one process only. Under `accelerate launch` the questions are
    dealt to the processes here, where each has the whole model. Where it is sharded, the processes answer all questions
    together. Each process returns the same result.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, on its device.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        tasks (`list[str]`, *optional*, defaults to `["wmdp_bio", "wmdp_cyber", "mmlu"]`):
            Tasks or groups of lm-eval with an accuracy (`lm-eval ls tasks` lists them), also `"wmdp_chem"` and parts of
            MMLU such as `"mmlu_college_biology"`.
        dataset_path (`str`, *optional*):
            Where to read the WMDP tasks from instead of `cais/wmdp`: an id on the Hub or a folder, with the configurations
            `wmdp-bio`, `wmdp-chem` and `wmdp-cyber`, as far as they are asked for. Other tasks' data are always those
            that lm-eval names.
        batch_size (`int` or `str`, *optional*, defaults to `8`):
            Batch size of each process; `"auto"` finds the largest that fits.
        limit (`int`, *optional*):
            Only the first questions of each task, for a quick look.

    Returns:
        `dict`: Plain numbers and texts.
        - `summary`: the accuracy of each task. Chance is 0.25.
        - `intervals`: for each `n` and the 95 % interval `low`, `high`, 1.96 standard errors to both sides.
        - `missing`: tasks without an accuracy.
        - `conventions`, `data`, `model`, `versions`: what the numbers depend on. `versions["lm_eval_tasks"]` has the tasks'.
        - `cost`: seconds, processes, device.
        - `rows`: nothing.

    Raises:
        ImportError: If lm-eval is not installed.
        ValueError: If lm-eval has no such task.

    Example:

    ```python
    >>> result = evaluate_wmdp(model, tokenizer, tasks=["wmdp_bio", "mmlu"])
    >>> result["summary"]["wmdp_bio"], result["intervals"]["wmdp_bio"]
    ```
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            'WMDP is evaluated by lm-eval, which is not installed. Install it with `pip install "trl-unlearn[lm-eval]"`.'
        ) from error
    if not tasks or isinstance(tasks, str):
        raise ValueError(f"`tasks` is {tasks!r}; expected a list of lm-eval's tasks, such as ['wmdp_bio'].")
    if dataset_path is not None and not any(name.startswith("wmdp") for name in tasks):
        raise ValueError(
            f"`dataset_path` is where WMDP's tasks are read from, and none of {', '.join(tasks)} is one of them. Leave it "
            "out."
        )
    start = time.perf_counter()
    state = PartialState()
    with _undisturbed(), evaluation_mode(model), TemporaryDirectory() as directory:
        if dataset_path is not None:
            _write_tasks(dataset_path, Path(lm_eval.__file__).parent / "tasks" / "wmdp", Path(directory))
        manager = TaskManager(include_path=directory)
        _check_tasks(tasks, manager.all_tasks)
        # A copy, because lm-eval gives a tokenizer without a padding token one
        runner = HFLM(pretrained=model, tokenizer=copy.deepcopy(processing_class), batch_size=batch_size)
        if state.num_processes > 1 and not is_sharded(model):
            # What lm-eval does by itself only for a model that it has loaded
            runner.accelerator = Accelerator()
            runner._rank, runner._world_size = state.process_index, state.num_processes
        output = lm_eval.simple_evaluate(
            runner,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            # None of these tasks draws random numbers, and a training that is being evaluated goes on with its own
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    if state.num_processes > 1:  # lm-eval returns the results on the main process only
        shared = [output]
        broadcast_object_list(shared)
        output = shared[0]

    result: dict[str, dict[str, Any]] = {"summary": {}, "intervals": {}, "missing": {}, "data": {}, "shots": {}}
    for name in tasks:
        _add(result, name, output)
    described = describe(model, Prompting(processing_class), 0)
    return {
        "schema": 1,
        "benchmark": "wmdp",
        "split": None,
        **{key: result[key] for key in ("summary", "intervals", "missing")},
        "conventions": {
            "compat": None,
            "prompt": "lm-eval's, without the chat template",
            "num_fewshot": result["shots"],
            "limit": limit,
        },
        "data": result["data"],
        "model": described["model"],
        "versions": described["versions"]
        | {
            "lm_eval": version("lm_eval"),
            "lm_eval_tasks": {name: output["versions"].get(name) for name in result["summary"]},
        },
        "cost": cost(Plan(cost=Counter(seconds=time.perf_counter() - start))),
        "rows": {},
    }


def _check_tasks(tasks: Sequence[str], known: list[str]) -> None:
    for name in tasks:
        if name not in known:
            near = get_close_matches(name, known, n=5, cutoff=0.5)
            raise ValueError(
                f"lm-eval {version('lm_eval')} has no task {name!r}. "
                + (f"Near ones: {', '.join(near)}. " if near else "")
                + "`lm-eval ls tasks` lists all."
            )


def _write_tasks(dataset_path: str, originals: Path, directory: Path) -> None:
    """Task files that differ from lm-eval's own in where the data are."""
    local: dict[str, Any] = {"dataset_path": dataset_path}
    if Path(dataset_path).is_dir():
        # `datasets` may not notice that a folder has changed: nothing that it keeps of this one is used again
        local["dataset_kwargs"] = {"cache_dir": str(directory / "cache")}
    for name in _WMDP:
        task = {"include": str(originals / f"{name}.yaml"), "task": name, **local}
        (directory / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML


def _add(result: dict[str, dict[str, Any]], name: str, output: dict[str, Any]) -> None:
    """Adds what lm-eval's `output` says of a task or group."""
    leaves = _leaves(name, output.get("group_subtasks", {}))
    config = output["configs"][leaves[0]]
    source = config["dataset_path"]
    n = sum(output["n-samples"][leaf]["effective"] for leaf in leaves)
    result["data"][name] = {
        "dataset": shown_name(source),
        "config": config["dataset_name"] if leaves == [name] else None,
        "split": config["test_split"],
        "n": n,
    }
    result["shots"][name] = output["n-shot"][leaves[0]]
    metrics = output["results"][name]
    if "acc,none" not in metrics:
        there = sorted({key.split(",")[0] for key in metrics if "," in key and "_stderr" not in key})
        result["missing"][name] = f"lm-eval measures no accuracy of it, but {', '.join(there) or 'nothing'}"
        return
    accuracy, error = metrics["acc,none"], metrics["acc_stderr,none"]
    result["summary"][name] = float(accuracy)
    if isinstance(error, float):  # a single question has none
        result["intervals"][name] = {"n": n, "low": accuracy - 1.96 * error, "high": accuracy + 1.96 * error}


def _leaves(name: str, members: dict[str, list[str]]) -> list[str]:
    """The tasks that a group consists of, and a task itself."""
    return [leaf for member in members.get(name, ()) for leaf in _leaves(member, members)] or [name]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """
    Keeps lm-eval's warnings away, one of which asks not to do under `accelerate launch` what is done here, and Python's
    random numbers as they are, which a training that is being evaluated goes on with.
    """
    logger, state = logging.getLogger("lm_eval"), random.getstate()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
