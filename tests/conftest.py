"""What tests of whole trainings share: a tiny configuration, one finished run of it, and the real data sets."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny import TINY

# The controller of pytest-xdist imports this file before it starts the workers, and runs no test: torch, and what
# imports it, is imported where it is used.
if TYPE_CHECKING:
    from corsd_lib.datasets import ImageData
    from corsd_lib.runs import Run, TrainConfig

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def pytest_collection() -> None:
    """One thread, for forks want no thread pool. `make unit` runs the tests marked `threads` once more with two."""
    import torch

    torch.set_num_threads(int(os.environ.get("CORSD_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium. One for all tests of a process: a second one cannot be started beside it."""
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: Chromium is not installed, nothing was tried in one")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session", autouse=True)
def _files_need_not_survive_a_power_cut() -> Iterator[None]:
    """Waiting for the disk is a fifth of a tiny training, more on a busy machine; tests of the waiting patch it themselves."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _what_does_not_change_is_looked_up_once() -> Iterator[None]:
    """The git commit is the same in all tests of a process, also if one is made meanwhile; Lightning's entry points, too."""
    from lightning_fabric.utilities.registry import _load_external_callbacks

    from corsd_lib.provenance import _commit

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("corsd_lib.provenance._commit", cache(_commit))
        patched.setattr("lightning_fabric.fabric._load_external_callbacks", cache(_load_external_callbacks))
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of `corsd`, with a validation split. Read only."""
    from corsd_lib.runs import TrainConfig
    from corsd_lib.training import train

    out = str(tmp_path_factory.mktemp("tiny") / "run")
    return train(TrainConfig(**TINY, validation_fraction=0.2, out=out), progress=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    """The tiny configuration with changes, writing below `tmp_path`: `tiny("name", epochs=1)`."""
    from corsd_lib.runs import TrainConfig

    def make(name: str = "run", **changes: Any) -> TrainConfig:
        return TrainConfig(**{**TINY, "out": str(tmp_path / name), **changes})

    return make


@pytest.fixture
def fresh_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plug-in was loaded yet, and those of the test are found in `tmp_path`; they are forgotten after it."""
    from corsd_lib.methods import METHODS, registry

    methods = dict(METHODS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_PLUGINS", registry._Plugins())
    monkeypatch.delenv("CORSD_METHODS", raising=False)
    yield
    METHODS.clear()
    METHODS.update(methods)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


# Methods that wait in the first step of the second half, and announce it by a file: what a test does then comes in time.
HELD = """
import os, signal, time
from pathlib import Path
from corsd_lib.methods import METHODS

FOLDER = Path(__file__).parent

def hold():
    heard, handlers = [], {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    def hear(number, frame):
        heard.append(number)
        handlers[number](number, frame)
    for number in handlers:
        signal.signal(number, hear)
    (FOLDER / f"held-{os.getpid()}").touch()
    while not (heard or (FOLDER / "go").exists()):
        time.sleep(0.01)
    for number, handler in handlers.items():
        signal.signal(number, handler)

for kind in ("baseline", "byot"):
    class Held(METHODS[kind]):
        name = f"held_{kind}"

        def loss_terms(self, out, batch):
            if batch.progress >= 0.5 and not (FOLDER / "go").exists():
                hold()
            return super().loss_terms(out, batch)

    METHODS[Held.name] = Held
"""


@pytest.fixture
def held(fresh_plugins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Trainings of the methods held_baseline and held_byot wait until this file exists or a signal stops them.

    Each makes a file held-<process id> beside it when it waits. They are found by processes that this one starts, too.
    """
    (tmp_path / "held.py").write_text(HELD)
    monkeypatch.setenv("CORSD_METHODS", "held")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    yield tmp_path / "go"
    (tmp_path / "go").touch()  # whatever became of the test, no process waits for ever


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets; without it the test is skipped."""
    root = os.environ.get("CORSD_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip(f"needs the real data sets in $CORSD_DATA, which is {root or 'not set'}")
    return Path(root)


@pytest.fixture(scope="module")
def _cached_data() -> Callable[..., ImageData]:
    from corsd_lib.datasets import load_dataset

    return cache(load_dataset)


@pytest.fixture
def read_once(_cached_data: Callable[..., ImageData], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and evaluations of a module read the images of a data set from disk once."""
    monkeypatch.setattr("corsd_lib.runs.data.load_dataset", _cached_data)
