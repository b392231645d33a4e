"""
`--help` of the commands, grouped and at once.

The options are the fields of dataclasses, most of which TRL and transformers define. To import those takes seconds; here
they are read from the source files, where each class says in its docstring which fields belong together.
"""

import ast
import re
import shutil
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


# The classes that the configuration of every trainer inherits from, the nearest first
CONFIG_CLASSES = [
    ("trl_unlearn.trainer.unlearning_config", "UnlearningConfig"),
    ("trl.trainer.sft_config", "SFTConfig"),
    ("trl.trainer.base_config", "_BaseConfig"),
    ("transformers.training_args", "TrainingArguments"),
]


Sources = dict[str, list[tuple[str, str]]]


class Option(NamedTuple):
    """
    A field of a dataclass.

    Args:
        name (`str`):
            Its name.
        type (`str`):
            Its annotation as it is written.
        default (`str` or `None`):
            Its default as it is written; `None` if it must be given.
        help (`str`):
            What it is for.
        group (`str`):
            Heading that it stands under in the docstring.
    """

    name: str
    type: str
    default: str | None
    help: str
    group: str


def options_of(sources: Sources) -> dict[str, Option]:
    """
    The options that dataclasses have, without importing them.

    Args:
        sources (`dict[str, list[tuple[str, str]]]`):
            For each dataclass it and its parents, the nearest first, as names of modules and classes; under the group of
            those options that no docstring puts in one.

    Returns:
        `dict[str, Option]`: By name, group after group.
    """
    found: dict[str, Option] = {}
    for title, classes in sources.items():
        options: dict[str, Option] = {}
        order: list[str] = []
        for module, name in reversed(classes):
            fields = _read_class(module, name)
            for option in fields:
                # What a class overrides without saying where it belongs stays where it was
                known = options.get(option.name)
                options[option.name] = option._replace(group=option.group or (known.group if known else ""))
            order = [*(option.name for option in fields if option.group), *order]
        for name in [*order, *options]:
            found.setdefault(name, options[name]._replace(group=options[name].group or title))
    return found


def _read_class(module: str, name: str) -> list[Option]:
    tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    definition = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    groups, group = {}, ""
    for line in (ast.get_docstring(definition) or "").splitlines():
        if heading := re.match(r"\s+> (?:Parameters that control )?(?:the )?(\w.{,60}[\w)])$", line):
            group = heading[1][0].upper() + heading[1][1:]
        elif parameter := re.match(r"\s+(\w+) ?\(`", line):
            groups.setdefault(parameter[1], group)
    options = []
    for node in definition.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        annotation = ast.unparse(node.annotation)
        default, description = (ast.unparse(node.value) if node.value else None), ""
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("field"):
            keywords = {keyword.arg: keyword.value for keyword in node.value.keywords}
            if ast.unparse(keywords.get("init", ast.Constant(True))) == "False":
                continue
            default = ast.unparse(keywords["default"]) if "default" in keywords else None
            if "default_factory" in keywords:
                factory = keywords["default_factory"]
                factory = ast.unparse(factory.body if isinstance(factory, ast.Lambda) else factory)
                default = {"list": "[]", "dict": "{}"}.get(factory, factory)
            if "metadata" in keywords:
                metadata = dict(zip(keywords["metadata"].keys, keywords["metadata"].values, strict=True))
                description = next((_text(value) for key, value in metadata.items() if key.value == "help"), "")
        elif annotation.startswith("ClassVar"):
            continue
        options.append(Option(node.target.id, annotation, default, description, groups.get(node.target.id, "")))
    return options


def _source(module: str) -> Path:
    """The file of a module; only its package is imported, which is lazy in TRL and transformers."""
    package, _, name = module.rpartition(".")
    return Path(find_spec(package).submodule_search_locations[0]) / f"{name}.py"


def _text(node: ast.expr) -> str:
    """A string literal, parts of it filled in as written."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # "...".format(...)
        return _text(node.func.value)
    return ast.unparse(node)


def shows_help(command: str, description: str, sources: Sources) -> bool:
    """
    Prints what a command does and its options, one group after the other, if the command line asks for it.

    Args:
        command (`str`):
            Name of the command.
        description (`str`):
            What it does.
        sources (`dict[str, list[tuple[str, str]]]`):
            What [`options_of`] takes.

    Returns:
        `bool`: Whether it was asked for.
    """
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return False
    width = min(shutil.get_terminal_size().columns, 119)
    groups: dict[str, list[Option]] = {}
    for option in options_of(sources).values():
        groups.setdefault(option.group, []).append(option)
    usage = "Every option is also a key of the YAML file of --config; a flag wins over the file, and none unsets."
    paragraphs = [description, usage]
    lines = [f"usage: trl-unlearn {command} [--config FILE.yaml] [--option value ...]"]
    lines += ["\n" + textwrap.fill(paragraph, width) for paragraph in paragraphs]
    for group, options in groups.items():
        lines.append(f"\n{group}:")
        for option in options:
            ending = "required" if option.default is None else f"default: {option.default}"
            kind = option.type.replace(" | None", "").replace("None | ", "")
            lines.append(f"  --{option.name} ({kind}; {ending})")
            if option.help:
                text = " ".join(option.help.replace("%%", "%").split())
                lines.append(textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    print("\n".join(lines))
    return True
