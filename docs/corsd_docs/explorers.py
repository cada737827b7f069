"""Live pages of committed runs: the explorers and a report, which need no kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from corsd_docs.files import EXTRA, ROOT
from corsd_lib import (
    ExitExplorer,
    RelationExplorer,
    Run,
    StageExplorer,
    TrainingMonitor,
    committed_run,
    write_report,
)

STUDY = "cifar100_small"
REPORTED = ("baseline", "deep_supervision", "byot", "corsd")


def _run(variant: str = "corsd") -> Run:
    return committed_run(f"{STUDY}/{variant}")


def _monitor(path: Path) -> object:
    monitor = TrainingMonitor()
    monitor(_run())
    return monitor.to_html(path)


PAGES: dict[str, Callable[[Path], object]] = {
    "relation": lambda path: RelationExplorer(_run()).to_html(path),
    "stages": lambda path: StageExplorer(_run(), method="pca").to_html(path),
    "exits": lambda path: ExitExplorer(_run(), _run("deep_supervision")).to_html(path),
    "monitor": _monitor,
    "report": lambda path: write_report([_run(variant) for variant in REPORTED], path),
}


def write_explorers() -> None:
    """Write the pages that are missing or older than the library and the runs."""
    newest = max(path.stat().st_mtime for folder in ("corsd_lib", f"results/{STUDY}") for path in (ROOT / folder).rglob("*.*"))
    folder = EXTRA / "explorers"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        path = folder / f"{name}.html"
        if not path.is_file() or path.stat().st_mtime < newest:
            make(path)
