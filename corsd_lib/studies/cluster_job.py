"""A training as a job of a cluster: the function that submitit calls there, and the handling of signals.

Slurm sends SIGUSR2 some time before the time limit, and SIGTERM when it requeues, preempts or cancels a job. Both signals go to
every process of the job. At SIGUSR2 submitit calls `TrainingJob.checkpoint` and requeues the job. SIGUSR2 is blocked in the
process of the training. `checkpoint` sends SIGTERM to this process, which then saves and ends. The requeued job resumes the
training.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

from corsd_lib.errors import CorsdError
from corsd_lib.files import LockedError, locked
from corsd_lib.studies.workers import Environment, Job

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

__all__ = ["TrainingJob", "blocked"]

LOCK_SECONDS = 120  # a file server may hold the lock of a crashed machine for a minute or so
POLL_SECONDS = 0.2


@dataclass
class TrainingJob:
    """A callable that trains `job` in a separate process, as `corsd compare` does without a cluster.

    `environment`: environment variables of the separate process; {} to derive them from the variables of Slurm. `save_seconds`:
    time that the training has to save after SIGUSR2. If the training needs longer, it is killed, and the requeued job resumes
    from the previous checkpoint.
    """

    job: Job
    environment: Environment
    save_seconds: float

    def __call__(self) -> None:
        """Train until the run is finished or a signal stops it. Raises `CorsdError` if the training fails.

        If another process trains the run and still holds its lock after `LOCK_SECONDS`, the job ends without training.
        """
        try:
            with locked(self.job.sibling(".log"), LOCK_SECONDS) as log:
                assert log is not None  # None only for the lock of a folder
                with blocked(signal.SIGUSR1, signal.SIGUSR2):
                    self.job.launch(log, self.environment or slurm_environment(self.job.config.devices))
                signal.signal(signal.SIGTERM, lambda number, frame: self.job.stop())
                while not self.job.ended:
                    time.sleep(POLL_SECONDS)
                self._check(log)
        except LockedError as error:
            print(error, flush=True)

    def _check(self, log: int) -> None:
        """Raise `CorsdError` if the training failed. A signal that ended it is written to its log."""
        status = self.job.process.returncode if self.job.process else None
        if status == -signal.SIGTERM:
            os.write(log, b"stopped before the first step\n")
        if status in (0, -signal.SIGTERM):
            return
        reason = self.job.failure(status)
        if status is None or status < 0:
            os.write(log, f"corsd: error: {reason}\n".encode())
        raise CorsdError(f"{self.job.variant}, seed {self.job.seed}: {reason}")

    def checkpoint(self) -> DelayedSubmission:
        """Let the training save and end; return the submission that requeues this job. submitit calls this at SIGUSR2."""
        from submitit.helpers import DelayedSubmission

        if self.job.process is not None:
            self.job.stop()
            with suppress(TimeoutExpired):
                self.job.process.wait(self.save_seconds)
            self.job.process.kill()  # no effect on a process that has ended
        return DelayedSubmission(replace(self, job=replace(self.job, process=None, state="waiting")))


@contextmanager
def blocked(*signals: int) -> Iterator[None]:
    """Block `signals` in this thread inside the context. Programs started inside it keep `signals` blocked until they end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def slurm_environment(devices: int) -> Environment:
    """Environment variables of a training with `devices` processes in one task of Slurm.

    They set the number of threads of each process. If there are several processes, they also set a job name that makes Fabric
    start the processes itself.
    """
    threads = str(max(1, int(os.environ.get("SLURM_CPUS_ON_NODE", 1)) // devices))
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if devices > 1:  # else Fabric expects that Slurm starts each process as a task
        environment["SLURM_JOB_NAME"] = "interactive"
    return environment
