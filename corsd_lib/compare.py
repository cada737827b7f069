"""Train what a study lacks, several processes at a time, and keep its tables up to date: `corsd compare`.

Each training is a `corsd train` of its own below `runs/<study>/<row>`, with its configuration and its output beside it: seed0/,
seed0.json, seed0.log. It holds a lock on its log for as long as it lives, even if this process is killed, so that no run is
ever trained by two; this process waits for a training that another one has started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corsd_lib.errors import PROCESSES_A_CPU, CorsdError, check_choice, check_processes, shortened
from corsd_lib.files import LockedError, locked, make_folder, read_json, with_checksum, write_json
from corsd_lib.readers import read_metrics
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.study import Study, make_record, study_file
from corsd_lib.tables import against, gain_cell, summarise, with_interval
from corsd_lib.training import stop_request

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Job", "draw_figures", "new_study", "places", "run_study"]

POLL_SECONDS = 0.2
Environment = dict[str, str]


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
    with stop_request() as stop, _shown(live, lambda: progress_table(study, jobs, summary, count)) as refresh:
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
                    summary = study.write_tables()
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
    place = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
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


# --- the live table ---------------------------------------------------------------------------------------------------


@contextmanager
def _shown(live: bool, draw: Callable[[], Table]) -> Iterator[Callable[[], object]]:
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


# --- figures, and studies without a file ------------------------------------------------------------------------------


def draw_figures(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw `accuracy.png` and `gain.png`, and for each further group of rows `accuracy_<group>.png` and so on; seconds each.

    A group of changes to one row, and perhaps rows from none, shows gains over that row. Raises `CorsdError` where plotly,
    kaleido or Chromium is missing.
    """
    from corsd_lib.figures import accuracy_by_method, gain_by_method, save_png

    drawn = []
    for group in dict.fromkeys(m["group"] for m in summary["methods"].values()):
        part = {**summary, "methods": _with_references(summary, group)}
        pictures = {"accuracy": accuracy_by_method(part)}
        parents = {m["from"] for m in part["methods"].values() if m["group"] == group}
        if group != "methods":
            parents.discard(None)  # a control, from no row
        versus = against(part, *parents) if len(parents) == 1 and parents <= part["methods"].keys() else part
        if any(m["gain"] is not None for m in versus["methods"].values()):
            pictures["gain"] = gain_by_method(versus)
        ending = ".png" if group == "methods" else f"_{group}.png"
        for name, picture in pictures.items():
            drawn.append(save_png(picture, folder / f"{name}{ending}", colors=256, within=folder))
    return drawn


def _with_references(summary: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The rows of a group, and those of others that they are to be read against: the baseline, and those they are made from."""
    methods = summary["methods"]
    wanted = {summary["baseline"], *(m["from"] for m in methods.values() if m["group"] == group)}
    return {name: m for name, m in methods.items() if m["group"] == group or name in wanted}


def new_study(path: str | Path, methods: Sequence[str], seeds: Sequence[int], train: Mapping[str, Any], equal: str) -> Study:
    """Write a `study.json` with a row for each of `methods`, all with the settings `train`; the study.

    The baseline is the method of that name, or else the first. Raises `CorsdError` where there is another study.
    """
    file = study_file(path)
    plain: dict[str, Any] = json.loads(json.dumps({"train": train}))
    per_class = f", {train['per_class']} images a class" if train.get("per_class") else ""
    values = {
        "title": f"{train.get('data', TrainConfig.data)}{per_class}",
        "equal": equal,
        "baseline": "baseline" if "baseline" in methods else methods[0],
        "seeds": list(seeds),
        **plain,
        "rows": {method: {"train": {"method": method}} for method in methods},
    }
    study = Study.from_dict(values, file)
    if file.is_file() and read_json(file) != values:
        raise CorsdError(
            f"{file} is another study already: go on with it without --methods and settings, or choose another folder"
        )
    write_json(file, values)
    return study
