"""Handouts: nothing is given away before a prediction, and what runs is what runs in a student's notebook."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from test_notebooks import (
    FOLDER,
    LINK,
    MARK,
    NOTEBOOKS,
    PICTURE,
    every_notebook,
    load_build,
    markdown,
    read,
)

FOLDED = re.compile(r"<details><summary>Answer</summary>\n\n(.*?)\n\n</details>", re.DOTALL)


def source_of(path: Path) -> nbformat.NotebookNode:
    return load_build().read_source(FOLDER / "sources" / f"{path.stem}.py")


def texts(notebook: nbformat.NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.fixture(scope="module")
def handout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = load_build()
    whole = {path.stem: build.with_both(source_of(path)) for path in NOTEBOOKS}
    return build.write_handout(whole, FOLDER, tmp_path_factory.mktemp("clone") / "handout")


@every_notebook
def test_code_is_that_of_a_students_notebook_without_outputs(path: Path, handout: Path) -> None:
    notebook = read(handout / path.name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    theirs = [cell for cell in load_build().for_students(source_of(path)).cells if cell.cell_type == "code"]
    assert [cell.source for cell in code] == [cell.source for cell in theirs]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    for cell, other in zip(code, theirs, strict=True):
        assert cell.metadata.get("tags", []) == [tag for tag in other.metadata.get("tags", []) if tag != MARK]


@every_notebook
def test_answers_and_solutions_are_folded_and_predictions_are_not(path: Path, handout: Path) -> None:
    text = markdown(handout / path.name)
    seen, folded = FOLDED.sub("", text), "\n".join(FOLDED.findall(text))
    assert "details>" not in seen
    assert "**Answer.**" not in seen and "**What we found.**" not in seen and "*A good answer" not in seen
    assert all(cell.source in folded for cell in source_of(path).cells if "solution" in cell.metadata.get("tags", []))
    theirs = texts(load_build().for_students(source_of(path)))
    assert seen.count("**Predict:**") == theirs.count("**Predict:**") and "**Predict:**" not in folded
    assert re.findall(r"(?m)^#+ .*", seen) == re.findall(r"(?m)^#+ .*", theirs)


def test_an_answer_ends_at_a_question_a_heading_or_code() -> None:
    texts = ["**Answer.** Two.\n\nMore.\n\n**Predict:** next?", "**Answer.** Three.", "It goes on.\n\n## Part", "Seen."]
    cells = [nbformat.v4.new_markdown_cell(text) for text in texts]
    last = nbformat.v4.new_markdown_cell("Seen.")
    cells += [nbformat.v4.new_markdown_cell("**Answer.** Four."), nbformat.v4.new_code_cell("x"), last]
    load_build()
    from handout import FOLDED as FOLD
    from handout import fold_answers

    made = [cell.source for cell in fold_answers(nbformat.v4.new_notebook(cells=cells)).cells]
    first, goes_on = FOLD.format("**Answer.** Two.\n\nMore."), FOLD.format("It goes on.")
    assert made[:4] == [f"{first}\n\n**Predict:** next?", FOLD.format("**Answer.** Three."), f"{goes_on}\n\n## Part", "Seen."]
    assert made[4:] == [FOLD.format("**Answer.** Four."), "x", "Seen."]


@every_notebook
def test_pictures_and_links_of_a_handout_lead_somewhere(path: Path, handout: Path) -> None:
    text = markdown(handout / path.name)
    for target in [*(place for _, place in PICTURE.findall(text)), *LINK.findall(text)]:
        near, home = handout / target.split("#")[0], FOLDER / target.split("#")[0]
        # a handout stands in the clone, beside the folder of the notebooks
        assert target.startswith("https://") or (home.exists() if target.startswith("../") else near.exists()), target
