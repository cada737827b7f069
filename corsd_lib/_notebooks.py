"""Tools for notebooks: saving without widget state, and HTML pages that need no network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsd_lib.errors import missing_package
from corsd_lib.figures import PLOTLY

try:
    import nbformat
except ImportError as error:
    raise missing_package("building notebooks", "nbformat", error) from error

# Formulas of a text cell; code in backticks is matched first, so that a dollar sign in code starts no formula.
_MATHS = re.compile(r"(?s)(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$")

if TYPE_CHECKING:
    from nbconvert import HTMLExporter

__all__ = ["KERNEL_ARGUMENTS", "WIDGET", "Formulas", "save", "write_html", "write_page"]

WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=40"]  # errors only: hides the kernel's warning about its sockets


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook to `path` without widget state, which takes megabytes.

    The plotly figure of a widget is kept. `notebook` itself is changed too.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}  # without the Python version of the machine
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _without_widget(output)]
    nbformat.write(notebook, path)


def _without_widget(output: Any) -> bool:
    """Remove the view of a widget from an output; return False if nothing visible is left."""
    data = output.get("data", {})
    if data.pop(WIDGET, None) is None:
        return True
    data.pop("text/plain", None)
    return bool(data.get(PLOTLY, {}).get("data"))


def write_page(notebook: Path) -> Path:
    """Write a saved notebook as an HTML page into the same folder, and return the path of the page.

    The page contains plotly and all images, so that it works without a kernel or an internet connection.
    """
    from plotly.offline import get_plotlyjs

    return write_html(notebook, notebook.with_suffix(".html"), f"<script>{get_plotlyjs()}</script>")


def write_html(notebook: Path, page: Path, plotly: str) -> Path:
    """Write a notebook as HTML to `page`, and return this path.

    `plotly`: the script tag that loads plotly, which draws the figures. Links to other notebooks of the course become links to
    their HTML pages.
    """
    from nbconvert import HTMLExporter

    content, formulas = nbformat.read(notebook, as_version=4), Formulas()
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas.take_out(re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.html)", cell.source))
        for output in cell.get("outputs", []):
            if PLOTLY in output.get("data", {}):
                output["data"] = {"text/html": _drawn(output["data"][PLOTLY])}
    # Scripts that would be fetched from elsewhere are left out: formulas are MathML by now, and widgets are pictures.
    exporter = HTMLExporter(embed_images=True, mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    body, _ = exporter.from_notebook_node(content, resources={"metadata": {"path": str(notebook.parent)}})
    body = formulas.put_back(body)
    page.write_text(body.replace("</head>", f"{plotly}{_style(exporter)}</head>", 1), encoding="utf-8")
    return page


class Formulas:
    """Converts LaTeX formulas of Markdown, `$...$` and `$$...$$`, to MathML, which browsers draw without a script.

    nbconvert breaks MathML tags inside a paragraph. Therefore `take_out` replaces each formula by a placeholder, and `put_back`
    replaces the placeholders by MathML in the finished page.
    """

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def take_out(self, text: str) -> str:
        """Replace each formula of the Markdown `text` by a placeholder, and keep it as MathML for `put_back`.

        Code in backticks is unchanged.
        """
        return _MATHS.sub(self._placeholder, text)

    def put_back(self, page: str) -> str:
        """`page` with each placeholder replaced by the MathML of its formula."""
        return re.sub(r"FORMULA-(\d+)-", lambda mark: self._drawn[int(mark[1])], page)

    def _placeholder(self, match: re.Match[str]) -> str:
        if match["code"] is not None:
            return match["code"]
        try:
            from latex2mathml.converter import convert
        except ImportError as error:
            raise missing_package("a page with formulas", "latex2mathml", error) from error
        latex = " ".join((match["block"] or match["inline"]).split())
        self._drawn.append(str(convert(latex, display="block" if match["block"] else "inline")))
        return f"FORMULA-{len(self._drawn) - 1}-"


def _style(exporter: HTMLExporter) -> str:
    """A `<style>` element for dark mode and for print.

    If the reader's browser prefers dark colours, the page has the dark theme of JupyterLab, and its figures stay light. In
    print, code is wrapped and figures are smaller, so that nothing exceeds the page.
    """
    sheets = (Path(folder) / "static" / "theme-dark.css" for folder in exporter.template_paths)
    dark = next(sheet.read_text(encoding="utf-8") for sheet in sheets if sheet.is_file())
    return f"<style>@media screen and (prefers-color-scheme: dark) {{ {dark} {_DARK} }} @media print {{ {_PRINT} }}</style>"


_DARK = """
:root { color-scheme: dark; }
.jp-RenderedMarkdown img { background: white; }
"""
_PRINT = """
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
.highlight pre { white-space: pre-wrap; }
h1, h2, h3 { break-after: avoid; }
.plotly-graph-div { zoom: 0.72; break-inside: avoid; }
"""


def _drawn(figure: Any) -> str:
    import plotly.graph_objects as go

    for trace in figure["data"]:  # drawn as vectors: a browser keeps WebGL for the latest few figures of a page only
        trace["type"] = {"scattergl": "scatter"}.get(trace["type"], trace["type"])
    drawn = go.Figure({"data": figure["data"], "layout": figure["layout"]})
    return drawn.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
