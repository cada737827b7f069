"""The main process of a search (`corsd tune`): asks Optuna for trials, receives their values, and writes journal and record.

results/<study>/tuning/<variant>.json     the record: search space, all trials and the best trial. A variant whose field
                                          `tuned` names this file uses the settings of the best trial.
                       <variant>.journal  Optuna's journal. A stopped search continues from it, also on another machine.
"""

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
from corsd_lib.studies.search import Search, split_parameters
from corsd_lib.studies.study import Study
from corsd_lib.studies.trials import Curves, objective, start_trial
from corsd_lib.studies.workers import Environment, worker_environments
from corsd_lib.training import stop_request

__all__ = ["Tuner", "tune"]

METRIC = "top-1 (%) of the deepest exit on validation after the last epoch, mean over seeds"
SAMPLER: dict[str, Any] = {"multivariate": True, "constant_liar": True, "n_startup_trials": 10}
Identity = tuple[int, int] | None  # device and inode of a file or folder; None if it does not exist
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def tune(
    study: Study,
    variant: str,
    *,
    trials: int | None = None,
    jobs: int | None = None,
    runs: str | Path | None = None,
    data_root: str | None = None,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Search the parameters of `variant` that are listed in `study.tuning`; write the tuning record and return it.

    `trials`: total number of trials, including those of earlier calls (default: as in `study.tuning`). Trial 0 has the settings
    of the variant itself. `jobs` trials are trained at the same time (default: one for each GPU, or one for each CPU if there
    is no GPU), with run directories in `runs` (default `runs/<study>`). `report` is called with a line of text for each trial.

    Ctrl-C or SIGTERM raises `KeyboardInterrupt` after the trials have saved; another call continues the search. If a training
    fails, its trial is recorded as failed and the search continues; only a failure of trial 0 ends it. If an earlier search was
    killed, its processes end after their current epoch, and this call first waits for them.

    Raises `CorsdError`

    - for `trials` or `jobs` out of range, and for a missing or invalid entry in `study.tuning`;
    - for a journal that is damaged or belongs to another search, and for a record with trials that the journal lacks;
    - while another process runs the same search;
    - after the running trials have saved: if trial 0 fails, if a trial cannot write or read a file, and if the journal or the
      folder of the runs is moved or removed.
    """
    search = Search.of(study, variant)
    if trials is not None:
        if trials < 1:
            raise CorsdError(f"trials = {shortened(trials)} must be at least 1")
        search = replace(search, trials=trials)
    free = worker_environments(search.config, jobs, search.trials)
    folder = Path(runs or f"runs/{study.name}") / "tuning" / variant
    if not search.journal.is_file() or not search.journal.stat().st_size:
        _check_record(search, set())  # before an empty journal is created
    with _lock_journal(search.journal), stop_request() as stop:
        _wait_for_others(folder, report, stop)
        record = {} if stop.is_set() else Tuner(search, folder, data_root, report).run(free, stop)
        if stop.is_set():
            report(f"stopped; run the same command again to continue the search from {search.journal}")
            raise KeyboardInterrupt
    return record


@contextmanager
def _lock_journal(file: Path) -> Iterator[None]:
    """Lock the journal of a search for this process, and remove an incomplete last line, as after a power failure.

    Raises `LockedError` while another process runs the search.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(file))
        except LockedError as error:
            raise LockedError(f"another process runs the search of {file}: wait for it, or stop it") from error
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)  # remove an incomplete last line, as after a power failure
        yield


def _wait_for_others(folder: Path, report: Callable[[str], object], stop: threading.Event) -> None:
    """Wait until no process of an earlier search trains in `folder`, or until `stop` is set."""
    reported = False
    while not stop.is_set() and (busy := _in_training(folder)):
        if not reported:
            report(f"waiting for another process that trains {busy[0]}; it ends after its current epoch")
            reported = True
        time.sleep(POLL_SECONDS)


def _in_training(folder: Path) -> list[Path]:
    """Run directories in `folder` and in its subfolders that a process has locked."""
    return [path for path in sorted([*folder.glob("seed*"), *folder.glob("*/seed*")]) if path.is_dir() and is_locked(path)]


def _remove(folder: Path) -> None:
    """Remove the runs of a trial, unless one of them is being trained."""
    if not _in_training(folder):
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Running:
    """A trial that is being trained. `reported`: number of its epochs that were reported to Optuna."""

    trial: optuna.Trial
    folder: Path
    environment: Environment
    process: BaseProcess
    reported: int = 0
    stopping: bool = False
    waiting: bool = False


class Tuner:
    """A search: its Optuna study, and `running`, the trials that are being trained, keyed by the pipe to their process."""

    def __init__(self, search: Search, runs: Path, data_root: str | None, report: Callable[[str], object]) -> None:
        self.search, self.runs, self.data_root, self.report = search, runs, data_root, report
        self.study = _open_study(search)
        self.running: dict[Connection, _Running] = {}
        self.watched: dict[Path, Identity] = {}  # files and folders that must not be replaced during the search
        self.provenance = provenance()
        self.provenance["versions"]["optuna"] = optuna.__version__
        self._requeue()

    def run(self, environments: Sequence[Environment], stop: threading.Event) -> dict[str, Any]:
        """Train trials until enough are done or `stop` is set, one at a time in each of `environments`; return the record.

        Raises `CorsdError` if the journal or the folder of the runs was moved, removed or replaced, and in the cases of
        `_finish`.
        """
        free = list(environments)
        make_folder(self.runs)
        self.watched = {path: _identity(path) for path in (self.search.journal, self.runs)}
        try:
            while True:
                while free and not stop.is_set() and self._count_begun() < self.search.trials:
                    self._start(free.pop())
                if not self.running:
                    return self._write()
                ready = wait(list(self.running), timeout=0.2)
                for path, identity in self.watched.items():
                    _check_same(path, identity)
                if stop.is_set():
                    self._stop()
                for pipe in [pipe for pipe in self.running if pipe in ready]:
                    outcome, content = self._receive(pipe)
                    if outcome == "epoch":
                        self._answer_trial(pipe, content)
                    elif outcome == "locked":
                        self._report_waiting(self.running[pipe], content)
                    else:
                        running = self.running.pop(pipe)
                        free.append(running.environment)
                        self._finish(running, outcome, content)
        finally:
            self._stop()
            for pipe, running in self.running.items():
                pipe.close()  # a trial that waits for an answer then ends; its training is saved already
                running.process.join()

    def _requeue(self) -> None:
        """Queue the trials that an earlier process left unfinished, and those that a new search begins with.

        A new search begins with trial 0, which is the variant without changes, and with the grid (`Search.grid`). If every
        attempt of trial 0 has failed, it is queued again.
        """
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            attributes = {**trial.user_attrs, "earlier": [*_earlier(trial), trial.number]}
            self.study.enqueue_trial(trial.params, user_attrs=attributes)
            self.study.tell(trial.number, state=TrialState.FAIL)
        if not any("own" in trial.user_attrs and trial.state != TrialState.FAIL for trial in self.study.get_trials()):
            new = not self.study.get_trials(deepcopy=False)
            self.study.enqueue_trial(self.search.own, user_attrs={"own": True})
            for params in self.search.grid() if new else ():
                self.study.enqueue_trial(params)

    def _count_begun(self) -> int:
        """Number of trials that are done or running; a resumed trial counts once."""
        trials = self.study.get_trials(deepcopy=False)
        left = {number for trial in trials for number in _earlier(trial)}
        return sum(trial.state != TrialState.WAITING and trial.number not in left for trial in trials)

    def _start(self, environment: Environment) -> None:
        # A new sampler for each trial: a shared one would repeat its first samples when the search is continued.
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(seed=number, **SAMPLER)
        trial = self.study.ask(dict(self.search.distributions()))
        trial.set_user_attr("revision", self.provenance["revision"])  # may change when the search is continued
        first = [*_earlier(trial), trial.number][0]
        folder = self.runs / str(first)
        if first == trial.number:
            _remove(folder)  # left by a search whose journal was removed
        process, pipe = start_trial(self.search.configs(trial.params, folder, self.data_root), environment)
        self.running[pipe] = _Running(trial, folder, environment, process)

    def _stop(self) -> None:
        """Send SIGTERM once to each running trial, so that it writes a checkpoint and exits."""
        for running in self.running.values():
            if not running.stopping:
                running.process.terminate()
                running.stopping = True

    def _receive(self, pipe: Connection) -> tuple[str, Any]:
        """The next message of a trial (see `train_trial`).

        If the process of the trial has ended without a last message, the result is ("stopped", reason) if `_stop` had sent it
        SIGTERM, else ("failed", reason).
        """
        running = self.running[pipe]
        try:
            return pipe.recv()
        except (EOFError, OSError):
            running.process.join()
            return "stopped" if running.stopping else "failed", f"its process ended with status {running.process.exitcode}"

    def _answer_trial(self, pipe: Connection, curves: Curves) -> None:
        """Report the epoch to Optuna, and send to the trial whether to continue.

        A trial can be pruned only while it trains its first seed. The pruner compares the best value so far, and later seeds
        hardly change this value. It is not pruned after its last epoch.
        """
        running = self.running[pipe]
        self._report(running, curves)
        ended = running.reported == len(self.search.seeds) * self.search.config.epochs
        with suppress(OSError):  # the process has ended; `_receive` notices it next
            pipe.send(ended or len(curves) > 1 or not running.trial.should_prune())

    def _report_waiting(self, running: _Running, why: str) -> None:
        """Report once that a trial waits for its run directory."""
        if not running.waiting:
            self.report(f"trial {running.trial.number} waits: {why}")
            running.waiting = True

    def _report(self, running: _Running, curves: Curves) -> None:
        """Report the new epochs to Optuna."""
        values = objective(curves)
        for step in range(running.reported + 1, len(values) + 1):
            running.trial.report(values[step - 1], step)
        running.reported = len(values)

    def _finish(self, running: _Running, outcome: str, content: Any) -> None:
        """Write the result of a trial to Optuna and the record, and remove its runs.

        If the trial was stopped, or could not write or read a file, nothing is written or removed, and the next call resumes
        it. Raises `CorsdError` if a file could not be written or read, and if trial 0 failed.
        """
        running.process.join()
        if outcome == "stopped":
            return
        if outcome == "unwritable":
            raise CorsdError(
                f"trial {running.trial.number} cannot continue: {content}; run the same command again to resume the search"
            )
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
            raise CorsdError(f"trial {trial.number}, the variant without changes, failed: {content}")

    def _write(self) -> dict[str, Any]:
        """Write the tuning record and return it."""
        trials = self.study.get_trials(deepcopy=False)
        resumed_by = {_earlier(trial)[-1]: trial.number for trial in trials if _earlier(trial)}
        done = [_entry(trial, resumed_by.get(trial.number)) for trial in trials if trial.state.is_finished()]
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
            return before  # no new trial: keep the provenance of the process that trained
        write_json(self.search.path, with_checksum(record), within=self.search.path.parent)
        return record


def _pruning(search: Search) -> dict[str, int]:
    """Options of Optuna's `MedianPruner`.

    From epoch `epochs` // 3 on, a trial is pruned if its best value so far is below the median of the values that the complete
    trials had after the same epoch. No trial is pruned before four trials are complete.
    """
    return {"n_startup_trials": 4, "n_warmup_steps": search.config.epochs // 3}


class _Journal(JournalFileBackend):
    """A journal that raises `CorsdError`, and creates no new file, if it is moved or removed during the search."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path, self.identity = path, _identity(path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        _check_same(self.path, self.identity)
        super().append_logs(logs)


def _identity(path: Path) -> Identity:
    """Device and inode of a file or folder; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_same(path: Path, identity: Identity) -> None:
    """Raise `CorsdError` if a file or folder was moved, removed or replaced."""
    if _identity(path) != identity:
        raise CorsdError(
            f"{path} was moved, removed or replaced during the search, which therefore stops; finished trials are in the "
            "journal. Put the file or folder back, or give its new path (study, runs)"
        )


def _open_study(search: Search) -> optuna.Study:
    """Open or create the Optuna study in the journal of a search. Raises `CorsdError` if the journal is damaged or of another
    search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    now = search.settings()
    with _damage_as_error(search.journal):
        study = optuna.create_study(
            storage=JournalStorage(_Journal(search.journal)),
            study_name=search.path.stem,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(**_pruning(search)),
            load_if_exists=True,
        )
        before = study.user_attrs.get("search", now)
        if not isinstance(before, dict):
            raise TypeError(f"search = {shortened(before)}")
        changes = [
            f"{name} was {shortened(value)}, is {shortened(now.get(name))}"
            for name, value in before.items()  # the journal of an earlier version lacks newer settings
            if now.get(name) != value
        ]
        if not changes:
            study.set_user_attr("search", before)
    if changes:
        raise CorsdError(f"{search.journal} is of another search: {', '.join(changes)}; remove it and its record to start over")
    _check_record(search, {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()})
    return study


def _check_record(search: Search, known: set[int]) -> None:
    """Raise `CorsdError` if the record has trials that are not in the journal, because rewriting the record would lose them.

    `known`: numbers of the finished trials in the journal.
    """
    trials = read_trials(search.path).get("trials", []) if search.path.is_file() else []
    lost = sum(trial.get("number") not in known for trial in trials)
    if lost:
        raise CorsdError(
            f"{search.path} has {lost} trials that its journal {search.journal} lacks, so the record would be overwritten: "
            "put the journal back to continue, or remove or rename the record to search again"
        )


@contextmanager
def _damage_as_error(journal: Path) -> Iterator[None]:
    """Turn an exception that Optuna raises for a damaged journal into a `CorsdError`. Optuna raises many types."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        reason = "it has a line that Optuna does not write" if isinstance(error, AssertionError) else error
        raise CorsdError(f"{journal} is a damaged journal: {reason}; remove it to start over") from error


def _earlier(trial: FrozenTrial | optuna.Trial) -> list[int]:
    """Numbers of the unfinished trials that `trial` resumes."""
    return trial.user_attrs.get("earlier", [])


def _seconds(folder: Path) -> float:
    """Total time of the epochs of the trainings in a folder, in seconds."""
    return round(sum(line["seconds"] for file in folder.glob("*/metrics.jsonl") for line in read_metrics(file)), 3)


# --- the record -------------------------------------------------------------------------------------------------------


def _entry(trial: FrozenTrial, resumed_by: int | None) -> dict[str, Any]:
    """Entry of a trial in the record. The trial is complete, pruned or failed, or was stopped and then resumed.

    `resumed_by`: number of the trial that resumed a stopped trial, None for other trials.
    """
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
        entry["error"] = trial.user_attrs.get("error", f"stopped, taken up by trial {resumed_by}")
    return entry


def _best(trials: list[dict[str, Any]], begun: Mapping[int, int]) -> dict[str, Any] | None:
    """The complete trial with the highest value as a dict: number, value, method options and changes to `train`.

    None if no trial is complete. If several trials have the highest value, the one that was started first is chosen. `begun`
    maps the number of a resumed trial to the number with which it was started first.
    """
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if not complete:
        return None
    best = max(complete, key=lambda trial: (trial["value"], -begun.get(trial["number"], trial["number"])))
    options, changes = split_parameters(best["params"])
    return {"number": best["number"], "value": best["value"], "options": options, "train": changes}


def _line(trial: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    """Line of text about a finished trial, with the best one so far."""
    params = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial["params"].items())
    if trial["state"] == "complete":
        result = f"{trial['value']:.2f} %"
    else:
        result = f"pruned at epoch {trial['epochs']}" if trial["state"] == "pruned" else f"failed: {trial['error']}"
    return f"trial {trial['number']}, {params}: {result}" + (
        f"; best {best['value']:.2f} %, trial {best['number']}" if best else ""
    )
