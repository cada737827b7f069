"""Copies of the notebooks to hand out: without outputs, every answer folded, to be opened when the prediction is made.

Folded are the paragraphs from "**Answer.**" to the next prediction, heading or code, the closing box, and the solutions, which
students' notebooks lack. Code that runs is that of a student's notebook.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import nbformat

FOLDED = "<details><summary>Answer</summary>\n\n{}\n\n</details>"


def fold_answers(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Change a notebook with stubs *and* solutions into a handout; it has no outputs yet."""
    hidden = False
    for place, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            text = f"```python\n{cell.source}\n```" if cell.cell_type == "code" else cell.source
            notebook.cells[place] = nbformat.v4.new_markdown_cell(FOLDED.format(text), id=cell.id)
        elif cell.cell_type == "markdown":
            cell.source, hidden = _folded(cell.source, hidden)
        else:
            hidden = False
            # nbval would compare its output with none
            cell.metadata["tags"] = [tag for tag in tags if tag != "nbval-check-output"]
    return notebook


def _folded(text: str, hidden: bool) -> tuple[str, bool]:
    """The text of a cell with its answers folded, and whether one of them may go on in the next cell."""
    parts = []
    for part in text.split("\n\n"):
        hidden = part.startswith("**Answer.**") or (hidden and not part.startswith(("#", "**Predict:**")))
        parts.append((hidden, part))
        hidden = hidden or part.startswith("## Answer:")
    groups = ((fold, "\n\n".join(part for _, part in group)) for fold, group in groupby(parts, key=lambda pair: pair[0]))
    return "\n\n".join(FOLDED.format(part) if fold else part for fold, part in groups), hidden


def write_handout(notebooks: Mapping[str, nbformat.NotebookNode], home: Path, folder: Path) -> Path:
    """Write a handout of each notebook, by its name, into `folder`, with what its text leads to in the folder `home`."""
    shutil.copytree(home / "images", folder / "images", dirs_exist_ok=True)
    shutil.copy(home / "GLOSSARY.md", folder)
    for name, notebook in notebooks.items():
        nbformat.write(fold_answers(notebook), folder / f"{name}.ipynb")
    return folder
