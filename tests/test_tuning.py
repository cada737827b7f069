from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import Pipe
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from corsd_lib import cli
from corsd_lib.errors import CorsdError
from corsd_lib.files import locked, read_json, write_json
from corsd_lib.runs import TrainConfig, load_data
from corsd_lib.studies import trials, tuner
from corsd_lib.studies.search import Search
from corsd_lib.studies.study import Study
from corsd_lib.studies.tuner import Tuner, tune
from corsd_lib.training import launch, train

Captured = pytest.CaptureFixture[str]
Make = Callable[..., Study]

TRAIN = {"data": "digits", "per_class": 5, "width": 4, "batch_size": 16, "lr": 0.05, "accelerator": "cpu", "epochs": 2}
SPACE = {"exit_kd": {"low": 0.01, "high": 1.0, "log": True}, "temperature": {"choices": [3.0, 6.0]}}
ENTRY = {"trials": 3, "space": SPACE, "train": {"validation_fraction": 0.4, "epochs": 3}}
PLACE = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A study `results/<name>` below the current folder that tunes byot; `make("name", trials=4)` changes the entry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # a thread a trial: tests run side by side

    def study(name: str = "tiny", variant: dict[str, Any] | None = None, tuned: str | None = None, **changes: Any) -> Study:
        byot = {"train": {"method": "byot", **(variant or {})}, "tuned": tuned}
        variants = {"baseline": {"train": {"method": "baseline"}}, "byot": byot}
        values = {"seeds": [3, 4], "train": TRAIN, "variants": variants, "tuning": {"byot": {**ENTRY, **changes}}}
        write_json(tmp_path / "results" / name / "study.json", values)
        return Study.from_file(f"results/{name}")

    return study


def _told(record: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a record says that does not depend on the clock."""
    keys = ("number", "state", "value", "epochs", "last", "params")
    return [tuple(json.dumps(trial[k]) for k in keys) for trial in record["trials"]]


def _queue(study: Study, params: dict[str, Any]) -> None:
    """Let trial 1 have `params`."""
    search = Search.of(study, "byot")
    search.path.parent.mkdir(parents=True)
    journal = tuner._open_study(search)
    journal.enqueue_trial(search.own, user_attrs={"own": True})
    journal.enqueue_trial(params)


def _at_epoch(monkeypatch: pytest.MonkeyPatch, trial: int, epoch: int, action: Callable[[Any], object]) -> None:
    """Do `action(running)` when the tuner hears of that epoch of that trial."""
    answer = Tuner._answer_trial

    def watched(self: Tuner, pipe: Any, curves: trials.Curves) -> None:
        running = self.running[pipe]
        if running.trial.number == trial and len(trials.objective(curves)) == epoch:
            action(running)
        answer(self, pipe, curves)

    monkeypatch.setattr(Tuner, "_answer_trial", watched)


# --- whole searches ---


@pytest.mark.slow
def test_a_few_choices_are_all_tried_once(make: Make) -> None:
    space = {"exit_ce": {"choices": [0.5, 0.9]}, "temperature": {"choices": [3.0, 6.0]}}
    record = tune(make(space=space, trials=5), "byot", jobs=1, report=lambda _: None)
    tried = [tuple(trial["params"].values()) for trial in record["trials"]]
    assert tried[0] == (0.9, 3.0) and sorted(tried[:4]) == [(0.5, 3.0), (0.5, 6.0), (0.9, 3.0), (0.9, 6.0)]
    assert Search.of(make("fewer", space=space, trials=3), "byot").grid() == []
    assert Search.of(make("ranges", space={**space, **SPACE}, trials=50), "byot").grid() == []


@pytest.mark.slow
def test_the_command_searches_records_and_leaves_no_runs(make: Make, capsys: Captured) -> None:
    make()
    cli.main(["tune", "results/tiny", "byot", "--jobs", "2", "--runs", "elsewhere"])
    assert "checksum" in json.loads(Path("results/tiny/tuning/byot.json").read_text())
    record, out = read_json(Path("results/tiny/tuning/byot.json")), capsys.readouterr().out.splitlines()
    assert list(record) == [
        *("row", "direction", "metric", "space", "seeds", "train", "sampler", "pruner", "provenance", "trials", "best")
    ]
    assert (record["row"], record["direction"], record["space"], record["seeds"]) == ("byot", "maximize", SPACE, [3])
    assert record["metric"].startswith("top-1 (%) of the deepest exit on validation after the last epoch")
    wanted = {"epochs": 3, "validation_fraction": 0.4, "per_class": 5, "method": "byot", "method_options": {}}
    assert wanted.items() <= record["train"].items() and not {"out", "data_root", "seed", "resume"} & record["train"].keys()
    assert record["sampler"]["name"] == "TPESampler" and record["pruner"]["n_warmup_steps"] == 1
    assert record["provenance"]["versions"]["optuna"] == optuna.__version__
    assert [trial["number"] for trial in record["trials"]] == [0, 1, 2]
    for trial in record["trials"]:
        assert list(trial) == ["number", "state", "value", "epochs", "last", "params", "seconds", "revision"]
        assert (trial["state"], trial["epochs"], trial["last"]) == ("complete", 3, trial["value"]) and trial["seconds"] > 0
        assert 0 <= trial["value"] <= 100 and 0.01 <= trial["params"]["exit_kd"] <= 1
    assert record["trials"][0]["params"] == {"exit_kd": 0.1, "temperature": 3.0}  # the method's own
    best = max(record["trials"], key=lambda trial: trial["value"])
    assert record["best"] == {"number": best["number"], "value": best["value"], "options": best["params"], "train": {}}
    assert len(out) == 4 and sorted(line[:8] for line in out[:3]) == ["trial 0,", "trial 1,", "trial 2,"]
    assert f"{best['value']:.2f} %" in out[3] and f"best is trial {best['number']} " in out[3]
    assert {path.name for path in Path("results/tiny/tuning").iterdir()} == {"byot.json", "byot.journal"}
    assert list(Path("elsewhere/tuning/byot").iterdir()) == [] and not Path("runs").exists()


def test_what_is_found_becomes_the_options_of_the_row(make: Make) -> None:
    study = make()
    record = tune(study, "byot", trials=2, jobs=1, report=lambda _: None)
    values = read_json(study.path / "study.json")
    values["variants"]["byot"]["tuned"] = "tuning/byot.json"
    write_json(study.path / "study.json", values)
    tuned = Study.from_file("results/tiny")
    assert tuned.config("byot", 0).method_options == record["best"]["options"]
    assert Search.of(tuned, "byot").own == {"exit_kd": 0.1, "temperature": 3.0}  # trial 0 is not what was found before


@pytest.mark.slow
def test_a_search_goes_on_as_if_it_had_not_ended(make: Make) -> None:
    whole = tune(make("whole"), "byot", jobs=1, report=lambda _: None)
    first = tune(make("parts"), "byot", trials=2, jobs=1, report=lambda _: None)
    again = tune(make("parts"), "byot", trials=2, jobs=1, report=lambda _: None)
    assert again == first  # as many as wanted are done: nothing is trained, and the record is still that of the first process
    parts = tune(make("parts"), "byot", jobs=1, report=lambda _: None)
    assert _told(parts) == _told(whole) and len(parts["trials"]) == 3 and parts["trials"][:2] == first["trials"]
    assert len({trial["params"]["exit_kd"] for trial in parts["trials"]}) == 3


@pytest.mark.slow
def test_the_value_is_validation_of_the_same_training_in_the_mean_over_seeds(make: Make) -> None:
    study = make(seeds=[3, 5], space={"train.lr": {"low": 0.05, "high": 0.1}}, trials=1)
    (trial,) = tune(study, "byot", jobs=1, report=lambda _: None)["trials"]
    values = []
    for config in Search.of(study, "byot").configs({}, Path("by_hand"), None):
        metrics = train(config, progress=False).metrics
        assert config.seed in (3, 5) and len(metrics) == 3
        values.append(metrics["val_top1.exit3"].iloc[-1])
    assert trial["value"] == pytest.approx(fmean(values)) and trial["epochs"] == 6 and values[0] != values[1]


def test_fields_of_the_training_can_be_searched_too(make: Make) -> None:
    space = {
        "train.sampling": {"choices": ["plain", "balanced"]},
        "train.samples_per_class": {"low": 2, "high": 4, "int": True},
    }
    study = make(space={**space, **SPACE})
    search = Search.of(study, "byot")
    assert search.own == {"train.sampling": "plain", "train.samples_per_class": 4, "exit_kd": 0.1, "temperature": 3.0}
    (config,) = search.configs({"train.sampling": "balanced", "exit_kd": 0.3}, Path("here"), "there")
    assert (config.sampling, config.method_options, config.seed, config.resume) == ("balanced", {"exit_kd": 0.3}, 3, True)
    assert (config.out, config.data_root, config.probe_every) == ("here/seed3", "there", 0)
    record = tune(make(space=space), "byot", trials=1, jobs=1, report=lambda _: None)
    assert record["best"]["options"] == {} and record["best"]["train"] == {"sampling": "plain", "samples_per_class": 4}


# --- never on test ---


def test_no_trial_is_evaluated_on_test(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make(train={"validation_fraction": 0.4, "probe_split": "test"})
    (config,) = Search.of(study, "byot").configs({}, Path("run"), None)
    heard: list[list[float]] = []
    data = load_data(config)
    object.__setattr__(data, "test", None)  # whoever would look at it fails
    monkeypatch.setattr(launch, "load_data", lambda config: data)
    for _ in range(2):  # trained, then found as it is
        assert trials.validation_curve(config, heard.append) == heard[-1]
    assert [len(curve) for curve in heard] == [1, 2] and heard[1][:1] == heard[0]
    assert not list(Path("run").rglob("test.json")) and not list(Path("run").rglob("weights.safetensors"))


def test_a_search_wants_a_validation_split(make: Make, capsys: Captured) -> None:
    make(train={"epochs": 1})
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", "results/tiny", "byot"])
    assert "validation_fraction = 0.0; allowed: above 0, because trials are compared on validation" in capsys.readouterr().err
    assert not Path("results/tiny/tuning").exists()


# --- pruned, failed, stopped ---


def test_what_is_below_the_median_is_pruned_after_the_warm_up(make: Make) -> None:
    search = Search.of(make(train={"validation_fraction": 0.4, "epochs": 9}), "byot")
    search.path.parent.mkdir(parents=True)
    one = Tuner(search, Path("runs"), None, lambda _: None)
    for value in (50.0, 60.0, 70.0, 80.0):
        trial = one.study.ask(dict(search.distributions()))
        for epoch in range(1, 10):
            trial.report(value, epoch)
        one.study.tell(trial, value)
    answers = {}
    for value in (64.0, 66.0):
        running = tuner._Running(one.study.ask(dict(search.distributions())), Path("runs"), {}, None)  # type: ignore[arg-type]
        pipe, theirs = Pipe()
        one.running[pipe] = running
        for epochs in range(1, 10):
            one._answer_trial(pipe, [[value] * epochs])
        answers[value] = [theirs.recv() for _ in range(9)]
        assert running.reported == 9
    assert answers == {64.0: [True] * 2 + [False] * 6 + [True], 66.0: [True] * 9}  # after the last epoch nothing is to gain


@pytest.mark.slow
def test_a_pruned_trial_is_recorded_and_its_runs_are_removed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: self.number == 1)
    lines: list[str] = []
    record = tune(make(), "byot", jobs=1, report=lines.append)
    assert [trial["state"] for trial in record["trials"]] == ["complete", "pruned", "complete"]
    pruned = record["trials"][1]
    assert (pruned["value"], pruned["epochs"], pruned["seconds"] > 0) == (None, 1, True) and 0 <= pruned["last"] <= 100
    assert ": pruned at epoch 1; best " in lines[1] and record["best"]["number"] != 1
    assert list(Path("runs/tiny/tuning/byot").iterdir()) == []


def test_a_training_that_diverges_is_a_failed_trial(make: Make) -> None:
    study = make(space={"train.lr": {"low": 0.01, "high": 1e20}})
    _queue(study, {"train.lr": 1e20})
    lines: list[str] = []
    record = tune(study, "byot", jobs=1, trials=2, report=lines.append)
    failed = record["trials"][1]
    assert (failed["state"], failed["value"], failed["epochs"], failed["last"]) == ("failed", None, 0, None)
    assert failed["error"].startswith("training diverged at epoch 1, step ") and "runs/" not in json.dumps(record)
    assert "failed: training diverged" in lines[1] and record["best"]["number"] == 0
    assert list(Path("runs/tiny/tuning/byot").iterdir()) == []


def test_a_full_disk_ends_the_search_and_the_trial_is_resumed(make: Make) -> None:
    study = make()
    tune(study, "byot", jobs=1, trials=1, report=lambda _: None)
    runs = Path("runs/tiny/tuning/byot")
    (runs / "1").write_text("")  # as good as a full disk: nothing can be written below it
    for _ in range(2):
        with pytest.raises(
            CorsdError, match=r"^trial \d cannot continue: .*; run the same command again to resume the search$"
        ):
            tune(study, "byot", jobs=1, trials=2, report=lambda _: None)
    (runs / "1").unlink()
    record = tune(study, "byot", jobs=1, trials=2, report=lambda _: None)
    done = [trial for trial in record["trials"] if trial["state"] == "complete"]
    assert len(done) == 2 and study.trials_done(record) == 2


@pytest.mark.slow
def test_a_process_that_dies_is_a_failed_trial(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_epoch(monkeypatch, 1, 2, lambda running: os.kill(running.process.pid, signal.SIGKILL))
    record = tune(make(), "byot", jobs=1, report=lambda _: None)
    assert [trial["state"] for trial in record["trials"]] == ["complete", "failed", "complete"]
    assert record["trials"][1]["error"] == "its process ended with status -9"


def test_a_row_that_cannot_be_trained_ends_the_search_and_is_tried_again(make: Make) -> None:
    study = make(variant={"width": 0})
    for number in (0, 1):
        message = rf"trial {number}, the variant without changes, failed: width = 0 for network 'resnet8'.*; allowed"
        with pytest.raises(CorsdError, match=message):
            tune(study, "byot", jobs=1, report=lambda _: None)
    assert [trial["state"] for trial in read_json(study.path / "tuning/byot.json")["trials"]] == ["failed", "failed"]


@pytest.mark.slow
def test_a_stopped_trial_is_saved_and_taken_up_where_it_was(
    make: Make, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(make("whole"), "byot", jobs=1, trials=2, report=lambda _: None)
    study = make()
    with monkeypatch.context() as patched:
        _at_epoch(patched, 1, 1, lambda running: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit) as end:
            cli.main(["tune", "results/tiny", "--jobs", "1"])
    assert end.value.code == 130
    out = capsys.readouterr().out.splitlines()
    assert (
        len(out) == 2
        and out[1] == "stopped; run the same command again to continue the search from results/tiny/tuning/byot.journal"
    )
    assert len(read_json(Path("results/tiny/tuning/byot.json"))["trials"]) == 1
    assert Path("runs/tiny/tuning/byot/1/seed3/checkpoint.safetensors").is_file()
    trained: list[Path] = []
    _at_epoch(monkeypatch, 2, 1, lambda running: trained.append(running.folder))
    record = tune(study, "byot", jobs=1, report=lambda _: None)
    assert [trial["state"] for trial in record["trials"]] == ["complete", "failed", "complete", "complete"]
    assert record["trials"][1]["error"] == "stopped, taken up by trial 2" and record["trials"][1]["epochs"] in (1, 2)
    assert record["trials"][2]["value"] == whole["trials"][1]["value"]  # on with the same weights and random numbers
    assert trained == [] and list(Path("runs/tiny/tuning/byot").iterdir()) == []  # its first epoch was not trained again


@pytest.mark.slow
def test_what_processes_that_are_no_more_have_left_is_taken_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make()
    search = Search.of(study, "byot")
    search.path.parent.mkdir(parents=True)
    for trials_begun in (2, 1):  # by one that died, then by another that took up the first of them
        left = Tuner(search, Path("runs"), None, lambda _: None).study
        for _ in range(trials_begun):
            left.ask(dict(search.distributions()))
    folders: list[Path] = []
    _at_epoch(monkeypatch, 4, 1, lambda running: folders.append(running.folder))
    done = tune(study, "byot", jobs=1, report=lambda _: None)["trials"]
    assert folders == [Path("runs/tiny/tuning/byot/0")]  # where the first of them would have saved
    assert [trial["state"] for trial in done] == ["failed"] * 3 + ["complete"] * 3  # three were wanted
    assert [trial["error"] for trial in done[:3]] == [f"stopped, taken up by trial {number}" for number in (2, 3, 4)]
    assert done[0]["seconds"] is None and done[0]["params"] == search.own
    params = [trial["params"] for trial in done]
    assert params[0] == params[2] == params[4] and params[1] == params[3] and params[5] not in params[:5]
    assert all(trial.state != TrialState.RUNNING for trial in tuner._open_study(search).trials)


def test_a_trial_ends_when_the_search_that_it_is_of_is_gone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "setpgrp", lambda: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    configs = Search.of(make(), "byot").configs({}, Path("run"), None)
    pipe, theirs = Pipe()
    pipe.close()
    trials.train_trial(theirs, configs, PLACE)
    assert launch.Run(configs[0].path).epochs_done == 1 and (configs[0].path / "checkpoint.safetensors").is_file()


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(make: Make) -> None:
    study = make(train={"validation_fraction": 0.4, "epochs": 60}, trials=2)
    words = ["tune", "results/tiny", "byot", "--jobs", "2"]
    process = subprocess.Popen([sys.executable, "-m", "corsd_lib", *words], env={**os.environ, **PLACE})
    metrics = [Path(f"runs/tiny/tuning/byot/{number}/seed3/metrics.jsonl") for number in (0, 1)]
    end = time.monotonic() + 300
    while not all(file.is_file() for file in metrics):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    # At once: its trials still train, each until the end of its epoch, where it finds that nobody hears it.
    done = tune(study, "byot", jobs=2, report=lambda _: None)["trials"]
    assert [trial["state"] for trial in done] == ["failed", "failed", "complete", "complete"]
    assert [trial["error"] for trial in done[:2]] == ["stopped, taken up by trial 2", "stopped, taken up by trial 3"]
    assert [trial["params"] for trial in done[:2]] == [trial["params"] for trial in done[2:]]
    assert [trial["epochs"] for trial in done[2:]] == [60, 60]


# --- folders that are moved or removed while it trains ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results/tiny", "results/tiny/tuning/byot.journal", "runs/tiny/tuning/byot"])
def test_a_journal_or_runs_that_are_moved_end_the_search_and_it_goes_on_where_they_are(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    study, path = make(), Path(name)
    with monkeypatch.context() as patched:
        _at_epoch(patched, 1, 1, lambda running: path.rename(path.with_name("moved")))
        with pytest.raises(CorsdError, match=rf"(\.journal|{name}) was moved, removed or replaced during the search") as caught:
            tune(study, "byot", trials=2, jobs=1, report=lambda _: None)
    assert "\n" not in str(caught.value) and not path.exists()
    path.with_name("moved").rename(path)
    record = tune(study, "byot", trials=2, jobs=1, report=lambda _: None)
    assert [trial["state"] for trial in record["trials"]] == ["complete", "failed", "complete"]
    assert record["trials"][1]["error"] == "stopped, taken up by trial 2"


@pytest.mark.slow
def test_a_journal_that_is_replaced_ends_the_search(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make()
    journal = Search.of(study, "byot").journal

    def replaced(running: Any) -> None:
        journal.rename(journal.with_name("moved"))
        journal.write_bytes(b"of another search")

    _at_epoch(monkeypatch, 0, 1, replaced)
    with pytest.raises(CorsdError, match=r"byot\.journal was moved, removed or replaced during the search"):
        tune(study, "byot", jobs=1, report=lambda _: None)
    assert journal.read_bytes() == b"of another search" and not Search.of(study, "byot").path.exists()


# --- one journal, one search, one process ---


def _elsewhere(folder: Path) -> ExitStack:
    """What another process does that trains in a run directory: it has files there, and its lock."""
    folder.mkdir(parents=True)
    (folder / "part of a run").touch()
    other = ExitStack()
    other.enter_context(locked(folder))
    return other


def test_a_process_of_a_search_that_was_killed_is_waited_for(make: Make) -> None:
    study = make()
    search = Search.of(study, "byot")
    search.path.parent.mkdir(parents=True)
    Tuner(search, Path("runs/tiny/tuning/byot"), None, lambda _: None).study.ask(dict(search.distributions()))
    folder = Path("runs/tiny/tuning/byot/0/seed3")
    other, lines = _elsewhere(folder), list[str]()

    def report(line: str) -> None:
        lines.append(line)
        if line.startswith("waiting"):
            assert (folder / "part of a run").exists()
            other.close()

    record = tune(study, "byot", jobs=1, trials=1, report=report)
    assert lines[0] == f"waiting for another process that trains {folder}; it ends after its current epoch" and len(lines) == 2
    assert [trial["state"] for trial in record["trials"]] == ["failed", "complete"]
    assert record["trials"][0]["error"] == "stopped, taken up by trial 1"


def test_a_stop_ends_the_wait_for_a_process_of_an_earlier_search(make: Make) -> None:
    folder = Path("runs/tiny/tuning/byot/0/seed3")
    with _elsewhere(folder), pytest.raises(KeyboardInterrupt):
        tune(make(), "byot", jobs=1, report=lambda _: signal.raise_signal(signal.SIGINT))
    assert (folder / "part of a run").exists() and not Path("results/tiny/tuning/byot.json").exists()


def test_a_trial_waits_for_the_lock_of_its_run_directory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have it later than where the search looked: that is no trial, and nothing is removed under it."""
    study, lines, others = make(), list[str](), list[ExitStack]()
    start = tuner.start_trial

    def taken(configs: list[TrainConfig], place: dict[str, str]) -> Any:
        if not others:
            others.append(_elsewhere(configs[0].path))
        return start(configs, place)

    def report(line: str) -> None:
        lines.append(line)
        if line.startswith("trial 0 waits"):
            others[0].close()

    monkeypatch.setattr(tuner, "start_trial", taken)
    record = tune(study, "byot", jobs=1, trials=1, report=report)
    assert (
        lines[0].startswith("trial 0 waits: runs/tiny/tuning/byot/0/seed3 is being trained by another process")
        and len(lines) == 2
    )
    assert [trial["state"] for trial in record["trials"]] == ["complete"]


def test_runs_of_a_trial_are_not_removed_while_one_is_trained(tmp_path: Path) -> None:
    with _elsewhere(tmp_path / "3" / "seed1"):
        tuner._remove(tmp_path / "3")
        assert (tmp_path / "3" / "seed1" / "part of a run").exists()
    tuner._remove(tmp_path / "3")
    assert not (tmp_path / "3").exists()


@pytest.mark.parametrize("missing", ["module", "locks"])
def test_it_searches_where_there_are_no_locks(make: Make, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    if missing == "module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", unknown)
    record = tune(make(), "byot", jobs=1, trials=1, report=lambda _: None)
    assert [trial["state"] for trial in record["trials"]] == ["complete"]


def test_trials_are_started_where_there_is_no_fork_server(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    asked: list[str] = []
    get = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: asked.append(method) or get("forkserver"))
    assert len(tune(make(), "byot", jobs=1, trials=1, report=lambda _: None)["trials"]) == 1
    assert asked == ["spawn"]


def test_two_processes_do_not_work_on_one_journal(make: Make) -> None:
    study = make()
    with (
        tuner._lock_journal(Search.of(study, "byot").journal),
        pytest.raises(CorsdError, match=r"another process runs the search of results/tiny/tuning/byot\.journal: wait for it"),
    ):
        tune(study, "byot")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"space": {**SPACE, "temperature": {"choices": [3.0, 5.0]}}}, r"temperature was .*6\.0\]\}, is .*5\.0\]\}"),
        ({"space": {"exit_kd": SPACE["exit_kd"]}}, r"temperature was \{'choices': \[3\.0, 6\.0\]\}, is 3\.0"),
        ({"space": {**SPACE, "hint": {"low": 0.0, "high": 1.0}}}, r"hint was 1e-06, is \{'low': 0\.0, 'high': 1\.0\}"),
        ({"seeds": [4]}, r"seeds was \[3\], is \[4\]"),
        ({"train": {"validation_fraction": 0.4, "epochs": 4}}, r"train\.epochs was 3, is 4"),
        ({"variant": {"method_options": {"hint": 0.5}}}, r"hint was 1e-06, is 0\.5"),
    ],
)
def test_a_journal_of_another_search_is_named(make: Make, changes: dict[str, Any], message: str) -> None:
    search = Search.of(make(), "byot")
    search.path.parent.mkdir(parents=True)
    tuner._open_study(search)
    tuner._open_study(Search.of(make(trials=9), "byot"))
    with pytest.raises(CorsdError, match=rf"byot\.journal is of another search: {message}; remove it and its record"):
        tune(make(**changes), "byot")


def test_a_search_outlives_a_setting_that_the_library_gains(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search.of(make(), "byot")
    search.path.parent.mkdir(parents=True)
    now = search.settings()
    with monkeypatch.context() as older:
        older.setattr(Search, "settings", lambda self: {k: v for k, v in now.items() if k != "train.cutout"})
        tuner._open_study(search)
    assert "train.cutout" not in tuner._open_study(search).user_attrs["search"]


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b"3\n", b'{"op_code": 0}\n', b'{"op_code": 2, "wor'])
def test_a_last_line_that_is_none_of_a_journal_is_named(make: Make, line: bytes) -> None:
    search = Search.of(make(), "byot")
    search.path.parent.mkdir(parents=True)
    tuner._open_study(search)
    search.journal.write_bytes(search.journal.read_bytes() + line)
    with pytest.raises(CorsdError, match=r"byot\.journal is a damaged journal: .*; remove it to start over"):
        tuner._open_study(search)


def test_a_line_of_another_program_is_named_in_our_words(make: Make) -> None:
    search = Search.of(make(), "byot")
    search.path.parent.mkdir(parents=True)
    tuner._open_study(search)
    search.journal.write_bytes(search.journal.read_bytes() + b'{"op_code": 99, "worker_id": "x"}\n')
    with pytest.raises(CorsdError, match=r"a damaged journal: it has a line that Optuna does not write; remove it"):
        tuner._open_study(search)


@pytest.mark.slow
def test_a_journal_goes_on_after_a_power_cut_and_one_that_is_damaged_is_named(make: Make) -> None:
    study = make()
    tune(study, "byot", trials=1, jobs=1, report=lambda _: None)
    journal = Search.of(study, "byot").journal
    with open(journal, "ab") as file:
        file.write(journal.read_bytes()[:-1].rpartition(b"\n")[2][:20])
    assert len(tune(study, "byot", trials=2, jobs=1, report=lambda _: None)["trials"]) == 2
    journal.write_bytes(b"{" + journal.read_bytes())
    with pytest.raises(CorsdError, match=r"byot\.journal is a damaged journal: .*; remove it to start over"):
        tune(study, "byot")


@pytest.mark.parametrize("journal", ["missing", "empty", "of an earlier time"])
def test_a_record_whose_journal_lacks_its_trials_is_not_overwritten(make: Make, capsys: Captured, journal: str) -> None:
    study = make()
    search = Search.of(study, "byot")
    write_json(search.path, {"trials": [{"number": 0, "state": "complete"}, {"number": 1}], "best": {"options": {}}})
    before = search.path.read_bytes()
    if journal == "empty":
        search.journal.touch()
    elif journal == "of an earlier time":
        search.path.rename(search.path.with_suffix(".aside"))
        tuner._open_study(search).add_trial(optuna.create_trial(value=1.0))
        search.path.with_suffix(".aside").rename(search.path)
    files = sorted(search.path.parent.iterdir())
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", "results/tiny", "byot"])
    lost = 1 if journal == "of an earlier time" else 2
    assert capsys.readouterr().err == (
        f"corsd: error: results/tiny/tuning/byot.json has {lost} trials that its journal results/tiny/tuning/byot.journal "
        "lacks, so the record would be overwritten: put the journal back to continue, or remove or rename the record to search "
        "again\n"
    )
    assert search.path.read_bytes() == before and sorted(search.path.parent.iterdir()) == files and not Path("runs").exists()


# --- bad entries ---


@pytest.mark.parametrize(
    "what,message",
    [
        ({"low": 0.1}, "allowed: numbers low and high, with or without step, log and int, or a list of choices"),
        ({"low": 0.1, "high": 1.0, "steps": 0.1}, "allowed: numbers low and high"),
        ({"low": 0.1, "high": 1.0, "choices": [1.0]}, "allowed: numbers low and high"),
        ({"low": "0.1", "high": 1.0}, "allowed: numbers low and high"),
        ({"low": 0.1, "high": True}, "allowed: numbers low and high"),
        ({"low": 0.1, "high": 1.0, "log": 1}, "allowed: numbers low and high"),
        ({"low": 0.5, "high": 2.0, "int": True}, "allowed: numbers low and high"),
        ({"choices": []}, "allowed: numbers low and high"),
        ({"choices": 0.1}, "allowed: numbers low and high"),
        ({"choices": [[0.1]]}, "allowed: numbers low and high"),
        ([0.1, 1.0], "allowed: numbers low and high"),
        ({"low": 1.0, "high": 0.1}, "`low"),  # the rest of these messages is optuna's, and differs between its versions
        ({"low": 0.0, "high": 1.0, "log": True}, "`low"),
        ({"low": 0.1, "high": 1.0, "log": True, "step": 0.1}, "`step` is not supported when `log` is true"),
        ({"low": 0.1, "high": 1.0, "step": -0.1}, "`step"),
        ({"low": -0.1, "high": 1.0}, "exit_kd = -0.1 must be finite and at least 0"),
        ({"choices": [0.1, "much"]}, "exit_kd = 'much' must be of type float"),
        (
            {"low": 0.5, "high": 1.0},
            "trial 0, the variant itself, has 0.1: extend the space to include this value",
        ),
        ({"choices": [0.2, 0.3]}, "trial 0, the variant itself, has 0.1"),
    ],
)
def test_a_bad_range_is_named(make: Make, what: Any, message: str) -> None:
    study = make(space={"exit_kd": what})
    with pytest.raises(CorsdError) as caught:
        tune(study, "byot")
    assert str(caught.value).startswith(f"results/tiny: tuning of variant 'byot': exit_kd = {what!r}")
    assert message in str(caught.value) and not Path("results/tiny/tuning").exists()


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"space": {}}, "allowed: a JSON object that has a space of one parameter or more"),
        ({"trial": 3}, "field 'trial' is not known; allowed: trials, seeds, space, train"),
        ({"trials": 0}, "trials = 0; allowed: a whole number of at least 1"),
        ({"seeds": []}, r"seeds = \[\]; allowed: one or more whole numbers"),
        ({"seeds": [-1]}, r"seeds = \[-1\]; allowed: one or more whole numbers"),
        ({"seeds": [10**30]}, r"seeds = \[1000.*\]; allowed: one or more whole numbers"),
        ({"train": [3]}, r"train = \[3\] is of type list; allowed: dict"),
        ({"train": {"seed": 3}}, "train: field 'seed' is not known; allowed: data, "),
        ({"train": {"validation_fraction": 0.4, "devices": 2}}, "devices = 2, num_nodes = 1; allowed: 1 and 1"),
        ({"space": {"exit": {"low": 0.0, "high": 1.0}}}, "option of method 'byot': 'exit' is not known; allowed: task, "),
        ({"space": {"lr": {"low": 0.01, "high": 0.1}}}, "lr = .*: a field of the training is searched as train.lr"),
        ({"space": {"train.epochs": {"choices": [1, 2]}}}, "parameter 'train.epochs' is not known; allowed: train.image_size"),
        ({"space": {"train.lr": {"low": 0.0, "high": 1.0}}}, "lr = 0.0 must be above 0"),
        ({"space": {"train.cutout": {"low": 0, "high": 4}}}, "cutout = 0.0 is of type float; allowed: int"),
        (
            {"tuned": "tuning/byot.json", "variant": {"method_options": {"exit_kd": 0.1}}},
            "exit_kd is also in the variant's method_options, which override the result of the search",
        ),
    ],
)
def test_a_bad_entry_is_named(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorsdError, match=f"^results/tiny: tuning of variant 'byot'.*{message}"):
        tune(make(**changes), "byot")
    assert not Path("results/tiny/tuning").exists()


@pytest.mark.parametrize(
    "words,message",
    [
        ("results/tiny bytes", "variant 'bytes' is not known; allowed: baseline, byot"),
        ("results/tiny baseline", "results/tiny: tuning of variant 'baseline' is not known; allowed: byot"),
        ("results/tiny byot --trials 0", "trials = 0 must be at least 1"),
        ("results/tiny byot --jobs 0", "jobs = 0 must be at least 1"),
        ("results/none byot", "results/none/study.json does not exist"),
    ],
)
def test_a_command_that_cannot_be_is_one_line(make: Make, capsys: Captured, words: str, message: str) -> None:
    make()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", *words.split()])
    out, err = capsys.readouterr()
    assert out == "" and err == f"corsd: error: {message}\n" and not Path("results/tiny/tuning").exists()


# --- values ---


def test_the_objective_is_the_mean_of_what_is_done_and_what_is_under_way() -> None:
    assert trials.objective([]) == []
    assert trials.objective([[1.0, 2.0]]) == [1.0, 2.0]
    assert trials.objective([[1.0, 2.0], [7.0, 4.0], [9.0]]) == [1.0, 2.0, 4.5, 3.0, 5.0]


def test_the_best_is_the_first_of_the_highest_complete_ones() -> None:
    params = {"exit_kd": 0.5, "train.lr": 0.1}
    done = [("complete", 40.0), ("failed", None), ("complete", 50.0), ("complete", 50.0), ("pruned", None)]
    entries = [{"number": i, "state": state, "value": value, "params": params} for i, (state, value) in enumerate(done)]
    assert tuner._best(entries, {}) == {"number": 2, "value": 50.0, "options": {"exit_kd": 0.5}, "train": {"lr": 0.1}}
    assert tuner._best(entries[1:2], {}) is None
    taken_up = tuner._best(entries, {3: 1})  # trial 3 goes on with 1, which was begun before 2
    assert taken_up is not None and taken_up["number"] == 3


def test_without_optuna_it_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    make()
    monkeypatch.delitem(sys.modules, "corsd_lib.studies.tuner")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", "results/tiny", "byot"])
    assert capsys.readouterr().err.endswith("optuna, which is not installed: pip install 'corsd_lib[tuning]'\n")
