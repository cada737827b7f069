"""One process asks Optuna for trials, hears of every epoch of those that are trained, and keeps journal and record."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from corsd_lib.errors import CorsdError, missing_package

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise missing_package("tuning", "optuna", error) from error

from corsd_lib.files import POLL_SECONDS, LockedError, is_locked, locked, make_folder, with_checksum, write_json
from corsd_lib.provenance import provenance
from corsd_lib.readers import read_metrics, read_trials
from corsd_lib.schema import shortened
from corsd_lib.studies.search import Search, parted
from corsd_lib.studies.study import Study
from corsd_lib.studies.trials import Curves, objective, start_trial
from corsd_lib.studies.workers import Environment, places
from corsd_lib.training import stop_request

__all__ = ["Tuner", "tune"]

METRIC = "top-1 (%) of the deepest exit on validation after the last epoch, mean over seeds"
SAMPLER: dict[str, Any] = {"multivariate": True, "constant_liar": True, "n_startup_trials": 10}
Identity = tuple[int, int] | None  # device and number of a file or folder; None where there is none
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def tune(
    study: Study,
    row: str,
    *,
    trials: int | None = None,
    jobs: int | None = None,
    runs: str | Path | None = None,
    data_root: str | None = None,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Search what the study's `tuning` says of `row`; the record, which is also written into the study's folder.

    `trials` in all, those of earlier calls counted (default: what `tuning` says); trial 0 is the row as it stands. `jobs` are
    trained at a time (default: one a GPU, else one a CPU) below `runs` (default `runs/<study>`); `report` is given a line a
    trial. Ctrl-C (or SIGTERM) lets them save and ends in `KeyboardInterrupt`; called again, the search goes on. A training that
    fails is a failed trial, and an error only where it is that of the row as it stands. A process that still trains for a
    search that was killed is waited for: it ends after its epoch.

    Raises `CorsdError` for a bad entry, for a journal of another search, for a record that has trials which the journal lacks,
    while another process is at work on it, and when the journal or the folder of the runs is moved or removed meanwhile: the
    trials save, as with Ctrl-C.
    """
    search = Search.of(study, row)
    if trials is not None:
        if trials < 1:
            raise CorsdError(f"trials = {shortened(trials)} must be at least 1")
        search = replace(search, trials=trials)
    free = places(search.config, jobs, search.trials)
    folder = Path(runs or f"runs/{study.name}") / "tuning" / row
    if not search.journal.is_file() or not search.journal.stat().st_size:
        _check_record(search, set())  # before an empty journal is made
    with _held(search.journal), stop_request() as stop:
        _wait_for_others(folder, report, stop)
        record = {} if stop.is_set() else Tuner(search, folder, data_root, report).run(free, stop)
        if stop.is_set():
            report(f"stopped; the same search goes on from {search.journal}")
            raise KeyboardInterrupt
    return record


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Lock the journal of a search for this process."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(file))
        except LockedError as error:
            raise LockedError(f"another process is at work on {file}: wait for it, or stop it") from error
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)  # a line cut off by a power cut would spoil the next one
        yield


def _wait_for_others(folder: Path, report: Callable[[str], object], stop: threading.Event) -> None:
    """Wait until no process of a search that was killed trains below `folder`, or until `stop`."""
    told = False
    while not stop.is_set() and (busy := _in_training(folder)):
        if not told:
            report(f"waiting for the process that still trains {busy[0]}: it ends after its epoch")
            told = True
        time.sleep(POLL_SECONDS)


def _in_training(folder: Path) -> list[Path]:
    """The run directories in `folder` and in those in it that a process has locked."""
    return [path for path in sorted([*folder.glob("seed*"), *folder.glob("*/seed*")]) if path.is_dir() and is_locked(path)]


def _remove(folder: Path) -> None:
    """Remove the runs of a trial, unless one is being trained."""
    if not _in_training(folder):
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Running:
    """A trial that is being trained, and of how many of its epochs Optuna has been told."""

    trial: optuna.Trial
    folder: Path
    place: Environment
    process: BaseProcess
    told: int = 0
    stopping: bool = False
    waiting: bool = False


class Tuner:
    """A search: its Optuna study, and the trials that are being trained, each by the pipe to its process."""

    def __init__(self, search: Search, runs: Path, data_root: str | None, report: Callable[[str], object]) -> None:
        self.search, self.runs, self.data_root, self.report = search, runs, data_root, report
        self.study = _open_study(search)
        self.running: dict[Connection, _Running] = {}
        self.places: dict[Path, Identity] = {}  # which must stay what they are while it runs
        self.provenance = provenance()
        self.provenance["versions"]["optuna"] = optuna.__version__
        self._take_up()

    def run(self, places: Sequence[Environment], stop: threading.Event) -> dict[str, Any]:
        """Train a trial in each of `places` until as many as wanted are done, or until `stop`; the record."""
        free = list(places)
        make_folder(self.runs)
        self.places = {path: _identity(path) for path in (self.search.journal, self.runs)}
        try:
            while True:
                while free and not stop.is_set() and self._begun() < self.search.trials:
                    self._start(free.pop())
                if not self.running:
                    return self._write()
                ready = wait(list(self.running), timeout=0.2)
                for path, identity in self.places.items():
                    _check_same(path, identity)
                if stop.is_set():
                    self._stop()
                for pipe in [pipe for pipe in self.running if pipe in ready]:
                    outcome, content = self._received(pipe)
                    if outcome == "epoch":
                        self._answer(pipe, content)
                    elif outcome == "locked":
                        self._say_once(self.running[pipe], content)
                    else:
                        running = self.running.pop(pipe)
                        free.append(running.place)
                        self._finish(running, outcome, content)
        finally:
            self._stop()
            for pipe, running in self.running.items():
                pipe.close()  # one that waits for an answer ends, with what it has saved
                running.process.join()

    def _take_up(self) -> None:
        """Queue again what a process that is no more has left running, and the row as it stands if it was not tried yet."""
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            again = {**trial.user_attrs, "earlier": [*_earlier(trial), trial.number]}
            self.study.enqueue_trial(trial.params, user_attrs=again)
            self.study.tell(trial.number, state=TrialState.FAIL)
        if not any("own" in trial.user_attrs and trial.state != TrialState.FAIL for trial in self.study.get_trials()):
            new = not self.study.get_trials(deepcopy=False)
            self.study.enqueue_trial(self.search.own, user_attrs={"own": True})
            for params in self.search.grid() if new else ():
                self.study.enqueue_trial(params)

    def _begun(self) -> int:
        """How many trials are done or running, one that was taken up again counted once."""
        trials = self.study.get_trials(deepcopy=False)
        left = {number for trial in trials for number in _earlier(trial)}
        return sum(trial.state != TrialState.WAITING and trial.number not in left for trial in trials)

    def _start(self, place: Environment) -> None:
        # A sampler a trial: one for all would, when the search goes on, draw what it drew at the beginning.
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(seed=number, **SAMPLER)
        trial = self.study.ask(dict(self.search.distributions()))
        trial.set_user_attr("revision", self.provenance["revision"])  # a search may go on with another one
        first = [*_earlier(trial), trial.number][0]
        folder = self.runs / str(first)
        if first == trial.number:
            _remove(folder)  # of a search whose journal was removed
        process, pipe = start_trial(self.search.configs(trial.params, folder, self.data_root), place)
        self.running[pipe] = _Running(trial, folder, place, process)

    def _stop(self) -> None:
        """Ask what is running, once, to save and end."""
        for running in self.running.values():
            if not running.stopping:
                running.process.terminate()
                running.stopping = True

    def _received(self, pipe: Connection) -> tuple[str, Any]:
        """What a trial has sent, see `train_trial`; of one whose process has died, that it was stopped or has failed."""
        running = self.running[pipe]
        try:
            return pipe.recv()
        except (EOFError, OSError):
            running.process.join()
            return "stopped" if running.stopping else "failed", f"its process ended with status {running.process.exitcode}"

    def _answer(self, pipe: Connection, curves: Curves) -> None:
        """Tell a trial whether it is worth another epoch; at the end of the last one that is no question, nor once its first
        seed is done: the pruner looks at a trial's best value, which later seeds hardly move.
        """
        running = self.running[pipe]
        self._report(running, curves)
        ended = running.told == len(self.search.seeds) * self.search.config.epochs
        with suppress(OSError):  # one that has died is heard of next
            pipe.send(ended or len(curves) > 1 or not running.trial.should_prune())

    def _say_once(self, running: _Running, why: str) -> None:
        """Report a trial that waits for its run directory."""
        if not running.waiting:
            self.report(f"trial {running.trial.number} waits: {why}")
            running.waiting = True

    def _report(self, running: _Running, curves: Curves) -> None:
        """Tell Optuna of the epochs since the last time."""
        values = objective(curves)
        for step in range(running.told + 1, len(values) + 1):
            running.trial.report(values[step - 1], step)
        running.told = len(values)

    def _finish(self, running: _Running, outcome: str, content: Any) -> None:
        """Tell Optuna and the record what became of a trial, and remove its runs; what was stopped stays for the next time."""
        running.process.join()
        if outcome == "stopped":
            return
        trial = running.trial
        trial.set_user_attr("seconds", _seconds(running.folder))
        if outcome == "complete":
            self._report(running, content)
            self.study.tell(trial, objective(content)[-1])
        elif outcome == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr("error", content.partition("; ")[0])
            self.study.tell(trial, state=TrialState.FAIL)
        _remove(running.folder)
        record = self._write()
        self.report(_line(next(t for t in record["trials"] if t["number"] == trial.number), record["best"]))
        if outcome == "failed" and "own" in trial.user_attrs:
            raise CorsdError(f"trial {trial.number}, the row as it stands, failed: {content}")

    def _write(self) -> dict[str, Any]:
        """Write the record, and return it."""
        trials = self.study.get_trials(deepcopy=False)
        again = {_earlier(trial)[-1]: trial.number for trial in trials if _earlier(trial)}
        done = [_entry(trial, again.get(trial.number)) for trial in trials if trial.state.is_finished()]
        record = {
            "row": self.study.study_name,
            "direction": "maximize",
            "metric": METRIC,
            **self.search.plain(),
            "sampler": {"name": "TPESampler", **SAMPLER, "seed": "the number of the trial"},
            "pruner": {"name": "MedianPruner", **_pruning(self.search)},
            "provenance": self.provenance,
            "trials": done,
            "best": _best(done, {trial.number: _earlier(trial)[0] for trial in trials if _earlier(trial)}),
        }
        before = read_trials(self.search.path) if self.search.path.is_file() else {}
        if before.get("trials") == done:
            return before  # nothing was trained since: the record stays that of the process that trained
        write_json(self.search.path, with_checksum(record), within=self.search.path.parent)
        return record


def _pruning(search: Search) -> dict[str, int]:
    """Prune a trial whose best epoch so far is below the median of complete trials' best, not before a third of a training."""
    return {"n_startup_trials": 4, "n_warmup_steps": search.config.epochs // 3}


class _Journal(JournalFileBackend):
    """A journal that is not made anew where it is moved or removed while the search runs."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path, self.identity = path, _identity(path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        _check_same(self.path, self.identity)
        super().append_logs(logs)


def _identity(path: Path) -> Identity:
    """What tells a file or folder from another one of its name."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_same(path: Path, identity: Identity) -> None:
    """Raise `CorsdError` where a file or folder is no longer what the search began with."""
    if _identity(path) != identity:
        raise CorsdError(
            f"{path} was moved, removed or replaced while the search ran, and the search ends; finished trials are kept in the "
            "journal: put it back, or go on where it is now (study, runs)"
        )


def _open_study(search: Search) -> optuna.Study:
    """The study of a search in its journal. Raises `CorsdError` when that is damaged, or of another search."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    now = search.settings()
    with _damage_named(search.journal):
        study = optuna.create_study(
            storage=JournalStorage(_Journal(search.journal)),
            study_name=search.path.stem,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(**_pruning(search)),
            load_if_exists=True,
        )
        before = study.user_attrs.get("search", now)  # without what the library could not set when it was written
        if not isinstance(before, dict):
            raise TypeError(f"search = {shortened(before)}")
        changes = [
            f"{name} was {shortened(value)}, is {shortened(now.get(name))}"
            for name, value in before.items()
            if now.get(name) != value
        ]
        if not changes:
            study.set_user_attr("search", before)
    if changes:
        raise CorsdError(f"{search.journal} is of another search: {', '.join(changes)}; remove it and its record to begin anew")
    _check_record(search, {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()})
    return study


def _check_record(search: Search, known: set[int]) -> None:
    """Raise `CorsdError` where the record has trials that are not among those the journal knows: they would be lost."""
    trials = read_trials(search.path).get("trials", []) if search.path.is_file() else []
    lost = sum(trial.get("number") not in known for trial in trials)
    if lost:
        raise CorsdError(
            f"{search.path} has {lost} trials that its journal {search.journal} lacks, and would be overwritten: put the "
            "journal back to go on, or remove or rename the record to search again"
        )


@contextmanager
def _damage_named(journal: Path) -> Iterator[None]:
    """What Optuna raises for a damaged journal, of whatever type, as one `CorsdError`."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        reason = "a line of it is none that Optuna writes" if isinstance(error, AssertionError) else error
        raise CorsdError(f"{journal} is not a whole journal: {reason}; remove it to begin anew") from error


def _earlier(trial: FrozenTrial | optuna.Trial) -> list[int]:
    """Numbers of the trials that this one takes up again, each left by a process that was stopped."""
    return trial.user_attrs.get("earlier", [])


def _seconds(folder: Path) -> float:
    """How long the epochs of the trainings in a folder took."""
    return round(sum(line["seconds"] for file in folder.glob("*/metrics.jsonl") for line in read_metrics(file)), 3)


# --- the record -------------------------------------------------------------------------------------------------------


def _entry(trial: FrozenTrial, again: int | None) -> dict[str, Any]:
    """A trial that is over, as the record has it; `again` is the trial that takes it up where it was stopped."""
    entry = {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "epochs": trial.last_step or 0,
        "last": None if trial.last_step is None else trial.intermediate_values[trial.last_step],
        "params": trial.params,
        "seconds": trial.user_attrs.get("seconds"),
    }
    if "revision" in trial.user_attrs:
        entry["revision"] = trial.user_attrs["revision"]
    if trial.state == TrialState.FAIL:
        entry["error"] = trial.user_attrs.get("error", f"stopped, taken up by trial {again}")
    return entry


def _best(trials: list[dict[str, Any]], begun: Mapping[int, int]) -> dict[str, Any] | None:
    """The complete trial with the highest value, what it sets parted into options of the method and fields of `train`.

    Of equal ones that which was begun first: `begun` has the first number of a trial that was stopped and taken up again.
    """
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if not complete:
        return None
    best = max(complete, key=lambda trial: (trial["value"], -begun.get(trial["number"], trial["number"])))
    options, changes = parted(best["params"])
    return {"number": best["number"], "value": best["value"], "options": options, "train": changes}


def _line(trial: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    """What is told of a trial, and the best so far."""
    params = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial["params"].items())
    if trial["state"] == "complete":
        came_to = f"{trial['value']:.2f} %"
    else:
        came_to = f"pruned at epoch {trial['epochs']}" if trial["state"] == "pruned" else f"failed: {trial['error']}"
    return f"trial {trial['number']}, {params}: {came_to}" + (
        f"; best {best['value']:.2f} %, trial {best['number']}" if best else ""
    )
