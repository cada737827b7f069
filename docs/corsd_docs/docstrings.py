"""Docstrings and help texts as reStructuredText and Markdown: `code`, *emphasis*, lists, indented tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

CODE = re.compile(r"`([^`]+)`")
SPECIAL = re.compile(r"\\|\||\*(?=\S)|(?<=\S)\*|(?<=\w)_(?!\w)")  # what would begin or end markup
ITEM = re.compile(r"\s*- ")


def as_rst(lines: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The lines of a docstring as reStructuredText; code that is a key of `names` links to the object with that name."""
    text = CODE.sub(lambda code: _code(code[1], names), _escaped("\n".join(lines)))
    done: list[str] = []
    for line in text.split("\n"):
        before = done[-1] if done else ""
        if before.endswith(":") and ITEM.match(line) and _indent(line) == _indent(before):
            done.append("")  # a list needs an empty line before it
        elif before.endswith(":") and line.strip() and _indent(line) > _indent(before) and not ITEM.match(before):
            done[-1] += ":"  # an indented block is kept as it is
            done.append("")
        done.append(line)
    return done


def as_markdown(text: str) -> str:
    """A help text in one line as Markdown, with the signs escaped that would begin a link, an HTML element or a formula."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(piece if place % 2 else re.sub(r"[<$\[]", r"\\\g<0>", piece) for place, piece in enumerate(pieces))


def _escaped(text: str) -> str:
    """The text with signs outside of code that reStructuredText would read as markup escaped; *emphasis* stays."""
    pieces = re.split(r"(`[^`]+`|(?<!\w)\*\w[\w ]*\w\*(?!\w))", text)
    return "".join(
        piece if place % 2 else SPECIAL.sub(lambda sign: f"\\{sign[0]}", piece) for place, piece in enumerate(pieces)
    )


def _code(content: str, names: Mapping[str, str]) -> str:
    flat = " ".join(content.split())
    found = names.get(flat.removesuffix("()"))
    return f":py:obj:`{flat} <{found}>`" if found else f"``{flat}``"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
