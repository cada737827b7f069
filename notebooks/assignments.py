"""Grading with nbgrader: the metadata of exercises, and a course folder of the students' notebooks.

An exercise has a cell with the stub (in the solved notebook the solution) and behind it one with the check, which gives all of
its points or none. The answer to an open question is a text cell that a teacher grades by hand. Both notebooks carry the same
metadata, so a solved notebook can be handed in to try the grading out. No answer stands in a student's notebook, so nbgrader
has nothing to remove from it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

POINTS = 10  # of an exercise with a check, and of an open question

CONFIG = '''\
"""nbgrader: the notebooks of source/ are handed out as they are."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "corsd"
c.ClearSolutions.enabled = False  # a student's notebook has stubs, no solutions
c.Execute.timeout = 600  # seconds a cell: some of them train
'''


def mark_for_grading(notebook: nbformat.NotebookNode) -> None:
    """Give the cells of exercises nbgrader's metadata, from their tags: "exercise", "solution", "check", "answer"."""
    number = "0"
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^#+ Exercise (\d)", cell.source, re.MULTILINE)):
            number = heading[1]
        kinds = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and kinds & {"exercise", "solution"}:
            cell.metadata["nbgrader"] = _metadata(cell, f"exercise-{number}", solution=True)
        elif "check" in kinds:
            cell.metadata["nbgrader"] = _metadata(cell, f"exercise-{number}-check", locked=True, points=POINTS)
        elif "answer" in kinds:
            cell.metadata["nbgrader"] = _metadata(cell, f"exercise-{number}-answer", solution=True, points=POINTS)


def _metadata(
    cell: nbformat.NotebookNode, name: str, *, solution: bool = False, locked: bool = False, points: int | None = None
) -> dict[str, Any]:
    """Metadata of schema version 3. A cell with points is graded: a check by its error, a text by a teacher."""
    graded = {} if points is None else {"points": points}
    return {
        "cell_type": cell.cell_type,
        "grade": bool(graded),
        "grade_id": name,
        "locked": locked,
        "schema_version": 3,
        "solution": solution,
        "task": False,
        **graded,
    }


def write_grading(notebooks: Sequence[Path], folder: Path) -> Path:
    """Write a course folder of nbgrader: its configuration and an assignment for each of the students' `notebooks`.

    What nbgrader keeps there, such as its database and what was handed in, stays.
    """
    for notebook in notebooks:
        assignment = folder / "source" / notebook.stem
        assignment.mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, assignment)
        shutil.copytree(notebook.parent / "images", assignment / "images", dirs_exist_ok=True)
    (folder / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    return folder
