"""Texts of models and users as parts of a page, which they cannot break: in a line, in a cell, as code."""

import html
import json
import re
from typing import Any


def as_markdown(text: Any) -> str:
    """A text inside a line of Markdown or a cell, as which it can be nothing but text."""
    text = html.escape(
        "".join(character if character.isprintable() else " " for character in as_text(text)).strip(), quote=False
    )
    text = re.sub(r"[\\`*_\[\]{}|#~$!^@]", lambda match: f"&#{ord(match[0])};", text)
    text = re.sub(
        r"^([-+=:]|\d+(?=[.)](?:\s|$)))", lambda match: "".join(f"&#{ord(part)};" for part in match[0]), text
    )
    return re.sub(r"(?i)(www)\.", r"\1&#46;", text.replace("://", "&#58;//"))


def as_code(text: str) -> str:
    """The same as code. With backticks where that is safe, as HTML otherwise."""
    text = text.replace("\r\n", "\n").replace("\n", "\\n")
    if text.isprintable() and text == text.strip() != "" and not re.search(r"[`|<>&]", text):
        return f"`{text}`"
    return f"<code>{as_markdown(text)}</code>"


def fence(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in the text."""
    text = (
        as_text(text)
        .replace("\r\n", "\n")
        .replace("\r", "\n")
        .replace("<!-- trl-unlearn", "<!- trl-unlearn")
        .strip("\n")
    )
    text = "".join(character if character.isprintable() or character in "\n\t" else " " for character in text)
    marks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"


def python_string(text: str) -> str:
    """A Python string in double quotes, on one line, that cannot close the fence around it."""
    return json.dumps(text).replace("`", "\\u0060").replace("<", "\\u003c")


def as_text(value: Any) -> str:
    """A plain value as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {as_text(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(as_text, value)) or "none"
    return "none" if value is None else str(value)


def as_number(value: float | None) -> str:
    """A number with four digits, or all of a whole one."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def slug(text: Any) -> str:
    """A text as a part of a tag or of the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", as_text(text)).strip("-.") or "x"
