"""Provenance: commit, package versions and machine of a result."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from corsd_lib.methods import loaded_plugins

__all__ = ["provenance"]


def provenance(device: torch.device | str | None = None) -> dict[str, Any]:
    """Record of the environment of a training: versions of packages, git commit ("revision"), plug-ins ("methods"), Python,
    machine, system, cores, threads, start time and `device` (the GPU by default, if there is one).
    """
    from corsd_lib import __version__

    versions = {}
    for package in ("torch", "torchvision", "numpy", "lightning-fabric", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    others = ",".join(loaded_plugins())
    used = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return {
        "corsd_lib": __version__,
        "revision": _commit(),
        **({"methods": others} if others else {}),
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(used) if used.type == "cuda" else used.type,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str:
    """The git commit of the library, with "+" if it has uncommitted changes; "unknown" outside a git checkout."""
    here = Path(__file__).parent
    tracked = ["ls-files", "--error-unmatch", Path(__file__).name]  # fails if the library is installed inside another checkout
    try:
        _, commit, dirty = (
            subprocess.run(["git", "-C", str(here), *a], capture_output=True, text=True, timeout=10, check=True).stdout
            for a in (tracked, ["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(here)])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.strip() + ("+" if dirty.strip() else "")
