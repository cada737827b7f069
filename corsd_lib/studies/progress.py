"""The live table of a comparison in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corsd_lib.readers import read_metrics
from corsd_lib.studies.intervals import with_interval
from corsd_lib.studies.study import Study
from corsd_lib.studies.summary import gain_cell
from corsd_lib.studies.workers import Job

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["VariantProgress", "live_table", "progress_table"]


@contextmanager
def live_table(live: bool, draw: Callable[[], Table]) -> Iterator[Callable[[], object]]:
    """Show the table that `draw` returns while the context lasts, and yield a function that refreshes it.

    With `live` False nothing is shown.
    """
    if not live:
        yield lambda: None
        return
    from rich.live import Live

    with Live(draw(), auto_refresh=False) as view:
        yield lambda: view.update(draw(), refresh=True)


def progress_table(study: Study, jobs: Sequence[Job], summary: Mapping[str, Any], workers: int) -> Table:
    """Progress of every variant as a table: seeds done, epoch of each running seed, top-1 of the deepest exit, gain, time left.

    `workers`: number of simultaneous trainings, for the estimate of the time left.
    """
    from rich.table import Table

    table = Table("", "seeds", "running", "top-1, %", "gain", "time left", title=study.title)
    for name, variant in study.variants.items():
        if of_variant := [job for job in jobs if job.variant == name]:
            entry = summary["methods"].get(name)
            table.add_row(variant.label, *_cells(VariantProgress.of(of_variant, entry), entry, workers))
    table.caption = "Ctrl-C saves; run the same command again to continue"
    return table


@dataclass(frozen=True)
class VariantProgress:
    """Progress of one variant of a study.

    `done`: number of recorded seeds, out of `seeds`. `newest`: running seed -> last line of its metrics, {} before the first
    epoch. `others`: seed -> state, for seeds that are neither recorded nor running nor waiting. `epochs_left`: total over all
    seeds. `seconds_per_epoch`: mean of the running trainings, or of the recorded ones if none is running; None before the first
    epoch.
    """

    done: int
    seeds: int
    epochs: int
    newest: dict[int, dict[str, Any]]
    others: dict[int, str]
    epochs_left: int
    seconds_per_epoch: float | None

    @classmethod
    def of(cls, jobs: Sequence[Job], entry: Mapping[str, Any] | None) -> VariantProgress:
        """Progress of a variant from its `jobs` and its `entry` in the summary; `entry` is None if the summary has none."""
        newest = {job.seed: _last_line(job) for job in jobs if job.state in ("running", "stopping")}
        epochs = jobs[0].config.epochs
        unfinished = sum(job.state in ("waiting", "running", "stopping") for job in jobs)
        seconds = [line["seconds"] for line in newest.values() if line]
        if not seconds and entry:
            seconds = [entry["seconds"] / entry["epochs"]]
        return cls(
            done=sum(job.state == "done" for job in jobs),
            seeds=len(jobs),
            epochs=epochs,
            newest=newest,
            others={job.seed: job.state for job in jobs if job.state in ("failed", "stopped", "elsewhere")},
            epochs_left=epochs * unfinished - sum(line.get("epoch", 0) for line in newest.values()),
            seconds_per_epoch=sum(seconds) / len(seconds) if seconds else None,
        )


def _cells(progress: VariantProgress, entry: Mapping[str, Any] | None, workers: int) -> list[str]:
    """Cells of the row of a variant, without its name."""
    running = [f"seed {seed}: {line.get('epoch', 0)}/{progress.epochs}" for seed, line in progress.newest.items()]
    others = [f"seed {seed} {state}" for seed, state in progress.others.items()]
    pace = progress.seconds_per_epoch
    return [
        f"{progress.done}/{progress.seeds}",
        ", ".join(running + others),
        _top1(entry, [line for line in progress.newest.values() if line]),
        gain_cell(entry) if entry else "–",
        "–" if pace is None else _duration(progress.epochs_left * pace / workers),
    ]


def _last_line(job: Job) -> dict[str, Any]:
    """Metrics of the last finished epoch of a run; {} if there is none."""
    lines = read_metrics(job.config.path / "metrics.jsonl")
    return lines[-1] if lines else {}


def _top1(entry: Mapping[str, Any] | None, newest: Sequence[Mapping[str, Any]]) -> str:
    """Mean top-1 of the deepest exit over the recorded seeds, on test images, as text.

    If no seed is recorded, it is the top-1 of the running seeds on validation images, or on training images if there is no
    validation split. "–" if there is no value yet.
    """
    if entry:
        return f"{with_interval(entry['top1'][-1], entry['top1_low'][-1], entry['top1_high'][-1])} test"
    for split in ("val", "train"):
        deepest = [[v for k, v in line.items() if k.startswith(f"{split}_top1.")][-1:] for line in newest]
        if deepest and all(deepest):
            return f"{sum(v for (v,) in deepest) / len(deepest):.1f} {split}"
    return "–"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"
