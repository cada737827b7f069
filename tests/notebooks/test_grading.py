"""Exercises as nbgrader sees them: the metadata of every notebook, and one that nbgrader hands out and grades."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_notebooks import FOLDER, both_kinds, every_notebook, load_build, read, solution_of, tagged

SCHEMA = {
    "cell_type": str,
    "grade": bool,
    "grade_id": str,
    "locked": bool,
    "schema_version": int,
    "solution": bool,
    "task": bool,
}
ROLES = {  # tag -> grade, solution, locked
    "exercise": (False, True, False),
    "solution": (False, True, False),
    "check": (True, False, True),
    "answer": (True, True, False),
}


def graded(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if "nbgrader" in cell.metadata]


@both_kinds
def test_cells_of_exercises_have_the_metadata_of_nbgrader(path: Path) -> None:
    cells = graded(read(path))
    for cell in cells:
        marks = dict(cell.metadata["nbgrader"])
        assert (marks.pop("points", None) is not None) == marks["grade"]
        assert {name: type(value) for name, value in marks.items()} == SCHEMA
        assert marks["schema_version"] == 3 and marks["cell_type"] == cell.cell_type and not marks["task"]
        (role,) = {"exercise", "solution", "check", "answer"} & set(cell.metadata["tags"])
        assert (marks["grade"], marks["solution"], marks["locked"]) == ROLES[role]
        assert (cell.cell_type == "markdown") == (role == "answer")
    names = [cell.metadata["nbgrader"]["grade_id"] for cell in cells]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"exercise-\d(-check|-answer)?", name) for name in names)
    stubs = [name for name in names if name[-1].isdigit()]
    assert [name for name in names if name.endswith("-check")] == [f"{name}-check" for name in stubs] and len(stubs) >= 2
    assert sum(name.endswith("-answer") for name in names) == 1


@every_notebook
def test_stub_and_solution_have_one_name(path: Path) -> None:
    both = [[dict(cell.metadata["nbgrader"]) for cell in graded(read(kind))] for kind in (path, solution_of(path))]
    assert both[0] == both[1]


@every_notebook
def test_no_solution_stands_above_its_exercise(path: Path) -> None:
    above: list[str] = []
    solutions = iter(tagged(solution_of(path), "solution"))
    for cell in read(path).cells:
        if "exercise" in cell.metadata.get("tags", []):
            for line in next(solutions).splitlines()[1:]:
                code = without_spaces(line).removeprefix("return")
                # Shorter lines, such as a softmax, are the tools that the text teaches.
                assert len(code) < 25 or not any(code in text for text in above), line
        above.append(without_spaces(cell.source))
    assert next(solutions, None) is None


def without_spaces(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_the_course_folder_has_an_assignment_for_every_notebook(tmp_path: Path) -> None:
    build = load_build()
    notebooks = sorted(FOLDER.glob("*.ipynb"))
    folder = build.write_grading(notebooks, tmp_path / "grading")
    build.write_grading(notebooks, folder)
    assert sorted(path.name for path in (folder / "source").iterdir()) == [path.stem for path in notebooks]
    for path in notebooks:
        assert (folder / "source" / path.stem / path.name).read_bytes() == path.read_bytes()
        assert (folder / "source" / path.stem / "images/corsd.svg").is_file()
    assert "ClearSolutions.enabled = False" in (folder / "nbgrader_config.py").read_text(encoding="utf-8")


def what_checks_need(path: Path) -> nbformat.NotebookNode:
    """A notebook without its trainings: imports, parameters, and the cells that are graded."""
    notebook = read(path)
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "nbgrader" in cell.metadata
        or "parameters" in cell.metadata.get("tags", [])
        or re.search(r"^import torch$", cell.source, re.MULTILINE)
    ]
    return notebook


@pytest.mark.slow
def test_nbgrader_gives_the_stub_no_point_and_the_solution_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbgrader", reason='nbgrader is not installed: pip install -e ".[teaching]"')
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import PyFileConfigLoader

    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))  # it calls alembic
    path = FOLDER / "01_walkthrough.ipynb"
    folder = load_build().write_grading([path], tmp_path / "grading")
    nbformat.write(what_checks_need(path), folder / "source" / path.stem / path.name)
    for student, notebook in {"stub": path, "solved": solution_of(path)}.items():
        place = folder / "submitted" / student / path.stem
        place.mkdir(parents=True)
        nbformat.write(what_checks_need(notebook), place / path.name)

    config = PyFileConfigLoader("nbgrader_config.py", path=str(folder)).load_config()
    config.CourseDirectory.root = str(folder)
    api = NbGraderAPI(config=config)
    assert succeeded(api.generate_assignment(path.stem))
    released = read(folder / "release" / path.stem / path.name)
    assert [cell.source for cell in graded(released)] == [cell.source for cell in graded(read(path))]
    for student in ("stub", "solved"):
        assert succeeded(api.autograde(path.stem, student))
    with api.gradebook as gradebook:
        given = {
            student: {grade.name: (grade.auto_score, grade.max_score) for grade in checks(gradebook, path.stem, student)}
            for student in ("stub", "solved")
        }
    points = {f"exercise-{number}-check": 10.0 for number in (1, 2)}
    assert given["stub"] == {name: (0.0, most) for name, most in points.items()}
    assert given["solved"] == {name: (most, most) for name, most in points.items()}


def succeeded(result: dict[str, Any]) -> bool:
    assert result["success"], result.get("error") or result.get("log")
    return True


def checks(gradebook: Any, assignment: str, student: str) -> list[Any]:
    submission = gradebook.find_submission(assignment, student)
    return [grade for notebook in submission.notebooks for grade in notebook.grades if grade.name.endswith("-check")]
