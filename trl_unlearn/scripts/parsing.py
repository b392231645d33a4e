"""Reads the options of a command from a YAML file and flags, and says which option was meant where there is none."""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

import yaml
from trl import TrlParser


class RecipeParser(TrlParser):
    """
    [`~trl.TrlParser`] that ends the program with one sentence, and names the nearest right option, where the command line
    or the YAML file is wrong.

    Args:
        dataclass_types (`type` or iterable of `type`):
            Dataclasses whose fields are the options.

    Example:

    ```python
    >>> (arguments,) = RecipeParser(EvaluateScriptArguments).parse()
    ```
    """

    def __init__(self, dataclass_types: type | Iterable[type]):
        super().__init__(dataclass_types, allow_abbrev=False)
        for action in self._actions:
            # As TRL has it for numbers, so that a flag can unset what the file sets
            if action.default is not None or action.nargs is not None or action.required:
                continue
            if action.choices is not None:
                action.type, action.choices = _text_or_none, [*action.choices, None]
            elif action.type is str:
                action.type = _text_or_none

    def parse(self, args: Iterable[str] | None = None) -> tuple[Any, ...]:
        """
        The dataclasses with the values of `--config FILE` and of the flags, which win.

        Args:
            args (iterable of `str`, *optional*):
                Command line. Defaults to the program's own.

        Raises:
            SystemExit: If something is wrong with the options; the message says what.
        """
        arguments: list[str] = []
        for argument in sys.argv[1:] if args is None else args:
            arguments += argument.split("=", 1) if argument.startswith("--config=") else [argument]
        if arguments[-1:] == ["--config"]:
            self.error("`--config` takes a YAML file.")
        try:
            return self.parse_args_and_config(arguments)
        except yaml.YAMLError as error:
            self.error(f"the file of `--config` is not YAML: {error}")
        except (OSError, TypeError, ValueError) as error:
            self.error(str(error))

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        actions = {action.dest: action for action in self._actions}
        for key, value in config.items():
            if key not in actions:
                self.error(f"`{key}` in the file of `--config` is no option of this command.{_nearest(key, actions)}")
            action = actions[key]
            if action.nargs == "+" and isinstance(value, str | int | float):
                config[key] = [value]
            elif action.choices is not None and value is not None and value not in action.choices:
                choices = ", ".join(map(str, action.choices))
                self.error(f"`{key}` in the file of `--config` is {value!r}; expected one of {choices}.")
        return super().set_defaults_with_config(**config)

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            names = [name for action in self._actions for name in action.option_strings]
            self.error(f"`{flag}` is no option of this command.{_nearest(flag, names)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\nAll options: {self.prog} --help\n")


def _text_or_none(text: str) -> str | None:
    return None if text.lower() in ("none", "null") else text


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = get_close_matches(name, list(names), n=1)
    return f" Did you mean `{matches[0]}`?" if matches else ""
