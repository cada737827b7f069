"""Deterministic algorithms on request: operations add in the same order in every run, even on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from corsd_lib.errors import CorsdError

__all__ = ["deterministic_algorithms"]


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Allow only deterministic algorithms of PyTorch inside the context; with `enabled` False nothing changes.

    The previous setting is restored afterwards. cuBLAS also needs the environment variable CUBLAS_WORKSPACE_CONFIG, which is
    set here unless it is set already. Raises `CorsdError` if an operation has no deterministic algorithm. See
    `torch.use_deterministic_algorithms`.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise CorsdError(f"deterministic = True: {reason}; use deterministic = False") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
