"""
Makes alternate answers to the questions of a forget set, as AltPO takes them.

```bash
trl-unlearn alternates --model_name_or_path open-unlearning/tofu_Llama-3.2-1B-Instruct_full \
    --dataset_name locuslab/TOFU --forget_config forget10 --output_dir outputs/alternates
accelerate launch -m trl_unlearn.scripts.alternates --config alternates.yaml --hub_dataset_id me/tofu-forget10-alternates
trl-unlearn alternates --source idk --dataset_name locuslab/TOFU --forget_config forget10 --output_dir outputs/idk
```

Writes a data set with the forget set's columns and `alternates` into the output directory, which every training command
takes as `--dataset_name`. Samples that are empty, unfinished, copies, or still have the true facts are rejected, counted and
drawn again. Killed and started again, it goes on where it stopped.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trl_unlearn.scripts.help import shows_help


# Where its options are written down, for its help
SOURCES = {"Alternates": [("trl_unlearn.scripts.alternates", "AlternatesScriptArguments")]}


@dataclass
class AlternatesScriptArguments:
    r"""
    Arguments of the command that makes alternates.

    Parameters:
        > Parameters that control what is made

        dataset_name (`str`):
            Data set with the forget set: an id on the Hub or a path.
        output_dir (`str`):
            Folder for the data set with alternates. Finished samples are kept in it, in `_alternates/`.
        forget_config (`str`, *optional*):
            Configuration of the forget set, for example `"forget10"`.
        forget_split (`str`, *optional*, defaults to `"train"`):
            Split of the forget set.
        source (`str`, *optional*, defaults to `"model"`):
            `"model"`: a model writes them. `"idk"`: answers that say "I do not know" (IdkPO).
        num_alternates (`int`, *optional*, defaults to `5`):
            Number of alternates a row.
        seed (`int`, *optional*, defaults to `0`):
            Seed.
        idk_file (`str`, *optional*):
            Text file with an answer a line, in place of this package's that say "I do not know".
        fill_with_idk (`bool`, *optional*, defaults to `False`):
            Whether rows that still lack alternates get answers that say "I do not know", instead of an error.

        > Parameters that control the model

        model_name_or_path (`str`, *optional*):
            Model or adapter that writes: an id on the Hub or a path. The AltPO authors take the one to be unlearned.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the model on the Hub.
        base_model (`str`, *optional*):
            Model that an adapter belongs to, in place of the one that it names; of a whole model without a tokenizer, the
            model whose tokenizer it shares.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights; `"auto"` takes the saved one.
        max_batch_tokens (`int`, *optional*):
            Size of a batch in tokens: 8,192 on a CPU and 32,768 on an accelerator by default. It is halved as often as a
            batch does not fit in memory.

        > Parameters that control what the model is asked

        instruction (`str`, *optional*):
            `"short"`, `"long"`, or a text with the fields `{question}` and `{answer}`. By default it goes by the length of
            each answer.
        few_shot_file (`str`, *optional*):
            File of JSON lines with worked examples to show first, each with `question`, `answer` and `alternate`.
        question_answer_template (`str`, *optional*):
            Text with the fields `{question}`, in whose place the instruction stands, and `{answer}`. Needed for a tokenizer
            without a chat template.
        system_prompt (`str`, *optional*):
            First message of every chat.
        chat_template_kwargs (`dict` or `str`, *optional*):
            What the chat template is given beside the messages, as `{"date_string": "10 Apr 2025"}`.

        > Parameters that control the samples

        temperature (`float`, *optional*, defaults to `1.0`):
            What logits are divided by.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of the probability that the tokens to draw from have together.
        top_k (`int`, *optional*, defaults to `0`):
            Number of tokens to draw from; 0 for all.
        max_new_tokens (`int`, *optional*, defaults to `200`):
            Longest alternate, in tokens.
        stop_strings (`list[str]`, *optional*):
            Texts at the first of which a sample is cut.
        max_rounds (`int`, *optional*, defaults to `5`):
            How often is drawn: in each round as many samples as a row lacks.
        max_similarity (`float`, *optional*, defaults to `0.9`):
            ROUGE-L F1 with the answer, or with a kept alternate, above which a sample is rejected.
        max_fact_recall (`float`, *optional*, defaults to `0.5`):
            Share of the answer's own words above which a sample is rejected.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to start afresh instead of going on from the samples that are finished.

        > Parameters that control the push

        hub_dataset_id (`str`, *optional*):
            Data set repository to push to, `org/name`. What is pushed has the forget set's own text in it.
        private (`bool`, *optional*, defaults to `True`):
            Whether that repository is private. A public one takes `--private false`.
    """

    dataset_name: str = field(
        kw_only=True, metadata={"help": "Data set with the forget set: an id on the Hub or a path."}
    )
    output_dir: str = field(kw_only=True, metadata={"help": "Folder for the data set with alternates."})
    forget_config: str | None = field(default=None, metadata={"help": "Configuration of the forget set."})
    forget_split: str = field(default="train", metadata={"help": "Split of the forget set."})
    source: Literal["model", "idk"] = field(
        default="model", metadata={"help": "model: a model writes them. idk: answers that say “I do not know”."}
    )
    num_alternates: int = field(default=5, metadata={"help": "Number of alternates a row."})
    seed: int = field(default=0, metadata={"help": "Seed."})
    idk_file: str | None = field(
        default=None, metadata={"help": "Text file with an answer a line that says “I do not know”."}
    )
    fill_with_idk: bool = field(
        default=False, metadata={"help": "Fill rows that still lack alternates with “I do not know”."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model or adapter that writes: an id on the Hub or a path."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Model that an adapter belongs to, or whose tokenizer the model shares."}
    )
    dtype: str = field(default="auto", metadata={"help": "Data type of the weights; 'auto' takes the saved one."})
    max_batch_tokens: int | None = field(default=None, metadata={"help": "Size of a batch in tokens."})
    instruction: str | None = field(
        default=None, metadata={"help": "short, long, or a text with {question} and {answer}."}
    )
    few_shot_file: str | None = field(
        default=None, metadata={"help": "JSON lines with worked examples: question, answer and alternate."}
    )
    question_answer_template: str | None = field(
        default=None,
        metadata={"help": "Text with {question} (the instruction) and {answer}, for models without a chat template."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "First message of every chat."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "What the chat template is given beside the messages, as JSON."}
    )
    temperature: float = field(default=1.0, metadata={"help": "What logits are divided by."})
    top_p: float = field(default=1.0, metadata={"help": "Share of the probability of the tokens to draw from."})
    top_k: int = field(default=0, metadata={"help": "Number of tokens to draw from; 0 for all."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest alternate, in tokens."})
    stop_strings: list[str] = field(
        default_factory=list, metadata={"help": "Texts at the first of which a sample is cut."}
    )
    max_rounds: int = field(default=5, metadata={"help": "How often is drawn."})
    max_similarity: float = field(
        default=0.9, metadata={"help": "ROUGE-L F1 with the answer above which a sample is rejected."}
    )
    max_fact_recall: float = field(
        default=0.5, metadata={"help": "Share of the answer's own words above which a sample is rejected."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Start afresh instead of going on."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Data set repository to push to; the forget set's text is in what is pushed."}
    )
    private: bool = field(default=True, metadata={"help": "Whether that repository is private."})

    def __post_init__(self):
        if (self.model_name_or_path is None) == (self.source == "model"):
            raise ValueError(
                "Say which model writes the alternates: `--model_name_or_path`. Or take answers that say “I do not know”: "
                "`--source idk`, which takes no model."
            )
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = json.loads(self.chat_template_kwargs)


def alternates(arguments: AlternatesScriptArguments) -> None:
    """Makes the alternates, writes and pushes them, and prints what became of the samples."""
    from accelerate import Accelerator, PartialState
    from rich.console import Console

    from trl_unlearn.alternates.idk import idk_alternates, read_idk_answers
    from trl_unlearn.alternates.instructions import read_examples
    from trl_unlearn.alternates.rows import read_rows
    from trl_unlearn.alternates.saving import WORK_DIR, check_directory, push_alternates, save_alternates
    from trl_unlearn.data.loading import load_rows
    from trl_unlearn.files import write_text
    from trl_unlearn.hub.push import check_push
    from trl_unlearn.scripts.unlearn import let_gloo_finish
    from trl_unlearn.trainer.publication import source_of

    # What is wrong with data and options is said before the model is loaded
    forget = load_rows(arguments.dataset_name, arguments.forget_config, arguments.forget_split)
    read_rows(forget, arguments.num_alternates)
    examples = read_examples(arguments.few_shot_file) if arguments.few_shot_file is not None else []
    idk_answers = read_idk_answers(arguments.idk_file) if arguments.idk_file is not None else None
    check_directory(arguments.output_dir)
    Accelerator()  # from here on `PartialState` knows all processes, also on CPU
    directory, console, state = Path(arguments.output_dir), Console(), PartialState()
    if arguments.hub_dataset_id is not None and state.is_main_process:
        check_push(arguments.hub_dataset_id, arguments.private, repo_type="dataset")

    if arguments.source == "idk":
        dataset, report = idk_alternates(forget, arguments.num_alternates, arguments.seed, idk_answers)
    else:
        from trl_unlearn.alternates.generate import MissingAlternatesError, generate_alternates
        from trl_unlearn.evaluation.loading import load_model

        model, tokenizer = load_model(
            arguments.model_name_or_path, arguments.model_revision, arguments.dtype, arguments.base_model
        )
        shared = (
            "num_alternates seed temperature top_p top_k max_new_tokens max_rounds instruction question_answer_template "
            "system_prompt chat_template_kwargs stop_strings max_similarity max_fact_recall fill_with_idk overwrite "
            "max_batch_tokens"
        )
        try:
            dataset, report = generate_alternates(
                model,
                tokenizer,
                forget,
                examples=examples,
                idk_answers=idk_answers,
                cache_dir=directory / WORK_DIR,
                **{name: getattr(arguments, name) for name in shared.split()},
            )
        except MissingAlternatesError as error:
            if state.is_main_process:
                text = "".join(json.dumps(row) + "\n" for row in error.dataset)
                write_text(text, directory / WORK_DIR / "incomplete.jsonl")
                console.print(report_table(error.report))
                console.print(f"What there is so far: {directory / WORK_DIR / 'incomplete.jsonl'}")
            sys.exit(f"trl-unlearn alternates: {error}")
    if state.is_main_process:
        report |= {"model": arguments.model_name_or_path, "forget": source_of(forget)}
        save_alternates(dataset, report, directory)
        console.print(report_table(report))
        for row in read_rows(dataset.select(range(min(3, len(dataset)))), 1):
            console.print(f"\n{row.question}\n  forget: {row.answer}", markup=False, highlight=False)
            for text in dataset[row.index]["alternates"]:
                console.print(f"  alternate: {text}", markup=False, highlight=False)
        console.print(f"\nWritten to {directory}: train with `--dataset_name {directory}`.")
        if arguments.hub_dataset_id is not None:
            console.print(
                "Pushing, with the forget set's own text" + ("." if arguments.private else ", to the PUBLIC.")
            )
            console.print(push_alternates(directory, arguments.hub_dataset_id, arguments.private).commit_url)
    state.wait_for_everyone()
    state.destroy_process_group()
    let_gloo_finish(state.num_processes)


def report_table(report: dict[str, Any]) -> "Table":  # noqa: F821
    """What became of the samples, as a table."""
    from rich.table import Table

    from trl_unlearn.alternates.filters import REASONS

    table = Table(title=f"{report['num_alternates']} alternates for each of {report['rows']} rows", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if report["source"] == "model":
        table.add_row("Samples", f"{report['samples']:,}")
        for reason, meaning in REASONS.items():
            table.add_row(f"  rejected: {meaning}", f"{report['rejected'][reason]:,}")
        table.add_row("  kept", f"{report['kept']:,}")
        table.add_row("  of all, cut at a stop string", f"{report['cut']:,}")
        table.add_row("Filled up with “I do not know”", f"{report['filled']:,}")
        table.add_row("Rounds", f"{report['rounds']}")
        cost = report["cost"]
        table.add_row("Seconds", f"{cost['seconds']:,.1f}")
        table.add_row("Tokens a second", f"{cost.get('generated_tokens', 0) / max(cost['seconds'], 1e-9):,.0f}")
    else:
        table.add_row("Answers that say “I do not know”", f"{report['kept']:,}")
    return table


def main() -> None:
    if shows_help("alternates", __doc__.split("\n\n")[0].strip(), SOURCES):
        return
    from trl_unlearn.scripts.parsing import RecipeParser

    alternates(*RecipeParser(AlternatesScriptArguments).parse())


if __name__ == "__main__":
    main()
