"""Programs for deployment: they compute what the network computes, and their folder says how to use them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from corsd_lib import cli, export_model
from corsd_lib.errors import CorsdError, MissingPackage
from corsd_lib.files import read_json, with_checksum, write_json
from corsd_lib.network import build_network
from corsd_lib.runs import Run, TrainConfig, load_run
from corsd_lib.sharing import programs
from corsd_lib.sharing.programs import FORMATS, Format, chain, single
from corsd_lib.training import train

DOCS = (Path(__file__).parents[1] / "docs" / "README.md").read_text(encoding="utf-8")
NETWORKS = [("resnet8", 1, 8), ("resnet10", 3, 32), ("wrn16_2", 3, 16)]


@pytest.fixture(scope="module")
def folder(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as a program for each exit, in the format that needs no package. Read only."""
    return export_model(tiny_run, tmp_path_factory.mktemp("deploy") / "model", format="torch.export")


@pytest.fixture(scope="module")
def onnx_folder(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in FORMATS["onnx"].packages:
        pytest.importorskip(package, reason=f"needs {package} of the extra deploy")
    return export_model(tiny_run, tmp_path_factory.mktemp("deploy") / "model")


def _images(run: Run, count: int) -> torch.Tensor:
    data = run.data
    return torch.randn(count, data.channels, data.image_size, data.image_size)


def _check_folder(folder: Path, run: Run) -> None:
    """Its programs in turn give the logits of every exit for batches of several sizes."""
    about = read_json(folder / "model.json")
    read = FORMATS[about["format"]].read
    calls = [read((folder / program["file"]).read_bytes()) for program in about["programs"]]
    network = run.network()
    for count in (1, 2, 5):
        given = _images(run, count)
        with torch.no_grad():
            wanted = network(given).logits
            for call, program in zip(calls, about["programs"], strict=True):
                logits, *rest = call(given)
                torch.testing.assert_close(logits, wanted[program["exit"] - 1], rtol=1e-4, atol=1e-5)
                given = rest[0] if rest else given
        assert not rest and program["exit"] == len(wanted)


# --- what is written ---


@pytest.mark.slow
def test_the_programs_of_torch_give_every_exit(folder: Path, tiny_run: Run) -> None:
    _check_folder(folder, tiny_run)


@pytest.mark.slow
def test_the_programs_of_onnx_give_every_exit(onnx_folder: Path, tiny_run: Run) -> None:
    _check_folder(onnx_folder, tiny_run)


@pytest.mark.slow
def test_model_json_says_how_to_use_it(folder: Path, tiny_run: Run) -> None:
    about = read_json(folder / "model.json")
    assert about["class_names"] == list(tiny_run.data.class_names) and about["data"] == "digits"
    assert about["normalisation"] == {
        "pixels": "in [0, 1]",
        "mean": list(tiny_run.data.mean),
        "std": list(tiny_run.data.std),
    }
    assert (about["channels"], about["image_size"], about["epochs"]) == (1, 8, 2)
    assert about["versions"]["torch"] and about["trained"]["revision"] == tiny_run.provenance["revision"]
    assert 0 <= about["largest_difference"] < 1e-4
    listed = [(p["file"], p["exit"], p["input"], p["outputs"]) for p in about["programs"]]
    assert listed == [
        ("stage1.pt2", 1, "images", ["logits", "feature"]),
        ("stage2.pt2", 2, "previous", ["logits", "feature"]),
        ("stage3.pt2", 3, "previous", ["logits"]),
    ]
    assert sorted(f.name for f in folder.iterdir()) == ["model.json", *(name for name, *_ in listed)]
    for program in about["programs"]:
        assert program["sha256"] == hashlib.sha256((folder / program["file"]).read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_programs_of_torch_hold_no_pickled_weights_and_no_path_of_this_machine(folder: Path) -> None:
    for file in folder.glob("*.pt2"):
        with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
            texts = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".json")}
        (weights,) = [json.loads(text) for name, text in texts.items() if name.endswith("weights_config.json")]
        assert weights["config"] and not any(entry["use_pickle"] for entry in weights["config"].values())
        assert not any("site-packages" in text or str(Path.cwd()) in text for text in texts.values())


def test_a_torch_that_would_pickle_the_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(exported: object, buffer: io.BytesIO) -> None:  # as torch 2.5 does
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("serialized_state_dict.pt", b"a pickle")

    monkeypatch.setattr(torch.export, "export", lambda *_, **__: SimpleNamespace(graph_module=torch.nn.Identity()))
    monkeypatch.setattr(torch.export, "save", save)
    program = SimpleNamespace(module=torch.nn.Identity())
    with pytest.raises(CorsdError, match=r"^torch \S+ stores the weights of a program as a pickle: install a newer one$"):
        FORMATS["torch.export"].write(program, torch.zeros(1))


@pytest.mark.slow
def test_the_programs_of_onnx_have_no_path_of_this_machine(onnx_folder: Path) -> None:
    for file in onnx_folder.glob("*.onnx"):
        assert b"site-packages" not in file.read_bytes() and str(Path.cwd()).encode() not in file.read_bytes()


@pytest.mark.parametrize("name,channels,side", NETWORKS)
def test_the_parts_of_a_network_are_the_network(name: str, channels: int, side: int) -> None:
    network = build_network(name, 5, width=4, in_channels=channels, image_size=side).eval()
    images = given = torch.randn(2, channels, side, side)
    with torch.no_grad():
        wanted = network(images).logits
        for k, program in enumerate(chain(network)):
            (alone,) = single(network, k + 1)[0].module(images)
            logits, *rest = program.module(given)
            assert torch.equal(logits, wanted[k]) and torch.equal(alone, wanted[k])
            given = rest[0] if rest else given
    assert not rest


def test_a_network_with_one_exit_is_one_program() -> None:
    network = build_network("resnet8", 5, width=4, in_channels=1, image_size=8, exits="deepest").eval()
    (program,) = chain(network)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert program.outputs == ("logits",) and torch.equal(program.module(images)[0], network(images).logits[0])


# --- what is replaced and what is not ---


@pytest.mark.slow
def test_another_export_replaces_the_folder_and_nothing_else_in_it(folder: Path, tiny_run: Run, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    export_model(tiny_run, tmp_path, format="torch.export", exit=1)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["exit1.pt2", "model.json", "notes.txt"]


def test_a_folder_with_other_content_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CorsdError, match=f"{tmp_path} exists and is not an exported model"):
        export_model(tiny_run, tmp_path, format="torch.export")
    write_json(tmp_path / "model.json", with_checksum({"kind": "something else"}))
    with pytest.raises(CorsdError, match="is not an exported model"):
        export_model(tiny_run, tmp_path, format="torch.export")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("shift", [0.01, float("nan")])
def test_logits_that_differ_leave_no_file(shift: float, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = tiny_run.network().truncated(0)
    wrong = Format(".pt2", (), lambda program, example: b"", lambda content: lambda given: (right(given) + shift,))
    monkeypatch.setitem(programs.FORMATS, "torch.export", wrong)
    with pytest.raises(CorsdError, match=r"exit1\.pt2: its logits differ from those of the network by (0\.01|nan)"):
        export_model(tiny_run, tmp_path / "model", format="torch.export", exit=1)
    assert not (tmp_path / "model").exists()


def test_a_program_that_does_not_run_leaves_no_file(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(content: bytes) -> Any:
        raise RuntimeError("Unsupported model IR version: 99\nmore about it")

    monkeypatch.setitem(programs.FORMATS, "torch.export", Format(".pt2", (), lambda program, example: b"", unreadable))
    with pytest.raises(CorsdError, match=r"^exit1\.pt2 was written but does not run: Unsupported model IR version: 99$"):
        export_model(tiny_run, tmp_path / "model", format="torch.export", exit=1)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"exit": 4}, "exit = 4; allowed: 1 to 3, or 'all'"),
        ({"exit": 0}, "exit = 0; allowed: 1 to 3, or 'all'"),
        ({"exit": "deepest"}, "exit = 'deepest'; allowed: 1 to 3, or 'all'"),
        ({"format": "tensorrt"}, "format 'tensorrt' is not known; allowed: torch.export, onnx"),
    ],
)
def test_bad_arguments_are_one_error(options: dict[str, Any], message: str, tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=re.escape(message)):
        export_model(tiny_run, tmp_path / "model", **{"format": "torch.export", **options})
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_what_a_format_cannot_write_is_one_error(tiny_run: Run) -> None:
    class Undecided(nn.Module):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return given if given.sum() > 0 else -given  # depends on values

    (program,) = single(tiny_run.network(), 1)
    with pytest.raises(CorsdError, match=r"exit1 cannot be written as \.pt2: "):
        FORMATS["torch.export"].convert(replace(program, module=Undecided()), _images(tiny_run, 2))


@pytest.mark.parametrize("package", FORMATS["onnx"].packages)
def test_a_missing_package_is_named(package: str, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FORMATS["onnx"].packages:
        monkeypatch.setitem(sys.modules, name, None if name == package else ModuleType(name))
    with pytest.raises(MissingPackage, match=rf"needs {package}, which is not installed: pip install 'corsd_lib\[deploy\]'"):
        export_model(tiny_run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_network_of_timm_is_exported_exit_by_exit(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    changes: dict[str, Any] = {"network": "timm:resnet10t", "width": None, "image_size": 32, "epochs": 1}
    run = train(tiny(**changes), progress=False)
    with pytest.raises(CorsdError, match="a network of timm cannot be cut into stages; allowed: the number of one exit"):
        export_model(run, tmp_path / "model", format="torch.export")
    export_model(run, tmp_path / "model", format="torch.export", exit=1)
    assert (tmp_path / "model" / "exit1.pt2").is_file()


# --- the command and the example ---


@pytest.mark.slow
def test_the_command_says_what_it_wrote(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    cli.main(["export-model", str(tiny_run.path), "--format", "torch.export", "--exit", "2", "--out", str(out)])
    program, about = capsys.readouterr().out.splitlines()
    assert program.startswith(f"{out / 'exit2.pt2'}: exit 2, ") and about.startswith(f"{out / 'model.json'}: logits differ")


@pytest.mark.slow
def test_the_example_of_serving_runs(
    onnx_folder: Path, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(load_run(tiny_run.path), tmp_path / "full", exit=3)
    (tmp_path / "model").symlink_to(onnx_folder)
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL) if "onnxruntime" in block]
    exec(code, {})
    full, early, first = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"full network: \d+\.\d+ ms an image, mean exit 3\.00", full)
    assert re.fullmatch(r"early exit: \d+\.\d+ ms an image, mean exit [1-3]\.\d\d", early)
    assert first.removeprefix("the first image is ") in tiny_run.data.class_names
