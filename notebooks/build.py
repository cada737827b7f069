"""Make the notebooks from sources/NN_name.py (py:percent text): NN_name.ipynb and solutions/NN_name.ipynb, and static pictures.

    python notebooks/build.py            all of them
    python notebooks/build.py 01         those whose name begins with 01
    python notebooks/build.py --course   pages of all of them in course/, to print or to read without JupyterLab

A source holds both: a cell tagged "exercise" with the stub, behind it one tagged "solution", and one tagged "check" that fails
for the stub and passes for the solution. The solved notebook is executed; the student's is the same with the stub in the
solution's place. Its checks, and further cells tagged "uses-answer", may raise and have no output: they wait for an answer.

Outputs are kept, so that a notebook reads where there is no kernel; figures get a PNG beside them, because GitHub draws no
plotly. Widget state is never saved: it weighs megabytes. The same source gives the same cells, ids included.
"""

from __future__ import annotations

import base64
import copy
import itertools
import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

from corsd_lib._notebooks import KERNEL_ARGUMENTS, WIDGET, save, write_course
from corsd_lib.figures import PLOTLY, save_png

FOLDER = Path(__file__).resolve().parent


def read_source(source: Path) -> nbformat.NotebookNode:
    """All cells of a py:percent file, stubs and solutions, without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("lines_to_next_cell", None)
    return notebook


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


def _without(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if tag not in tags(cell)]
    return notebook


def build(source: Path, workplace: Path) -> Path:
    """Execute the solved notebook of `source` in `workplace`, where its runs are made, and write both notebooks."""
    whole = read_source(source)
    notebook = solved(whole)
    place = {"metadata": {"path": str(workplace)}}
    NotebookClient(notebook, timeout=300, resources=place, record_timing=False, extra_arguments=KERNEL_ARGUMENTS).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _with_pictures(cell)
    name = f"{source.stem}.ipynb"
    save(at_home_in_solutions(notebook), FOLDER / "solutions" / name)
    save(for_students(_executed(whole, notebook)), FOLDER / name)
    return FOLDER / name


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
    """A copy whose relative links lead from the folder of solutions to where they led before."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?!https?:|#)", "](../", cell.source)
    return notebook


def png_of(plotly_json: Any) -> str:
    """A figure's static twin, base64."""
    import plotly.graph_objects as go

    figure = go.Figure({"data": plotly_json["data"], "layout": plotly_json["layout"]})
    with tempfile.TemporaryDirectory() as folder:
        return base64.b64encode(save_png(figure, Path(folder) / "figure.png", scale=1).read_bytes()).decode()


def draw_monitor(runs: Path) -> None:
    """The picture that follows the training monitor in 01, from the CORSD run that the notebook has just made."""
    from corsd_lib import TrainingMonitor, load_run

    (corsd,) = runs.glob("corsd-*")
    monitor = TrainingMonitor()
    monitor(load_run(corsd))
    save_png(monitor.picture(), FOLDER / "images" / "training_monitor.png", scale=1)


def main() -> None:
    if sys.argv[1:] == ["--course"]:
        print(write_course(sorted(FOLDER.glob("*.ipynb")), Path("course")).resolve().as_uri())
        return
    wanted = tuple(sys.argv[1:]) or ("",)
    sources = [source for source in sorted((FOLDER / "sources").glob("*.py")) if source.name.startswith(wanted)]
    if not sources:
        sys.exit(f"no source in {FOLDER / 'sources'} begins with {' or '.join(wanted)}")
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)  # reports each goodbye of Chromium as an error
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:  # nothing that was trained before is taken over
            print(f"{source.name} -> {build(source, Path(folder)).name}", flush=True)
            if source.stem == "01_walkthrough":
                draw_monitor(Path(folder) / "runs" / source.stem)


if __name__ == "__main__":
    main()
