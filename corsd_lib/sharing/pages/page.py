"""The HTML file of a page: script, style and data, and plotly.js if a figure needs it. It loads nothing and sends nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import DIVERGING, GREY, GRID, INK, PALETTE, PAPER, SCALE, SYMBOLS
from corsd_lib.files import check_replaceable, write_atomic

__all__ = ["ARRAYS", "Panel", "explorer_script", "explorer_style", "write_page"]

# In this order, because each script uses those before it. The host, a page or a widget, comes last.
SCRIPTS = (
    *("logic.js", "core.js", "matrix.js", "chart.js", "points.js"),
    *("relation.js", "stages.js", "exits.js", "monitor.js", "attribution.js"),
)
ARRAYS = ("uint8", "uint16", "int32", "float32")  # types that a browser can read without conversion

# Nothing may be loaded from a server, and only scripts with these hashes run. Styles are allowed, because plotly.js sets them.
_POLICY = "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="corsd_lib">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<noscript>This page needs JavaScript, which is disabled in this browser.</noscript>
<script type="application/json" id="page-data">{data}</script>
{code}
</body>
</html>
"""


class Panel(NamedTuple):
    """A part of a page: its `kind`, which is the name of a function of the script, its `title`, and the `data` for this
    function.

    `data` contains JSON values without NaN, and numpy arrays of the types `ARRAYS`, which are stored in binary.
    """

    kind: str
    title: str
    data: dict[str, Any]


def write_page(path: str | Path, panels: Sequence[Panel], title: str = "") -> Path:
    """Write `panels`, one below the other, into a self-contained HTML file, atomically; return its path.

    The script and the style take about 150 kilobytes besides the data. If a panel is a figure, plotly.js is added (4.8 MB). The
    page needs no network and has a light and a dark theme. `title` is escaped. Raises `CorsdError` if there are no panels, if
    `path` is an existing file that is not a page, and if the file cannot be written.
    """
    if not panels:
        raise CorsdError(f"{path}: the page has no panels; allowed: one or more")
    check_replaceable(Path(path), _PAGE[:14].encode(), "a page")
    shown = [panel._asdict() for panel in panels]
    scripts = [*([_plotly()] if _has_figure(shown) else []), explorer_script("page.js")]
    content = _PAGE.format(
        policy=_POLICY.format(hashes=" ".join(map(_hash, scripts))),
        title=html.escape(title or "corsd"),
        style=_static("page.css") + explorer_style(),
        data=_json({"title": title, "panels": shown}),
        code="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    write_atomic(Path(path), content.encode())
    return Path(path)


def _has_figure(panels: Sequence[Mapping[str, Any]]) -> bool:
    return any(panel["kind"] == "figure" or _has_figure(panel["data"].get("panels", ())) for panel in panels)


@cache
def explorer_script(host: str) -> str:
    """JavaScript of all explorers, followed by the `host`: "page.js", or "widget.js", which makes it an ES module."""
    theme = json.dumps(_theme(), separators=(",", ":"))
    return "\n".join([f'"use strict";const THEME = {theme};', *map(_static, (*SCRIPTS, host))])


def explorer_style() -> str:
    """CSS of all explorers. Every rule begins with the class of their elements, so that it affects nothing else."""
    return _static("explorer.css")


def _theme() -> dict[str, Any]:
    """Colours of the figures for the script; a pair is for the light and the dark theme."""
    return {
        "ink": [INK[False], INK[True]],
        "paper": [PAPER[False], PAPER[True]],
        "grid": GRID,
        "grey": GREY,
        "palette": PALETTE,
        "symbols": SYMBOLS,
        "scale": go.Heatmap(colorscale=SCALE).colorscale,
        "diverging": go.Heatmap(colorscale=DIVERGING).colorscale,
    }


def _json(value: Mapping[str, Any]) -> str:
    """`value` as JSON that is safe inside a <script> element."""
    text = json.dumps(value, default=_pack, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _pack(array: object) -> dict[str, Any]:
    """An array as JSON: type, shape, and bytes in base64.

    Raises `CorsdError` if the object is not a numpy array, or if its type is not in `ARRAYS`.
    """
    if not isinstance(array, np.ndarray) or array.dtype.name not in ARRAYS:
        what = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise CorsdError(f"the data of a panel has {what}; allowed: plain values and arrays of {', '.join(ARRAYS)}")
    content = base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": array.shape, "base64": content}


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("\r", "")  # a browser reads every end of line as \n before it computes the hash


def _static(name: str) -> str:
    return (resources.files("corsd_lib.sharing.pages") / "static" / name).read_text(encoding="utf-8")
