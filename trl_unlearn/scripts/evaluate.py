"""
Evaluates a model or adapter on data laid out like TOFU, for example the retained model that others are compared with.

```bash
trl-unlearn evaluate --model_name_or_path open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90 \
    --dataset_name locuslab/TOFU --eval_forget_config forget10_perturbed \
    --eval_utility_configs real_authors_perturbed world_facts_perturbed --output_dir outputs/retain90
```

Writes `_evaluation/evaluation.json` into the output directory: what `--retain_logs` of the training commands takes.
"""

from dataclasses import dataclass, field
from pathlib import Path

from trl_unlearn.evaluation.arguments import EvaluationArguments, evaluate_as_asked
from trl_unlearn.evaluation.callback import EVALUATION_DIR
from trl_unlearn.files import write_json


@dataclass
class EvaluateScriptArguments(EvaluationArguments):
    r"""
    Arguments of the evaluation command beside [`~evaluation.arguments.EvaluationArguments`].

    Parameters:
        model_name_or_path (`str`):
            Model or adapter: an id on the Hub or a path.
        dataset_name (`str`):
            Data set to evaluate on: an id on the Hub or a path.
        output_dir (`str`):
            Folder for the results.
        model_revision (`str`, *optional*, defaults to `"main"`):
            Revision of the model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` takes the saved one. Log-probabilities are computed in fp32 in any case.
    """

    model_name_or_path: str = field(kw_only=True, metadata={"help": "Model or adapter: an id on the Hub or a path."})
    dataset_name: str = field(kw_only=True, metadata={"help": "Data set to evaluate on: an id on the Hub or a path."})
    output_dir: str = field(kw_only=True, metadata={"help": "Folder for the results."})
    model_revision: str = field(default="main", metadata={"help": "Revision of the model."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the weights; 'auto' takes the saved one."})


def evaluate(arguments: EvaluateScriptArguments) -> None:
    """Loads the model, evaluates it, writes the result and prints a table."""
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if arguments.eval_forget_config is None:
        raise ValueError("Say what to evaluate on: `--eval_forget_config`, for example forget10_perturbed.")
    source = {"revision": arguments.model_revision, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model_name_or_path, dtype=arguments.dtype, use_safetensors=True, **source
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path, **source)
    result = evaluate_as_asked(model.to(PartialState().device), tokenizer, arguments.dataset_name, arguments)
    path = Path(arguments.output_dir) / EVALUATION_DIR / "evaluation.json"
    write_json(result, path)

    table = Table("metric", "value", box=None, title=arguments.model_name_or_path)
    for name, value in result["summary"].items():
        table.add_row(name, f"{value:.4f}")
    if "forget_quality" in result:
        quality = result["forget_quality"]
        table.add_row("forget_quality, log10 p", f"{quality['log10_p_value']:.2f}")
        table.add_row("D", f"{quality['statistic']:.4f} (n = {quality['n']} and {quality['n_retain']})")
    else:
        table.add_row("forget_quality", "left out: it takes the retained model's results, --retain_logs")
    console = Console()
    console.print(table)
    console.print(f"Written to {path}.")


if __name__ == "__main__":
    from trl import TrlParser

    evaluate(*TrlParser(EvaluateScriptArguments).parse_args_and_config(fail_with_unknown_args=True))
