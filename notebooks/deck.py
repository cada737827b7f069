"""Slides of a notebook: one HTML file that needs no network, with reveal.js (reveal/, 5.2.0, MIT licence) in it.

A cell becomes part of the slides by the type in the header of its source, such as `slideshow={"slide_type": "slide"}`: "slide"
and "subslide" begin one, "fragment" appears on a key, "-" continues. The others of the notebook are skipped. Code is shown
where it has no output, else the output alone.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

from corsd_lib._notebooks import Formulas
from corsd_lib.figures import PLOTLY

REVEAL = Path(__file__).resolve().parent / "reveal"
# Scripts and style sheets that nbconvert would fetch from elsewhere.
FETCHED = re.compile(r"(?s)<script\b.*?</script>|<link\b[^>]*>")
STYLE = """
body { background: white; }
.reveal .slides { text-align: left; }
.reveal .slides section { max-height: 100%; overflow-y: auto; }
.reveal h1, .reveal h2, .reveal h3 { margin: 0 0 0.5em; }
.reveal img { max-height: 345px; max-width: 100%; }
.jp-InputPrompt, .jp-OutputPrompt { display: none; }
"""
START = 'Reveal.initialize({width: 1100, height: 720, hash: true, slideNumber: "c/t", transition: "none"});'


def has_slides(notebook: nbformat.NotebookNode) -> bool:
    return any("slideshow" in cell.metadata for cell in notebook.cells)


def skip_the_rest(notebook: nbformat.NotebookNode) -> None:
    """Mark the cells without a slide type as skipped, if others have one: without a mark they would be part of a slide."""
    if has_slides(notebook):
        for cell in notebook.cells:
            cell.metadata.setdefault("slideshow", {"slide_type": "skip"})


def write_slides(notebook: Path, folder: Path) -> Path:
    """Write the slides of a built notebook to NAME.slides.html in `folder`."""
    content, formulas = nbformat.read(notebook, as_version=4), Formulas()
    for cell in content.cells:
        if cell.cell_type == "markdown":
            # A link to another notebook leads nowhere from here: its text stays.
            cell.source = formulas.take_out(re.sub(r"(?<!!)\[([^\]]+)\]\((?!https:)[^)]+\)", r"\1", cell.source))
        elif cell.outputs:
            cell.metadata["transient"] = {"remove_source": True}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(PLOTLY, None)  # its PNG is shown
    body, _ = SlidesExporter(embed_images=True).from_notebook_node(
        content, resources={"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    )
    body = formulas.put_back(FETCHED.sub("", body))
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{notebook.stem}.slides.html"
    body = body.replace("</head>", f"{_styles()}</head>", 1).replace("</body>", f"{_scripts()}</body>", 1)
    page.write_text(body, encoding="utf-8")
    return page


def _styles() -> str:
    return f"<style>{(REVEAL / 'reveal.css').read_text(encoding='utf-8')}</style><style>{STYLE}</style>"


def _scripts() -> str:
    return f"<script>{(REVEAL / 'reveal.js').read_text(encoding='utf-8')}</script><script>{START}</script>"
