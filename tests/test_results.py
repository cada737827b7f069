"""Every committed run is whole, small, and worth what its record says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from corsd_lib import cli, load_run
from corsd_lib.costs import training_macs
from corsd_lib.files import read_tensors
from corsd_lib.runs import PLACE_FIELDS, PROBE_FIELDS, DataInfo, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
RUNS = sorted(path for path in RESULTS.glob("*/runs/*") if path.is_dir())
MEGABYTE = 1_000_000
ALL_RUNS, ONE_RUN, ALL_ELSE = 17 * MEGABYTE, 4 * MEGABYTE, 4 * MEGABYTE
FILES_OF_A_RUN = re.compile(
    r"README\.md|(config|test)\.json|metrics\.jsonl|(weights|probe|probes/epoch_\d{4}|embeddings/umap-\w+)\.safetensors"
)
WHERE = {"cifar10": "cifar10.npz", "cifar100": "cifar100.npz", "cub200": "CUB_200_2011"}  # below $CORSD_DATA


def _parameters(paths: list[Path]) -> list[object]:
    """One test a path; where there is none, one that says so."""
    none = pytest.param(None, marks=pytest.mark.skip(reason="no run is committed under results/*/runs"), id="none")
    return [pytest.param(path, id=f"{path.parts[-3]}/{path.name}") for path in paths] or [none]


every_run = pytest.mark.parametrize("path", _parameters(RUNS))


def _committed(folder: Path) -> list[Path]:
    """Files below `folder`, without those that git ignores: what a report or an explorer has computed lies beside the runs."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", str(folder)]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True) if (ROOT / ".git").exists() else None
    if listed is None or listed.returncode:  # a source archive has no history
        return [file for file in folder.rglob("*") if file.is_file()]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in _committed(folder))


@every_run
def test_a_committed_run_is_an_export_and_nothing_else(path: Path) -> None:
    names = [file.relative_to(path).as_posix() for file in _committed(path)]
    assert names and [name for name in names if not FILES_OF_A_RUN.fullmatch(name)] == []
    assert "exported" in json.loads((path / "config.json").read_text())
    run = load_run(path)
    assert run.finished and run.epochs_done == run.config.epochs and run.config.data_root is None is run.config.out


@every_run
def test_a_committed_run_is_small(path: Path) -> None:
    assert _size(path) < ONE_RUN


@every_run
def test_a_committed_run_loads_and_its_network_and_method_work(path: Path) -> None:
    run = load_run(path)
    network, test = run.network(), run.test
    assert test is not None and test["split"] == "test"
    images = torch.randn(2, run.data.channels, run.data.image_size, run.data.image_size)
    with torch.no_grad():
        logits = network(images).logits
    assert [z.shape for z in logits] == [(2, run.data.num_classes)] * len(test["exits"])
    assert all(z.isfinite().all() for z in logits)
    assert not run.method().training


@every_run
def test_snapshots_of_a_committed_run_agree_with_its_probe_set_and_hold_no_image(path: Path) -> None:
    run = load_run(path)
    probes, classes, images = run.probes, run.data.num_classes, len(run.probes.labels)
    assert min(probes) == 0 and max(probes) == run.config.epochs and probes.index.shape == (images,)
    assert torch.bincount(probes.labels, minlength=classes).min() >= 2
    for snapshot in probes.values():
        for values in (*snapshot.embeddings, *snapshot.logits):
            assert values.shape[0] == images and values.ndim == 2 and values.isfinite().all()
        for relation in snapshot.relations:
            assert relation.shape == (classes, classes) and 0 <= relation.min() <= relation.max() <= 1
    known = re.compile(r"(embeddings|logits|relations)\.\d|method\.relations\..+|labels|index")
    for file in [path / "probe.safetensors", *path.glob("probes/*")]:
        assert [name for name in read_tensors(file)[0] if not known.fullmatch(name)] == []


@every_run
def test_the_card_of_a_committed_run_has_its_figures(path: Path) -> None:
    test = load_run(path).test
    assert test is not None
    _, front, body = (path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["license_name"] == "terms-of-the-images" and card["library_name"] == "corsd"
    figures = [metric["value"] for metric in card["model-index"][0]["results"][0]["metrics"]]
    assert figures == [round(row["top1"], 2) for row in test["exits"]]
    for k, row in enumerate(test["exits"], 1):
        assert f"| exit {k} | {row['top1']:.2f} |" in body


@every_run
def test_no_text_of_a_committed_run_names_a_place_on_a_machine(path: Path) -> None:
    for file in path.rglob("*"):
        if file.suffix in (".md", ".json", ".jsonl"):
            assert not re.search(r"(?<![\w/:.])/(?!/)\w+/|[A-Z]:\\|~/", file.read_text(encoding="utf-8")), file.name


def test_the_run_of_the_wheel_is_trained_as_the_text_says_and_is_that_of_its_record() -> None:
    run = load_run(RESULTS / "digits" / "runs" / "corsd")
    text = (RESULTS / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^corsd (train --data digits .*)$", text, re.MULTILINE)
    given = vars(cli._parser().parse_args(shlex.split(command)))
    asked = {name: value for name, value in given.items() if name in run.raw_config and name not in PLACE_FIELDS}
    assert len(asked) == 9 and asked.items() <= run.raw_config.items()
    record = json.loads((RESULTS / "digits" / "records" / "corsd-s0.json").read_text())
    assert run.test is not None
    assert [row["top1"] for row in run.test["trained"]["exits"]] == [row["top1"] for row in record["test"]["exits"]]
    options = record["config"].pop("method_options")  # of an earlier version, which had fewer
    assert options.items() <= run.raw_config["method_options"].items()
    assert {
        k: v for k, v in record["config"].items() if k not in (*PLACE_FIELDS, *PROBE_FIELDS) and run.raw_config[k] != v
    } == {}


def test_all_results_are_small() -> None:
    runs = sum(_size(path) for path in RUNS)
    assert runs < ALL_RUNS and _size(RESULTS) - runs < ALL_ELSE


def test_pictures_are_figures_that_a_text_shows() -> None:
    documents = [*ROOT.glob("*.md"), *RESULTS.rglob("*.md")]
    shown = {
        (document.parent / address).resolve()
        for document in documents
        for address in re.findall(r"""(?:src="|\]\()([^")#\s]+)""", document.read_text(encoding="utf-8"))
    }
    for file in RESULTS.rglob("*"):
        if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".svg", ".npz", ".npy", ".pt"):
            assert file.suffix == ".png" and file.resolve() in shown, file


@pytest.mark.slow
@pytest.mark.parametrize("study", sorted(path.parent.name for path in RESULTS.glob("*/study.json")))
def test_the_macs_of_records_are_those_of_their_configurations(study: str) -> None:
    train = json.loads((RESULTS / study / "study.json").read_text())["train"]
    classes, channels, side = {"cifar100": (100, 3, 32), "cub200": (200, 3, 64), "digits": (10, 1, 8), "shapes": (16, 3, 32)}[
        train["data"]
    ]
    classes -= train.get("hold_out_classes", 0)
    info = DataInfo(study, tuple(map(str, range(classes))), (), (), (0.5,) * channels, (0.5,) * channels, side)
    counted: dict[str, float] = {}
    for file in sorted((RESULTS / study / "records").glob("*.json")):
        record = json.loads(file.read_text())
        config = {**record["config"], "seed": 0}  # no seed changes the count
        key = json.dumps(config, sort_keys=True)
        if key not in counted:
            counted[key] = training_macs(TrainConfig.from_dict(config, file.name), info)
        assert record["macs"] == round(record["images"] * counted[key]), file.name


@pytest.mark.slow
@every_run
def test_evaluate_gives_the_recorded_figures_again(
    path: Path, read_once: None, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(path)
    words = ["evaluate", str(path), "--json"]
    if run.config.data not in ("digits", "shapes"):  # which are embedded
        root: Path = request.getfixturevalue("data_root")
        if not (root / WHERE[run.config.data]).exists():
            pytest.skip(f"needs {WHERE[run.config.data]} in $CORSD_DATA, which is {root}")
        words += ["--data-root", str(root)]
    cli.main(words)
    now = json.loads(capsys.readouterr().out)
    assert run.test is not None and now["images"] == run.test["images"]
    recorded = [*run.test["exits"], run.test["ensemble"]]
    for here, there in zip([*now["exits"], now["ensemble"]], recorded, strict=True):
        assert [here[key] for key in ("top1", "top5")] == [there[key] for key in ("top1", "top5")]
        for key in ("cross_entropy", "calibration_error"):  # sums, which other threads round otherwise
            assert here[key] == pytest.approx(there[key], rel=1e-3)


def _gpu_script(tmp_path: Path, *arguments: str, **stubs: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of gpu.sh with programs of these names replaced by shell lines; what `timeout` gets goes to calls.txt."""
    (tmp_path / "results").mkdir(exist_ok=True)
    shutil.copy(RESULTS / "gpu.sh", tmp_path / "results")
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name, line in {"python": "exit 0", "timeout": 'echo "$@" >>calls.txt', **stubs}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(tmp_path / "results" / "gpu.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_gpu_script_tests_first_and_ends_in_its_time(tmp_path: Path) -> None:
    assert _gpu_script(tmp_path, "20").returncode == 0
    calls = [line.split() for line in (tmp_path / "calls.txt").read_text().splitlines()]
    assert [call[3:] for call in calls] == [
        ["python", "-m", "pytest", "-q", "tests/test_cuda.py"],
        ["corsd", "compare", "results/gpu_speed", "--jobs", "1"],
        ["corsd", "compare", "results/gpu", "--jobs", "6"],
    ]
    assert all(call[:2] == ["--signal=TERM", "--kill-after=15"] and 1100 < int(call[2]) <= 1180 for call in calls)
    (tmp_path / "calls.txt").unlink()
    over = _gpu_script(tmp_path, timeout='echo "$@" >>calls.txt; exit 124')  # the tests have passed before
    assert (over.returncode, over.stdout) == (0, "the time is over; run again to go on\n")
    assert "gpu_speed" in (tmp_path / "calls.txt").read_text() and "test_cuda" not in (tmp_path / "calls.txt").read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "arguments,stubs,message",
    [
        (["0"], {}, "MINUTES is '0'; allowed: a whole number from 1 to 9999\n"),
        (["1h"], {}, "MINUTES is '1h'; allowed: a whole number from 1 to 9999\n"),
        ([], {"python": "exit 1"}, "PyTorch finds no CUDA GPU\n"),
    ],
)
def test_the_gpu_script_refuses_in_one_line(tmp_path: Path, arguments: list[str], stubs: dict[str, str], message: str) -> None:
    refused = _gpu_script(tmp_path, *arguments, **stubs)
    assert (refused.returncode, refused.stderr) == (2, message) and not (tmp_path / "calls.txt").exists()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_gpu_script_passes_on_a_failure(tmp_path: Path) -> None:
    assert _gpu_script(tmp_path, timeout="exit 3").returncode == 3
    assert not (tmp_path / "build" / "gpu_tests_passed").exists()
