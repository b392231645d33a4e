"""`trl-unlearn <command>`: the scripts under one name."""

import runpy
import sys


COMMANDS = {
    "npo": "Unlearn with Negative Preference Optimization.",
    "simnpo": "Unlearn with SimNPO, which needs no reference.",
    "altpo": "Unlearn with Alternate Preference Optimization.",
    "alternates": "Make alternate answers to the questions of a forget set, for AltPO.",
    "estimate": "Estimate memory and time of a recipe from shapes alone.",
    "evaluate": "Evaluate a model on TOFU, MUSE, WMDP, the embedded world, or rows of your own.",
    "attack": "Attack an unlearned model: relearning, quantisation, sampling, paraphrases, its adapter.",
    "compare": "Compare evaluations from their files alone.",
    "push": "Push a trained model or adapter to the Hub, with its results and card.",
    "ledger": "Show, undo, merge and check deletion requests that were trained one after another.",
    "merge": "Merge an adapter into its base model.",
    "chat": "Ask a model, its base and the retained model the same question.",
    "env": "Print versions and devices, for a report of an error.",
    "quickstart": "Make a small world, unlearn a part of it with every method, and compare.",
}


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print("usage: trl-unlearn <command> [options]\n\ncommands:")
        for name, description in COMMANDS.items():
            print(f"  {name:<12}{description}")
        print("\nOptions of a command: trl-unlearn <command> --help. On several devices: accelerate launch")
        print("-m trl_unlearn.scripts.<command> [options].")
    elif command == "--version":
        from . import __version__

        print(__version__)
    elif command in COMMANDS:
        sys.argv = [f"trl-unlearn {command}", *sys.argv[2:]]
        runpy.run_module(f"trl_unlearn.scripts.{command}", run_name="__main__", alter_sys=False)
    else:
        sys.exit(f"trl-unlearn: unknown command {command!r}. Commands are {', '.join(COMMANDS)}.")


if __name__ == "__main__":
    main()
