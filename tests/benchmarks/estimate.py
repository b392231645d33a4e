"""
`trl-unlearn estimate` against measured peak memory and time of steps, on the CPU.

    OMP_NUM_THREADS=1 python tests/benchmarks/estimate.py --output_dir outputs/benchmark

Each configuration is estimated by the command and trained for a few steps in a process of its own, in turns, because a
machine is not equally fast from one minute to the next (Linux only).
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import yaml
from rich.console import Console
from rich.table import Table

from trl_unlearn.files import write_json


WITHIN = 0.25
NUM_STEPS = 4
MODELS = {  # hidden size, layers, vocabulary
    "small": (256, 4, 8_192),
    "medium": (512, 6, 16_384),
    "wide": (512, 8, 32_768),
    "large": (768, 8, 16_384),
}
LORA = {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear"}
KL = {"retain_loss_type": "kl"}
CONFIGURATIONS = {
    "NPO, AdamW": ("npo", "medium", {}),
    "NPO, small, batch of 16": ("npo", "small", {"per_device_train_batch_size": 16}),
    "NPO, KL, resident copy": ("npo", "medium", {**KL}),
    "NPO, reference not precomputed": ("npo", "medium", {"precompute_ref_log_probs": False}),
    "SimNPO, checkpointing": ("simnpo", "wide", {"gradient_checkpointing": True}),
    "SimNPO, SGD, accumulation": ("simnpo", "medium", {"optim": "sgd", "gradient_accumulation_steps": 2}),
    "AltPO, Adafactor": ("altpo", "medium", {"optim": "adafactor"}),
    "NPO, LoRA": ("npo", "large", LORA),
    "AltPO, LoRA, KL, checkpointing": ("altpo", "large", {**LORA, **KL, "gradient_checkpointing": True}),
    "SimNPO, batch of 32": ("simnpo", "large", {"per_device_train_batch_size": 32}),  # timed with 1 and 3 layers
}


def write_model(name: str, directory: Path) -> None:
    """A Llama with new weights and a tokenizer, saved."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from trl_unlearn.world.model import train_tokenizer

    hidden_size, num_layers, vocab_size = MODELS[name]
    tokenizer = train_tokenizer(WORDS, vocab_size=1000)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=round(hidden_size * 8 / 3 / 64) * 64,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


WORDS = [f"{a}{b}{c}" for a in "bdklmnprst" for b in "aeiou" for c in "lmnrst"]


def write_data(directory: Path) -> None:
    """Questions and answers of random words, of different lengths."""
    from trl_unlearn.world import save_world

    rng = random.Random(0)

    def text(shortest: int, longest: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(shortest, longest)))

    rows = [
        {"question": text(4, 12), "answer": text(8, 24), "alternates": [text(8, 24)]}
        for _ in range(8 * NUM_STEPS * 16)
    ]
    half = len(rows) // 2
    save_world({"forget": rows[:half], "retain": rows[half:]}, directory)


def measure(method: str, recipe: str) -> dict[str, float]:
    """Trains a recipe in this process: peak memory above what the imports took, and processor time of a step."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM, TrainerCallback  # noqa: F401
    from trl import ModelConfig

    import trl_unlearn
    from trl_unlearn.scripts.parsing import RecipeParser
    from trl_unlearn.scripts.unlearn import UnlearningScriptArguments, make_trainer

    names = {"npo": "NPO", "simnpo": "SimNPO", "altpo": "AltPO"}
    trainer_class = getattr(trl_unlearn, f"{names[method]}Trainer")
    config_class = getattr(trl_unlearn, f"{names[method]}Config")
    arguments = RecipeParser((UnlearningScriptArguments, config_class, ModelConfig)).parse(["--config", recipe])

    on_gpu = torch.cuda.is_available()
    if on_gpu:  # with what the context takes, which the estimate counts too
        free, total = torch.cuda.mem_get_info()
        before = total - free
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
        before = status("VmRSS")

    class Clock(TrainerCallback):
        marks: list[float] = []

        def on_step_end(self, args, state, control, **kwargs):
            if on_gpu:
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter() if on_gpu else time.process_time())

    trainer = make_trainer(trainer_class, *arguments)
    trainer.add_callback(Clock)
    trainer.train()
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated() + (total - free - torch.cuda.memory_reserved()) - before
    else:
        peak = status("VmHWM") - before
    marks = Clock.marks  # the first step allocates, and is left out
    return {"memory": peak, "step": (marks[-1] - marks[0]) / (len(marks) - 1)}


def status(name: str) -> int:
    """A line of the process' status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def run(*command: str) -> dict:
    """The JSON that a process prints last."""
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        sys.exit(process.stderr[-4000:])
    output = f"\n{process.stdout}"
    return json.loads(output[output.rindex("\n{") :])


def summary(turns: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of what was estimated, of what was measured, and of the ratios of the turns, with their extremes."""
    each = [estimated / measured for estimated, measured in turns]
    estimated, measured = (median(values) for values in zip(*turns, strict=True))
    return {
        "estimated": estimated,
        "measured": measured,
        "ratio": median(each),
        "lowest": min(each),
        "highest": max(each),
    }


def ratios(values: dict[str, float]) -> str:
    return f"{values['ratio']:.2f} ({values['lowest']:.2f} to {values['highest']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--only", help="Part of the names of the configurations to run.", default="")
    parser.add_argument("--repeats", type=int, default=3, help="Times that each is estimated and measured.")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        sys.stdout.write(f"\n{json.dumps(measure(*arguments.measure))}\n")
        return
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("Set OMP_NUM_THREADS=1: on a machine with other work, only the processor's time can be trusted.")
    directory = arguments.output_dir.resolve() / "estimate"
    write_data(directory / "data")
    console = Console()
    versions = {package: version(package) for package in ("torch", "transformers", "trl", "peft")}
    machine = {"platform": platform.platform(), "threads": 1}
    rows = []
    for name, (method, model, options) in CONFIGURATIONS.items():
        if arguments.only not in name:
            continue
        if not (directory / model).is_dir():
            write_model(model, directory / model)
        recipe = directory / f"{method}.yaml"
        values = {
            "model_name_or_path": str(directory / model),
            "dataset_name": str(directory / "data"),
            "forget_config": "forget",
            "retain_config": "retain",
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "max_steps": NUM_STEPS,
            "save_strategy": "no",
            "report_to": "none",
            "dataloader_pin_memory": False,
            "output_dir": str(directory / "run"),
            **options,
        }
        recipe.write_text(yaml.safe_dump(values))
        turns = []
        for _ in range(arguments.repeats):
            estimated = run(
                sys.executable,
                "-m",
                "trl_unlearn.scripts.estimate",
                "--method",
                method,
                "--config",
                str(recipe),
                "--json",
            )
            measured = run(sys.executable, __file__, "--output_dir", ".", "--measure", method, str(recipe))
            turns.append({"estimated": estimated, "measured": measured})
        rows.append(
            {
                "configuration": name,
                "parameters": estimated["run"]["parameters"],
                "memory": summary([(t["estimated"]["memory"]["total"], t["measured"]["memory"]) for t in turns]),
                "step": summary([(t["estimated"]["time"]["step"], t["measured"]["step"]) for t in turns]),
                "turns": turns,
            }
        )
        write_json({"machine": machine, "versions": versions, "rows": rows}, directory / "estimate.json")
        console.print(f"{name}: memory {ratios(rows[-1]['memory'])}, time {ratios(rows[-1]['step'])}")

    table = Table(
        "Configuration", "Parameters", "Memory, MiB", "Seconds a step", title="Estimated / measured, median (spread)"
    )
    for row in rows:
        memory, step = row["memory"], row["step"]
        table.add_row(
            row["configuration"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{memory['estimated'] / 2**20:.0f} / {memory['measured'] / 2**20:.0f} = {ratios(memory)}",
            f"{step['estimated']:.2f} / {step['measured']:.2f} = {ratios(step)}",
        )
    console.print(table)
    outside = [
        row["configuration"] for row in rows if any(abs(row[key]["ratio"] - 1) > WITHIN for key in ("memory", "step"))
    ]
    if outside:
        sys.exit(f"Not within {WITHIN:.0%}: {'; '.join(outside)}")


if __name__ == "__main__":
    main()
