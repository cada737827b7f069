"""The files of the repository that an installed package carries: notebooks, results of the studies, and one run.

In a clone these files lie beside the package. In a wheel they lie in the folder `_bundle` of the package. The relative paths
are the same.
`notebooks/packing.py` puts them into the wheel. That script loads this module alone, so only the standard library is imported
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["FILES", "bundle_root", "bundled_files", "find_result", "results_folders"]

PACKAGED = "_bundle"  # folder inside the package of a wheel
FILES = (
    "CONTRIBUTING.md",  # a notebook links to it
    "notebooks/*.ipynb",
    "notebooks/GLOSSARY.md",
    "notebooks/images/*",
    "notebooks/solutions/*.ipynb",
    "results/README.md",
    # What it links to and shows.
    "results/bench.json",
    "results/*/table.md",
    "results/*/unseen.md",
    "results/*/*.png",
    "results/*/study.json",
    "results/*/summary.json",
    "results/*/attribute_*.json",
    "results/*/floor.json",
    "results/*/selective_prediction.json",
    "results/*/tuning/*.json",
    "results/digits/runs/corsd/*",  # the one run that needs no download
    "results/digits/runs/corsd/probes/*",
)


def bundle_root() -> Path:
    """The folder `_bundle` inside the package if there is one (a wheel), else the clone that the package lies in.

    If there is neither, the path of `_bundle` is returned.
    """
    package = Path(__file__).resolve().parent
    inside, clone = package / PACKAGED, package.parent
    return clone if not inside.is_dir() and (clone / "pyproject.toml").is_file() else inside


def bundled_files(root: Path) -> Iterator[Path]:
    """The existing files of `FILES` below `root`, relative to it, sorted."""
    found = {path for pattern in FILES for path in root.glob(pattern) if path.is_file()}
    yield from sorted(path.relative_to(root) for path in found)


def results_folders() -> list[Path]:
    """Possible `results` folders, nearest first: in the working directory, its parents and the bundle; some may not exist."""
    here = Path.cwd()
    return [place / "results" for place in (here, *here.parents, bundle_root())]


def find_result(path: str | Path) -> Path | None:
    """The first existing `path`, such as "digits/summary.json", in the folders of `results_folders`; None if there is none."""
    return next((folder / path for folder in results_folders() if (folder / path).exists()), None)
