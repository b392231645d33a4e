"""
Asks an unlearned model, its base and the retained model the same questions, and shows the answers side by side.

```bash
trl-unlearn chat me/Llama-3.2-1B-Instruct-tofu-forget10-NPO-lora --base \
    --retained open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90 --question "Who is Hsiao Yun-Hwa?"
```

Answers are greedy, by the chat template where the tokenizer has one. Without `--question`, questions are read line by line
until the end of the input; each is asked by itself.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trl-unlearn chat", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("model", metavar="REPO", help="Unlearned model or adapter: an id on the Hub or a folder.")
    parser.add_argument("--base", action="store_true", help="Ask the model before unlearning too.")
    parser.add_argument("--retained", metavar="REPO", help="Retained model, to be asked too.")
    parser.add_argument("--question", action="append", metavar="TEXT", help="Question; may be given several times.")
    parser.add_argument("--revision", help="Branch, tag or commit of the model. Default: its main branch.")
    parser.add_argument("--subfolder", help="Folder of the model in its repository.")
    parser.add_argument("--base_model", help="Id or folder of the base. Default: the one that the repository names.")
    parser.add_argument("--base_revision", help="Revision of the base. Default: the one that the repository names.")
    parser.add_argument("--dtype", default="auto", help="Data type of the weights. Default: the saved one.")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="Longest answer in tokens. Default: 200.")
    parser.add_argument("--system_prompt", help="First message of every chat.")
    parser.add_argument(
        "--question_answer_template",
        help="Text with {question} and {answer}, in place of the chat template.",
    )
    return parser


def load_columns(arguments: argparse.Namespace) -> dict[str, Callable[[str], str]]:
    """By the column's title, functions that answer a question."""
    from accelerate import PartialState

    from trl_unlearn.hub.load import base_of, load_unlearned
    from trl_unlearn.hub.repository import find_repository

    options = {"dtype": arguments.dtype, "device_map": str(PartialState().device)}
    base_model, base_revision = arguments.base_model, arguments.base_revision
    repository = find_repository(arguments.model, arguments.revision, arguments.subfolder)
    if arguments.base and not repository.is_adapter and base_model is None:
        base_model, base_revision = base_of(repository)
        if base_model is None:
            raise ValueError(
                f"{repository} does not name the model it was made from. Pass it: `--base_model org/name`."
            )
    model, tokenizer = load_unlearned(
        arguments.model, repository.commit, arguments.subfolder, base_model, base_revision, **options
    )
    columns = {f"Unlearned: {arguments.model}": answers_of(model, tokenizer, arguments)}
    if arguments.base and repository.is_adapter:
        name = model.active_peft_config.base_model_name_or_path
        columns[f"Base: {base_model or name}"] = answers_of(model, tokenizer, arguments, model.disable_adapter)
    elif arguments.base:
        base = load_unlearned(base_model, base_revision, **options)
        columns[f"Base: {base_model}"] = answers_of(*base, arguments)
    if arguments.retained:
        retained = load_unlearned(arguments.retained, **options)
        columns[f"Retained: {arguments.retained}"] = answers_of(*retained, arguments)
    return columns


def answers_of(
    model: Any, tokenizer: Any, arguments: argparse.Namespace, context: Callable[[], Any] = nullcontext
) -> Callable[[str], str]:
    """A function that answers a question greedily, within a context such as the adapter being off."""
    from trl_unlearn.evaluation.plan import Plan
    from trl_unlearn.evaluation.prompting import Prompting

    prompting = Prompting(tokenizer, arguments.question_answer_template, arguments.system_prompt)

    def answer(question: str) -> str:
        plan = Plan()
        prompt_ids, _ = prompting.encode_question(question, "Yes")
        asked = plan.generate(prompt_ids, arguments.max_new_tokens)
        with context():
            plan.run(model, tokenizer, show_progress=False)
        return tokenizer.decode(plan.generations[asked], skip_special_tokens=True).strip()

    return answer


def read_questions() -> Iterator[str]:
    """Lines of the standard input that are not empty, until it ends."""
    while True:
        try:
            question = input("Question: " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question:
            yield question


def main() -> None:
    arguments = build_parser().parse_args()

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    try:
        columns = load_columns(arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"trl-unlearn chat: {error}")
    console = Console()
    for question in arguments.question or read_questions():
        table = Table(title=Text(question), show_lines=True)
        for title in columns:
            table.add_column(Text(title), ratio=1, overflow="fold")
        # As plain text: what a model writes is no markup
        table.add_row(*(Text(answer(question)) for answer in columns.values()))
        console.print(table)


if __name__ == "__main__":
    main()
