"""
Pushes what a run has left in a folder to the Hub, with the evaluation that was made later if one is given.

```bash
trl-unlearn push outputs/simnpo me/Llama-3.2-1B-TOFU-forget10-SimNPO-lora --private
trl-unlearn push outputs/simnpo me/Llama-3.2-1B-TOFU-forget10-SimNPO-lora \
    --evaluation outputs/simnpo/_evaluation/evaluation.json --retain_logs auto
```

Only weights, tokenizer, configuration, card, results, recipe and picture are pushed, never checkpoints, pickles or
evaluations with their rows. It can be repeated: the card is made again from the results, and what was written by hand
into it, here or on the Hub, is kept.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="trl-unlearn push", description="Push what a run has left in a folder to the Hub."
    )
    parser.add_argument("directory", type=Path, help="Output directory of a run, or one of its checkpoints.")
    parser.add_argument("repository", help="Repository on the Hub, org/name; made if it is not there.")
    parser.add_argument("--private", action="store_true", default=None, help="The repository must be private.")
    parser.add_argument("--revision", help="Branch; made if it is not there.")
    parser.add_argument(
        "--include-forget-examples", action="store_true", help="Publish a few forget rows with the model's answers."
    )
    parser.add_argument("--evaluation", help="Evaluation of the model, to be attached: evaluation.json.")
    parser.add_argument("--before_logs", help="Evaluation of the model before unlearning, to be attached.")
    parser.add_argument(
        "--retain_logs", help="Evaluation of the retained model: a file, org/name:path on the Hub, or auto."
    )
    parser.add_argument("--base_model", help="Id on the Hub of the base, if it was loaded from a path.")
    return parser.parse_args()


def attach(arguments: argparse.Namespace) -> None:
    """Writes what is given beside the folder into its results, and makes the card again."""
    from trl_unlearn.evaluation.logs import read_log
    from trl_unlearn.evaluation.retain_reference import resolve_retain_logs
    from trl_unlearn.files import write_json
    from trl_unlearn.hub.push import PushError, base_license, card_of, write_card
    from trl_unlearn.hub.results import aggregate, load_results, save_results

    directory = arguments.directory
    results = load_results(directory)
    if results is None:
        raise PushError(
            f"there is no unlearn_results.json in {directory}, to which an evaluation or a base could be added. It is "
            "written where a trainer of trl-unlearn saves."
        )
    before = json.dumps(results)
    if arguments.base_model is not None:
        results["base_model"] = {"name": arguments.base_model, "revision": None, "license": None}
        path = directory / "adapter_config.json"
        if path.exists():
            config = json.loads(path.read_text(encoding="utf-8"))
            write_json(config | {"base_model_name_or_path": arguments.base_model, "revision": None}, path)
    evaluations: dict[str, dict[str, Any] | None] = results["evaluations"]
    if arguments.before_logs is not None:
        evaluations["before"] = aggregate(read_log(arguments.before_logs))
    if arguments.evaluation is not None:
        evaluations["after"] = aggregate(read_log(arguments.evaluation))
    if arguments.retain_logs is not None:
        after = evaluations["after"] or {}
        name = results["base_model"]["name"] or ""
        path, reference = resolve_retain_logs(arguments.retain_logs, name, after.get("split"))
        evaluations["retained"] = aggregate(read_log(path) | {"model": reference})
    base = results["base_model"]
    if base["name"] is not None and base["license"] is None:
        base["license"] = base_license(base["name"], base["revision"])
    if json.dumps(results) != before:
        save_results(results, directory)
        write_card(card_of(directory, results), results, directory)


def main() -> None:
    """Attaches, pushes, and says where it is; a failure is told in words."""
    arguments = parse_arguments()

    from trl_unlearn.hub.push import PushError, check_folder, push_folder
    from trl_unlearn.hub.results import load_results

    given = (arguments.evaluation, arguments.before_logs, arguments.retain_logs, arguments.base_model)
    try:
        if not arguments.directory.is_dir():
            raise PushError(f"there is no folder {arguments.directory}.")
        if any(value is not None for value in given) or load_results(arguments.directory) is not None:
            attach(arguments)
        commit = push_folder(
            arguments.directory,
            arguments.repository,
            private=arguments.private,
            revision=arguments.revision,
            include_forget_examples=arguments.include_forget_examples,
        )
        files = check_folder(arguments.directory, arguments.include_forget_examples)
    except (PushError, FileNotFoundError, ValueError) as error:
        sys.exit(f"trl-unlearn push: {error}")
    print(f"{commit.commit_url}\n" + "\n".join(f"    {file}" for file in files))


if __name__ == "__main__":
    main()
