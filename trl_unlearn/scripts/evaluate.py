"""
Evaluates a model or an adapter: on TOFU, MUSE, WMDP, the embedded world, or rows of one's own.

```bash
trl-unlearn evaluate --model_name_or_path open-unlearning/tofu_Llama-3.2-1B-Instruct_full --benchmark tofu \
    --retain_logs auto --output_dir outputs/full
accelerate launch -m trl_unlearn.scripts.evaluate --model_name_or_path my-model --forget_data forget.jsonl \
    --retain_data retain.jsonl --output_dir outputs/mine
```

Writes into `_evaluation/` of the output directory: `evaluation.json` with every number, which `--retain_logs` and
`trl-unlearn compare` read; `report.html`, `answers.md` and `rows.parquet` to look at; and the logs of open-unlearning.
Killed and started again, it goes on where it stopped. With `--attacks`, the model is attacked afterwards, see
`trl-unlearn attack`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_unlearn.attacks.arguments import AttackArguments
from trl_unlearn.scripts.help import shows_help


# Where its options are written down, for its help
SOURCES = {
    "Model and output": [
        ("trl_unlearn.scripts.evaluate", "EvaluateScriptArguments"),
        ("trl_unlearn.evaluation.arguments", "EvaluationArguments"),  # whose groups come first here
        ("trl_unlearn.attacks.arguments", "AttackArguments"),
    ]
}


@dataclass
class EvaluateScriptArguments(AttackArguments):
    r"""
    Arguments of the evaluation command beside [`~evaluation.arguments.EvaluationArguments`] and
    [`~attacks.arguments.AttackArguments`].

    Parameters:
        model_name_or_path (`str`):
            Model or adapter: an id on the Hub or a path.
        output_dir (`str`):
            Folder for the results.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the model on the Hub.
        base_model (`str`, *optional*):
            Model that an adapter belongs to, in place of the one that it names; of a whole model without a tokenizer, the
            model whose tokenizer it shares.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` takes the saved one. Log-probabilities are computed in fp32 in any case.
        before_logs (`str`, *optional*):
            Evaluation of the model before unlearning, for the tables: any file that `retain_logs` may be.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to start afresh instead of going on from the rows that are finished.
    """

    model_name_or_path: str = field(kw_only=True, metadata={"help": "Model or adapter: an id on the Hub or a path."})
    output_dir: str = field(kw_only=True, metadata={"help": "Folder for the results."})
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Model that an adapter belongs to, or whose tokenizer the model shares."}
    )
    dtype: str = field(default="auto", metadata={"help": "Data type of the weights; 'auto' takes the saved one."})
    before_logs: str | None = field(
        default=None, metadata={"help": "Evaluation of the model before unlearning, for the tables."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Start afresh instead of going on."})

    def __post_init__(self):
        super().__post_init__()
        if self.eval_benchmark is None:
            raise ValueError(
                "Say what to evaluate on: `--benchmark tofu`, `muse`, `wmdp` or `world`, or rows of your own with "
                "`--forget_data` and `--retain_data`."
            )


def evaluate(arguments: EvaluateScriptArguments) -> None:
    """Loads the model, evaluates it on each split, attacks it if asked, writes the results and prints tables."""
    from accelerate import PartialState
    from rich.console import Console

    from trl_unlearn.attacks.run import check_attacks, finished_attacks
    from trl_unlearn.evaluation.benchmarks import evaluate_as_asked, evaluate_retained, load_sets, splits_of, target_of
    from trl_unlearn.evaluation.loading import load_model
    from trl_unlearn.evaluation.logs import read_log
    from trl_unlearn.evaluation.report import summary_table
    from trl_unlearn.evaluation.results import EVALUATION_DIR, write_results
    from trl_unlearn.evaluation.store import RowStore
    from trl_unlearn.scripts.unlearn import let_gloo_finish

    splits = splits_of(arguments)
    if arguments.eval_benchmark in ("tofu", "world", "custom"):
        for split in splits:  # what is wrong with the data is said before the model is loaded
            load_sets(arguments, split)
    if arguments.attacks:
        check_attacks(arguments)
    before = read_log(arguments.before_logs) if arguments.before_logs is not None else None
    model, tokenizer = load_model(
        arguments.model_name_or_path, arguments.model_revision, arguments.dtype, arguments.base_model
    )
    directory = Path(arguments.output_dir) / EVALUATION_DIR
    if arguments.overwrite:  # once, since the retained model's rows and earlier splits' are kept there as well
        RowStore(directory / "rows", overwrite=True)
    evaluated = []
    for split in splits:
        target = target_of(model, arguments.model_name_or_path)
        retained = evaluate_retained(arguments, split, target, cache_dir=directory / "rows")
        result = evaluate_as_asked(
            model,
            tokenizer,
            arguments,
            split,
            model_name=arguments.model_name_or_path,
            retained=retained,
            cache_dir=directory / "rows",
        )
        place = directory / split if len(splits) > 1 else directory
        if attacks := {} if arguments.overwrite else finished_attacks(place / "evaluation.json", result):
            result["attacks"] = attacks
        evaluated.append((split, result, retained, place))
        if PartialState().is_main_process:
            # With attacks it has the name that stands in their table
            name = "After" if arguments.attacks or attacks else Path(arguments.model_name_or_path).name
            results = {"Before": before, name: result, "Retained": retained}
            results = {name: log for name, log in results.items() if log is not None}
            write_results(result, results, place)
            console = Console()
            console.print(summary_table(results))
            console.print(f"Written to {place}: report.html to look at, evaluation.json for programs.")
    if arguments.attacks:
        del model, tokenizer  # each part of an attack loads the model that it needs
        for split, result, retained, place in evaluated:
            attack(arguments, split, result, before, retained, place, directory / "rows")
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
    let_gloo_finish(state.num_processes)


def attack(
    arguments: EvaluateScriptArguments,
    split: str | None,
    result: dict[str, Any],
    before: dict[str, Any] | None,
    retained: dict[str, Any] | None,
    directory: Path,
    cache_dir: Path,
) -> None:
    """Attacks the model that was evaluated, adds what comes out to its results, and prints it; as [`run_attacks`]."""
    from accelerate import PartialState
    from rich.console import Console

    from trl_unlearn.attacks.report import attack_table
    from trl_unlearn.attacks.run import run_attacks
    from trl_unlearn.evaluation.results import write_results

    evaluations = run_attacks(arguments, split, result, before, retained, directory, cache_dir)
    if PartialState().is_main_process:
        write_results(result, {name.capitalize(): log for name, log in evaluations.items()}, directory)
        console = Console()
        console.print(attack_table(result["attacks"], evaluations))
        console.print(f"Written to {directory}: report.html to look at, `attacks` in evaluation.json for programs.")


def main() -> None:
    if shows_help("evaluate", __doc__.split("\n\n")[0].strip(), SOURCES):
        return
    from trl_unlearn.scripts.parsing import RecipeParser

    evaluate(*RecipeParser(EvaluateScriptArguments).parse())


if __name__ == "__main__":
    main()
