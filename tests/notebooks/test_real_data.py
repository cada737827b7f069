"""05 and 06 as papermill runs them where $CORSD_DATA has the data: a short training on real images, then all that follows."""

from __future__ import annotations

from pathlib import Path

import papermill
import pytest

from corsd_lib import load_run

SOLVED = Path(__file__).resolve().parents[2] / "notebooks" / "solutions"  # the student's checks wait for answers
ROOMS = {
    "05_cifar100": ("cifar100.npz", "cifar-100-python"),
    "06_cub200": ("CUB_200_2011/attributes",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROOMS)
def test_papermill_trains_on_the_real_data(name: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any((data_root / room).exists() for room in ROOMS[name]):
        pytest.skip(f"{name} needs {' or '.join(ROOMS[name])} in $CORSD_DATA, which is {data_root}")
    monkeypatch.setenv("CORSD_DATA", str(data_root.resolve()))  # the kernel works in another folder
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parameters = {"train_here": True, "epochs": 1, "per_class": 4, "seed": 3, "run_directory": "runs/short"}
    done = tmp_path / f"{name}.ipynb"
    papermill.execute_notebook(
        SOLVED / f"{name}.ipynb", done, parameters, cwd=tmp_path, kernel_name="python3", progress_bar=False
    )
    (folder,) = (tmp_path / "runs" / "short").iterdir()
    run = load_run(folder)
    assert run.finished and run.config.data in name.replace("_", "")
    assert (run.config.epochs, run.config.per_class, run.config.seed) == (1, 4, 3)
    assert run.test is not None and run.test["images"] > 5000
