"""The processes that train: their environments, and a training of a study in one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from corsd_lib.errors import PROCESSES_A_CPU, CorsdError, check_processes, shortened
from corsd_lib.files import LockedError, locked, with_checksum, write_json
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.studies.records import make_record
from corsd_lib.studies.study import Study

__all__ = ["Environment", "Job", "places"]

Environment = dict[str, str]


@dataclass
class Job:
    """One training of a study, its process, and its state.

    "waiting", or "elsewhere" while another process trains it, then "running", "stopping", at last "done" (recorded), "failed"
    (with `error`) or "stopped".
    """

    row: str
    seed: int
    config: TrainConfig
    state: str = "waiting"
    error: str = ""
    place: Environment = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}: {self.state}{': ' if self.error else ''}{self.error}"

    def beside(self, suffix: str) -> Path:
        """A file next to the run directory, such as `.log`."""
        return self.config.path.with_name(self.config.path.name + suffix)

    def start(self, study: Study, place: Environment) -> bool:
        """Start the training in `place`; False when another process has it, or has done it."""
        try:
            with locked(self.beside(".log")) as log:
                if study.record(self.row, self.seed) is not None:
                    self.state = "done"
                    return False
                assert log is not None  # which only a folder may be
                os.ftruncate(log, 0)
                write_json(self.beside(".json"), asdict(self.config))
                self.process = _training(self.beside(".json"), log, place)  # from here on it has the lock
        except LockedError:
            self.state = "elsewhere"
            return False
        self.state, self.place = "running", place
        return True

    def stop(self) -> None:
        """Ask the training, once, to save and end."""
        if self.process is not None and self.state == "running":
            self.process.terminate()
            self.state = "stopping"

    @property
    def over(self) -> bool:
        """Whether the process has ended."""
        return self.process is not None and self.process.poll() is not None

    def conclude(self, study: Study) -> None:
        """Record what the process that is over has trained, or say why it has not."""
        status = self.process.returncode if self.process else None
        if status == 0 and (self.config.path / "test.json").is_file():
            self._record(study)
        elif status in (0, -signal.SIGTERM):
            self.state = "stopped"
        else:
            self.state, self.error = "failed", self._why(status)

    def _record(self, study: Study) -> None:
        try:
            record = make_record(Run(self.config.path), self.row, self.seed)
            write_json(study.record_path(self.row, self.seed), with_checksum(record), within=study.path)
        except CorsdError as error:
            self.state, self.error = "failed", str(error)
        else:
            self.state = "done"

    def _why(self, status: int | None) -> str:
        """What a training that failed has said last; one that was killed had no time to say anything."""
        if status is not None and status < 0:
            return f"it was ended by signal {-status}" + (", as when memory runs out" if -status == signal.SIGKILL else "")
        try:
            said = self.beside(".log").read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            said = f"it ended with status {status}, and its log cannot be read: {error}"
        return said.rpartition("\n")[2].removeprefix("corsd: error: ") or f"it ended with status {status}"


def places(config: TrainConfig, jobs: int | None, most: int) -> list[Environment]:
    """Environments of the processes that train at a time, at most `most`: a GPU each, else the CPUs divided among them.

    `jobs`: how many; more of them than GPUs share these in turn. Raises `CorsdError` for fewer than one, and for more than this
    machine can run.
    """
    if jobs is not None and jobs < 1:
        raise CorsdError(f"jobs = {shortened(jobs)} must be at least 1")
    check_processes("jobs", jobs or 1, PROCESSES_A_CPU)
    gpus, cpus = _gpus(config), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(most, jobs or len(gpus) or cpus)
    threads = str(max(1, cpus // count))
    # Passive: threads that spin while they wait take the CPU from other trainings.
    place = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    return [{**place, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else place for i in range(count)]


def _gpus(config: TrainConfig) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` calls the GPUs that a training may use: as many of them at a time as it wants."""
    import torch

    if config.accelerator not in ("auto", "cuda", "gpu") or not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    return [",".join(names[i : i + config.devices]) for i in range(0, count - config.devices + 1, config.devices)]


def _training(config: Path, log: int, place: Environment) -> subprocess.Popen[bytes]:
    """The process of `corsd train --config`, which says what it says to `log`."""
    return subprocess.Popen(
        [sys.executable, "-m", "corsd_lib", "train", "--config", str(config), "--quiet"],
        env={**os.environ, **place},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # else Ctrl-C in the terminal would reach it twice, and twice means at once
    )
