"""`--help`: what it reads from source files is what the parser takes, and it loads neither torch nor transformers."""

import ast
import os
import subprocess
import sys
from importlib import import_module

import pytest
from trl import ModelConfig

import trl_unlearn
from trl_unlearn.attacks.arguments import ATTACKS
from trl_unlearn.scripts.attack import AttackScriptArguments
from trl_unlearn.scripts.evaluate import EvaluateScriptArguments
from trl_unlearn.scripts.help import options_of
from trl_unlearn.scripts.parsing import RecipeParser
from trl_unlearn.scripts.unlearn import UnlearningScriptArguments, sources_of


@pytest.mark.parametrize("method", ["NPO", "SimNPO", "AltPO"])
def test_options_and_defaults_are_those_of_the_parser(method):
    parser = RecipeParser((UnlearningScriptArguments, getattr(trl_unlearn, f"{method}Config"), ModelConfig))
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    # of an option that can be switched off there are two actions, and the first has the default
    for action in parser._actions:
        if not action.option_strings[0].startswith("--no_"):
            actions[action.dest] = action
    actions.pop("help")
    options = options_of(sources_of(method))
    assert options.keys() == actions.keys()
    compared = 0
    for name, option in options.items():
        assert actions[name].required == (option.default is None), name
        try:
            default = ast.literal_eval(option.default or "")
        except (SyntaxError, ValueError):  # a name, such as the enumeration's member that is the default
            continue
        if name != "debug":  # an empty text for a list, which the parser makes `None` of
            assert actions[name].default == default, name
        compared += 1
    assert compared > 150
    groups = list(dict.fromkeys(option.group for option in options.values()))
    assert groups[0] == "Training data"
    assert groups.index("Model and adapter") < groups.index("Loss")


@pytest.mark.parametrize("command", ["npo", "evaluate", "attack"])
def test_help_needs_no_heavy_import(command):
    script = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('trl_unlearn.scripts.{command}', run_name='__main__')\n"
        "finally: print('imported:', *({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert process.returncode == 0, process.stderr
    *lines, last = process.stdout.splitlines()
    assert last == "imported:"
    assert lines[0] == f"usage: trl-unlearn {command} [--config FILE.yaml] [--option value ...]"
    assert "  --retain_logs (str; default: None)" in lines
    assert max(map(len, lines)) <= 119


@pytest.mark.parametrize(
    "command", ["alternates", "compare", "push", "ledger", "merge", "chat", "estimate", "quickstart", "env"]
)
def test_help_of_every_command_is_there_at_once(command):
    """Of all modules that it imports, none takes long."""
    script = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('trl_unlearn.scripts.{command}', run_name='__main__')\n"
        "finally: print('imported:', *({'torch', 'transformers', 'datasets', 'scipy'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"usage: trl-unlearn {command} ")
    assert process.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    ("command", "arguments"), [("evaluate", EvaluateScriptArguments), ("attack", AttackScriptArguments)]
)
def test_help_of_the_evaluation_has_all_its_options(command, arguments):
    sources = import_module(f"trl_unlearn.scripts.{command}").SOURCES
    parser = RecipeParser(arguments)
    options = options_of(sources)
    assert options.keys() == {action.dest for action in parser._actions} - {"help"}
    assert options["attacks"].group == "Attacks" and options["relearn_steps"].group == "Relearning"
    assert options["relearn_steps"].default == "[5, 10, 20, 50]"
    assert options["attacks"].default == ("[]" if command == "evaluate" else str(list(ATTACKS)))
