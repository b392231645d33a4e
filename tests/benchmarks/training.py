"""
A training step of this library against the usual one, and against the matrix products that it cannot do without.

    OMP_NUM_THREADS=1 python tests/benchmarks/training.py --output_dir outputs/benchmark

Both sides train the same model on the same rows, in turns, in one process, and must have the same losses before anything is
reported. Peak memory is that of a process of its own for each side (Linux only).
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from estimate import status
from floor import Floor
from peft import LoraConfig, get_peft_model
from plain_training import PlainStep, split_batch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: F401
from trl import DPOConfig, DPOTrainer

from trl_unlearn import AltPOConfig, AltPOTrainer, NPOConfig, NPOTrainer, SimNPOConfig, SimNPOTrainer
from trl_unlearn.files import write_json


TRAINERS = {
    "npo": (NPOTrainer, NPOConfig),
    "simnpo": (SimNPOTrainer, SimNPOConfig),
    "altpo": (AltPOTrainer, AltPOConfig),
}
LEARNING_RATE = 1e-5
# Relative, or absolute below 1, in each of the first steps. A row of 2,048 tokens has 8,500 nats here, whose sum fp32 rounds to
# 0.001, and the reference's as well; of shorter rows it is 2e-5.
MAX_LOSS_DIFFERENCE = 5e-4
NUM_CHECKED = 3
console = Console()


@dataclass
class Case:
    """
    One comparison.

    Parameters:
        method (`str`):
            Key of `TRAINERS`. AltPO is compared with TRL's DPOTrainer, the others with [`PlainStep`].
        retain (`str` or `None`):
            Retain loss: `"nll"`, `"kl"`, or none.
        cached (`bool`):
            Whether our step reads the reference's hidden states from disk, for `"kl"`.
        rows (`int`):
            Forget rows of a step, and as many retain or alternate rows.
        tokens (`int`):
            Tokens of every row.
        prompt_share (`float`):
            Share of them that are the prompt.
        vocabulary, hidden_size, layers (`int`):
            Size of the Llama. Its embeddings are tied.
        lora (`bool`):
            Whether an adapter of rank 16 on all linear layers is trained.
        goals (`dict[str, float]`):
            Largest ratios of `time`, `memory` and `floor`.
    """

    method: str = "npo"
    retain: str | None = "nll"
    cached: bool = False
    rows: int = 4
    tokens: int = 128
    prompt_share: float = 0.6
    vocabulary: int = 32_000
    hidden_size: int = 256
    layers: int = 4
    lora: bool = False
    goals: dict[str, float] | None = None


GOALS = {
    "NPO, 32k": Case(goals={"time": 0.28, "memory": 0.75, "floor": 1.25}),
    "NPO, 128k": Case(vocabulary=128_000, goals={"time": 0.20}),
    "SimNPO, 32k": Case(method="simnpo", goals={"time": 0.28}),
    "AltPO, no retain, 32k": Case(method="altpo", retain=None, goals={"time": 0.6}),
    "NPO, KL retain, 32k": Case(retain="kl", goals={"time": 0.5, "memory": 0.6}),
    "NPO, KL retain, cached, 32k": Case(retain="kl", cached=True),
    "NPO, KL retain, 512 x 8": Case(retain="kl", hidden_size=512, layers=8),
    "NPO, KL retain, cached, 512 x 8": Case(retain="kl", cached=True, hidden_size=512, layers=8),
    "NPO, LoRA, 32k": Case(lora=True),
    "SimNPO, LoRA, KL retain, 32k": Case(method="simnpo", retain="kl", lora=True),
}
# One thing at a time, from the first case
GROWTH = {
    "rows": [Case(rows=rows) for rows in (2, 4, 8, 16)],
    "tokens": [Case(rows=1, tokens=tokens) for tokens in (128, 512, 2048)],
    "prompt share": [Case(prompt_share=share) for share in (0.2, 0.4, 0.6, 0.8)],
    "vocabulary": [Case(vocabulary=vocabulary) for vocabulary in (8_000, 32_000, 128_000)],
    "hidden size": [Case(hidden_size=size) for size in (256, 512, 1024)],
    "layers": [Case(layers=layers) for layers in (2, 4, 8)],
    # An alternate is a pair, so that those of one question make a batch
    "alternates": [Case(method="altpo", retain=None, rows=alternates) for alternates in (1, 3, 5)],
}
LARGE = {"rows": 8, "tokens": 256, "hidden_size": 2048, "layers": 16, "vocabulary": 128_000}
GPU = {  # in bf16
    "NPO, 1B": Case(**LARGE, goals={"time": 0.6, "memory": 0.5}),
    "SimNPO, 1B": Case(**LARGE, method="simnpo"),
    "AltPO, no retain, 1B": Case(**LARGE, method="altpo", retain=None, goals={"time": 1.0}),
    "NPO, LoRA, 8B": Case(**{**LARGE, "hidden_size": 4096, "layers": 32}, lora=True),
}


def make_model(case: Case, device: torch.device) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden_size,
        intermediate_size=round(case.hidden_size * 8 / 3 / 64) * 64,
        num_hidden_layers=case.layers,
        num_attention_heads=case.hidden_size // 64,
        tie_word_embeddings=True,
    )
    config._name_or_path = "random"
    return LlamaForCausalLM(config).to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word, so that lengths can be chosen."""
    words = {"<eos>": 0, "<pad>": 1} | {f"w{index}": index for index in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def make_rows(case: Case, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    prompt = round(case.tokens * case.prompt_share)

    def text(size: int) -> str:
        return " ".join(f"w{rng.randrange(2, case.vocabulary)}" for _ in range(size))

    answers = {name: f" {text(case.tokens - prompt - 1)}" for name in ("completion", "alternate")}
    return [{"prompt": text(prompt), **answers} for _ in range(case.rows)]


class Side:
    """A model, its optimizer and its loss: one of the two sides."""

    def __init__(
        self, model: torch.nn.Module, loss: Callable[[], torch.Tensor], backward: Callable = torch.Tensor.backward
    ):
        self.loss, self.backward = loss, backward
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step(self) -> torch.Tensor:
        loss = self.loss()
        self.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def make_ours(case: Case, device: torch.device, output_dir: str) -> tuple[Side, dict]:
    """Our step, and the batch it is taken on."""
    torch.manual_seed(0)  # for the adapter as well
    model = make_model(case, device)
    trainer_class, config_class = TRAINERS[case.method]
    rows = Dataset.from_list(make_rows(case, seed=0))
    rows = rows if case.method == "altpo" else rows.remove_columns("alternate")
    retain = Dataset.from_list(make_rows(case, seed=1)).remove_columns("alternate")
    trainer = trainer_class(
        model=model,
        args=config_class(
            output_dir=output_dir,
            retain_weight=1.0 if case.retain is not None else 0.0,
            retain_loss_type=case.retain or "nll",
            cache_ref_hidden_states=case.cached,
            **options_of(case, device),
        ),
        train_dataset=rows,
        retain_dataset=retain if case.retain is not None else None,
        processing_class=make_tokenizer(case.vocabulary),
        peft_config=lora_config() if case.lora else None,
    )
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    side = Side(trainer.model, lambda: trainer.compute_loss(trainer.model, dict(batch)))
    return side, batch


def options_of(case: Case, device: torch.device) -> dict[str, Any]:
    """What our trainers and TRL's are given alike."""
    return {
        "per_device_train_batch_size": case.rows,
        "gradient_checkpointing": False,
        "max_length": None,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "bf16": False,
    }


def lora_config() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def make_plain(case: Case, device: torch.device, output_dir: str) -> Side:
    if case.method == "altpo":
        return make_dpo(case, device, output_dir)
    # The same rows in the same order: those of a trainer's batch
    tiny = replace(case, layers=1, hidden_size=64, lora=False, cached=False)
    forget, retain = split_batch(make_ours(tiny, device, output_dir)[1])
    torch.manual_seed(0)
    model = make_model(case, device)
    if case.lora:
        model = get_peft_model(model, lora_config())
    beta = TRAINERS[case.method][1](output_dir, use_cpu=True, bf16=False).beta
    model.train()
    loss = PlainStep(model, case.method, case.retain, beta)
    return Side(model, lambda: loss(forget, retain))


def make_dpo(case: Case, device: torch.device, output_dir: str) -> Side:
    """TRL's DPOTrainer, its loss times `2 / beta`, which makes it AltPO's."""
    torch.manual_seed(0)
    model = make_model(case, device)
    rows = Dataset.from_list(make_rows(case, seed=0))
    rows = rows.rename_columns({"completion": "rejected", "alternate": "chosen"})
    beta = AltPOConfig(output_dir, use_cpu=True, bf16=False).beta
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=output_dir,
            beta=beta,
            precompute_ref_log_probs=True,
            **options_of(case, device),
        ),
        train_dataset=rows,
        processing_class=make_tokenizer(case.vocabulary),
        peft_config=lora_config() if case.lora else None,
    )
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return Side(trainer.model, lambda: trainer.compute_loss(trainer.model, dict(batch)) * 2 / beta)


def compare(case: Case, rounds: int, device: torch.device) -> dict:
    """Times both sides and the floor, in turns. Raises if their losses differ."""
    with tempfile.TemporaryDirectory() as output_dir:
        ours, batch = make_ours(case, device, output_dir)
        plain = make_plain(case, device, output_dir)
        floor = Floor(case, batch, device)
        losses = [[float(side.step()) for side in (ours, plain)] for _ in range(NUM_CHECKED)]
        difference = max(abs(a - b) / max(abs(b), 1.0) for a, b in losses)
        if difference > (MAX_LOSS_DIFFERENCE if device.type == "cpu" else 0.02):  # in bf16
            sys.exit(f"Not the same work: {case} has losses {losses}, ours and the other's.")
        floor.run()
        seconds: dict[str, list[float]] = {"ours": [], "plain": [], "floor": []}
        work = {"ours": ours.step, "plain": plain.step, "floor": floor.run}
        for number in range(rounds):
            for name in list(work)[:: 1 if number % 2 == 0 else -1]:
                seconds[name].append(clock(work[name], device))
    return {"seconds": seconds, "loss_difference": difference}


def clock(work: Callable, device: torch.device) -> float:
    """Seconds: the processor's, with one thread on a CPU, since the clock would measure what else runs there."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    started = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - started


def measure_memory(case: Case, side: str, device: torch.device) -> int:
    """Bytes that making a side and taking three steps needs at most, above what the imports took."""
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
        before = status("VmRSS")
    with tempfile.TemporaryDirectory() as output_dir:
        make = make_ours if side == "ours" else make_plain
        made = make(case, device, output_dir)
        made = made[0] if isinstance(made, tuple) else made
        for _ in range(3):
            made.step()
    return status("VmHWM") - before if device.type == "cpu" else torch.cuda.max_memory_allocated()


def memory_of(case: Case, side: str, device: torch.device) -> int:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--device", device.type, "--measure", side, json.dumps(asdict(case))]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        sys.exit(process.stderr[-4000:])
    return int(process.stdout.split()[-1])


def run(case: Case, rounds: int, device: torch.device) -> dict:
    result = compare(case, rounds, device)
    result["memory"] = {side: memory_of(case, side, device) for side in ("ours", "plain")}
    seconds, memory = result["seconds"], result["memory"]
    pairs = {
        "time": (seconds["ours"], seconds["plain"]),
        "floor": (seconds["ours"], seconds["floor"]),
        "memory": ([memory["ours"]], [memory["plain"]]),
    }
    result["ratios"] = {
        name: {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}
        for name, each in ((name, [a / b for a, b in zip(*pair, strict=True)]) for name, pair in pairs.items())
    }
    return {"case": asdict(case), **result}


def table_of(title: str, results: dict[str, dict]) -> Table:
    table = Table("", "Seconds, ours / other", "Time", "Memory, MiB", "Memory", "Over its floor", title=title)
    for name, result in results.items():
        seconds, memory = result["seconds"], result["memory"]
        medians = {side: statistics.median(values) for side, values in seconds.items()}

        def ratio(key: str, result: dict = result) -> str:
            values, goal = result["ratios"][key], (result["case"]["goals"] or {}).get(key)
            text = f"{values['median']:.2f}"
            if key != "memory":
                text += f" ({values['lowest']:.2f} to {values['highest']:.2f})"
            if goal is None:
                return text
            color = "green" if values["median"] <= goal else "red"
            return f"[{color}]{text}, goal {goal:.2f}[/{color}]"

        table.add_row(
            name,
            f"{medians['ours']:.3f} / {medians['plain']:.3f}",
            ratio("time"),
            f"{memory['ours'] / 2**20:.0f} / {memory['plain'] / 2**20:.0f}",
            ratio("memory"),
            ratio("floor"),
        )
    return table


def key_of(case: Case) -> str:
    return json.dumps(asdict(case))


def value_of(name: str, case: Case) -> float:
    """What is varied in a group of `GROWTH`."""
    return case.rows if name == "alternates" else getattr(case, name.replace(" ", "_"))


def draw(goals: dict[str, dict], growth: dict[str, dict[float, dict]], path: Path) -> None:
    """Ratios of time and memory of the goals' cases; and how seconds grow, one panel for what is varied."""
    figure, axes = plt.subplots(1 + (len(growth) + 2) // 3, 3, figsize=(12, 3.4 * (1 + (len(growth) + 2) // 3)))
    for axis in axes[0]:
        axis.remove()
    top = figure.add_subplot(axes.shape[0], 1, 1)
    names = list(goals)
    for offset, (key, label) in enumerate((("time", "Time"), ("memory", "Peak memory"))):
        places = [place + 0.4 * offset for place in range(len(names))]
        values = [goals[name]["ratios"][key]["median"] for name in names]
        top.barh(places, values, height=0.36, label=label)
        wanted = [(goals[name]["case"]["goals"] or {}).get(key) for name in names]
        marks = [(goal, place) for goal, place in zip(wanted, places, strict=True) if goal is not None]
        top.scatter(
            *zip(*marks, strict=True), marker="|", s=160, color="black", zorder=3, label="Goal" if offset else None
        )
    top.set_yticks([place + 0.2 for place in range(len(names))], names)
    top.invert_yaxis()
    top.axvline(1, color="gray", linewidth=0.8)
    top.set_xlabel("this library / the usual step (AltPO: TRL's DPOTrainer)")
    top.legend()
    for axis, (name, cases) in zip(axes[1:].flat, growth.items(), strict=False):
        for side, label in (("plain", "usual"), ("ours", "this library"), ("floor", "matrix products")):
            axis.plot(
                list(cases),
                [statistics.median(case["seconds"][side]) for case in cases.values()],
                marker="o",
                label=label,
            )
        axis.set_xlabel(name)
        axis.set_ylabel("seconds a step")
        axis.set_ylim(bottom=0)
        axis.locator_params(axis="x", nbins=4)
    for axis in axes[1:].flat[len(growth) :]:
        axis.remove()
    axes[1, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="Part of the names of the cases to run.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.measure is not None:
        sys.stdout.write(
            f"\n{measure_memory(Case(**json.loads(arguments.measure[1])), arguments.measure[0], device)}\n"
        )
        return
    directory = arguments.output_dir.resolve() / "training"
    circumstances = {
        "machine": {
            "platform": platform.platform(),
            "processor": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {package: version(package) for package in ("torch", "transformers", "trl", "peft")},
        "rounds": arguments.rounds,
    }
    results = {**circumstances, "cases": {}}
    if (directory / "training.json").exists():  # of a run that was stopped
        earlier = json.loads((directory / "training.json").read_text(encoding="utf-8"))
        if circumstances == {key: earlier[key] for key in circumstances}:
            results = earlier
    goals = {name: case for name, case in (GPU if device.type == "cuda" else GOALS).items() if arguments.only in name}
    growth = {} if device.type == "cuda" else {name: cases for name, cases in GROWTH.items() if arguments.only in name}
    for case in tqdm([*goals.values(), *(case for cases in growth.values() for case in cases)], desc="Cases"):
        if key_of(case) not in results["cases"]:
            results["cases"][key_of(case)] = run(case, arguments.rounds, device)
            write_json(results, directory / "training.json")
    of_goals = {name: results["cases"][key_of(case)] for name, case in goals.items()}
    of_growth = {
        name: {value_of(name, case): results["cases"][key_of(case)] for case in cases}
        for name, cases in growth.items()
    }
    if of_goals:
        console.print(table_of("Steps, this library / the usual way: medians (lowest to highest)", of_goals))
    for name, several in of_growth.items():
        console.print(table_of(name, {f"{value}": result for value, result in several.items()}))
    if of_goals and of_growth:
        draw(of_goals, of_growth, directory / "training.png")


if __name__ == "__main__":
    main()
