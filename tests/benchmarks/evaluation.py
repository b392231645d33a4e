"""
What a whole TOFU forget10 evaluation costs with this library and with a plain evaluator of the public design.

    python tests/benchmarks/evaluation.py --output_dir outputs/benchmark

Both evaluate the same small Llama, on the CPU, and must give the same numbers before anything is reported.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from plain_evaluator import PlainEvaluator
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trl_unlearn.data.loading import load_rows
from trl_unlearn.evaluation.evaluate import evaluate_unlearning
from trl_unlearn.files import write_json
from trl_unlearn.world.model import train_tokenizer


TEMPLATE = "[INST] {question} [/INST]{answer}"
VOCAB_SIZE = 32_000
MAX_NEW_TOKENS = 200
NUM_HOLDOUT_ROWS = 400
console = Console()
# Ours over the plain evaluator's
GOALS = {"padded_tokens": 0.35, "decoding_steps": 0.15, "seconds": 0.25, "peak_memory_bytes": 0.6}
MAX_LOSS_DIFFERENCE = 1e-4  # nats per token, of any row
MAX_SUMMARY_DIFFERENCE = 1e-3


def load_sets(dataset_path: str, max_rows: int | None) -> dict[str, Dataset]:
    """TOFU's sets, and rows of `full` outside of them in the place of `holdout10`, which not every copy has."""
    sets = {
        name: load_rows(dataset_path, f"{config}_perturbed")
        for name, config in (
            ("forget", "forget10"),
            ("retain", "retain"),
            ("real_authors", "real_authors"),
            ("world_facts", "world_facts"),
        )
    }
    asked = {
        pair
        for name in ("forget", "retain")
        for pair in zip(sets[name]["question"], sets[name]["answer"], strict=True)
    }
    full = load_rows(dataset_path, "full")
    others = [index for index, row in enumerate(full) if (row["question"], row["answer"]) not in asked]
    sets["holdout"] = full.select(others[:NUM_HOLDOUT_ROWS])
    return {name: rows.select(range(min(len(rows), max_rows or len(rows)))) for name, rows in sets.items()}


def prepare_model(directory: Path, arguments: argparse.Namespace) -> None:
    """
    Trains a tokenizer and, for some minutes, a Llama, unless they are there already.

    It learns the forget and retain answers so far that what it generates is like them in length, and ends.
    """
    if (directory / "model.safetensors").exists():
        return
    full = load_rows(arguments.dataset_path, "full")
    tokenizer = train_tokenizer([*full["question"], *full["answer"]], VOCAB_SIZE)
    tokenizer.chat_template = None
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=arguments.hidden_size,
        intermediate_size=3 * arguments.hidden_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.hidden_size // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    sets = load_sets(arguments.dataset_path, max_rows=None)
    texts = [(row["question"], row["answer"]) for name in ("forget", "retain") for row in sets[name]]
    _train(model, tokenizer, texts, arguments.num_train_epochs)
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[tuple[str, str]],
    num_epochs: int,
    batch_size: int = 16,
) -> None:
    prompt_template = TEMPLATE.removesuffix("{answer}")
    rows = []
    for question, answer in texts:
        prompt_ids = tokenizer(prompt_template.replace("{question}", question))["input_ids"]
        rows.append((prompt_ids, tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    generator = random.Random(0)
    order = [row for _ in range(num_epochs) for row in generator.sample(rows, len(rows))]
    num_steps = len(order) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=num_steps, pct_start=0.1)
    start = time.perf_counter()
    for step in range(num_steps):
        batch = order[step * batch_size : (step + 1) * batch_size]
        longest = max(len(prompt_ids) + len(answer_ids) for prompt_ids, answer_ids in batch)
        input_ids = torch.full((batch_size, longest), tokenizer.pad_token_id)
        predicts = torch.zeros_like(input_ids, dtype=torch.bool)
        for index, (prompt_ids, answer_ids) in enumerate(batch):
            end = len(prompt_ids) + len(answer_ids)
            input_ids[index, :end] = torch.tensor(prompt_ids + answer_ids)
            predicts[index, len(prompt_ids) - 1 : end - 1] = True
        hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state  # causal: padding comes after all
        loss = F.cross_entropy(model.lm_head(hidden[predicts]), input_ids.roll(-1, dims=1)[predicts])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == num_steps - 1:
            console.log(
                f"training step {step + 1}/{num_steps}, loss {loss:.2f}, {time.perf_counter() - start:.0f} s",
            )


def load_model(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)


def evaluate_ours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sets: dict[str, Dataset]) -> dict:
    result = evaluate_unlearning(
        model,
        tokenizer,
        forget=sets["forget"],
        retain=sets["retain"],
        utility_sets={name: sets[name] for name in ("real_authors", "world_facts")},
        holdout=sets.get("holdout"),
        extra_metrics=["min_k_plus_plus"] if "holdout" in sets else [],
        max_new_tokens=MAX_NEW_TOKENS,
        question_answer_template=TEMPLATE,
        show_progress=False,
    )
    counts = {"sequences": result["cost"]["scored_rows"], "padded_tokens": result["cost"]["padded_tokens"]}
    return {**result, "counts": counts}


def evaluate_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sets: dict[str, Dataset]) -> dict:
    evaluator = PlainEvaluator(model, tokenizer, TEMPLATE, MAX_NEW_TOKENS)
    utility_sets = {name: sets[name] for name in ("real_authors", "world_facts")}
    result = evaluator.evaluate(sets["forget"], sets["retain"], utility_sets, sets.get("holdout"))
    return {**result, "counts": dict(evaluator.counts)}


EVALUATORS = {"ours": evaluate_ours, "plain": evaluate_plain}


@contextmanager
def counted_forwards(model: PreTrainedModel) -> Iterator[Counter]:
    """Counts at the decoder, whoever calls it: `decoding_steps`, other `forwards`, and the `positions` of both."""
    counts: Counter[str] = Counter()

    def count(module, args, kwargs):
        num_rows, length = kwargs["input_ids"].shape
        cache = kwargs.get("past_key_values")
        counts["positions"] += num_rows * length
        decodes = length == 1 and cache is not None and cache.get_seq_length() > 0
        counts["decoding_steps" if decodes else "forwards"] += 1

    handle = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def check_equal(ours: dict, plain: dict) -> dict[str, float]:
    """The largest differences between two results; refuses to go on where the two have not done the same work."""
    differences = {"loss": 0.0, "summary": 0.0, "different_answers": 0}
    for name, columns in plain["rows"].items():
        for column in ("loss", "paraphrased_loss", "perturbed_loss"):
            difference = np.abs(np.array(ours["rows"][name][column]) - columns[column]).max()
            differences["loss"] = max(differences["loss"], float(difference))
        differences["different_answers"] += sum(
            ours_text.strip() != plain_text.strip()
            for ours_text, plain_text in zip(ours["rows"][name]["generated"], columns["generated"], strict=True)
        )
    for metric, value in plain["summary"].items():
        difference = abs(ours["summary"][metric] - value)
        differences["summary"] = max(differences["summary"], difference)
        if difference > MAX_SUMMARY_DIFFERENCE:
            raise SystemExit(
                f"{metric} is {ours['summary'][metric]:.5f} with ours and {value:.5f} with the plain evaluator."
            )
    if differences["loss"] > MAX_LOSS_DIFFERENCE:
        raise SystemExit(f"The losses of a row differ by {differences['loss']:.2g} nats per token.")
    return differences


def peak_memory(evaluator: str, arguments: argparse.Namespace) -> dict[str, int]:
    """Peak memory of one evaluation in a process of its own, in bytes: `absolute`, and `added` to the loaded model."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", evaluator, "--metrics", arguments.metrics]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def report_own_memory(arguments: argparse.Namespace, directory: Path) -> None:
    model, tokenizer = load_model(directory)
    sets = load_sets(arguments.dataset_path, arguments.max_rows)
    if arguments.metrics == "default":
        sets.pop("holdout")
    with torch.no_grad():  # so that libraries which are loaded at the first call count as part of the loaded model
        model(input_ids=torch.tensor([[tokenizer.eos_token_id]]))
    loaded = _peak_memory()
    EVALUATORS[arguments.memory_of](model, tokenizer, sets)
    absolute = _peak_memory()
    sys.stdout.write(json.dumps({"absolute": absolute, "added": absolute - loaded}))


def _peak_memory() -> int:
    # Not `ru_maxrss`, which a new process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1)) * 1024


def benchmark(arguments: argparse.Namespace, directory: Path) -> dict:
    """Runs the two in turns and returns for each what it counted, its `seconds` and its peak memory."""
    model, tokenizer = load_model(directory)
    sets = load_sets(arguments.dataset_path, arguments.max_rows)
    if arguments.metrics == "default":
        sets.pop("holdout")
    results, costs = {}, {}
    seconds, cpu_seconds = {name: [] for name in EVALUATORS}, {name: [] for name in EVALUATORS}
    for run in range(arguments.runs):
        for name, evaluate in EVALUATORS.items():
            with counted_forwards(model) as forwards:
                start, cpu_start = time.perf_counter(), time.process_time()
                results[name] = evaluate(model, tokenizer, sets)
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - cpu_start)
            costs[name] = {**results[name]["counts"], **forwards}
            console.log(
                f"run {run + 1}/{arguments.runs}, {name}: {seconds[name][-1]:.1f} s, CPU {cpu_seconds[name][-1]:.1f} s"
            )
        differences = check_equal(results["ours"], results["plain"])
    for name in EVALUATORS:
        costs[name]["seconds"] = statistics.median(seconds[name])
        costs[name]["cpu_seconds"] = statistics.median(cpu_seconds[name])
        memory = peak_memory(name, arguments)
        costs[name]["peak_memory_bytes"] = memory["added"]
        costs[name]["peak_memory_bytes_absolute"] = memory["absolute"]
    return {
        "costs": costs,
        "all_seconds": seconds,
        "all_cpu_seconds": cpu_seconds,
        "differences": differences,
        "num_rows": {name: len(rows) for name, rows in sets.items()},
        "summary": results["ours"]["summary"],
    }


def show(outcome: dict, title: str) -> None:
    names = {
        "forwards": "forwards, scoring and prefill",
        "sequences": "sequences scored",
        "padded_tokens": "padded tokens scored",
        "decoding_steps": "decoding steps",
        "positions": "all positions, generation included",
        "seconds": "seconds",
        "cpu_seconds": "CPU seconds, over all threads",
        "peak_memory_bytes": "peak memory above the loaded model, MiB",
        "peak_memory_bytes_absolute": "peak memory, MiB",
    }
    table = Table("", "ours", "plain", "ratio", "goal", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for key, label in names.items():
        values = [outcome["costs"][name][key] for name in ("ours", "plain")]
        ratio = values[0] / values[1]
        texts = [
            f"{value / 2**20:,.0f}" if "memory" in key else f"{value:,.{int(key.endswith('seconds'))}f}"
            for value in values
        ]
        goal = GOALS.get(key)
        reached = "" if goal is None else f"≤ {goal:.2f} " + ("[green]✓[/]" if ratio <= goal else "[red]✗[/]")
        table.add_row(label, *texts, f"{ratio:.3f}", reached)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_path", default="locuslab/TOFU", help="TOFU on the Hub, or a folder laid out like it."
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder for the trained model and the results.")
    parser.add_argument("--hidden_size", type=int, default=256, help="Width of the model, a multiple of 64.")
    parser.add_argument("--num_layers", type=int, default=4, help="Number of layers of the model.")
    parser.add_argument(
        "--num_train_epochs", type=int, default=10, help="How long the model is trained, if it is not yet."
    )
    parser.add_argument("--runs", type=int, default=3, help="How often each evaluator runs.")
    parser.add_argument(
        "--metrics",
        choices=("default", "all"),
        default="default",
        help="`all` adds exact memorization and membership inference, with a stand-in for TOFU's holdout set.",
    )
    parser.add_argument("--max_rows", type=int, help="Take only the first rows of each set, for a quick look.")
    parser.add_argument("--memory_of", choices=tuple(EVALUATORS), help=argparse.SUPPRESS)  # for the child processes
    arguments = parser.parse_args()
    directory = arguments.output_dir / f"llama-{arguments.hidden_size}-{arguments.num_layers}"
    if arguments.memory_of is not None:
        report_own_memory(arguments, directory)
        return

    prepare_model(directory, arguments)
    outcome = benchmark(arguments, directory)
    threads = torch.get_num_threads()
    show(
        outcome,
        f"TOFU forget10, {arguments.metrics} metrics, Llama {arguments.hidden_size} x {arguments.num_layers}, "
        f"{threads} thread{'s' * (threads > 1)}",
    )
    if arguments.metrics == "all":
        console.print(
            f"The holdout set is a stand-in: {outcome['num_rows']['holdout']} rows of `full` outside the other sets."
        )
    console.print("Largest differences between the two:", outcome["differences"])
    write_json(
        {
            **outcome,
            "goals": GOALS,
            "settings": {name: str(value) for name, value in vars(arguments).items()},
            "holdout": "stand-in: rows of `full` outside forget10_perturbed and retain_perturbed",
            "machine": {
                "platform": platform.platform(),
                "processor": platform.processor(),
                "cpu_count": os.cpu_count(),
                "threads": threads,
            },
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("trl-unlearn", "torch", "transformers", "tokenizers", "numpy")},
            },
        },
        arguments.output_dir / f"evaluation-{arguments.metrics}-{arguments.hidden_size}-{arguments.num_layers}.json",
    )


if __name__ == "__main__":
    main()
