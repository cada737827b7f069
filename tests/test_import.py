from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import corsd_lib

HEAVY = (
    "torchvision",
    "timm",
    "pandas",
    "sklearn",
    "scipy",
    "plotly",
    "umap",
    "captum",
    "optuna",
    "lightning_fabric",
    "ipywidgets",
    "PIL",
    "rich",
)


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_package_itself_loads_nothing_heavy() -> None:
    loaded = _loaded_after("import corsd_lib")
    assert "corsd_lib" in loaded and not loaded & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize("name", [n for n in corsd_lib.__all__ if n != "__version__"])
def test_every_public_name_is_there_under_its_own_name(name: str) -> None:
    value = getattr(corsd_lib, name)
    module = importlib.import_module(f"corsd_lib.{corsd_lib._MODULE_OF[name]}")
    assert value is getattr(module, name)
    assert name in dir(corsd_lib) and getattr(value, "__doc__", None)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'corsd_lib' has no attribute 'nothing'"):
        _ = corsd_lib.nothing


@pytest.mark.parametrize("module", ["compare", "tuning", "training", "bench", "datasets.download"])
def test_a_module_loads_where_the_system_has_no_fcntl(module: str) -> None:
    """As on Windows, which has no resource either."""
    done = _loaded_after(f"sys.modules.update(fcntl=None, resource=None); import corsd_lib.{module}")
    assert f"corsd_lib.{module}" in done


CLOCK = """
import sys, time
start = time.perf_counter()
import torch
alone = time.perf_counter()
import corsd_lib
from corsd_lib import TrainConfig, build_method, build_network, evaluate, load_dataset, load_run, train
print((time.perf_counter() - start) / (alone - start), *sys.modules)
"""


@pytest.mark.slow
def test_what_a_training_script_imports_is_little_more_than_torch() -> None:
    """Under 1.5 times the time of torch; the best of some runs, since others may wait for the disk or the processor."""
    run = [sys.executable, "-c", CLOCK]
    outputs = [subprocess.run(run, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    for _, *loaded in outputs:
        assert "corsd_lib.training" in loaded and not set(loaded) & set(HEAVY)
    ratios = [float(ratio) for ratio, *_ in outputs]
    assert min(ratios) < 1.5, ratios
