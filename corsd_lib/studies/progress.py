"""The live table of a comparison: how every row stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from corsd_lib.readers import read_metrics
from corsd_lib.studies.intervals import with_interval
from corsd_lib.studies.study import Study
from corsd_lib.studies.summary import gain_cell
from corsd_lib.studies.workers import Job

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["live_table", "progress_table"]


@contextmanager
def live_table(live: bool, draw: Callable[[], Table]) -> Iterator[Callable[[], object]]:
    """What `draw` gives, in the terminal for as long as the context lasts, and anew at each call of the value; or nothing."""
    if not live:
        yield lambda: None
        return
    from rich.live import Live

    with Live(draw(), auto_refresh=False) as view:
        yield lambda: view.update(draw(), refresh=True)


def progress_table(study: Study, jobs: Sequence[Job], summary: Mapping[str, Any], places: int) -> Table:
    """How every row stands: seeds done, running epochs, top-1 of the deepest exit, gain, time left."""
    from rich.table import Table

    table = Table("", "seeds", "running", "top-1, %", "gain", "time left", title=study.title)
    for name, row in study.rows.items():
        mine = [job for job in jobs if job.row == name]
        if mine:
            table.add_row(row.label, *_standing(mine, summary["methods"].get(name), places))
    table.caption = "Ctrl-C saves; the same command goes on"
    return table


def _standing(jobs: Sequence[Job], figures: Mapping[str, Any] | None, places: int) -> list[str]:
    """The cells of a row: of its `jobs`, and of what its records say, its entry in the summary."""
    newest = {job.seed: _newest(job) for job in jobs if job.state in ("running", "stopping")}
    epochs = jobs[0].config.epochs
    running = [f"seed {seed}: {line.get('epoch', 0)}/{epochs}" for seed, line in newest.items()]
    others = [f"seed {job.seed} {job.state}" for job in jobs if job.state in ("failed", "stopped", "elsewhere")]
    left = epochs * sum(job.state in ("waiting", "running", "stopping") for job in jobs) - sum(
        e.get("epoch", 0) for e in newest.values()
    )
    pace = [line["seconds"] for line in newest.values() if line] or [m["seconds"] / m["epochs"] for m in [figures] if m]
    return [
        f"{sum(job.state == 'done' for job in jobs)}/{len(jobs)}",
        ", ".join(running + others),
        _top1(figures, [line for line in newest.values() if line]),
        gain_cell(figures) if figures else "–",
        _duration(left * sum(pace) / len(pace) / places) if pace else "–",
    ]


def _newest(job: Job) -> dict[str, Any]:
    """The record of the last finished epoch of a run, {} before that."""
    lines = read_metrics(job.config.path / "metrics.jsonl")
    return lines[-1] if lines else {}


def _top1(figures: Mapping[str, Any] | None, newest: Sequence[Mapping[str, Any]]) -> str:
    """Test of the recorded seeds, or until there is one what the running ones have on validation or train."""
    if figures:
        return f"{with_interval(figures['top1'][-1], figures['top1_low'][-1], figures['top1_high'][-1])} test"
    for split in ("val", "train"):
        deepest = [[v for k, v in line.items() if k.startswith(f"{split}_top1.")][-1:] for line in newest]
        if deepest and all(deepest):
            return f"{sum(v for (v,) in deepest) / len(deepest):.1f} {split}"
    return "–"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"
