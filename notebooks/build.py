"""Make the notebooks: sources/NN_name.py (py:percent text) -> NN_name.ipynb, executed, and their static pictures.

    python notebooks/build.py            all of them
    python notebooks/build.py 01         those whose name begins with 01

Outputs are kept, so that a notebook reads where there is no kernel; figures get a PNG beside them, because GitHub draws no
plotly. Widget state is never saved: it weighs megabytes. The same source gives the same cells, ids included.
"""

from __future__ import annotations

import base64
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

from corsd_lib._notebooks import KERNEL_ARGUMENTS, WIDGET, save
from corsd_lib.figures import PLOTLY, save_png

FOLDER = Path(__file__).resolve().parent


def read_source(source: Path) -> nbformat.NotebookNode:
    """The notebook of a py:percent file, without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("lines_to_next_cell", None)
    return notebook


def build(source: Path, workplace: Path) -> Path:
    """Execute the notebook of `source` in `workplace`, where its runs are made, and write it beside the folder of sources."""
    notebook = read_source(source)
    place = {"metadata": {"path": str(workplace)}}
    NotebookClient(notebook, timeout=300, resources=place, record_timing=False, extra_arguments=KERNEL_ARGUMENTS).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Of a widget nothing is kept: its picture follows in the text. A figure gets a PNG of itself.
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            for output in cell.outputs:
                if PLOTLY in output.get("data", {}):
                    output["data"]["image/png"] = png_of(output["data"][PLOTLY])
    target = FOLDER / f"{source.stem}.ipynb"
    save(notebook, target)
    return target


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
