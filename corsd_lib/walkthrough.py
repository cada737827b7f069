"""The walkthrough: `corsd walkthrough`.

It trains the plain network and CORSD on the digits of scikit-learn, and prints the accuracy of every exit. Then it executes the
first notebook with these runs, and writes the result as an HTML page that needs neither a kernel nor an internet connection.
Existing runs are not trained again.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsd_lib.bundle import bundle_root
from corsd_lib.errors import CorsdError, require

if TYPE_CHECKING:
    from corsd_lib.runs import Run, TrainConfig

__all__ = ["EPOCHS", "plan", "walk"]

# The parameters of notebooks/01_walkthrough.ipynb; a test compares them.
EPOCHS, PER_CLASS, SEED = 120, 10, 0
METHODS = {"baseline": "probe", "CORSD": "corsd"}  # `probe` is the baseline with detached exits
PAPER: dict[str, Any] = {"sampling": "plain", "method_options": {"class_kd": 0.0}}  # CORSD without our additions
NOTEBOOK = "01_walkthrough.ipynb"
PACKAGES = (  # of the extra "notebooks"
    *("plotly", "ipywidgets", "anywidget", "ipykernel"),
    *("nbformat", "nbclient", "nbconvert", "papermill", "latex2mathml"),
)


def plan(method: str, runs: str | Path, epochs: int = EPOCHS, per_class: int = PER_CLASS, seed: int = SEED) -> TrainConfig:
    """The configuration with which the first notebook trains `method`; `runs` is the notebook's parameter `run_directory`."""
    from corsd_lib.runs import TrainConfig

    return TrainConfig(
        data="digits",
        per_class=per_class,
        validation_fraction=0.5,
        network="resnet8",
        method=method,
        epochs=epochs,
        batch_size=25,
        probe_size=200,
        probe_every=3,
        seed=seed,
        out=f"{runs}/{method}-{per_class}-a-class-{epochs}-epochs-seed-{seed}",
        resume=True,
        **(PAPER if method == "corsd" else {}),
    )


def walk(out: Path, epochs: int) -> None:
    """Run the walkthrough in the folder `out`. Packages, notebook and folder are checked first, because training takes minutes.

    Raises `CorsdError` if `epochs` is not allowed, `out` cannot be written or the notebook is missing, and `MissingPackage` if
    a package of the extra "notebooks" is not installed.
    """
    require("the walkthrough", *PACKAGES)
    first = find_notebook()
    plan("corsd", out / "runs", epochs)
    check_writable(out)
    print(
        f"Two trainings on {10 * PER_CLASS} handwritten digits, then a notebook about them. Everything is written to {out}/",
        flush=True,
    )
    runs = train_both(out / "runs", epochs)
    if len(runs) < len(METHODS):
        print("Stopped. Run the same command again to continue.")
        return
    print(f"\nTest accuracy (%) of every exit\n{table({name: run.test or {} for name, run in runs.items()})}\n")
    print("One seed is not enough to compare methods; the notebook shows ten.\n", flush=True)
    from corsd_lib._notebooks import write_page

    notebook = execute(first, out, epochs)
    page = write_page(notebook)
    lab = f"jupyter lab {shlex.quote(str(notebook))}"
    lab = f"make lab   (or: {lab})" if (bundle_root() / "Makefile").is_file() else lab
    print(f"\nRead it:     {page.resolve().as_uri()}\nWork in it:  {lab}")


def check_writable(folder: Path) -> None:
    """Create `folder` if it does not exist. Raises `CorsdError` if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CorsdError(f"cannot write {folder}: {error.strerror or error}") from error


def train_both(runs: Path, epochs: int) -> dict[str, Run]:
    """Train or open the two runs; a dict name -> run. After a stop only the finished ones are returned."""
    import torch

    from corsd_lib.training import train

    torch.set_num_threads(1)  # as in the notebook: the images are tiny
    finished: dict[str, Run] = {}
    for name, method in METHODS.items():
        run = train(plan(method, runs, epochs))
        if run.test is None:
            break
        finished[name] = run
    return finished


def table(tests: Mapping[str, Mapping[str, Any]]) -> str:
    """Top-1 of every exit and of the ensemble: a row for each of two runs and one for their difference."""
    rows = {name: [e["top1"] for e in (*test["exits"], test["ensemble"])] for name, test in tests.items()}
    first, second = rows.values()
    columns = [*(f"exit {k}" for k in range(1, len(first))), "ensemble"]
    lines = [" " * 10 + "".join(f"{column:>10}" for column in columns)]
    lines += [f"{name:<10}" + "".join(f"{value:10.1f}" for value in values) for name, values in rows.items()]
    return "\n".join([*lines, f"{'change':<10}" + "".join(f"{b - a:+10.1f}" for a, b in zip(first, second, strict=True))])


def find_notebook() -> Path:
    """Path of `NOTEBOOK`, in `notebooks/` of the working directory or else of the bundle.

    Raises `CorsdError` if it is in neither.
    """
    places = [Path("notebooks"), bundle_root() / "notebooks"]
    for place in places:
        if (place / NOTEBOOK).is_file():
            return place / NOTEBOOK
    raise CorsdError(f"{NOTEBOOK} was not found in {', '.join(map(str, places))}: install corsd_lib again, or work in a clone")


def execute(notebook: Path, out: Path, epochs: int) -> Path:
    """Execute `notebook` on the runs under `out` and write it there, with its pictures."""
    from nbclient import NotebookClient
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    from corsd_lib._notebooks import KERNEL_ARGUMENTS, save

    target = out / notebook.name
    shutil.copytree(notebook.parent / "images", out / "images", dirs_exist_ok=True)
    parameters = {"epochs": epochs, "per_class": PER_CLASS, "seed": SEED, "run_directory": str((out / "runs").resolve())}
    print(f"Executing {notebook.name}", flush=True)
    # Not executed by papermill: it would stop at the first check, and checks fail until the reader has answered them.
    content = parameterize_notebook(load_notebook_node(str(notebook)), parameters)
    place = {"metadata": {"path": str(out)}}
    NotebookClient(
        content,
        timeout=600,
        kernel_name="python3",
        resources=place,
        coalesce_streams=True,
        extra_arguments=KERNEL_ARGUMENTS,
    ).execute()
    for cell in content.cells:
        if "raises-exception" in cell.metadata.get("tags", []):
            cell.outputs = []
    save(content, target)
    return target
