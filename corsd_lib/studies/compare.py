"""Train the missing runs of a study, several at a time, and update its tables: `corsd compare`.

Each training runs in a separate process (`corsd train`). In runs/<study>/<variant> it has a run directory seed0/, its
configuration seed0.json and its output seed0.log. The training process locks its log until it ends, even if `corsd compare` is
killed, so that no run is trained twice. `corsd compare` waits for trainings that another process has started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.files import make_folder
from corsd_lib.studies.cluster import Cluster, check_cluster, train_on_cluster
from corsd_lib.studies.progress import live_table, progress_table
from corsd_lib.studies.study import Study, study_file
from corsd_lib.studies.summary import summarise
from corsd_lib.studies.tables import write_tables
from corsd_lib.studies.workers import Environment, Job, worker_environments
from corsd_lib.training import stop_request

__all__ = ["run_study"]

POLL_SECONDS = 0.2


def run_study(
    study: Study,
    *,
    runs: str | Path | None = None,
    jobs: int | None = None,
    data_root: str | None = None,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    report: Callable[[str], object] = print,
    live: bool = False,
    cluster: Cluster | None = None,
) -> list[Job]:
    """Train the runs of `study` that have no record, and return all its runs as jobs with their final states.

    `variants` and `seeds` restrict which runs are trained and returned. Run directories are created in `runs` (default
    `runs/<study>`). `jobs` trainings run at the same time (default: one for each GPU, or one for each CPU where there is no
    GPU). After each training its record and the tables are written, and `report` is called with one line; `live` shows a table
    in the terminal instead.

    Ctrl-C or SIGTERM stops the trainings after they have saved; another call continues them. If one training fails, the others
    continue. If another process is already running a training, for example a process that a killed call had started, this call
    waits until that process ends.

    With `cluster` the trainings are jobs of a cluster, which go on after Ctrl-C; `live` is not used, and `jobs` is refused.

    Raises `CorsdError` for an unknown variant or seed, for `jobs` below 1 or more than this machine can run, for a record that
    is damaged or of another configuration, for a variant whose search is not finished, and if the folder of the study or of the
    runs is moved or removed meanwhile. Without `cluster` the running trainings save and end after such an error.
    """
    if cluster and jobs is not None:
        raise CorsdError(
            f"jobs = {shortened(jobs)} has no meaning on a cluster; set the slurm setting array_parallelism instead"
        )
    if cluster:
        check_cluster(cluster)  # also if nothing is left to train
    folder = Path(runs or f"runs/{study.name}")
    found = _wanted(study, folder, data_root, variants, seeds)
    records = study.records()  # raises for a record of another configuration, before anything is trained
    for job in found:
        job.state = "done" if job.seed in records.get(job.variant, {}) else "waiting"
    waiting = [job for job in found if job.state == "waiting"]
    for variant in dict.fromkeys(job.variant for job in waiting):
        study.check_search(variant)
    if waiting and cluster:
        folders = _Folders.of(study, folder)
        train_on_cluster(study, found, cluster, folder, report, folders.check)
    elif waiting:
        free = worker_environments(waiting[0].config, jobs, len(waiting))
        _train_all(study, found, free, report, live, _Folders.of(study, folder))
    for job in found:  # after a stop: another process may have finished it
        if job.state == "elsewhere" and study.record(job.variant, job.seed) is not None:
            job.state = "done"
    return found


@dataclass(frozen=True)
class _Folders:
    """The folders of a study and of its runs, which must not be moved during a comparison."""

    study: Study
    runs: Path
    on_disk: bool  # False for a study from a dictionary, which has no file

    @classmethod
    def of(cls, study: Study, runs: Path) -> _Folders:
        """The folders of a study; `runs` is created if it does not exist. Raises `CorsdError` if this fails."""
        make_folder(runs)
        return cls(study, runs, study_file(study.path).is_file())

    def check(self) -> None:
        """Raise `CorsdError` if one of the folders was moved or removed."""
        if self.on_disk and not study_file(self.study.path).is_file():
            raise CorsdError(
                f"{study_file(self.study.path)} was moved or removed during the training, so the comparison stops. The trained "
                f"runs are in {self.runs}. Put the study back, or compare it at its new path with --runs {self.runs} "
                f"(runs={str(self.runs)!r})"
            )
        if not self.runs.is_dir():
            raise CorsdError(
                f"{self.runs} was moved or removed during the training, so the comparison stops. The records are kept. Put the "
                "folder back, or give its new path (runs, --runs)"
            )


def _train_all(
    study: Study,
    jobs: list[Job],
    free: list[Environment],
    report: Callable[[str], object],
    live: bool,
    folders: _Folders,
) -> None:
    """Train the waiting `jobs`, one in each of the `free` worker environments, until all are done or a stop is requested."""
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
                for job in [job for job in running if job.ended]:
                    folders.check()
                    running.remove(job)
                    free.append(job.environment)
                    job.finish(study)
                    summary = write_tables(study)
                    if not live:
                        report(f"{job}; {sum(j.state == 'done' for j in jobs)} of {len(jobs)} done")
                refresh()
                time.sleep(POLL_SECONDS)
        finally:  # after an error no training is left running
            for job in running:
                job.stop()


def _start_more(
    study: Study, waiting: list[Job], running: list[Job], free: list[Environment], report: Callable[[str], object]
) -> None:
    """Start a waiting job in each free environment. A job that another process trains stays in the list of waiting jobs."""
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
            report(f"{job.variant}, seed {job.seed}: another process trains it; waiting for it")


def _wanted(
    study: Study, runs: Path, data_root: str | None, variants: Sequence[str] | None, seeds: Sequence[int] | None
) -> list[Job]:
    """The requested trainings, sorted by seed: the first seed of every variant, then the second, and so on.

    Raises `CorsdError` for an unknown variant or seed.
    """
    every = study.jobs()
    for variant in variants or ():
        check_choice("variant", variant, study.variants)
    for seed in seeds or ():
        check_choice("seed", seed, dict.fromkeys(s for name, s in every if not variants or name in variants))
    chosen = [job for job in every if (not variants or job[0] in variants) and (not seeds or job[1] in seeds)]
    configs = [replace(study.config(*job), data_root=data_root, resume=True) for job in chosen]
    return [
        Job(variant, seed, replace(config, out=str(runs / variant / f"seed{seed}")))
        for (variant, seed), config in zip(chosen, configs, strict=True)
    ]
