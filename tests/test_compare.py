from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from corsd_lib import cli
from corsd_lib.errors import CorsdError
from corsd_lib.figures import studies as figures
from corsd_lib.figures import style
from corsd_lib.figures.studies import draw_figures
from corsd_lib.files import is_locked, locked, read_json, write_json, write_lines
from corsd_lib.runs import TrainConfig
from corsd_lib.studies import compare, progress, workers
from corsd_lib.studies.compare import run_study
from corsd_lib.studies.progress import progress_table
from corsd_lib.studies.records import make_record
from corsd_lib.studies.study import Study, new_study
from corsd_lib.studies.summary import summarise
from corsd_lib.studies.workers import Job, worker_environments
from corsd_lib.training import train

Captured = pytest.CaptureFixture[str]
Write = Callable[..., Study]

TRAIN: dict[str, Any] = {
    "per_class": 5,
    "width": 4,
    "epochs": 2,
    "batch_size": 16,
    "lr": 0.05,
    "accelerator": "cpu",
    "probe_every": 0,
    "probe_size": 20,
}
VARIANTS = {"baseline": {"train": {"method": "baseline"}}, "byot": {"train": {"method": "byot"}}}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Below an empty working directory, the study results/mine with changes to its common settings; two variants, two seeds."""
    monkeypatch.chdir(tmp_path)

    def make(variants: dict[str, Any] = VARIANTS, **changes: Any) -> Study:
        write_json(Path("results/mine/study.json"), {"seeds": [0, 1], "train": {**TRAIN, **changes}, "variants": variants})
        return Study.from_file("results/mine")

    return make


class Ended:
    """What is left of a process: how it ended."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None:
        """As of a process that has ended: nothing."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Trainings run in this process, one after the other; the places that they were given."""
    places: list[dict[str, str]] = []

    def training(config: Path, log: int, place: dict[str, str]) -> Ended:
        places.append(place)
        try:
            train(TrainConfig.from_file(config), progress=False)
        except CorsdError as error:
            os.write(log, f"a warning\ncorsd: error: {error}\n".encode())
            return Ended(2)
        return Ended(0)

    monkeypatch.setattr(workers, "_training", training)
    monkeypatch.setattr(compare, "POLL_SECONDS", 0)
    return places


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that would be drawn."""
    names: list[str] = []

    def instead(figure: Any, path: Path, **_: Any) -> Path:
        names.append(path.name)
        return path

    monkeypatch.setattr(figures, "save_png", instead)
    return names


def figures_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says, but for how long it took and where."""
    return {k: v for k, v in record.items() if k not in ("seconds", "provenance")}


# --- what is trained ---


def test_every_row_and_seed_is_trained_recorded_and_tabulated(write: Write, here: list[dict[str, str]]) -> None:
    study, lines = write(), list[str]()
    jobs = run_study(study, report=lines.append)
    assert [(job.variant, job.seed, job.state) for job in jobs] == [(variant, seed, "done") for variant, seed in study.jobs()]
    assert lines[0] == "baseline, seed 0: done; 1 of 4 done" and lines[-1] == "byot, seed 1: done; 4 of 4 done"
    records = study.records()
    assert {variant: list(by_seed) for variant, by_seed in records.items()} == {"baseline": [0, 1], "byot": [0, 1]}
    assert read_json(study.path / "summary.json") == summarise(study, records)
    assert (study.path / "table.md").is_file() and (study.path / "table.csv").is_file()
    test = read_json(Path("runs/mine/byot/seed1/test.json"))
    assert records["byot"][1]["test"] == test and len(test["exits"]) == 3
    assert read_json(Path("runs/mine/byot/seed1.json"))["resume"] is True


def test_a_recorded_training_is_done_on_any_machine(write: Write, here: list[dict[str, str]]) -> None:
    run_study(write(), variants=["byot"], report=lambda line: None)
    assert not Path("runs/mine/baseline").exists() and len(here) == 2
    os.rename("runs", "elsewhere")
    jobs = run_study(write(), seeds=[1], report=lambda line: None)
    assert [(job.variant, job.state) for job in jobs] == [("baseline", "done"), ("byot", "done")]
    assert sorted(Path("runs/mine").rglob("test.json")) == [Path("runs/mine/baseline/seed1/test.json")]


def test_a_finished_run_without_a_record_is_not_trained_again(write: Write, here: list[dict[str, str]]) -> None:
    study = write()
    run_study(study, variants=["baseline"], seeds=[0], report=lambda line: None)
    before, weights = study.record("baseline", 0), Path("runs/mine/baseline/seed0/weights.safetensors").stat().st_mtime_ns
    study.record_path("baseline", 0).unlink()
    run_study(study, variants=["baseline"], seeds=[0], report=lambda line: None)
    assert study.record("baseline", 0) == before
    assert Path("runs/mine/baseline/seed0/weights.safetensors").stat().st_mtime_ns == weights


def test_a_record_that_is_changed_is_told_from_one_that_was_written(write: Write, here: list[dict[str, str]]) -> None:
    study = write()
    run_study(study, variants=["baseline"], seeds=[0], report=lambda line: None)
    file = study.record_path("baseline", 0)
    content = json.loads(file.read_text())
    content["images"] += 1
    write_json(file, content)
    with pytest.raises(CorsdError, match=rf"{file} is damaged: its content does not match its checksum"):
        study.records()
    del content["checksum"]  # as records of an earlier library are
    write_json(file, content)
    assert study.records()["baseline"][0]["images"] == content["images"]


def test_a_training_that_fails_is_reported_and_the_others_go_on(write: Write, here: list[dict[str, str]]) -> None:
    variants = {"baseline": VARIANTS["baseline"], "blown": {"train": {"method": "byot", "batch_size": 16, "lr": 1e30}}}
    jobs = run_study(write(variants), seeds=[0], report=lambda line: None)
    assert [job.state for job in jobs] == ["done", "failed"]
    assert jobs[1].error.startswith("training diverged at epoch 1") and "\n" not in jobs[1].error
    assert str(jobs[1]).startswith("blown, seed 0: failed: training diverged")


def test_a_run_of_another_configuration_is_in_the_way(write: Write, here: list[dict[str, str]]) -> None:
    run_study(write(), variants=["baseline"], seeds=[0], report=lambda line: None)
    os.remove("results/mine/records/baseline-s0.json")
    (job,) = run_study(write(epochs=3), variants=["baseline"], seeds=[0], report=lambda line: None)
    assert job.state == "failed" and "contains a run of another configuration: epochs was 2, is 3; remove it" in job.error


def test_a_row_whose_search_goes_on_is_not_trained_and_nothing_else_is(write: Write, here: list[dict[str, str]]) -> None:
    write(variants={**VARIANTS, "byot": {**VARIANTS["byot"], "tuned": "tuning/byot.json"}})
    file = Path("results/mine/study.json")
    write_json(file, {**read_json(file), "tuning": {"byot": {"trials": 2, "space": {"exit_kd": {"choices": [0.1, 1.0]}}}}})
    best = {"options": {"exit_kd": 0.1}, "train": {}}
    write_json(file.parent / "tuning" / "byot.json", {"best": best, "trials": [{"state": "complete"}]})
    with pytest.raises(CorsdError, match=r"variant 'byot': .*byot\.json has 1 of 2 trials"):
        run_study(Study.from_file(file), report=lambda line: None)
    assert here == []
    jobs = run_study(Study.from_file(file), variants=["baseline"], report=lambda line: None)
    assert [job.state for job in jobs] == ["done"] * 2


def test_a_record_of_another_configuration_ends_it_before_anything_is_trained(write: Write, here: list[dict[str, str]]) -> None:
    run_study(write(), variants=["byot"], seeds=[1], report=lambda line: None)
    with pytest.raises(CorsdError, match=r"byot-s1\.json is of another configuration: epochs was 2, is 3; remove or rename"):
        run_study(write(epochs=3), variants=["baseline"], report=lambda line: None)
    assert len(here) == 1


def test_unknown_rows_and_seeds_are_named(write: Write) -> None:
    with pytest.raises(CorsdError, match="variant 'kd' is not known; allowed: baseline, byot"):
        run_study(write(), variants=["kd"])
    with pytest.raises(CorsdError, match="seed 7 is not available; allowed: 0, 1"):
        run_study(write(), seeds=[7])


# --- folders that are moved or removed while it trains ---


def _in_training(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do `action` when the second training is over, before it is recorded."""
    training, count = workers._training, iter(range(100))

    def watched(*arguments: Any) -> Any:
        ended = training(*arguments)
        if next(count) == 1:
            action()
        return ended

    monkeypatch.setattr(workers, "_training", watched)


@pytest.mark.parametrize("change", ["moved", "removed", "study.json"])
def test_a_study_that_is_moved_while_it_is_trained_ends_it_and_is_not_made_anew(
    write: Write, here: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    study = write()

    def act() -> None:
        if change == "removed":
            shutil.rmtree(study.path)
        else:
            path = study.path / "study.json" if change == "study.json" else study.path
            path.rename(path.with_name("moved"))

    _in_training(monkeypatch, act)
    message = (
        r"^results/mine/study\.json was moved or removed during the training, so the comparison stops\. The trained runs are "
        r"in runs/mine\. Put the study back, or compare it at its new path with --runs runs/mine \(runs='runs/mine'\)$"
    )
    with pytest.raises(CorsdError, match=message):
        run_study(study, jobs=1, report=lambda line: None)
    assert study.path.exists() == (change == "study.json") and len(here) == 2
    if change != "moved":
        return
    jobs = run_study(Study.from_file("results/moved"), runs="runs/mine", seeds=[0], report=lambda line: None)
    assert [job.state for job in jobs] == ["done", "done"] and len(here) == 3  # the last one finds that its run is finished
    assert sorted(file.name for file in Path("results/moved/records").iterdir()) == ["baseline-s0.json", "byot-s0.json"]


def test_runs_that_are_moved_while_they_are_trained_end_it(
    write: Write, here: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write()
    _in_training(monkeypatch, lambda: Path("runs/mine").rename("runs/moved"))
    with pytest.raises(CorsdError, match=r"^runs/mine was moved or removed during the training, .* its new path"):
        run_study(study, jobs=1, report=lambda line: None)
    assert not Path("runs/mine").exists()
    jobs = run_study(study, runs="runs/moved", seeds=[0], report=lambda line: None)
    assert [job.state for job in jobs] == ["done", "done"] and len(here) == 3


def test_a_study_without_a_file_is_trained_too(write: Write, here: list[dict[str, str]]) -> None:
    write()
    study = Study.from_dict(read_json(Path("results/mine/study.json")), Path("elsewhere/study.json"))
    study.path.mkdir()
    (job,) = run_study(study, variants=["baseline"], seeds=[0], report=lambda line: None)
    assert job.state == "done"


def test_a_log_that_is_gone_is_a_failure_of_its_training_alone(write: Write) -> None:
    job = Job("baseline", 0, TrainConfig(out="runs/x"), process=subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
    assert job.process is not None and job.process.wait(60) == 3
    job.finish(write())
    assert job.state == "failed" and job.error.startswith("it ended with status 3, and its log cannot be read: ")


def test_figures_are_not_drawn_into_a_folder_that_is_gone(
    summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "_draw", lambda *_: (tmp_path / "study").rmdir() or _picture())
    monkeypatch.setattr(style, "require", lambda *_: None)
    (tmp_path / "study").mkdir()
    with pytest.raises(CorsdError, match="study was moved or removed in the meantime"):
        draw_figures(summary, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def _picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (2, 2)).save(content, "PNG")
    return content.getvalue()


# --- one training, one owner ---


def test_a_training_that_another_process_has_is_waited_for_while_the_rest_goes_on(
    write: Write, here: list[dict[str, str]]
) -> None:
    study, lines = write(), list[str]()
    with ExitStack() as other:
        other.enter_context(locked(Path("runs/mine/baseline/seed0.log")))

        def report(line: str) -> None:
            lines.append(line)
            if line.startswith("byot"):
                other.close()

        jobs = run_study(study, seeds=[0], jobs=1, report=report)
    assert [(job.variant, job.state) for job in jobs] == [("baseline", "done"), ("byot", "done")]
    assert lines == [
        "baseline, seed 0: another process trains it; waiting for it",
        "byot, seed 0: done; 1 of 2 done",
        "baseline, seed 0: done; 2 of 2 done",
    ]


def test_a_stop_ends_the_wait_for_another_process(write: Write, here: list[dict[str, str]]) -> None:
    with locked(Path("runs/mine/baseline/seed0.log")):
        (job,) = run_study(write(), variants=["baseline"], seeds=[0], report=lambda line: signal.raise_signal(signal.SIGTERM))
    assert job.state == "elsewhere" and here == []


def test_it_trains_where_there_are_no_locks(write: Write, here: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unknown)
    assert [job.state for job in run_study(write(), variants=["byot"], seeds=[0], report=lambda line: None)] == ["done"]
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert [job.state for job in run_study(write(), variants=["baseline"], seeds=[0], report=lambda line: None)] == ["done"]


def test_what_another_process_finished_meanwhile_is_not_trained_again(write: Write, here: list[dict[str, str]]) -> None:
    study = write()
    (job,) = compare._wanted(study, Path("runs/mine"), None, ["baseline"], [0])
    run_study(study, variants=["baseline"], seeds=[0], report=lambda line: None)  # between a look at the records and the start
    assert job.start(study, {}) is False and job.state == "done" and len(here) == 1


# --- how many at a time ---


@pytest.mark.parametrize(
    "cpus,jobs,most,count,threads",
    [(8, None, 20, 8, 1), (8, None, 3, 3, 2), (8, 2, 20, 2, 4), (2, 5, 20, 5, 1), (1, None, 9, 1, 1)],
)
def test_cpus_are_divided(
    monkeypatch: pytest.MonkeyPatch, cpus: int, jobs: int | None, most: int, count: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    found = worker_environments(TrainConfig(accelerator="cpu"), jobs, most)
    place = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    assert found == [place] * count


@pytest.mark.parametrize(
    "visible,jobs,devices,expected",
    [
        (None, None, 1, ["0", "1", "2"]),
        ("4,5,7", None, 1, ["4", "5", "7"]),
        (None, 5, 1, ["0", "1", "2", "0", "1"]),
        (None, 1, 1, ["0"]),
        (None, None, 2, ["0,1"]),
    ],
)
def test_each_gpu_has_a_training(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, jobs: int | None, devices: int, expected: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = worker_environments(TrainConfig(devices=devices), jobs, 20)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in found] == expected
    assert all(
        "CUDA_VISIBLE_DEVICES" not in environment
        for environment in worker_environments(TrainConfig(accelerator="cpu"), jobs, 20)
    )


def test_no_job_at_a_time_is_refused() -> None:
    with pytest.raises(CorsdError, match="jobs = 0 must be at least 1"):
        worker_environments(TrainConfig(), 0, 3)


def test_more_jobs_than_the_machine_can_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert len(worker_environments(TrainConfig(accelerator="cpu"), 16, 99)) == 16
    with pytest.raises(CorsdError, match=r"^jobs = 17 is more than this machine can run; allowed: up to 16, 8 per CPU$"):
        worker_environments(TrainConfig(accelerator="cpu"), 17, 3)


def test_a_training_gets_the_environment_of_its_place(write: Write, here: list[dict[str, str]]) -> None:
    run_study(write(), variants=["baseline"], seeds=[0], jobs=1, report=lambda line: None)
    assert here == worker_environments(TrainConfig(accelerator="cpu"), 1, 1)


# --- what is seen ---


def test_the_live_table_says_how_every_row_stands(write: Write) -> None:
    from rich.console import Console

    study = write(epochs=30, validation_fraction=0.2)
    jobs = compare._wanted(study, Path("runs/mine"), None, None, None)
    plain, byot, plain_1, byot_1 = jobs
    plain.state, byot.state, plain_1.state, byot_1.state = "done", "running", "running", "failed"
    line = {"step": 9, "lr": 0.1, "images": 90, "seconds": 4.0, "loss.total": 1.0}
    line |= {"train_top1.exit1": 50.0, "train_top1.exit2": 60.0, "val_top1.exit1": 40.0, "val_top1.exit2": 45.0}
    write_lines(byot.config.path / "metrics.jsonl", [{"epoch": epoch, **line} for epoch in range(1, 13)])
    record = {"config": {"epochs": 30, "method_options": {}}, "test": {"exits": [{"top1": 88.0}]}, "train_top1": [90.0]}
    records = {"baseline": {0: {**record, "images": 1, "macs": 1, "seconds": 120.0}}}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(progress_table(study, jobs, summarise(study, records), 2))
    baseline, other = (row.split("│")[1:-1] for row in console.export_text().splitlines() if row.startswith("│"))
    # 30 epochs of 4 seconds in two places; 18 epochs of the running seed, and the failed one is not waited for
    assert [cell.strip() for cell in baseline] == ["baseline", "1/2", "seed 1: 0/30", "88.0 ± – test", "–", "1 min"]
    assert [cell.strip() for cell in other] == ["byot", "0/2", "seed 0: 12/30, seed 1 failed", "45.0 val", "–", "1 min"]


def test_without_validation_the_live_table_shows_train(write: Write) -> None:
    assert (
        progress._top1(None, [{"train_top1.exit1": 10.0, "train_top1.exit2": 20.0}, {"train_top1.exit2": 30.0}]) == "25.0 train"
    )
    assert progress._top1(None, []) == "–"
    assert [progress._duration(s) for s in (12, 240, 3700)] == ["12 s", "4 min", "1 h 02 min"]


@pytest.fixture
def summary() -> dict[str, Any]:
    def entry(group: str, gain: float | None, parent: str | None = None) -> dict[str, Any]:
        top1 = {"top1": [50.0], "top1_low": [None], "top1_high": [None], "top1_by_seed": {"0": [50.0]}}
        gains = {"gain": gain, "gain_low": None, "gain_high": None}
        return {"label": group, "group": group, "from": parent, **top1, **gains}

    variants = {"baseline": entry("methods", None), "corsd": entry("methods", 1.0), "a": entry("ablation", 2.0, "corsd")}
    variants |= {"rkd": entry("methods", 3.0, "corsd"), "control": entry("ablation", 0.5)}
    return {"baseline": "baseline", "methods": variants}


def test_every_group_has_its_figures_with_what_it_is_read_against(
    summary: dict[str, Any], drawn: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(figures, "gain_by_method", lambda s, sort: over.append((s["baseline"], list(s["methods"]))))
    assert draw_figures(summary, tmp_path) == [tmp_path / name for name in drawn]
    assert drawn == ["accuracy.png", "gain.png", "accuracy_ablation.png", "gain_ablation.png"]
    assert list(figures._with_references(summary, "ablation")) == ["baseline", "corsd", "a", "control"]
    assert over == [("baseline", ["baseline", "corsd", "rkd"]), ("corsd", ["baseline", "corsd", "a", "control"])]
    assert list(figures._with_references(summary, "methods")) == ["baseline", "corsd", "rkd"]


def test_gains_are_drawn_once_there_are_some(summary: dict[str, Any], drawn: list[str], tmp_path: Path) -> None:
    summary["methods"] = {"baseline": summary["methods"]["baseline"]}
    draw_figures(summary, tmp_path)
    assert drawn == ["accuracy.png"]


def test_figures_are_left_out_where_plotly_is_missing(
    summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "corsd_lib.figures")
    monkeypatch.delitem(sys.modules, "corsd_lib.figures.studies")
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(CorsdError, match=r"a figure needs plotly.*corsd_lib\[notebooks\]"):
        cli._drawn(summary, tmp_path)


# --- the command ---

NEW = "compare results/mine --methods byot baseline --seeds 0 --jobs 1 --runs runs/other --per-class 5 --width 4 --epochs 1"
NEW += " --batch-size 16 --accelerator cpu --probe-size 20 --probe-every 0"


def test_a_new_study_is_written_and_trained_and_the_same_command_goes_on(
    write: Write, here: list[dict[str, str]], drawn: list[str], capsys: Captured
) -> None:
    cli.main(NEW.split())
    study = read_json(Path("results/mine/study.json"))
    settings = {"per_class": 5, "width": 4, "epochs": 1, "batch_size": 16, "accelerator": "cpu"}
    assert study == {
        "title": "digits, 5 images a class",
        "equal": "images",
        "baseline": "baseline",
        "seeds": [0],
        "train": {**settings, "probe_every": 0, "probe_size": 20},
        "variants": {"byot": {"train": {"method": "byot"}}, "baseline": {"train": {"method": "baseline"}}},
    }
    out = capsys.readouterr().out
    assert "byot, seed 0: done; 1 of 2 done\nbaseline, seed 0: done; 2 of 2 done\n" in out and "| byot | 1 | " in out
    assert out.endswith("results/mine: summary.json, table.csv, table.md, accuracy.png, gain.png\n")
    assert Path("runs/other/byot/seed0/test.json").is_file() and len(here) == 2
    cli.main([*NEW.split(), "--quiet"])
    assert len(here) == 2 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words,message",
    [
        (f"{NEW} --lr 0.2", r"results/mine/study.json is another study: continue it without --methods"),
        (
            "compare results/mine --lr 0.2 --cutout 2",
            "cutout, lr: allowed for a new study (--methods) only; this one has its settings",
        ),
        ("compare results/mine --equal epochs", "equal: allowed for a new study (--methods) only"),
        ("compare results/none", "results/none/study.json does not exist"),
        ("compare results/new --methods kd", "variant 'kd': train: method 'kd' is not known; allowed: baseline"),
        ("compare results/mine --variants kd", "variant 'kd' is not known; allowed: baseline, byot"),
        ("compare results/mine --jobs 0", "jobs = 0 must be at least 1"),
    ],
)
def test_an_error_is_one_line_and_nothing_is_trained(
    write: Write, here: list[dict[str, str]], capsys: Captured, words: str, message: str
) -> None:
    write()
    before = Path("results/mine/study.json").read_bytes()
    with pytest.raises(SystemExit) as end:
        cli.main(words.split())
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert here == [] and Path("results/mine/study.json").read_bytes() == before and not Path("results/new").exists()


def test_every_setting_of_a_training_can_be_common_to_a_new_study(write: Write) -> None:
    words = (
        "compare s --methods corsd byot --seeds 4 --equal epochs --method-options exit_ce=0.5 --milestones 0.2 0.4 --nesterov"
    )
    study = cli._study(cli._parser().parse_args([*words.split(), "--data-root", "/data"]))
    assert study.train == {"method_options": {"exit_ce": 0.5}, "milestones": [0.2, 0.4], "nesterov": True}
    assert (study.equal, study.baseline, study.seeds, study.title) == ("epochs", "corsd", (4,), "digits")
    assert new_study("s/study.json", ["corsd", "byot"], [4], study.train, "epochs") == study


@pytest.mark.parametrize("seed", ["-1", f"{10**30}", f"{2**63}"])
def test_an_impossible_seed_is_named_before_anything_is_written(write: Write, capsys: Captured, seed: str) -> None:
    write()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", "results/new", "--methods", "baseline", "--seeds", "0", seed])
    allowed = "one or more different whole numbers of at least 0 and below 9,223,372,036,854,775,808"
    assert capsys.readouterr().err == f"corsd: error: results/new/study.json: seeds = [0, {seed}]; allowed: {allowed}\n"
    assert not Path("results/new").exists()


def test_failures_are_told_at_the_end_with_status_1(
    write: Write, here: list[dict[str, str]], drawn: list[str], capsys: Captured
) -> None:
    write({"baseline": VARIANTS["baseline"], "blown": {"train": {"method": "byot", "lr": 1e30}}})
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "results/mine", "--seeds", "0", "--quiet"])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and out == "" and drawn == ["accuracy.png"]
    assert err.startswith("blown, seed 0: failed: training diverged") and err.endswith(
        "run the same command again to continue\n"
    )


def test_tables_alone_are_made_from_the_records(
    write: Write, here: list[dict[str, str]], drawn: list[str], capsys: Captured
) -> None:
    run_study(write(), seeds=[0], report=lambda line: None)
    os.rename("runs", "gone")
    written = {file: Path("results/mine", file).read_bytes() for file in ("summary.json", "table.csv", "table.md")}
    for file in written:
        Path("results/mine", file).unlink()
    cli.main(["compare", "results/mine", "--tables"])
    assert {file: Path("results/mine", file).read_bytes() for file in written} == written
    assert len(here) == 2 and drawn == ["accuracy.png", "gain.png"] and "| byot | 1 |" in capsys.readouterr().out


def test_a_missing_browser_costs_the_figures_only(
    write: Write, here: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def no_browser(*_: Any, **__: Any) -> Path:
        raise CorsdError("cannot draw accuracy.png: no Chromium")

    monkeypatch.setattr(figures, "save_png", no_browser)
    write()
    cli.main(["compare", "results/mine", "--variants", "baseline", "--seeds", "0"])
    out = capsys.readouterr().out
    assert "no figures: cannot draw accuracy.png: no Chromium\n" in out
    assert out.endswith("results/mine: summary.json, table.csv, table.md\n")


def test_nothing_trained_makes_no_tables(write: Write, capsys: Captured) -> None:
    write()
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", "results/mine", "--tables"])
    assert end.value.code == 2 and "results/mine has no record of a training yet" in capsys.readouterr().err
    assert sorted(file.name for file in Path("results/mine").iterdir()) == ["study.json"]


# --- real processes ---


HELD_VARIANTS = {variant: {"train": {"method": f"held_{variant}"}} for variant in VARIANTS}
COMPARE = [sys.executable, "-m", "corsd_lib", "compare", "results/mine", "--jobs", "2"]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the number of threads is to be the same in both studies")
def test_stopped_in_the_middle_it_goes_on_to_the_same_records(
    write: Write, held: Path, here: list[dict[str, str]], drawn: list[str], capsys: Captured
) -> None:
    """Ctrl-C while two real processes train, then the same command here; the records are those of whole trainings."""
    study = write(HELD_VARIANTS)
    command = [*COMPARE, "--seeds", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:1])),  # one thread each
    )
    wait_until(lambda: len(list(held.parent.glob("held-*"))) == 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert err == "baseline, seed 0: stopped\nbyot, seed 0: stopped\nrun the same command again to continue\n"
    done = [len(Path(f"runs/mine/{variant}/seed0/metrics.jsonl").read_text().splitlines()) for variant in VARIANTS]
    assert done == [1, 1] and not (study.path / "records").exists()
    for variant in VARIANTS:
        assert "stopped; continue with" in Path(f"runs/mine/{variant}/seed0.log").read_text()  # it saved, nothing was killed

    held.touch()
    cli.main(command[3:])
    assert "byot, seed 0: done" in capsys.readouterr().out
    for variant in VARIANTS:
        record = study.record(variant, 0)
        whole = train(replace(study.config(variant, 0), out=f"whole/{variant}"), progress=False)
        expected = json.loads(json.dumps(make_record(whole, variant, 0)))
        assert record is not None and figures_of(record) == figures_of(expected)

    os.rename("runs", "gone")
    cli.main(command[3:])
    assert len(here) == 2 and not Path("runs").exists()  # records alone: nothing is trained again


@pytest.mark.slow
def test_killed_and_started_again_at_once_it_ends_with_all_records(write: Write, held: Path) -> None:
    """The trainings of a command that is killed go on: the next command waits for them and records what they came to."""
    study = write(HELD_VARIANTS)
    process = subprocess.Popen(COMPARE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(held.parent.glob("held-*"))) == 2, process)
    process.kill()
    process.communicate()
    lines = list[str]()

    def report(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            held.touch()

    jobs = run_study(study, seeds=[0], jobs=2, report=report)
    assert [job.state for job in jobs] == ["done", "done"]
    assert lines[:2] == [f"{variant}, seed 0: another process trains it; waiting for it" for variant in VARIANTS]
    assert {variant: list(seeds) for variant, seeds in study.records().items()} == {variant: [0] for variant in VARIANTS}
    for variant in VARIANTS:
        record = study.record(variant, 0)
        assert record is not None and "resumed" not in record  # one process trained it from beginning to end


def test_a_training_that_is_killed_has_failed(write: Write) -> None:
    study = write(epochs=1000)
    (job,) = compare._wanted(study, Path("runs/mine"), None, ["baseline"], [0])
    assert job.start(study, {}) and job.process is not None and not job.ended
    assert is_locked(job.sibling(".log"))  # as long as the training lives, whatever becomes of this process
    job.process.kill()
    job.process.wait()
    assert job.ended and not is_locked(job.sibling(".log"))
    job.finish(study)
    assert str(job) == "baseline, seed 0: failed: it was killed by signal 9, as when memory runs out"


def test_a_result_that_cannot_be_read_is_a_failure_of_its_training_alone(write: Write) -> None:
    job = Job("baseline", 0, TrainConfig(out="runs/x"), process=subprocess.Popen([sys.executable, "-c", ""]))
    assert job.process is not None and job.process.wait(60) == 0
    job.config.path.mkdir(parents=True)
    (job.config.path / "test.json").write_text("{")
    job.finish(write())
    assert job.state == "failed" and job.error == "runs/x is not a run: it has no config.json"


def test_a_training_is_asked_to_stop_once(write: Write) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    job = Job("baseline", 0, TrainConfig(out="runs/x"), state="running", process=process)
    job.stop()
    assert job.state == "stopping" and process.wait(60) == -signal.SIGTERM
    job.stop()
    job.finish(write())
    assert job.ended and job.state == "stopped"
