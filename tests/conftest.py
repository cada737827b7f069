"""What tests of whole trainings share: a tiny configuration, one finished run of it, and the real data sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY

from corsd_lib.runs import Run, TrainConfig
from corsd_lib.training import train

# One thread, for forks want no thread pool. `make unit` runs the tests marked `threads` once more with two.
torch.set_num_threads(int(os.environ.get("CORSD_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of `corsd`, with a validation split. Read only."""
    out = str(tmp_path_factory.mktemp("tiny") / "run")
    return train(TrainConfig(**TINY, validation_fraction=0.2, out=out), progress=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    """The tiny configuration with changes, writing below `tmp_path`: `tiny("name", epochs=1)`."""

    def make(name: str = "run", **changes: Any) -> TrainConfig:
        return TrainConfig(**{**TINY, "out": str(tmp_path / name), **changes})

    return make


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets; without it the test is skipped."""
    root = os.environ.get("CORSD_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip(f"needs the real data sets in $CORSD_DATA, which is {root or 'not set'}")
    return Path(root)
