"""Worker processes: their environment variables, and the training of one seed of a study in such a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from corsd_lib.errors import PROCESSES_PER_CPU, CorsdError, check_processes, shortened
from corsd_lib.files import LockedError, locked, with_checksum, write_json
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.studies.records import make_record
from corsd_lib.studies.study import Study

__all__ = ["Environment", "Job", "worker_environments"]

Environment = dict[str, str]


@dataclass
class Job:
    """One training of a study: its process and its state.

    The state is "waiting", "queued" (on a cluster), "running" or "stopping"; or "elsewhere" while another process trains it. At
    the end it is "done" (recorded), "failed" (see `error`) or "stopped". `id`: identifier of the job on a cluster, else "".
    """

    variant: str
    seed: int
    config: TrainConfig
    state: str = "waiting"
    error: str = ""
    environment: Environment = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    id: str = ""

    def __str__(self) -> str:
        where = f" (job {self.id})" if self.id and self.state in ("queued", "running") else ""
        return f"{self.variant}, seed {self.seed}: {self.state}{where}{': ' if self.error else ''}{self.error}"

    def sibling(self, suffix: str) -> Path:
        """The path next to the run directory with this ending, such as seed0.log for ".log"."""
        return self.config.path.with_name(self.config.path.name + suffix)

    def start(self, study: Study, environment: Environment) -> bool:
        """Start the training; return False if another process trains it, or has finished it."""
        try:
            with locked(self.sibling(".log")) as log:
                if study.record(self.variant, self.seed) is not None:
                    self.state = "done"
                    return False
                assert log is not None  # None only for the lock of a folder
                self.launch(log, environment)
        except LockedError:
            self.state = "elsewhere"
            return False
        return True

    def launch(self, log: int, environment: Environment) -> None:
        """Start the process, with its output in `log`, the descriptor of the locked log; the process inherits the lock."""
        os.ftruncate(log, 0)
        write_json(self.sibling(".json"), asdict(self.config))
        self.process = _training(self.sibling(".json"), log, environment)
        self.state, self.environment = "running", environment

    def stop(self) -> None:
        """Send SIGTERM to the running training, which then writes its checkpoint and ends. Later calls do nothing."""
        if self.process is not None and self.state == "running":
            self.process.terminate()
            self.state = "stopping"

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process is not None and self.process.poll() is not None

    def finish(self, study: Study) -> None:
        """After the process has ended, write the record, or set the state to "stopped" or "failed" if there is no result."""
        status = self.process.returncode if self.process else None
        if status == 0 and (self.config.path / "test.json").is_file():
            self.record(study)
        elif status in (0, -signal.SIGTERM):
            self.state = "stopped"
        else:
            self.state, self.error = "failed", self.failure(status)

    def record(self, study: Study) -> None:
        """Write the record of a finished run; the state is "failed" if that cannot be done."""
        try:
            record = make_record(Run(self.config.path), self.variant, self.seed)
            write_json(study.record_path(self.variant, self.seed), with_checksum(record), within=study.path)
        except CorsdError as error:
            self.state, self.error = "failed", str(error)
        else:
            self.state = "done"

    def failure(self, status: int | None) -> str:
        """Why the training failed: the signal that ended it, the last line of its log, or its status if the log is empty."""
        if status is not None and status < 0:
            return f"it was killed by signal {-status}" + (", as when memory runs out" if -status == signal.SIGKILL else "")
        ended = "it ended without a result" if status is None else f"it ended with status {status}"
        try:
            log = self.sibling(".log").read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            log = f"{ended}, and its log cannot be read: {error}"
        return log.rpartition("\n")[2].removeprefix("corsd: error: ") or ended


def worker_environments(config: TrainConfig, jobs: int | None, most: int) -> list[Environment]:
    """Environment variables for processes that train at the same time: one dict for each of at most `most` processes.

    The variables set the GPUs of each process, and the number of threads, so that the processes share the CPUs. `jobs`: number
    of processes; by default one for each group of `config.devices` GPUs, or one for each CPU if there are no GPUs. If there are
    more processes than groups, several processes share a group. Raises `CorsdError` if `jobs` is below 1 or more than this
    machine can run.
    """
    if jobs is not None and jobs < 1:
        raise CorsdError(f"jobs = {shortened(jobs)} must be at least 1")
    check_processes("jobs", jobs or 1, PROCESSES_PER_CPU)
    gpus, cpus = _gpus(config), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(most, jobs or len(gpus) or cpus)
    threads = str(max(1, cpus // count))
    shared = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    shared["OMP_WAIT_POLICY"] = "passive"  # threads that spin while they wait take the CPU from other trainings
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else shared for i in range(count)]


def _gpus(config: TrainConfig) -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES for trainings at the same time, each with `config.devices` GPUs; [] if they use no GPU."""
    import torch

    if config.accelerator not in ("auto", "cuda", "gpu") or not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    return [",".join(names[i : i + config.devices]) for i in range(0, count - config.devices + 1, config.devices)]


def _training(config: Path, log: int, environment: Environment) -> subprocess.Popen[bytes]:
    """Start `corsd train --config`, with its output in `log`."""
    return subprocess.Popen(
        [sys.executable, "-m", "corsd_lib", "train", "--config", str(config), "--quiet"],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # Ctrl-C must reach only this process, which then sends SIGTERM: a SIGINT besides it would end the training without
        # saving.
        start_new_session=True,
    )
