"""What notebooks are made with: executed quietly, saved without widget state, and turned into pages that need no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat

from corsd_lib.figures import PLOTLY

__all__ = ["KERNEL_ARGUMENTS", "WIDGET", "save", "write_page"]

WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=40"]  # errors only: a kernel on this machine need not warn of its own sockets


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook without widget state, which weighs megabytes; of a widget its figure is kept."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of who executed it
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _without_widget(output)]
    nbformat.write(notebook, path)


def _without_widget(output: Any) -> bool:
    """Take a widget's view out of an output; False when nothing to look at is left."""
    data = output.get("data", {})
    if data.pop(WIDGET, None) is None:
        return True
    data.pop("text/plain", None)
    return bool(data.get(PLOTLY, {}).get("data"))


def write_page(notebook: Path) -> Path:
    """An HTML page of a saved notebook that needs no kernel and no network: plotly and the pictures are in it."""
    from nbconvert import HTMLExporter
    from plotly.offline import get_plotlyjs

    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        for output in cell.get("outputs", []):
            if PLOTLY in output.get("data", {}):
                output["data"] = {"text/html": _drawn(output["data"][PLOTLY])}
    # Maths, widgets and the rest would be fetched from elsewhere: our notebooks use none of it.
    exporter = HTMLExporter(embed_images=True, mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    body, _ = exporter.from_notebook_node(content, resources={"metadata": {"path": str(notebook.parent)}})
    page = notebook.with_suffix(".html")
    page.write_text(body.replace("</head>", f"<script>{get_plotlyjs()}</script></head>", 1), encoding="utf-8")
    return page


def _drawn(figure: Any) -> str:
    import plotly.graph_objects as go

    return go.Figure({"data": figure["data"], "layout": figure["layout"]}).to_html(full_html=False, include_plotlyjs=False)
