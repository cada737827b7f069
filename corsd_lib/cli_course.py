"""Subcommands for the course: the walkthrough, and a copy of the notebooks to work in."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from corsd_lib.bundle import bundle_root, bundled_files
from corsd_lib.errors import CorsdError, require
from corsd_lib.files import write_atomic
from corsd_lib.walkthrough import EPOCHS, NOTEBOOK, walk

__all__ = ["add_course", "add_walkthrough", "copy_course"]


def add_walkthrough(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "walkthrough", help="train on the built-in digits, and execute the first notebook on the result"
    )
    parser.set_defaults(subcommand=_walkthrough)
    parser.add_argument(
        "--out", default="walkthrough", metavar="DIR", help="folder of the runs and pages (default: %(default)s)"
    )
    parser.add_argument("--epochs", default=EPOCHS, type=int, help="number of epochs (default: %(default)s)")


def _walkthrough(options: argparse.Namespace) -> None:
    walk(Path(options.out), options.epochs)


def add_course(subcommands: Any) -> None:
    parser = subcommands.add_parser("course", help="copy the notebooks into a folder and open them in JupyterLab")
    parser.set_defaults(subcommand=_course)
    parser.add_argument("--out", "--to", default="corsd-course", metavar="DIR", help="the folder (default: %(default)s)")
    parser.add_argument("--no-open", action="store_true", help="copy only")


def _course(options: argparse.Namespace) -> None:
    if not options.no_open:
        require("corsd course", "jupyterlab")
    first = copy_course(Path(options.out))
    print(f"{first.parent}: notebooks of the course; open them again with: jupyter lab {shlex.quote(str(first))}", flush=True)
    if not options.no_open:
        sys.exit(subprocess.run([sys.executable, "-m", "jupyter", "lab", str(first)]).returncode)


def copy_course(folder: Path) -> Path:
    """Copy the notebooks, and the results that they read, into `folder`; return the path of the first notebook there.

    A file that exists with the same content is left alone. Raises `CorsdError`, before anything is copied, if a file exists
    with other content or cannot be read, if `folder` is a file or the folder of a run, and if the notebooks are not installed.
    Raises it also if `folder` cannot be written.
    """
    root = bundle_root()
    files = list(bundled_files(root))
    if not files:
        raise CorsdError(f"the notebooks are not in {root}: install corsd_lib again, or work in a clone of the repository")
    if os.path.isfile(folder):
        raise CorsdError(f"{folder} is a file; allowed: a folder")
    if os.path.isfile(folder / "config.json"):
        raise CorsdError(f"{folder} is the folder of a run; choose another folder with --out")
    changed = [path for path in files if _differs(folder / path, root / path)]
    if changed:
        names = ", ".join(map(str, changed[:3])) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise CorsdError(
            f"{folder} has files that differ from those of the course: {names}. No file was overwritten: choose another folder "
            f"with --out, or continue with: jupyter lab {shlex.quote(str(folder / 'notebooks' / NOTEBOOK))}"
        )
    for path in files:
        if not (folder / path).exists():
            write_atomic(folder / path, (root / path).read_bytes())
    return folder / "notebooks" / NOTEBOOK


def _differs(path: Path, original: Path) -> bool:
    """Whether `path` exists but is not a file with the content of `original`. Raises `CorsdError` if it cannot be read."""
    try:
        return path.exists() and (path.is_dir() or path.read_bytes() != original.read_bytes())
    except OSError as error:
        raise CorsdError(f"cannot read {path}: {error.strerror or error}") from error
