"""The course as pages: one of each notebook and an index, to print or to read without JupyterLab."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import nbformat
from plotly.offline import get_plotlyjs

from corsd_lib._notebooks import write_html


def write_course(notebooks: Sequence[Path], folder: Path) -> Path:
    """Write pages of the notebooks and one copy of plotly to `folder`; return the index.html. They need no network."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    written = [write_html(n, folder / f"{n.stem}.html", '<script src="plotly.min.js"></script>') for n in notebooks]
    entries = "\n".join(
        f'<li><a href="{page.name}">{html.escape(title_of(notebook))}</a></li>'
        for notebook, page in zip(notebooks, written, strict=True)
    )
    index = folder / "index.html"
    index.write_text(_INDEX.format(entries=entries), encoding="utf-8")
    return index


def title_of(notebook: Path) -> str:
    """The first heading of a notebook, "03 What is a relation?"."""
    first: str = nbformat.read(notebook, as_version=4).cells[0].source
    return first.splitlines()[0].removeprefix("# ")


_INDEX = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>CORSD notebooks</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 17px/1.6 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }}
ul {{ list-style: none; padding: 0; }}
</style></head>
<body><h1>Self-distillation, looked into</h1>
<p>The course as pages: figures answer to the mouse, widgets are pictures. To work in it, open the notebooks in JupyterLab.</p>
<ul>
{entries}
</ul></body></html>
"""
