"""The notebooks as files: in step with their sources, executed, comparable, light, and readable where there is no kernel."""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

from corsd_lib import walkthrough

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MARK = "NBVAL_CHECK_OUTPUT"
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def markdown(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def tagged(path: Path, tag: str) -> list[str]:
    return [cell.source for cell in code_cells(path) if tag in cell.metadata.get("tags", [])]


def load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_notebooks", FOLDER / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_source_has_its_notebook_and_every_notebook_its_source() -> None:
    sources = {source.stem for source in (FOLDER / "sources").glob("*.py")}
    assert sources == {path.stem for path in NOTEBOOKS} and sources


@every_notebook
def test_notebook_is_in_step_with_its_source(path: Path) -> None:
    source = load_build().read_source(FOLDER / "sources" / f"{path.stem}.py")
    cells = [[(c.id, c.cell_type, c.source, dict(c.metadata)) for c in notebook.cells] for notebook in (source, read(path))]
    assert cells[0] == cells[1], "run `make notebooks`"


@every_notebook
def test_notebook_was_executed_from_top_to_bottom_without_complaint(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type if output.output_type != "stream" else output.name for c in cells for output in c.outputs]
    assert set(kinds) <= {"stdout", "display_data", "execute_result"}  # no error, no warning


@every_notebook
def test_at_least_three_outputs_are_really_compared(path: Path) -> None:
    """nbval skips a cell that has no count, and has nothing to compare where there is no text."""
    marked = [cell for cell in code_cells(path) if MARK in cell.source]
    assert len(marked) >= 3
    for cell in marked:
        assert cell.source.startswith(f"# {MARK}\n") and cell.execution_count
        assert [output.output_type for output in cell.outputs] == ["stream"] and cell.outputs[0].text.strip()
        assert not re.search(r"\d\.\d", cell.outputs[0].text), "a measured number differs from machine to machine"


@every_notebook
def test_saved_notebook_is_light_and_its_figures_have_static_twins(path: Path) -> None:
    notebook = read(path)
    assert "widgets" not in notebook.metadata and "widget-view" not in path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    figures = [
        o.data for cell in code_cells(path) for o in cell.outputs if "application/vnd.plotly.v1+json" in o.get("data", {})
    ]
    assert figures and all("image/png" in data and "text/html" not in data for data in figures)


@every_notebook
def test_every_widget_is_followed_by_a_picture_of_it(path: Path) -> None:
    cells = read(path).cells
    shown = [
        i for i, cell in enumerate(cells) if cell.cell_type == "code" and re.search(r"^display\(", cell.source, re.MULTILINE)
    ]
    following = [next(c for c in cells[i + 1 :] if c.cell_type == "markdown") for i in shown]
    pictured = [bool(PICTURE.search(cell.source)) for cell in following]
    assert shown and pictured[-1]
    # Two monitors in a row share the picture that follows the second.
    assert all(here or later for here, later in pairwise(pictured))


@pytest.mark.parametrize("path", [*NOTEBOOKS, FOLDER / "README.md"], ids=lambda path: path.stem)
def test_pictures_exist_with_alt_text_and_links_lead_somewhere(path: Path) -> None:
    text = markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    pictures = PICTURE.findall(text)
    for words, target in pictures:
        assert len(words.split()) >= 5, f"{target} needs a text for those who cannot see it"
        assert (FOLDER / target).is_file(), target
    for target in LINK.findall(text):
        assert target.startswith("https://") or (FOLDER / target.split("#")[0]).exists(), target


def test_pictures_of_the_notebooks_are_small() -> None:
    sizes = {file.name: file.stat().st_size for file in (FOLDER / "images").iterdir()}
    assert sizes and max(sizes.values()) < 300_000, sizes


@every_notebook
def test_cells_are_short_and_prose_comes_before_code(path: Path) -> None:
    lines = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert statistics.median(lines) <= 6 and max(lines) <= 25
    words = len(re.findall(r"\w+", markdown(path)))
    assert 6 <= words / sum(lines) <= 15
    assert read(path).cells[0].cell_type == "markdown" and read(path).cells[0].source.startswith(f"# {path.stem[:2]} ")


@every_notebook
def test_notebook_has_one_cell_of_parameters_and_names_the_kernel(path: Path) -> None:
    (parameters,) = tagged(path, "parameters")
    values: dict[str, Any] = {}
    exec(parameters, values)
    assert {"epochs", "seed", "run_directory"} <= values.keys()
    assert not Path(values["run_directory"]).is_absolute()
    assert read(path).metadata.kernelspec.name == "python3"


@every_notebook
def test_exercises_fail_for_the_stub_and_pass_for_the_solution(path: Path) -> None:
    stubs, solutions, checks = (tagged(path, tag) for tag in ("exercise", "solution", "check"))
    assert len(stubs) == len(solutions) == len(checks) >= 2
    (imports,) = (cell.source for cell in code_cells(path) if "import torch" in cell.source)
    for stub, solution, check in zip(stubs, solutions, checks, strict=True):
        space: dict[str, Any] = {}
        exec(imports, space)
        exec(stub, space)
        with pytest.raises(AssertionError, match="no answer yet"):
            exec(check, space)
        exec(solution, space)
        exec(check, space)


@every_notebook
def test_solutions_are_folded_and_step_back_for_an_answer(path: Path) -> None:
    folded = [c.metadata.get("jupyter", {}) for c in code_cells(path) if "solution" in c.metadata.get("tags", [])]
    assert folded and all(look.get("source_hidden") for look in folded)
    for stub, solution in zip(tagged(path, "exercise"), tagged(path, "solution"), strict=True):
        space: dict[str, Any] = {}
        exec("import torch", space)
        exec(stub.replace("return ...", "return 'an answer of my own'"), space)
        exec(solution, space)
        name = re.search(r"def (\w+)", stub)
        assert name is not None
        assert space[name[1]](*[torch_like(space)] * 2) == "an answer of my own"


def torch_like(space: dict[str, Any]) -> Any:
    return space["torch"].zeros(1, 2)


WRONG_ANSWERS = {
    "transfer_by_hand": [
        "(student - teacher).square().mean()",  # the teacher learns
        "(student.detach() - teacher.detach()).square().mean()",
        "(student - teacher.detach()).abs().mean()",
    ],
    "is_sure": ["logits.max(dim=1).values >= threshold", "logits.softmax(dim=1).max(dim=1).values >= 0.9", "logits[:, 0] > 0"],
}


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in WRONG_ANSWERS.items() for answer in answers])
def test_checks_of_the_walkthrough_find_typical_mistakes(name: str, answer: str) -> None:
    path = FOLDER / walkthrough.NOTEBOOK
    space: dict[str, Any] = {}
    exec(next(cell.source for cell in code_cells(path) if "import torch" in cell.source), space)
    (check,) = (source for source in tagged(path, "check") if name in source)
    (stub,) = (source for source in tagged(path, "exercise") if name in source)
    exec(stub.replace("return ...", f"return {answer}"), space)
    with pytest.raises((AssertionError, RuntimeError)):
        exec(check, space)


def test_walkthrough_trains_what_the_notebook_trains() -> None:
    path = FOLDER / walkthrough.NOTEBOOK
    space: dict[str, Any] = {}
    exec(next(cell.source for cell in code_cells(path) if "import torch" in cell.source), space)
    exec(*tagged(path, "parameters"), space)
    exec(next(cell.source for cell in code_cells(path) if "recipe = TrainConfig(" in cell.source), space)
    assert (space["epochs"], space["per_class"], space["seed"]) == (walkthrough.EPOCHS, walkthrough.PER_CLASS, walkthrough.SEED)
    for method in walkthrough.METHODS.values():
        source = "".join(cell.source for cell in code_cells(path))
        (call,) = re.findall(rf'plan\("{method}".*?\)(?=,)', source)
        assert eval(call, dict(space)) == walkthrough.plan(method, space["run_directory"])


def test_index_lists_every_notebook_with_its_question() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        title = read(path).cells[0].source.splitlines()[0].removeprefix(f"# {path.stem[:2]} ")
        assert f"[{path.stem}]({path.name}) | {title} |" in index


def test_outputs_name_no_place_of_whoever_built_them() -> None:
    for path in NOTEBOOKS:
        text = json.dumps([[dict(o) for o in c.outputs if o.output_type == "stream"] for c in code_cells(path)])
        assert not re.search(r"/(home|root|tmp|work|Users)/", text)
