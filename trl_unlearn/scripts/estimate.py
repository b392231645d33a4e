"""
Memory and time of a recipe before it is run, from shapes alone.

```bash
trl-unlearn estimate --config recipes/tofu/llama-3.2-1b-instruct/npo.yaml --gpu A100-80GB
trl-unlearn estimate --config recipes/tofu/llama-3.1-8b-instruct/npo.yaml --gpu H100-80GB --num_processes 8 \
    --accelerate_config recipes/accelerate/fsdp2.yaml
```

The options are those of the training commands, and some of its own. Nothing is downloaded but the model's configuration and
tokenizer and the data, and nothing is trained.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trl_unlearn.scripts.help import shows_help
from trl_unlearn.scripts.unlearn import sources_of


METHODS = {"npo": "NPO", "simnpo": "SimNPO", "altpo": "AltPO"}


@dataclass
class EstimateScriptArguments:
    r"""
    Arguments of the estimate beside those of the recipe.

    Parameters:
        > Parameters that control the estimate

        method (`str`, *optional*):
            `"npo"`, `"simnpo"` or `"altpo"`. Defaults to the one that the file of `--config` is named after.
        num_processes (`int`, *optional*):
            Number of devices. Defaults to that of `accelerate_config`, and to 1.
        accelerate_config (`str`, *optional*):
            File that `accelerate launch --config_file` would be given. Without one, several devices are DDP.
        tokens_per_row (`int`, *optional*):
            Length of all rows, in place of those of the data, which is then not read. Where the data cannot be read,
            `max_length`.
        gpu (`str`, *optional*):
            GPU to estimate for. Defaults to this machine's, and to its CPU if it has none or with `use_cpu`.
        device_memory_gib (`float`, *optional*):
            Memory that it should fit into, in GiB. Defaults to the GPU's.
        tflops (`float`, *optional*):
            10^12 operations a second that the device reaches, for the time. Defaults to a measurement with a few layers on
            this machine, and for another GPU to a part of what its data sheet says.
        json (`bool`, *optional*, defaults to `False`):
            Whether to print JSON instead of a table.
    """

    method: Literal["npo", "simnpo", "altpo"] | None = field(
        default=None, metadata={"help": "Method. Defaults to the one that the file of --config is named after."}
    )
    num_processes: int | None = field(default=None, metadata={"help": "Number of devices."})
    accelerate_config: str | None = field(
        default=None, metadata={"help": "File that `accelerate launch --config_file` would be given."}
    )
    tokens_per_row: int | None = field(
        default=None, metadata={"help": "Length of all rows, in place of those of the data."}
    )
    gpu: Literal["A10", "A100-40GB", "A100-80GB", "H100-80GB", "H200", "L4", "L40S", "RTX4090"] | None = field(
        default=None, metadata={"help": "GPU to estimate for. Defaults to this machine's, else its CPU."}
    )
    device_memory_gib: float | None = field(
        default=None, metadata={"help": "Memory that it should fit into, in GiB. Defaults to the GPU's."}
    )
    tflops: float | None = field(
        default=None, metadata={"help": "10^12 operations a second that the device reaches, for the time."}
    )
    json: bool = field(default=False, metadata={"help": "Print JSON instead of a table."})


def parse(argv: list[str]) -> tuple[Any, ...]:
    """The method and the arguments: those of the estimate, of the data, of the trainer, and of the model."""
    from trl import ModelConfig

    import trl_unlearn
    from trl_unlearn.scripts.parsing import RecipeParser
    from trl_unlearn.scripts.unlearn import UnlearningScriptArguments

    if argv and argv[0] in METHODS:
        argv = ["--method", *argv]
    given = _given(argv)
    method = given.get("method") or Path(str(given.get("config", ""))).stem.removesuffix("_lora")
    if method not in METHODS:
        sys.exit(
            "trl-unlearn estimate: the method is not known. Give `--method npo`, `simnpo` or `altpo`; a recipe that is named "
            "after its method says it itself."
        )
    config_class = getattr(trl_unlearn, f"{METHODS[method]}Config")
    parser = RecipeParser((EstimateScriptArguments, UnlearningScriptArguments, config_class, ModelConfig))
    use_cpu = str(given.get("use_cpu", False)).lower() == "true"
    on_gpu = "gpu" in given or not use_cpu and _has_gpu()
    if on_gpu and "fp16" not in given:  # the trainers' default on such a GPU
        parser.set_defaults(bf16=True)
    # The tracing is done on the CPU, whatever it is for
    estimate_args, *recipe = parser.parse([*argv, "--use_cpu", "true"])
    if estimate_args.gpu is None and on_gpu:
        estimate_args.gpu = "here"
    return method, estimate_args, *recipe


def _given(argv: list[str]) -> dict[str, Any]:
    """What the command line and the file say, before their options are known: these depend on the method."""
    import yaml

    flags: dict[str, Any] = {}
    for position, argument in enumerate(argv):
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            following = argv[position + 1] if position + 1 < len(argv) else "--"
            flags[name] = value or (True if following.startswith("--") else following)
    values = {}
    if "config" in flags and Path(str(flags["config"])).is_file():
        values = yaml.safe_load(Path(flags["config"]).read_text(encoding="utf-8"))
    return {**(values if isinstance(values, dict) else {}), **flags}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> None:
    sources = {"Estimate": [("trl_unlearn.scripts.estimate", "EstimateScriptArguments")], **sources_of(None)}
    description = "Memory and time of a recipe before it is run, from shapes alone: nothing is trained, no weights are downloaded."
    if shows_help("estimate", description, sources):
        return
    import json

    from rich.console import Console

    import trl_unlearn
    from trl_unlearn.estimation.estimate import estimate
    from trl_unlearn.estimation.report import report
    from trl_unlearn.estimation.sharding import read_sharding

    method, arguments, script_args, training_args, model_args = parse(sys.argv[1:])
    try:
        with Console(stderr=True).status("Tracing a step on tensors without data"):
            result = estimate(
                getattr(trl_unlearn, f"{METHODS[method]}Trainer"),
                script_args,
                training_args,
                model_args,
                read_sharding(arguments.accelerate_config, arguments.num_processes),
                arguments.tokens_per_row,
                arguments.gpu,
                arguments.device_memory_gib,
                arguments.tflops,
            )
    except (ImportError, TypeError, ValueError) as error:
        sys.exit(f"trl-unlearn estimate: {error}")
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        report(result, Console())


if __name__ == "__main__":
    main()
