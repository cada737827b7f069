"""Small HTML cards that show objects in a notebook (`_repr_html_`), in the colours of the notebook, light or dark."""

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
    """Content of a card.

    `rows`: name -> value. `tables`: tables that are shown below the rows, each with a heading as its first line. `folded`:
    title -> table that opens on a click.
    """

    rows: Mapping[str, object]
    tables: Sequence[Sequence[Sequence[object]]] = ()
    folded: Mapping[str, Sequence[Sequence[object]]] = field(default_factory=dict)


def card(kind: str, title: object, facts: Callable[[], Facts]) -> str:
    """HTML of a card about an object of the class `kind`. All texts are escaped.

    `facts` returns the content. If it raises a `CorsdError`, such as for a damaged file, the card shows the message.
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
    """HTML of a table. Its heading is the first line or, with `names`, the first column."""
    html = []
    for i, line in enumerate(lines):
        tags = ["th" if (j == 0 if names else i == 0) else "td" for j in range(len(line))]
        html.append("".join(f"<{tag}>{_text(value)}</{tag}>" for tag, value in zip(tags, line, strict=True)))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in html)}</table>" if html else ""
