"""Objects as small HTML cards in a notebook (`_repr_html_`). They have the colours of the notebook, light or dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from corsd_lib.errors import CorsdError, shown_text

__all__ = ["Facts", "card"]

_STYLE = """\
<style>
.corsd-card { display: inline-block; max-width: 60em; padding: .5em .8em; border: 1px solid; border-radius: 6px;
  border-color: rgba(128, 128, 128, .5); color: inherit; background: none; font-size: 90%; text-align: left; }
.corsd-card table { margin: .4em 0 0; border-collapse: collapse; background: none; }
.corsd-card th, .corsd-card td { padding: .1em .9em .1em 0; border: none; background: none; color: inherit;
  text-align: left; vertical-align: top; font-weight: normal; white-space: normal; }
.corsd-card th, .corsd-card span { opacity: .7; }
.corsd-card summary { cursor: pointer; margin-top: .4em; }
</style>"""


@dataclass(frozen=True)
class Facts:
    """What a card shows: `rows`, values by name, and below them tables by title, whose first line is the heading.

    Tables in `folded` open on a click.
    """

    rows: Mapping[str, object]
    tables: Sequence[Sequence[Sequence[object]]] = ()
    folded: Mapping[str, Sequence[Sequence[object]]] = field(default_factory=dict)


def card(kind: str, title: object, facts: Callable[[], Facts]) -> str:
    """The HTML of a card about an object of class `kind`. All texts are escaped.

    If `facts` raises a `CorsdError`, as for a damaged file, the card shows its message.
    """
    try:
        found = facts()
    except CorsdError as error:
        found = Facts({"error": error})
    parts = [_table([[name, value] for name, value in found.rows.items()], names=True)]
    parts += [_table(table) for table in found.tables]
    parts += [f"<details><summary>{_text(name)}</summary>{_table(table)}</details>" for name, table in found.folded.items()]
    return f'{_STYLE}\n<div class="corsd-card"><b>{_text(kind)}</b> <span>{_text(title)}</span>{"".join(parts)}</div>'


def _text(value: object) -> str:
    return escape(shown_text(str(value)))


def _table(lines: Sequence[Sequence[object]], names: bool = False) -> str:
    """A table whose first line is a heading, or with `names` its first column."""
    html = []
    for i, line in enumerate(lines):
        tags = ["th" if (j == 0 if names else i == 0) else "td" for j in range(len(line))]
        html.append("".join(f"<{tag}>{_text(value)}</{tag}>" for tag, value in zip(tags, line, strict=True)))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in html)}</table>" if html else ""
