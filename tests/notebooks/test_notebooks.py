"""The notebooks as files: in step with their sources, executed, comparable, light, and readable where there is no kernel."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from wrong_answers import WRONG_ANSWERS

from corsd_lib import walkthrough

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SOLVED = sorted((FOLDER / "solutions").glob("*.ipynb"))
MARK = "nbval-check-output"  # the tag of a cell whose text output nbval compares
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
both_kinds = pytest.mark.parametrize("path", [*NOTEBOOKS, *SOLVED], ids=name_of)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def markdown(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def tagged(path: Path, tag: str) -> list[str]:
    return [cell.source for cell in code_cells(path) if tag in cell.metadata.get("tags", [])]


def load_build() -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # as for `python notebooks/build.py`: it imports concepts.py
    spec = importlib.util.spec_from_file_location("build_notebooks", FOLDER / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solution_of(path: Path) -> Path:
    return FOLDER / "solutions" / path.name


def test_every_source_has_its_notebook_and_every_notebook_its_source() -> None:
    sources = {source.stem for source in (FOLDER / "sources").glob("*.py")}
    assert sources == {path.stem for path in NOTEBOOKS} == {path.stem for path in SOLVED} and sources


@every_notebook
def test_both_notebooks_are_in_step_with_their_source(path: Path) -> None:
    assert load_build().out_of_step(FOLDER / "sources" / f"{path.stem}.py") == [], "run `make notebooks`"


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program that makes notebooks, at work on a copy of 01."""
    build, name = load_build(), "01_walkthrough"
    for part in ("../pyproject.toml", f"{name}.ipynb", f"solutions/{name}.ipynb", f"sources/{name}.py"):
        (tmp_path / "notebooks" / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / part, tmp_path / "notebooks" / part)
    monkeypatch.setattr(build, "FOLDER", tmp_path / "notebooks")
    return build


def test_a_changed_text_is_found_and_mended_without_executing(copied: ModuleType) -> None:
    source = copied.FOLDER / "sources" / "01_walkthrough.py"
    notebooks = [copied.FOLDER / folder / "01_walkthrough.ipynb" for folder in (".", "solutions")]
    outputs = [[cell.outputs for cell in code_cells(path)] for path in notebooks]
    source.write_text(source.read_text(encoding="utf-8").replace("# ## Where next", "# ## In short"), encoding="utf-8")
    assert copied.out_of_step(source) == notebooks

    copied.rewrite(source)
    assert copied.out_of_step(source) == [] and all("## In short" in markdown(path) for path in notebooks)
    assert [[cell.outputs for cell in code_cells(path)] for path in notebooks] == outputs


def test_changed_code_has_to_be_executed(copied: ModuleType) -> None:
    source = copied.FOLDER / "sources" / "01_walkthrough.py"
    source.write_text(source.read_text(encoding="utf-8").replace("epochs = 120", "epochs = 12"), encoding="utf-8")
    before = (copied.FOLDER / "01_walkthrough.ipynb").read_bytes()
    with pytest.raises(SystemExit, match=r"the code of 01_walkthrough.py has changed"):
        copied.rewrite(source)
    assert (copied.FOLDER / "01_walkthrough.ipynb").read_bytes() == before


@both_kinds
def test_notebook_was_executed_from_top_to_bottom_without_complaint(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type if output.output_type != "stream" else output.name for c in cells for output in c.outputs]
    assert set(kinds) <= {"stdout", "display_data", "execute_result"}  # no error, no warning


@every_notebook
def test_only_what_waits_for_an_answer_may_raise(path: Path) -> None:
    for cell in code_cells(path):
        tags = set(cell.metadata.get("tags", []))
        assert ("raises-exception" in tags) == bool(tags & {"check", "uses-answer"})
        assert not (cell.outputs and "raises-exception" in tags)
    assert not any("raises-exception" in cell.metadata.get("tags", []) for cell in code_cells(solution_of(path)))
    assert not tagged(path, "solution") and not tagged(solution_of(path), "exercise")


@every_notebook
def test_at_least_three_outputs_are_really_compared(path: Path) -> None:
    """nbval skips a cell that has no count, and has nothing to compare where there is no text."""
    marked = [cell for cell in code_cells(path) if MARK in cell.metadata.get("tags", [])]
    assert len(marked) >= 3
    for cell in marked:
        assert "NBVAL" not in cell.source and cell.execution_count
        assert [output.output_type for output in cell.outputs] == ["stream"] and cell.outputs[0].text.strip()
        assert not re.search(r"\d\.\d", cell.outputs[0].text), "a measured number differs from machine to machine"


@both_kinds
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
    assert pictured[-1] if shown else path.stem == "11_compare_methods"  # the only one without a widget
    # Two monitors in a row share the picture that follows the second.
    assert all(here or later for here, later in pairwise(pictured))


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *SOLVED, FOLDER / "README.md"], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_pictures_exist_with_alt_text_and_links_lead_somewhere(path: Path) -> None:
    text = markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    pictures = PICTURE.findall(text)
    for words, target in pictures:
        assert len(words.split()) >= 5, f"{target} needs a text for those who cannot see it"
        assert target.startswith("https://") or (path.parent / target).is_file(), target
    for target in LINK.findall(text):
        assert target.startswith("https://") or (path.parent / target.split("#")[0]).exists(), target


def test_badges_open_a_notebook_where_the_repository_is(monkeypatch: pytest.MonkeyPatch) -> None:
    build = load_build()
    source, marks = FOLDER / "sources" / "02_exits.py", "# N\n<!-- badges -->\nold\n<!-- /badges -->\ntext"
    monkeypatch.setattr(build, "address", lambda: None)
    assert "badge" not in build.read_source(source).cells[0].source
    assert build.with_badges(marks) == "# N\n<!-- badges -->\n<!-- /badges -->\ntext"

    monkeypatch.setattr(build, "address", lambda: "https://github.com/someone/a-fork.git")
    notebook = build.read_source(source)
    targets = re.findall(r"\]\((https://(?:colab|mybinder)\S+?)\)", notebook.cells[0].source)
    assert [target for target in targets if "badge" not in target] == [
        "https://colab.research.google.com/github/someone/a-fork/blob/main/notebooks/02_exits.ipynb",
        "https://mybinder.org/v2/gh/someone/a-fork/main?labpath=notebooks/02_exits.ipynb",
    ]
    assert notebook.cells[0].source.startswith("# 02 ") and "01_walkthrough.ipynb" in build.with_badges(marks)
    (setup,) = (cell.source for cell in notebook.cells if "find_spec" in cell.source)
    (there,) = (cell.source for cell in build.at_home_in_solutions(notebook).cells if "find_spec" in cell.source)
    fetch = "git clone --quiet --depth 1 https://github.com/someone/a-fork.git clone"
    places = [setup.index(step) for step in (fetch, "%cd clone/notebooks", '"..[notebooks]"')]
    assert places == sorted(places)
    assert "%cd clone/notebooks/solutions" in there and '"../..[notebooks]"' in there and "../../pyproject.toml" in there


@pytest.mark.parametrize("readme", [FOLDER / "README.md", FOLDER.parent / "README.md"], ids=["notebooks", "top"])
def test_badges_of_the_readmes_are_as_built(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert "<!-- badges -->" in text and load_build().with_badges(text) == text, "run `make notebooks`"


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


def test_concept_figures_are_as_drawn() -> None:
    assert load_build().concepts.out_of_step() == [], "run `make notebooks`"
    for drawing in (FOLDER / "images").glob("concept_*.svg"):
        assert "prefers-color-scheme: dark" in drawing.read_text(encoding="utf-8")
        assert drawing.stem.removeprefix("concept_") in load_build().concepts.FIGURES, f"no function draws {drawing.name}"


@every_notebook
def test_cells_are_narrow_and_texts_short(path: Path) -> None:
    for cell in read(path).cells:
        assert max(len(line) for line in cell.source.splitlines()) <= 88, cell.source
        if cell.cell_type == "markdown":
            prose = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|!\[[^\]]*\]\([^)]*\)", "", cell.source, flags=re.DOTALL)
            most = 170 if prose.startswith("## Answer: ") else 120  # a closing box has full sentences
            assert len(prose.split()) <= most, f"{len(prose.split())} words: {cell.source[:80]}"
            assert not re.search(r"^(> )?\+ ", prose, re.MULTILINE), f"a line that begins with + is a list: {cell.source[:80]}"


@every_notebook
def test_lesson_has_formulas_a_concept_figure_predictions_and_times(path: Path) -> None:
    text, code = markdown(path), "\n".join(cell.source for cell in code_cells(path))
    assert "$$" in text and "](images/concept_" in text
    assert text.count("**Predict:**") >= 3 and len(re.findall(r"^my_\w+.* = .*None", code, re.MULTILINE)) >= 3
    assert len(re.findall(r"\*\*Answer\.\*\*", text)) >= 3 and "compare(" in code
    assert "**Run time:**" in text and "**Learning time:**" in text


@every_notebook
def test_exercises_are_a_ladder_whose_last_step_is_open(path: Path) -> None:
    titles = re.findall(r"^##+ Exercise (\d), (.+?)(?: \(open\))?(?::|$)", markdown(path), re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, len(titles) + 1)) and len(titles) >= 3
    kinds = " ".join(kind for _, kind in titles)
    places = [kinds.index(kind) for kind in ("implement", "predict", "experiment", "explain")]
    assert places == sorted(places)
    assert re.findall(r"Exercise \d.*", markdown(path))[-1].endswith("(open)")


@every_notebook
def test_closing_box_answers_the_title_with_numbers_of_the_notebook(path: Path) -> None:
    title = read(path).cells[0].source.splitlines()[0].split(" ", 2)[2].rstrip("?")
    (box,) = (c.source for c in read(path).cells if c.source.startswith("## Answer: "))
    assert box.splitlines()[0].lower() == f"## answer: {title}?".lower()
    places = [box.index(f"**{part}.**") for part in ("What we found", "How sure we are", "What it does not show")]
    assert places == sorted(places)
    printed = " ".join(
        o.text if o.output_type == "stream" else str(o.get("data", {}).get("text/plain", ""))
        for cell in code_cells(solution_of(path))
        for o in cell.outputs
    )
    for number in re.findall(r"\d+\.\d+", re.sub(r"\[arXiv.*?\)", "", box)):
        assert number in printed, f"{number} is in the box and in no output"


@every_notebook
def test_notebook_has_one_cell_of_parameters_and_names_the_kernel(path: Path) -> None:
    (parameters,) = tagged(path, "parameters")
    values: dict[str, Any] = {}
    exec(parameters, values)
    assert {"epochs", "seed", "run_directory"} <= values.keys()
    assert not Path(values["run_directory"]).is_absolute()
    assert read(path).metadata.kernelspec.name == "python3"


def space_of(path: Path) -> dict[str, Any]:
    """What a check may rely on: the imports and the parameters of its notebook."""
    (imports,) = (cell.source for cell in code_cells(path) if re.search("^import torch$", cell.source, re.MULTILINE))
    space: dict[str, Any] = {}
    exec(imports, space)
    exec(*tagged(path, "parameters"), space)
    return space


@every_notebook
def test_exercises_fail_for_the_stub_and_pass_for_the_solution(path: Path) -> None:
    stubs, checks, solutions = tagged(path, "exercise"), tagged(path, "check"), tagged(solution_of(path), "solution")
    assert len(stubs) == len(solutions) == len(checks) >= 2
    for stub, solution, check in zip(stubs, solutions, checks, strict=True):
        space = space_of(path)
        exec(stub, space)
        with pytest.raises(AssertionError, match="no answer yet"):
            exec(check, space)
        exec(solution, space)
        exec(check, space)


@every_notebook
def test_checks_find_typical_mistakes(path: Path) -> None:
    for stub, check in zip(tagged(path, "exercise"), tagged(path, "check"), strict=True):
        (name,) = re.findall(r"^def (\w+)", stub, re.MULTILINE)
        assert len(WRONG_ANSWERS[path.stem][name]) >= 2
        for answer in WRONG_ANSWERS[path.stem][name]:
            space = space_of(path)
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


def test_the_capstone_names_every_setting_in_which_its_rows_differ() -> None:
    printed = "".join(o.text for c in code_cells(solution_of(FOLDER / "14_capstone.ipynb")) for o in c.outputs if "text" in o)
    (line,) = re.findall(r"^Settings that differ: (.*)$", printed, re.MULTILINE)
    assert line == "exit_kd, hint."


def test_index_lists_every_notebook_with_its_question() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        title = read(path).cells[0].source.splitlines()[0].removeprefix(f"# {path.stem[:2]} ")
        assert f"[{path.stem}]({path.name}) | {title} |" in index


def test_outputs_name_no_place_of_whoever_built_them() -> None:
    for path in NOTEBOOKS:
        text = json.dumps([[dict(o) for o in c.outputs if o.output_type == "stream"] for c in code_cells(path)])
        assert not re.search(r"/(home|root|tmp|work|Users)/", text)
