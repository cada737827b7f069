"""Make the notebooks from sources/NN_name.py (py:percent text): NN_name.ipynb, solutions/NN_name.ipynb, and pictures.

    python notebooks/build.py            all of them
    python notebooks/build.py 01         those whose name begins with 01
    python notebooks/build.py --text 01  the same without executing: where no code has changed, the outputs are still true
    python notebooks/build.py --check    names those that are not what this program makes of their sources, and fails
    python notebooks/build.py --course   pages of all of them in course/, to print or to read without JupyterLab
    python notebooks/build.py --slides   slides in slides/ of those in which cells have a slide type (see deck.py)
    python notebooks/build.py --grading  a course folder of nbgrader in grading/, with an assignment for each of them
    python notebooks/build.py --handout  copies without outputs and with folded answers in handout/ (see handout.py)

A source holds both: a cell tagged "exercise" with the stub, behind it one tagged "solution", and one tagged "check" that fails
for the stub and passes for the solution. The solved notebook is executed; the student's is the same with the stub in the
solution's place. Its checks, and further cells tagged "uses-answer", may raise and have no output: they wait for an answer.
assignments.py gives these cells, and text cells tagged "answer", the metadata of nbgrader. The
first use of a term in the text becomes a link to GLOSSARY.md (glossary.py).

Once pyproject.toml names the address of the repository on GitHub (`Repository` in [project.urls]), every notebook and the
READMEs get badges that open them on Colab and on Binder, and the set-up cell fetches the repository on Colab.

Concept figures, images/concept_*.svg, are drawn by concepts.py.

Outputs are kept, so that a notebook reads where there is no kernel; figures get a PNG beside them, because GitHub draws no
plotly. Widget state is never saved: it weighs megabytes. The picture that the text shows after `display(explorer)` is made by
`explorer.save_png` when that cell has run, that of a page after `page = write_page(...)` by pictures.py. The same source gives
the same cells, ids included.
"""

from __future__ import annotations

import base64
import copy
import itertools
import logging
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import concepts
import jupytext
import nbformat
import pages
from assignments import mark_for_grading, write_grading
from deck import has_slides, skip_the_rest, write_slides
from glossary import link_terms
from handout import write_handout
from nbclient import NotebookClient
from PIL import Image

from corsd_lib._notebooks import KERNEL_ARGUMENTS, WIDGET, save
from corsd_lib.figures import PLOTLY, save_png

FOLDER = Path(__file__).resolve().parent
READMES = (FOLDER / "README.md", FOLDER.parent / "README.md")
BRANCH = "main"
INSTALL = '    %pip install --quiet "..[notebooks]"'
FETCH = """    from pathlib import Path

    if not Path("../pyproject.toml").exists():  # Colab opens a notebook alone
        !git clone --quiet --depth 1 {repository} clone
        %cd clone/notebooks
"""
HOME = {  # paths of the set-up cell, as they are and as they are for solutions
    '"..[notebooks]"': '"../..[notebooks]"',
    '"../pyproject.toml"': '"../../pyproject.toml"',
    "%cd clone/notebooks": "%cd clone/notebooks/solutions",
}
BADGES = re.compile(r"(?<=<!-- badges -->\n).*?(?=<!-- /badges -->)", re.DOTALL)
SAVING = "saving-"  # how the ids of cells begin that are only there while a notebook is built


def read_source(source: Path) -> nbformat.NotebookNode:
    """All cells of a py:percent file, stubs and solutions, without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("lines_to_next_cell", None)
    mark_for_grading(notebook)
    skip_the_rest(notebook)
    link_terms(notebook)
    if repository := address():
        title, _, text = notebook.cells[0].source.partition("\n")
        notebook.cells[0].source = f"{title}\n\n{badges(repository, source.stem)}\n{text}"
        for cell in notebook.cells:
            cell.source = cell.source.replace(INSTALL, FETCH.format(repository=repository) + INSTALL)
    return notebook


def address() -> str | None:
    """Of the repository on GitHub, from pyproject.toml; None while it has none."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def badges(repository: str, name: str) -> str:
    """Markdown of the badges that open a notebook on Colab and on Binder."""
    owner = repository.removeprefix("https://github.com/").removesuffix(".git").strip("/")
    colab = f"https://colab.research.google.com/github/{owner}/blob/{BRANCH}/notebooks/{name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{owner}/{BRANCH}?labpath=notebooks/{name}.ipynb"
    return (
        f"[![Open this notebook on Google Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
        f"[![Open this notebook on Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def with_badges(text: str) -> str:
    """The text of a README with the badges of the first notebook between its marks, or nothing while there is no address."""
    repository = address()
    return BADGES.sub(lambda _: f"{badges(repository, '01_walkthrough')}\n" if repository else "", text)


def solved(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without stubs."""
    return _without(notebook, "exercise")


def for_students(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without solutions; what would need an answer may raise, and its outputs are left out."""
    notebook = _without(notebook, "solution")
    for cell in notebook.cells:
        if {"check", "uses-answer"} & set(tags(cell)):
            cell.metadata["tags"] = [*tags(cell), "raises-exception"]
            cell.outputs = []
    return notebook


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def with_both(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with stubs and solutions, in which a student's cells may raise as in `for_students`."""
    mine = {cell.id: cell for cell in for_students(notebook).cells}
    notebook = copy.deepcopy(notebook)
    notebook.cells = [mine.get(cell.id, cell) for cell in notebook.cells]
    return notebook


def _without(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if tag not in tags(cell)]
    return notebook


def build(source: Path, workplace: Path) -> Path:
    """Execute the solved notebook of `source` in `workplace`, where its runs are made, and write both notebooks."""
    whole = read_source(source)
    notebook = _with_saving(solved(whole))
    NotebookClient(
        notebook,
        timeout=600,
        resources={"metadata": {"path": str(workplace)}},
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=KERNEL_ARGUMENTS,
    ).execute()
    _without_saving(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _with_pictures(cell)
    return _write(source, whole, notebook)


def _write(source: Path, whole: nbformat.NotebookNode, notebook: nbformat.NotebookNode) -> Path:
    """Both notebooks of `source`, of which `whole` is the text and `notebook` the executed solved one."""
    name = f"{source.stem}.ipynb"
    save(at_home_in_solutions(notebook), FOLDER / "solutions" / name)
    save(for_students(_executed(whole, notebook)), FOLDER / name)
    return FOLDER / name


def rewrite(source: Path) -> Path:
    """Write both notebooks of `source` with the outputs that they have. Exits where code has changed: it is to be executed."""
    whole = read_source(source)
    notebook = solved(whole)
    path = FOLDER / "solutions" / f"{source.stem}.ipynb"
    kept = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [_code(cell) for cell in kept] != [_code(cell) for cell in code]:
        sys.exit(f"the code of {source.name} has changed: build it without --text")
    for old, new in zip(kept, code, strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count
    return _write(source, whole, notebook)


def _code(cell: nbformat.NotebookNode) -> str:
    """What a code cell does where the library is installed: there the set-up cell does nothing."""
    return "" if 'find_spec("corsd_lib")' in cell.source else cell.source


def out_of_step(source: Path) -> list[Path]:
    """Which of the two notebooks of `source` have other cells, tags or ids than this program would write."""
    whole, name = read_source(source), f"{source.stem}.ipynb"
    made = {FOLDER / name: for_students(whole), FOLDER / "solutions" / name: at_home_in_solutions(solved(whole))}
    return [path for path, wanted in made.items() if not path.is_file() or fixed_parts(path) != _fixed_parts(wanted)]


def fixed_parts(path: Path) -> list[Any]:
    """All of a notebook but its outputs, which differ from machine to machine."""
    return _fixed_parts(nbformat.read(path, as_version=4))


def _fixed_parts(notebook: nbformat.NotebookNode) -> list[Any]:
    return [(cell.id, cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]


def _with_saving(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with a cell after each that displays an explorer or writes a page: it saves the picture that the next text
    shows.
    """
    cells, made = list(notebook.cells), []
    for place, cell in enumerate(cells):
        made.append(cell)
        executed = cell.cell_type == "code"
        shown = re.search(r"^display\((\w+)\)", cell.source, re.MULTILINE) if executed else None
        written = re.search(r"^(\w+) = write_page\(", cell.source, re.MULTILINE) if executed else None
        text = next((c.source for c in cells[place + 1 :] if c.cell_type == "markdown"), "")
        target = re.search(r"\]\((images/\d\d_\w+\.png)\)", text)
        if shown and target:
            code = f"{shown[1]}.save_png({str(FOLDER / target[1])!r}, scale=1);"
            made.append(nbformat.v4.new_code_cell(code, id=SAVING + cell.id))
        elif written and target:
            command = [sys.executable, str(FOLDER / "pictures.py"), str(FOLDER / target[1])]
            code = f"import subprocess; subprocess.run([*{command}, str({written[1]})], check=True);"
            made.append(nbformat.v4.new_code_cell(code, id=SAVING + cell.id))
    notebook.cells = made
    return notebook


def _without_saving(notebook: nbformat.NotebookNode) -> None:
    """Take those cells out again, and count the others as if they had never been; no picture stays heavy."""
    for cell in notebook.cells:
        if cell.id.startswith(SAVING):
            _lighten(Path(re.findall(r"'([^']+\.png)'", cell.source)[0]))
    notebook.cells = [cell for cell in notebook.cells if not cell.id.startswith(SAVING)]
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def _lighten(picture: Path) -> None:
    """256 colours where a picture is large: photographs and heatmaps of many cells."""
    if picture.stat().st_size > 250_000:
        image = Image.open(picture).convert("RGB")
        image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.FLOYDSTEINBERG).save(picture, optimize=True)


def _with_pictures(cell: nbformat.NotebookNode) -> None:
    """Of a widget nothing is kept: its picture follows in the text. A figure gets a PNG of itself."""
    cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    for output in cell.outputs:
        if PLOTLY in output.get("data", {}):
            output["data"]["image/png"] = png_of(output["data"][PLOTLY])


def _executed(whole: nbformat.NotebookNode, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`whole` with the outputs of the solved `notebook`; a stub, never executed, has the number of its solution."""
    whole, done = copy.deepcopy(whole), {cell.id: cell for cell in notebook.cells}
    whole.cells = [done.get(cell.id, cell) for cell in whole.cells]
    for stub, solution in itertools.pairwise(whole.cells):
        if "exercise" in tags(stub):
            stub.execution_count = solution.execution_count
    return whole


def at_home_in_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy whose relative links and paths lead from the folder of solutions to where they led before."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        for here, there in HOME.items():
            cell.source = cell.source.replace(here, there)
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?!https?:|#)", "](../", cell.source)
    return notebook


def png_of(plotly_json: Any) -> str:
    """A figure's static twin, base64."""
    import plotly.graph_objects as go

    figure = go.Figure({"data": plotly_json["data"], "layout": plotly_json["layout"]})
    with tempfile.TemporaryDirectory() as folder:
        picture = save_png(figure, Path(folder) / "figure.png", scale=1)
        Image.open(picture).save(picture, optimize=True)  # the same pixels in fewer bytes
        return base64.b64encode(picture.read_bytes()).decode()


def write_pages(notebooks: Sequence[Path], folder: Path) -> Path:
    """Write pages of the notebooks and of the glossary, which their terms lead to; return the index.html."""
    with tempfile.TemporaryDirectory() as place:
        glossary = Path(place) / "GLOSSARY.ipynb"
        cell = nbformat.v4.new_markdown_cell((FOLDER / "GLOSSARY.md").read_text(encoding="utf-8"))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), glossary)
        index = pages.write_course([*notebooks, glossary], folder)
    for page in folder.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace('href="GLOSSARY.md', 'href="GLOSSARY.html'), encoding="utf-8")
    return index


def main() -> None:
    options, names = ([a for a in sys.argv[1:] if a.startswith("--") == flag] for flag in (True, False))
    if options == ["--course"]:
        print(write_pages(sorted(FOLDER.glob("*.ipynb")), Path("course")).resolve().as_uri())
        return
    if options == ["--slides"]:
        talks = [path for path in sorted(FOLDER.glob("*.ipynb")) if has_slides(nbformat.read(path, as_version=4))]
        print(*(write_slides(path, Path("slides")).resolve().as_uri() for path in talks), sep="\n")
        return
    if options == ["--grading"]:
        print(f"{write_grading(sorted(FOLDER.glob('*.ipynb')), Path('grading'))}: see notebooks/INSTRUCTORS.md")
        return
    if options == ["--handout"]:
        whole = {source.stem: with_both(read_source(source)) for source in sorted((FOLDER / "sources").glob("*.py"))}
        print(f"{write_handout(whole, FOLDER, Path('handout'))}: see notebooks/INSTRUCTORS.md")
        return
    wanted = tuple(names) or ("",)
    sources = [source for source in sorted((FOLDER / "sources").glob("*.py")) if source.name.startswith(wanted)]
    if not sources:
        sys.exit(f"no source in {FOLDER / 'sources'} begins with {' or '.join(wanted)}")
    if options == ["--check"]:
        check(sources)
        return
    if options not in ([], ["--text"]):
        sys.exit(
            f"{' '.join(options)}: the options are --text, --check, --course, --slides, --grading and --handout, one at a time"
        )
    for readme in READMES:
        readme.write_text(with_badges(readme.read_text(encoding="utf-8")), encoding="utf-8")
    concepts.write()
    os.environ.pop("CORSD_DATA", None)  # what a reader without the data sees, and no image of theirs in what is committed
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)  # reports each goodbye of Chromium as an error
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:  # nothing that was trained before is taken over
            made = rewrite(source) if options else build(source, Path(folder))
            print(f"{source.name} -> {made.name}", flush=True)


def check(sources: Sequence[Path]) -> None:
    """Exit with the names of what has to be made anew, if anything has."""
    late = [path for source in sources for path in out_of_step(source)]
    late += concepts.out_of_step()
    late += [readme for readme in READMES if with_badges(text := readme.read_text(encoding="utf-8")) != text]
    if late:
        names = "\n  ".join(str(path.relative_to(FOLDER.parent)) for path in late)
        sys.exit(f"not what `make notebooks` makes (`make notebook-texts` will do where no code has changed):\n  {names}")


if __name__ == "__main__":
    main()
