"""Train what a study lacks, several processes at a time, and keep its tables up to date: `corsd compare`.

Each training is a `corsd train` of its own below `runs/<study>/<row>`, with its configuration and its output beside it: seed0/,
seed0.json, seed0.log. It holds a lock on its log for as long as it lives, even if this process is killed, so that no run is
ever trained by two; this process waits for a training that another one has started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.files import make_folder
from corsd_lib.studies.progress import live_table, progress_table
from corsd_lib.studies.study import Study, study_file
from corsd_lib.studies.summary import summarise
from corsd_lib.studies.tables import write_tables
from corsd_lib.studies.workers import Environment, Job, places
from corsd_lib.training import stop_request

if TYPE_CHECKING:
    pass

__all__ = ["run_study"]

POLL_SECONDS = 0.2


def run_study(
    study: Study,
    *,
    runs: str | Path | None = None,
    jobs: int | None = None,
    data_root: str | None = None,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    report: Callable[[str], object] = print,
    live: bool = False,
) -> list[Job]:
    """Train what `study` has no record of, only `rows` and `seeds` where given; these trainings, each with how it stands.

    Run directories lie below `runs` (default `runs/<study>`), `jobs` of them are trained at a time (default: one a GPU, else
    one a CPU). After each training its record and the tables are written and `report` is given a line; `live` draws a table in
    the terminal instead. Ctrl-C (or SIGTERM) lets the trainings save; called again they go on. If one fails the rest goes on.
    A training that another process has, such as one left by a call that was killed, is waited for while the rest goes on.

    Raises `CorsdError` for an unknown row or seed, a record of another configuration, a row whose search is not finished, and
    when the folder of the study or that of the runs is moved or removed meanwhile: the trainings save, as with Ctrl-C.
    """
    folder = Path(runs or f"runs/{study.name}")
    found = _wanted(study, folder, data_root, rows, seeds)
    records = study.records()  # one of another configuration ends it here, before anything is trained
    for job in found:
        job.state = "done" if job.seed in records.get(job.row, {}) else "waiting"
    waiting = [job for job in found if job.state == "waiting"]
    for row in dict.fromkeys(job.row for job in waiting):
        study.check_search(row)
    if waiting:
        free = places(waiting[0].config, jobs, len(waiting))
        _train_all(study, found, free, report, live, _Folders.of(study, folder))
    for job in found:  # stopped while another process trained it, which may have done it by now
        if job.state == "elsewhere" and study.record(job.row, job.seed) is not None:
            job.state = "done"
    return found


@dataclass(frozen=True)
class _Folders:
    """The study and the folder `runs` of its run directories, which stay where they are while a comparison lasts."""

    study: Study
    runs: Path
    on_disk: bool  # a study that was made from a dictionary need not have a file

    @classmethod
    def of(cls, study: Study, runs: Path) -> _Folders:
        """These folders, `runs` made if need be."""
        make_folder(runs)
        return cls(study, runs, study_file(study.path).is_file())

    def check(self) -> None:
        """Raise `CorsdError` where one of them was moved or removed."""
        kept = f"what was trained is kept in {self.runs}"
        if self.on_disk and not study_file(self.study.path).is_file():
            raise CorsdError(
                f"{study_file(self.study.path)} was moved or removed while the study was trained, and the comparison ends; "
                f"{kept}: put it back, or compare the study where it is now (runs={str(self.runs)!r}, --runs)"
            )
        if not self.runs.is_dir():
            raise CorsdError(
                f"{self.runs} was moved or removed while the study was trained, and the comparison ends; what is recorded is "
                "kept: put it back, or name the folder where it is now (runs, --runs)"
            )


def _train_all(
    study: Study,
    jobs: list[Job],
    free: list[Environment],
    report: Callable[[str], object],
    live: bool,
    folders: _Folders,
) -> None:
    """Train the waiting ones of `jobs`, one in each place that is `free`, until all are done or a stop is asked for."""
    waiting, running = [job for job in jobs if job.state == "waiting"], list[Job]()
    summary, count = summarise(study, study.records()), len(free)
    with stop_request() as stop, live_table(live, lambda: progress_table(study, jobs, summary, count)) as refresh:
        try:
            while running or (waiting and not stop.is_set()):
                folders.check()
                if stop.is_set():
                    for job in running:
                        job.stop()
                else:
                    _start_more(study, waiting, running, free, (lambda line: None) if live else report)
                for job in [job for job in running if job.over]:
                    folders.check()
                    running.remove(job)
                    free.append(job.place)
                    job.conclude(study)
                    summary = write_tables(study)
                    if not live:
                        report(f"{job}; {sum(j.state == 'done' for j in jobs)} of {len(jobs)} done")
                refresh()
                time.sleep(POLL_SECONDS)
        finally:  # an error here is no reason to leave trainings behind
            for job in running:
                job.stop()


def _start_more(
    study: Study, waiting: list[Job], running: list[Job], free: list[Environment], report: Callable[[str], object]
) -> None:
    """Fill the places that are free; a training that another process has stays among the waiting ones."""
    for job in list(waiting):
        if not free:
            return
        known = job.state
        if job.start(study, free[-1]):
            running.append(job)
            free.pop()
        if job.state != "elsewhere":
            waiting.remove(job)
        elif known != "elsewhere":
            report(f"{job.row}, seed {job.seed}: another process trains it, and is waited for")


def _wanted(
    study: Study, runs: Path, data_root: str | None, rows: Sequence[str] | None, seeds: Sequence[int] | None
) -> list[Job]:
    """The trainings asked for, a seed of every row first."""
    every = study.jobs()
    for row in rows or ():
        check_choice("row", row, study.rows)
    for seed in seeds or ():
        check_choice("seed", seed, dict.fromkeys(s for row, s in every if not rows or row in rows))
    chosen = [(row, seed) for row, seed in every if (not rows or row in rows) and (not seeds or seed in seeds)]
    configs = [replace(study.config(*job), data_root=data_root, resume=True) for job in chosen]
    return [
        Job(row, seed, replace(config, out=str(runs / row / f"seed{seed}")))
        for (row, seed), config in zip(chosen, configs, strict=True)
    ]


# --------------------------------------------------------------------------------------------------


# --- figures, and studies without a file ------------------------------------------------------------------------------
