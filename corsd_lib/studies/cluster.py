"""The missing trainings of a study as jobs of a cluster: `corsd compare --executor slurm`.

submitit submits one job for each training; the jobs of one call form a job array. A job trains as `corsd compare` does without
a cluster, in the same run directory (see cluster_job.py). The run directories must be in a file system that this machine and
the cluster share. The file seed0.job, beside seed0.json, has the id of the job, so that another call does not submit a training
that is queued or running. Jobs do not write records. The call of `corsd compare` that waits for the jobs, or a later call,
writes them.

submitit keeps its own files in the folder `_jobs` of the runs: scripts, logs, and two pickles for each job. One pickle has the
`TrainingJob` that the job runs, the other its result. A pickle can execute code, so other users must not be able to write to
this folder. A job opens the first of its pickles; this module opens none.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from corsd_lib.errors import CorsdError, check_choice, first_line, is_whole, missing_package, shortened
from corsd_lib.files import is_locked, locked, make_folder, read_json, write_json
from corsd_lib.schema import Check, Location, anything, choice, entries, many, number, optional, text, whole
from corsd_lib.studies.cluster_job import TrainingJob, blocked
from corsd_lib.studies.study import Study
from corsd_lib.studies.tables import write_tables
from corsd_lib.studies.workers import Environment, Job, worker_environments
from corsd_lib.training import stop_request, train

__all__ = ["CLUSTERS", "Cluster", "check_cluster", "train_on_cluster"]

CLUSTERS = ("slurm", "local")
POLL_SECONDS = {"slurm": 10.0, "local": 0.5}  # all users share the machine that answers squeue
MINUTES = {"slurm": 60, "local": 7 * 24 * 60}  # default time limit; a job that reaches it is requeued
SIGNAL_SECONDS = {"slurm": 90, "local": 30}  # defaults of submitit: SIGUSR2 comes this long before the limit
TIMEOUTS = 100  # a job that reaches its time limit more often is not requeued
_OF_ALL_CLUSTERS = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
_NOT_SETTINGS = ("nodes", "tasks_per_node", "ntasks_per_node", "time")


def _words(value: Any, where: Location) -> None:
    """A check that accepts a non-empty string or a whole number, because `account=12` on the command line becomes a number."""
    if type(value) is not int and (type(value) is not str or not value.strip()):
        raise CorsdError(f"{where[0]} = {shortened(value)}; allowed: a string that is not empty")


_VALUES: dict[str, Check] = {  # checks of the values of submitit's settings; submitit checks the names
    **dict.fromkeys(("name", "partition", "account", "qos", "comment", "constraint", "exclude", "nodelist", "gres"), _words),
    **dict.fromkeys(("mail_type", "mail_user", "dependency", "wckey", "mem", "mem_per_gpu", "mem_per_cpu"), _words),
    "timeout_min": whole(1, 10**7),
    "mem_gb": number(0.001, 1e6),
    **dict.fromkeys(("cpus_per_task", "cpus_per_gpu", "array_parallelism"), whole(1, 10**6)),
    **dict.fromkeys(("gpus_per_node", "gpus_per_task", "num_gpus"), whole(0, 10**6)),
    **dict.fromkeys(("stderr_to_stdout", "use_srun"), choice(True, False)),
    **dict.fromkeys(("setup", "teardown", "srun_args"), many(text)),
    "additional_parameters": entries(anything),
}
_OPEN = ("queued", "running", "elsewhere")  # states of jobs that may still finish


@dataclass(frozen=True)
class Cluster:
    """Where the trainings of a study are submitted as jobs.

    `name`: "slurm", or "local" for processes of this machine, which start all at once. `settings`: those of submitit's Slurm
    executor, such as partition, account, timeout_min, gpus_per_node, cpus_per_task, mem_gb, array_parallelism. With "local" all
    settings are checked, but only a few have an effect, for example timeout_min. `wait`: whether to wait for the jobs and write
    their records; if False, the next `run_study` (`corsd compare`) of the study writes the records.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    wait: bool = True


def check_cluster(cluster: Cluster) -> None:
    """Raise `CorsdError` for an unknown cluster or setting, for a value that is not allowed, and if submitit is missing."""
    with TemporaryDirectory() as folder:  # an executor creates its folder
        _executor(cluster, Path(folder), "study")


def train_on_cluster(
    study: Study,
    jobs: Sequence[Job],
    cluster: Cluster,
    runs: Path,
    report: Callable[[str], object],
    check: Callable[[], object],
) -> None:
    """Submit the waiting `jobs`, record those that are finished, and wait for the others if `cluster.wait`.

    Ctrl-C or SIGTERM ends the wait, and the jobs go on. `check` is called before records are written and may raise. Raises
    `CorsdError` for an unknown cluster or setting, for trainings on several nodes, if submitit is missing, and if the cluster
    does not answer or refuses the jobs.
    """
    queue = _Queue(cluster, runs / "_jobs", study.name)
    with stop_request() as stop:
        with locked(queue.folder, wait=60):  # another call may be about to submit the same trainings
            states = queue.states()
            waiting = [job for job in jobs if job.state == "waiting"]
            for job in waiting:
                job.id = _read_id(job, cluster.name)
            queue.submit([job for job in waiting if not _known(study, job, states)], report)
        if ended := [job for job in waiting if job.state in ("done", "failed")]:
            write_tables(study)
            for job in ended:
                report(str(job))
        gone = list[Job]()  # missing from the queue and not being trained at the previous poll
        while cluster.wait and not stop.is_set() and (left := [job for job in jobs if job.state in _OPEN]):
            stop.wait(POLL_SECONDS[cluster.name])
            check()
            gone = _collect(study, left, queue, gone)
            for job in left:
                if job.state not in _OPEN:
                    report(f"{job}; {sum(j.state == 'done' for j in jobs)} of {len(jobs)} done")
        if any(job.state in _OPEN for job in jobs):
            end = "; scancel ends them" if cluster.name == "slurm" else ""
            report(f"the jobs continue{end}; run the same command again to record the finished ones")


def _known(study: Study, job: Job, states: Mapping[str, str]) -> bool:
    """Set the state of a job and return True; return False if the job is missing (see `_collect`).

    The record of a finished run is written.
    """
    if (job.config.path / "test.json").is_file():
        _record(study, job)
    elif job.id in states:
        job.state = "queued" if states[job.id] == "PENDING" else "running"
    elif is_locked(job.sibling(".log")):
        job.state = "running" if job.id else "elsewhere"
    else:
        return False
    return True


def _record(study: Study, job: Job) -> None:
    """Write the record of a finished run. If its configuration is not that of the job, the job fails instead."""
    try:
        train(job.config, progress=False)  # returns a finished run after a check of its configuration
    except CorsdError as error:
        job.state, job.error = "failed", str(error)
    else:
        job.record(study)


def _collect(study: Study, jobs: Sequence[Job], queue: _Queue, gone: Sequence[Job]) -> list[Job]:
    """Set the states of `jobs`, write the records of the finished ones, and return the jobs that are missing at this poll.

    A job is missing if it has no result, the cluster does not have it, and no process trains it. `gone`: the jobs that were
    missing at the previous poll. A job that is missing twice in a row has ended. Once is not enough, because files of another
    machine may appear late.
    """
    try:
        states = queue.states()
    except CorsdError:  # the cluster does not answer for a while
        return list(gone)
    missing = [job for job in jobs if not _known(study, job, states)]
    for job in missing:
        if any(job is earlier for earlier in gone):
            _conclude(job, queue)
    if any(job.state == "done" for job in jobs):
        write_tables(study)
    return missing


def _conclude(job: Job, queue: _Queue) -> None:
    """Set the state of a job that has ended without a result."""
    reason = job.failure(None)
    if reason.startswith("stopped"):  # the last line of a training that a signal has ended
        job.state = "stopped"
    else:
        files = f"{job.sibling('.log')} and {queue.folder / job.id}_0_log.err" if job.id else job.sibling(".log")
        job.state, job.error = "failed", f"{reason} (see {files})"


class _Queue:
    """Submits jobs to a cluster with submitit, and reads their states (for Slurm with squeue)."""

    def __init__(self, cluster: Cluster, folder: Path, name: str) -> None:
        self.cluster, self.folder = cluster.name, folder
        self.executor = _executor(cluster, folder, name)
        delay = SIGNAL_SECONDS[cluster.name]
        if cluster.name == "slurm":
            delay = cluster.settings.get("signal_delay_s", delay)
        self.save_seconds = delay * 2 / 3
        make_folder(folder)
        self.started: list[Any] = []

    def states(self) -> dict[str, str]:
        """Dict id -> state of the queued and running jobs; for "local", of the running jobs that this process has started.

        Raises `CorsdError` if Slurm gives no answer.
        """
        if self.cluster == "slurm":
            return _slurm_states()
        return {job.job_id: job.state for job in self.started if job.state == "RUNNING"}

    def submit(self, jobs: Sequence[Job], report: Callable[[str], object]) -> None:
        """Submit a job for each training, and write its id beside the configuration.

        Raises `CorsdError` for a job of several nodes, and if the cluster does not accept the jobs.
        """
        if not jobs:
            return
        for job in jobs:
            if job.config.num_nodes > 1:
                raise CorsdError(f"variant {job.variant!r}: num_nodes = {job.config.num_nodes}; allowed as a job of a study: 1")
        environments: list[Environment] = [{} for _ in jobs]
        if self.cluster == "local":
            environments = worker_environments(jobs[0].config, len(jobs), len(jobs))
        calls = [TrainingJob(job, place, self.save_seconds) for job, place in zip(jobs, environments, strict=True)]
        try:
            with blocked(signal.SIGINT):  # local jobs go on after Ctrl-C in the terminal
                self.started = self.executor.submit_array(calls)
        except (RuntimeError, OSError, TypeError) as error:
            raise CorsdError(f"{self.cluster} did not accept the jobs: {' '.join(str(error).split())}") from error
        for job, started in zip(jobs, self.started, strict=True):
            job.id, job.state = started.job_id, "queued"
            write_json(job.sibling(".job"), {"executor": self.cluster, "job": job.id})
        ids = jobs[0].id if len(jobs) == 1 else f"{jobs[0].id} to {jobs[-1].id}"
        report(f"trainings submitted: {len(jobs)}, job {ids}; files of the jobs are in {self.folder}")


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `CorsdError` for a setting that is not allowed, and for a value of the wrong type or out of range.

    Settings that this library sets itself (nodes, tasks), `time` (use timeout_min) and an empty name are not allowed.
    """
    for setting, value in settings.items():
        if not setting:
            raise CorsdError(
                f"slurm setting {setting!r} = {shortened(value)}; allowed: a name and a value, as in partition=gpu"
            )
        if setting == "signal_delay_s" and not is_whole(value, 10, 24 * 3600):
            raise CorsdError(f"slurm setting signal_delay_s = {shortened(value)}; allowed: 10 to 86,400 seconds")
        if setting in _NOT_SETTINGS:
            reason = "is not allowed; set timeout_min" if setting == "time" else "is fixed: a training is one task on one node"
            raise CorsdError(f"slurm setting {setting} {reason}")
        optional(_VALUES.get(setting, anything))(value, (f"slurm setting {setting}",))


def _executor(cluster: Cluster, folder: Path, name: str) -> Any:
    """The executor of submitit with the settings of the cluster, which are checked."""
    check_choice("executor", cluster.name, CLUSTERS)
    _check_settings(cluster.settings)
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise missing_package(f"executor {cluster.name!r}", "submitit", error) from error
    if not hasattr(signal, "pthread_sigmask"):
        raise CorsdError(f"executor {cluster.name!r} does not work on Windows; allowed: Linux and macOS")
    extra = cluster.settings.get("additional_parameters") or {}
    settings = {"name": f"corsd-{name}", "timeout_min": MINUTES[cluster.name], **cluster.settings}
    settings["additional_parameters"] = {"requeue": True, **extra}
    try:
        executor = AutoExecutor(folder, cluster=cluster.name, **{f"{cluster.name}_max_num_timeout": TIMEOUTS})
    except RuntimeError as error:
        raise CorsdError(f"executor {cluster.name!r} is not available here: {first_line(error)}") from error
    for setting, value in settings.items():
        try:
            executor.update_parameters(**{setting if setting in _OF_ALL_CLUSTERS else f"slurm_{setting}": value})
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise CorsdError(f"slurm setting {setting} = {shortened(value)}: {first_line(error)}") from error
    return executor


def _read_id(job: Job, cluster: str) -> str:
    """Id of the last submission of `job` if that was to `cluster`, else ""."""
    file = job.sibling(".job")
    if not file.is_file():
        return ""
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), str) for name in ("executor", "job")):
        raise CorsdError(f"{file} lacks the executor or the job; remove it")
    return content["job"] if content["executor"] == cluster else ""


def _slurm_states() -> dict[str, str]:
    """State of each job of this user in Slurm, as a dict id -> state. Raises `CorsdError` if squeue fails or its output cannot
    be parsed.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise CorsdError(f"Slurm gave no answer to squeue: {reason}") from error
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    for line in lines:
        if not re.fullmatch(r"\d\S*\s+[A-Z_]+", line):
            raise CorsdError(f"the answer of Slurm to squeue has the line {shortened(line)}; expected: a line like 7_0 RUNNING")
    return dict(line.split() for line in lines)
