"""Trainings as jobs of a cluster: on a stand-in for Slurm, in real processes of submitit, and on a Slurm that is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from corsd_lib import cli
from corsd_lib.errors import CorsdError, MissingPackage
from corsd_lib.figures import studies as figures
from corsd_lib.files import is_locked, locked, read_json, write_json
from corsd_lib.studies import cluster, cluster_job, workers
from corsd_lib.studies.cluster import Cluster
from corsd_lib.studies.cluster_job import TrainingJob, blocked, slurm_environment
from corsd_lib.studies.compare import run_study
from corsd_lib.studies.records import make_record
from corsd_lib.studies.study import Study
from corsd_lib.studies.workers import Job
from corsd_lib.training import train

submitit = pytest.importorskip("submitit", reason="needs submitit, the extra `cluster`")

Captured = pytest.CaptureFixture[str]
Write = Callable[..., Study]
TRAIN = {"per_class": 5, "width": 4, "epochs": 1, "batch_size": 16, "lr": 0.05, "accelerator": "cpu", "probe_every": 0}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Below an empty working directory, the study results/mine of one seed with changes to its common settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "save_png", lambda figure, path, **_: path)

    def make(*methods: str, **changes: Any) -> Study:
        variants = {name.removeprefix("held_"): {"train": {"method": name}} for name in methods or ("baseline", "byot")}
        settings = {"seeds": [0], "train": {**TRAIN, "probe_size": 20, **changes}, "variants": variants}
        write_json(Path("results/mine/study.json"), settings)
        return Study.from_file("results/mine")

    return make


class Slurm:
    """A stand-in for the commands of Slurm: it takes jobs and runs none."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.queue = folder, folder / "queue"
        folder.mkdir()
        self.command("srun", "exit 1")
        self.command("sbatch", f"cp $1 {folder}/script-$(ls {folder} | grep -c script)\necho Submitted batch job 7")
        self.command("squeue", f"cat {self.queue}")
        self.queue.touch()

    def command(self, name: str, text: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.folder / name).chmod(0o755)

    @property
    def scripts(self) -> list[str]:
        """What was submitted."""
        return [file.read_text() for file in sorted(self.folder.glob("script-*"))]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(cluster.POLL_SECONDS, "slurm", 0.01)
    return Slurm(tmp_path / "slurm")


def submit(study: Study, report: Callable[[str], object] = lambda line: None, **settings: Any) -> list[Job]:
    return run_study(study, cluster=Cluster("slurm", settings, wait=False), report=report)


def states(jobs: list[Job]) -> list[str]:
    return [job.state for job in jobs]


def figures_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says, but for how long it took and where."""
    return {k: v for k, v in json.loads(json.dumps(record)).items() if k not in ("seconds", "provenance", "resumed")}


# --- what is submitted ---


def test_the_trainings_are_one_job_array_with_the_settings(write: Write, slurm: Slurm) -> None:
    lines = list[str]()
    jobs = submit(write(), lines.append, partition="gpu", gpus_per_node=1, timeout_min=90, array_parallelism=5, qos="low")
    assert [str(job) for job in jobs] == ["baseline, seed 0: queued (job 7_0)", "byot, seed 0: queued (job 7_1)"]
    (script,) = slurm.scripts
    settings = {"partition=gpu", "gpus-per-node=1", "time=90", "array=0-1%2", "qos=low", "requeue", "job-name=corsd-mine"}
    assert settings <= {line.removeprefix("#SBATCH --") for line in script.splitlines()}
    assert lines[0] == "trainings submitted: 2, job 7_0 to 7_1; files of the jobs are in runs/mine/_jobs"
    assert lines[1] == "the jobs continue; scancel ends them; run the same command again to record the finished ones"
    assert read_json(Path("runs/mine/byot/seed0.job")) == {"executor": "slurm", "job": "7_1"}


def test_a_training_that_is_queued_running_or_locked_is_not_submitted_again(write: Write, slurm: Slurm) -> None:
    study = write("baseline", "byot", "dks")
    submit(study)
    slurm.queue.write_text("7_0 PENDING\n7_1 RUNNING\n9 RUNNING\n")
    with locked(Path("runs/mine/dks/seed0.log")):  # its job has started, and the queue is old
        assert states(submit(study)) == ["queued", "running", "running"]
    assert len(slurm.scripts) == 1
    slurm.queue.write_text("7_1 RUNNING\n")
    assert states(submit(study)) == ["queued", "running", "queued"]
    assert len(slurm.scripts) == 2 and "array=0-1%2" in slurm.scripts[1]


def test_a_training_of_another_process_is_not_submitted(write: Write, slurm: Slurm) -> None:
    with locked(Path("runs/mine/baseline/seed0.log")):
        assert states(submit(write("baseline"))) == ["elsewhere"]
    assert slurm.scripts == []


def test_jobs_of_another_cluster_are_not_looked_for(write: Write, slurm: Slurm) -> None:
    write_json(Path("runs/mine/baseline/seed0.job"), {"executor": "local", "job": "9"})
    slurm.queue.write_text("9 RUNNING\n")
    submit(write("baseline"))
    assert len(slurm.scripts) == 1 and "--array" not in slurm.scripts[0]
    write_json(Path("runs/mine/baseline/seed0.job"), ["9"])
    with pytest.raises(CorsdError, match=r"^runs/mine/baseline/seed0\.job lacks the executor or the job; remove it$"):
        submit(write("baseline"))


def test_finished_runs_are_recorded_by_the_next_call(write: Write, slurm: Slurm) -> None:
    study, lines = write(), list[str]()
    for job in submit(study):
        train(job.config, progress=False)
    assert states(submit(study, lines.append)) == ["done", "done"] and len(slurm.scripts) == 1
    assert lines == ["baseline, seed 0: done", "byot, seed 0: done"]
    whole = train(replace(study.config("byot", 0), out="whole"), progress=False)
    record = study.record("byot", 0)
    assert record is not None and figures_of(record) == figures_of(make_record(whole, "byot", 0))
    assert (study.path / "table.md").is_file()


def test_a_finished_run_of_another_configuration_is_not_recorded(write: Write, slurm: Slurm) -> None:
    (job,) = submit(write("baseline"))
    train(job.config, progress=False)
    (job,) = submit(write("baseline", lr=0.1))
    assert job.state == "failed" and "contains a run of another configuration: lr was 0.05, is 0.1" in job.error
    assert not Path("results/mine/records").exists()


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"partitions": "gpu"}, r"slurm setting partitions = 'gpu': Unknown argument 'partitions' .* Valid arguments: .*qos"),
        *(
            ({"timeout_min": value}, rf"slurm setting timeout_min = {value!r}; allowed: a whole number from 1 to 10000000$")
            for value in (0, -5, "x", "1:00:00", 1.5, True)
        ),
        ({"cpus_per_task": 0}, "slurm setting cpus_per_task = 0; allowed: a whole number from 1 to 1000000$"),
        ({"gpus_per_node": -1}, "slurm setting gpus_per_node = -1; allowed: a whole number from 0 to 1000000$"),
        *(({"mem_gb": value}, rf"slurm setting mem_gb = {value!r}; allowed: a number") for value in (-1, 0, "1GB")),
        *(({"array_parallelism": value}, f"slurm setting array_parallelism = {value!r}; allowed") for value in (0, "x")),
        *(({"partition": value}, "slurm setting partition = .*; allowed: a string that is not empty$") for value in ("", [1])),
        ({"setup": 1}, "slurm setting setup = 1; allowed: a list$"),
        ({"setup": [1]}, r"slurm setting setup\[0\] = 1; allowed: a string$"),
        ({"stderr_to_stdout": 1}, "slurm setting stderr_to_stdout = 1; allowed: True, False$"),
        ({"": 3}, "slurm setting '' = 3; allowed: a name and a value, as in partition=gpu$"),
        ({"nodes": 2}, "slurm setting nodes is fixed: a training is one task on one node"),
        ({"time": 5}, "slurm setting time is not allowed; set timeout_min"),
        ({"signal_delay_s": "9"}, "slurm setting signal_delay_s = '9'; allowed: 10 to 86,400 seconds"),
        ({"additional_parameters": "x"}, "slurm setting additional_parameters = 'x'; allowed: a JSON object$"),
        ({"additional_parameters": [1]}, r"slurm setting additional_parameters = \[1\]; allowed: a JSON object$"),
    ],
)
def test_a_wrong_setting_is_one_error(write: Write, slurm: Slurm, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CorsdError, match=message) as error:
        submit(write(), **settings)
    assert "\n" not in str(error.value) and slurm.scripts == []


def test_settings_are_checked_before_slurm_is_looked_for(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CorsdError, match="slurm setting mem_gb = -1; allowed: a number"):
        submit(write(), mem_gb=-1)
    with pytest.raises(CorsdError, match="slurm setting nodes is fixed"):
        submit(write(), nodes=2)


def test_settings_are_checked_if_nothing_is_left_to_train(write: Write, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write("baseline")
    monkeypatch.setattr(Study, "jobs", lambda study: [])
    with pytest.raises(CorsdError, match="slurm setting foo = 1: Unknown argument"):
        submit(study, foo=1)
    assert submit(study, account=12) == [] and not Path("runs").exists()


def test_a_setting_may_be_a_number_or_none(write: Write, slurm: Slurm) -> None:
    submit(write(), account=12, mem_gb=0.5, qos=None, additional_parameters=None, exclusive=True, setup=["true"])
    lines = {line.removeprefix("#SBATCH --") for line in slurm.scripts[0].splitlines()}
    assert {"account=12", "mem=512MB", "requeue", "exclusive", "true"} <= lines


@pytest.mark.parametrize("line", ["oneword", "slurm_load_jobs error: Unable to contact", "7_0 PENDING extra", "\\377\\376"])
def test_an_unexpected_line_of_squeue_is_one_error(write: Write, slurm: Slurm, line: str) -> None:
    slurm.command("squeue", f"printf '7_0 PENDING\\n{line}\\n'")
    with pytest.raises(
        CorsdError, match=r"^the answer of Slurm to squeue has the line '.*'; expected: a line like 7_0 RUNNING$"
    ):
        submit(write())


def test_an_unexpected_line_of_squeue_does_not_end_a_wait(write: Write, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write("baseline")
    config = replace(study.config("baseline", 0), out="runs/mine/baseline/seed0")
    said = iter(["", "oneword\n", "7 RUNNING\n", "oneword\n", "", ""])

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        line = next(said)
        if "RUNNING" in line:
            train(config, progress=False)
        return subprocess.CompletedProcess(command, 0, line, "")

    monkeypatch.setattr(cluster, "subprocess", SimpleNamespace(run=run, SubprocessError=subprocess.SubprocessError))
    (job,) = run_study(study, cluster=Cluster("slurm"))
    assert job.state == "done"


def test_local_jobs_check_the_names_of_settings(write: Write) -> None:
    with pytest.raises(CorsdError, match="slurm setting partitions = 'gpu': Unknown argument 'partitions'"):
        run_study(write(), cluster=Cluster("local", {"partition": "gpu", "partitions": "gpu"}))


def test_what_a_cluster_cannot_do_is_one_error(write: Write, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorsdError, match="executor 'pbs' is not known; allowed: slurm, local"):
        run_study(write(), cluster=Cluster("pbs"))
    with pytest.raises(CorsdError, match="jobs = 3 has no meaning on a cluster; set the slurm setting array_parallelism"):
        run_study(write(), jobs=3, cluster=Cluster("slurm"))
    with pytest.raises(CorsdError, match="variant 'baseline': num_nodes = 2; allowed as a job of a study: 1"):
        submit(write(num_nodes=2))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(CorsdError, match="jobs = 9 is more than this machine can run"):
        names = ["baseline", "byot", "dks", "dist", "rkd", "corsd", "bake", "dlb", "mixup"]
        run_study(write(*names), cluster=Cluster("local"))


def test_what_slurm_says_is_passed_on(write: Write, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.command("sbatch", "echo sbatch: error: invalid partition specified: x >&2; exit 1")
    with pytest.raises(CorsdError, match=r"^slurm did not accept the jobs: sbatch: error: invalid partition specified: x$"):
        submit(write())
    slurm.queue.unlink()
    with pytest.raises(CorsdError, match=r"^Slurm gave no answer to squeue: cat: .*queue"):
        submit(write())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CorsdError, match="executor 'slurm' is not available here: Could not detect \"srun\""):
        submit(write())


def test_submitit_is_an_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    message = r"^executor 'slurm' needs submitit, which is not installed: pip install 'corsd_lib\[cluster\]'$"
    with pytest.raises(MissingPackage, match=message):
        submit(write())


# --- waiting ---


def answers(monkeypatch: pytest.MonkeyPatch, *steps: Any) -> None:
    """What squeue answers, one after the other: a dict of states, or a function that is called first and may raise."""
    left = iter(steps)

    def answer() -> dict[str, str]:
        step = next(left)
        return (step() or {}) if callable(step) else step

    monkeypatch.setattr(cluster, "_slurm_states", answer)


def no_answer() -> None:
    raise CorsdError("Slurm does not answer")


def test_jobs_are_recorded_when_they_are_finished(write: Write, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    study, lines = write("baseline"), list[str]()
    config = replace(study.config("baseline", 0), out="runs/mine/baseline/seed0")
    queue: list[Any] = [{}, {"7": "PENDING"}, no_answer, {"7": "RUNNING"}, {}]  # and {} again: the files appear late
    answers(monkeypatch, *queue, lambda: train(config, progress=False) and None)
    (job,) = run_study(study, cluster=Cluster("slurm"), report=lines.append)
    assert job.state == "done" and lines[1:] == ["baseline, seed 0: done; 1 of 1 done"]
    assert study.record("baseline", 0) is not None and (study.path / "table.md").is_file()


@pytest.mark.parametrize(
    "log,state,error",
    [
        ("x\ncorsd: error: training diverged\n", "failed", "training diverged"),
        ("", "failed", "it ended without a result"),
        ("stopped; continue with: corsd train\n", "stopped", ""),
        ("stopped before the first step\n", "stopped", ""),
    ],
)
def test_a_job_that_ends_without_a_result_has_failed_or_was_stopped(
    write: Write, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, log: str, state: str, error: str
) -> None:
    answers(monkeypatch, {}, {"7": "RUNNING"}, lambda: Path("runs/mine/baseline/seed0.log").write_text(log) and None, {})
    (job,) = run_study(write("baseline"), cluster=Cluster("slurm"), report=lambda line: None)
    assert job.state == state
    files = "runs/mine/baseline/seed0.log and runs/mine/_jobs/7_0_log.err"
    assert job.error == (f"{error} (see {files})" if error else "")


def test_a_signal_ends_the_wait_and_the_jobs_go_on(write: Write, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list[str]()

    def interrupted() -> dict[str, str]:
        signal.raise_signal(signal.SIGTERM)
        return {"7": "RUNNING"}

    answers(monkeypatch, {}, {"7": "PENDING"}, interrupted)
    (job,) = run_study(write("baseline"), cluster=Cluster("slurm"), report=lines.append)
    assert job.state == "running" and lines[-1].startswith("the jobs continue; scancel ends them; ")


def test_runs_that_are_moved_end_the_wait(write: Write, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, {}, lambda: os.rename("runs/mine", "runs/moved"), {})
    with pytest.raises(CorsdError, match=r"^runs/mine was moved or removed"):
        run_study(write("baseline"), cluster=Cluster("slurm"), report=lambda line: None)


# --- the command ---


def test_the_command_submits_and_records_later(write: Write, slurm: Slurm, capsys: Captured) -> None:
    study = write()
    command = ["compare", "results/mine", "--executor", "slurm", "--slurm", "partition=gpu", "mem_gb=8", "--no-wait"]
    cli.main(command)
    out, err = capsys.readouterr()
    assert "trainings submitted: 2, job 7_0 to 7_1; " in out and err.startswith("baseline, seed 0: queued (job 7_0)\n")
    assert "#SBATCH --partition=gpu" in slurm.scripts[0] and "#SBATCH --mem=8GB" in slurm.scripts[0]
    slurm.queue.write_text("7_1 RUNNING\n")
    train(replace(study.config("baseline", 0), out="runs/mine/baseline/seed0"), progress=False)
    cli.main(command)
    out, err = capsys.readouterr()
    assert "| baseline | 1 |" in out and err.startswith("byot, seed 0: running (job 7_1)\n") and len(slurm.scripts) == 1


@pytest.mark.parametrize("words", [["--slurm", "partition=x"], ["--no-wait"]])
def test_options_of_a_cluster_need_one(write: Write, capsys: Captured, words: list[str]) -> None:
    write()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", "results/mine", *words])
    said = f"corsd: error: {words[0]} needs --executor slurm or --executor local\n"
    assert capsys.readouterr().err == said


# --- in the job ---


@pytest.fixture
def program(write: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], TrainingJob]]:
    """A job whose training is a small program instead."""
    before = signal.getsignal(signal.SIGTERM)
    study = write("baseline")

    def make(text: str) -> TrainingJob:
        def training(config: Path, log: int, place: dict[str, str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-c", text], stdout=log, stderr=log)

        monkeypatch.setattr(workers, "_training", training)
        monkeypatch.setattr(cluster_job, "POLL_SECONDS", 0.01)
        return TrainingJob(Job("baseline", 0, replace(study.config("baseline", 0), resume=True)), {}, 60)

    yield make
    signal.signal(signal.SIGTERM, before)


LOG = Path("runs/mine/baseline/seed0.log")


def test_a_training_in_a_job_does_not_get_the_signals_of_slurm(program: Callable[[str], TrainingJob]) -> None:
    text = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); os.kill(os.getpid(), signal.SIGUSR1); print('trained')"
    program(text)()
    assert LOG.read_text() == "trained\n" and not is_locked(LOG)
    assert read_json(LOG.with_suffix(".json"))["resume"] is True
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_failure_of_a_training_is_that_of_its_job(program: Callable[[str], TrainingJob]) -> None:
    with pytest.raises(CorsdError, match=r"^baseline, seed 0: no memory$"):
        program("import sys; sys.exit('corsd: error: no memory')")()
    with pytest.raises(CorsdError, match=r"^baseline, seed 0: it was killed by signal 9, as when memory runs out$"):
        program("import os; os.kill(os.getpid(), 9)")()
    assert LOG.read_text() == "corsd: error: it was killed by signal 9, as when memory runs out\n"
    program("import os; os.kill(os.getpid(), 15)")()
    assert LOG.read_text() == "stopped before the first step\n"


def test_a_job_leaves_a_training_of_another_process_alone(
    program: Callable[[str], TrainingJob], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(cluster_job, "LOCK_SECONDS", 0)
    call = program("print('trained')")
    with locked(LOG):
        call()
    assert LOG.read_text() == "" and f"{LOG} is in use by another process" in capsys.readouterr().out


WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: {})
print("ready", flush=True)
time.sleep(600)
"""


def when(condition: Callable[[], bool], act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do `act` once in a look at the training, when the condition holds."""
    pause, acted = time.sleep, list[bool]()

    def sleep(seconds: float) -> None:
        pause(seconds)
        if condition() and not acted:
            acted.append(True)
            act()

    monkeypatch.setattr(cluster_job.time, "sleep", sleep)


def test_a_job_passes_sigterm_on(program: Callable[[str], TrainingJob], monkeypatch: pytest.MonkeyPatch) -> None:
    call = program(WAITS.format("(print('saved', flush=True), sys.exit(0))"))
    when(lambda: "ready" in LOG.read_text(), lambda: signal.raise_signal(signal.SIGTERM), monkeypatch)
    call()
    assert "".join(LOG.read_text().split()) == "readysaved"  # two processes may write before each other's newline


@pytest.mark.parametrize("saves", [True, False])
def test_a_preempted_job_lets_its_training_save_and_goes_on_as_a_new_one(
    program: Callable[[str], TrainingJob], monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    call, later = program(WAITS.format("sys.exit(0)" if saves else "None")), list[Any]()
    call.save_seconds = 60 if saves else 0.1
    when(lambda: "ready" in LOG.read_text(), lambda: later.append(call.checkpoint()), monkeypatch)
    if saves:
        call()
    else:
        with pytest.raises(CorsdError, match="killed by signal 9"):  # in a job the process ends before
            call()
    again = later[0].function
    assert again.job.process is None and again.job.state == "waiting" and again.job.config == call.job.config
    assert not is_locked(LOG)


def test_the_threads_of_a_job_are_the_cpus_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert slurm_environment(1) == {"OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "8"}
    assert slurm_environment(2) == {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4", "SLURM_JOB_NAME": "interactive"}
    monkeypatch.delenv("SLURM_CPUS_ON_NODE")
    assert slurm_environment(4)["OMP_NUM_THREADS"] == "1"


def test_signals_are_blocked_in_the_context_only() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with blocked(signal.SIGUSR1):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before | {signal.SIGUSR1}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


# --- real jobs ---


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def assert_trained_as_in_one_go(study: Study, *variants: str) -> None:
    """The record and the weights are those of a training here that nothing interrupts."""
    for variant in variants:
        record, whole = (
            study.record(variant, 0),
            train(replace(study.config(variant, 0), out=f"whole/{variant}"), progress=False),
        )
        assert record is not None and figures_of(record) == figures_of(make_record(whole, variant, 0))
        weights = Path(f"runs/mine/{variant}/seed0/weights.safetensors").read_bytes()
        assert weights == (whole.path / "weights.safetensors").read_bytes()


def compare(*words: str, output: Any) -> subprocess.Popen[str]:
    """`corsd compare results/mine`, in a process group of its own, as a terminal gives it."""
    command = [sys.executable, "-m", "corsd_lib", "compare", "results/mine", *words]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=output,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:1])),  # one thread each
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the number of threads is to be the same in both studies")
def test_local_jobs_outlive_ctrl_c_resume_after_a_preemption_and_train_what_the_pool_trains(
    write: Write, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, output = write("held_baseline", "held_byot", epochs=2), Path("output.txt")

    def waiting() -> list[Path]:
        return list(held.parent.glob("held-*"))

    with output.open("w") as file:
        process = compare("--executor", "local", output=file)
        wait_until(lambda: len(waiting()) == 2 or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(300) == 1, output.read_text()
    said = output.read_text()
    assert "trainings submitted: 2, job " in said
    assert "the jobs continue; run the same command again to record the finished ones" in said
    assert "baseline, seed 0: running (job " in said

    training = int(waiting()[0].name.removeprefix("held-"))
    for number in (training, parent_of(training)):  # Slurm sends it to all processes of a job
        os.kill(number, signal.SIGUSR2)
    wait_until(lambda: len(waiting()) == 3)  # the job was requeued, and the training has resumed
    held.touch()
    lines = list[str]()
    monkeypatch.setitem(cluster.POLL_SECONDS, "local", 0.1)
    assert states(run_study(study, cluster=Cluster("local"), report=lines.append)) == ["done", "done"]
    assert "submitted" not in "".join(lines)  # this process waited for the jobs of the other one
    assert_trained_as_in_one_go(study, "baseline", "byot")
    logs = "".join(file.read_text() for file in Path("runs/mine/_jobs").glob("*_log.out"))
    assert logs.count("Calling checkpoint method") == 1 and logs.count("Requeued job") == 1


def slurm_answers() -> bool:
    return shutil.which("sinfo") is not None and subprocess.run(["sinfo", "-h"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not slurm_answers(), reason="NO SLURM: sinfo does not answer, nothing was tried on a real one")
def test_jobs_of_a_real_slurm_are_requeued_resume_and_train_what_the_pool_trains(
    write: Write, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job is requeued by Slurm, at SIGTERM; the other by submitit, at the signal before the time limit."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]))
    study = write("held_baseline", "held_byot", epochs=2)
    monkeypatch.setitem(cluster.POLL_SECONDS, "slurm", 1.0)
    jobs = submit(study, cpus_per_task=1, array_parallelism=2)
    assert states(jobs) == ["queued", "queued"]

    def begun(count: int) -> Callable[[], bool]:
        return lambda: len(list(held.parent.glob("held-*"))) >= count

    try:
        wait_until(begun(2))
        assert states(submit(study)) == ["running", "running"]
        subprocess.run(["scontrol", "requeue", jobs[0].id], check=True)
        subprocess.run(["scancel", "--signal", "USR2", jobs[1].id], check=True)
        wait_until(begun(4))
        for job in jobs:
            log, metrics = job.sibling(".log").read_text(), (job.config.path / "metrics.jsonl").read_text()
            assert log == "" and metrics.count("\n") == 1, job  # it was resumed after its first epoch
        held.touch()
        assert states(run_study(study, cluster=Cluster("slurm"), report=lambda line: None)) == ["done", "done"]
    finally:
        subprocess.run(["scancel", *(job.id for job in jobs)], check=False)
    assert_trained_as_in_one_go(study, "baseline", "byot")
