"""The walkthrough: two runs, a table, an executed notebook and a page that needs no network; the second time from disk."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from corsd_lib import bundle, cli, load_run, walkthrough
from corsd_lib.batches import Batch
from corsd_lib.training import Trainer

ROOT = Path(__file__).resolve().parents[1]


def test_table_has_every_exit_the_ensemble_and_the_change() -> None:
    tests = {
        "baseline": {"exits": [{"top1": 80.0}, {"top1": 90.25}], "ensemble": {"top1": 91.0}},
        "CORSD": {"exits": [{"top1": 82.5}, {"top1": 89.0}], "ensemble": {"top1": 91.0}},
    }
    head, *rows = walkthrough.table(tests).splitlines()
    assert head.split() == ["exit", "1", "exit", "2", "ensemble"]
    assert [row.split() for row in rows] == [
        ["baseline", "80.0", "90.2", "91.0"],
        ["CORSD", "82.5", "89.0", "91.0"],
        ["change", "+2.5", "-1.2", "+0.0"],
    ]


def test_work_starts_before_anything_heavy_is_imported() -> None:
    code = "import sys, corsd_lib.walkthrough; print(*{'torch', 'plotly', 'papermill', 'nbformat'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is trained; what would be is listed."""
    begun: list[str] = []
    monkeypatch.setattr(walkthrough, "train_both", lambda runs, epochs: begun.append(str(runs)) or {})
    return begun


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error of `corsd walkthrough`, which is one line."""
    with pytest.raises(SystemExit) as end:
        cli.main(["walkthrough", *arguments])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    return said


def test_a_missing_notebook_is_named_before_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "corsd_lib" / "bundle.py"))
    assert re.search(r"01_walkthrough\.ipynb.*clone", fails([], capsys))
    assert not trained and not (tmp_path / "walkthrough").exists()


def test_bad_input_ends_with_one_line_before_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: list[str]
) -> None:
    assert fails(["--out", str(tmp_path), "--epochs", "0"], capsys).startswith("corsd: error: epochs = 0 must be")
    (tmp_path / "file").touch()
    assert "file/deep: Not a directory" in fails(["--out", str(tmp_path / "file" / "deep")], capsys)
    assert not trained


def test_a_folder_that_cannot_be_written_is_named_before_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained: list[str]
) -> None:
    def refused(dir: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(walkthrough.tempfile, "TemporaryFile", refused)  # root may write anywhere
    assert f"cannot write {tmp_path}: Permission denied" in fails(["--out", str(tmp_path)], capsys)
    assert not trained


def test_the_packages_are_those_that_the_walkthrough_imports() -> None:
    """What it imports itself beside the base installation, or its notebook does through the library."""
    required = {*walkthrough.PACKAGES}
    pages = (ROOT / "corsd_lib" / "_notebooks.py").read_text(encoding="utf-8")
    own = Path(walkthrough.__file__).read_text(encoding="utf-8") + pages
    imported = {name for name in re.findall(r"^ *(?:from|import) (\w+)", own, re.MULTILINE)} - sys.stdlib_module_names
    assert imported - {"corsd_lib", "torch"} <= required
    assert {"anywidget", "ipywidgets", "plotly", "ipykernel"} <= required  # an explorer, figures, the kernel


def test_a_stopped_training_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step
    steps: list[int] = []

    def interrupted(trainer: Trainer, batch: Batch) -> object:
        steps.append(trainer.step)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    walkthrough.walk(tmp_path, 1)
    assert "Run the same command again" in capsys.readouterr().out
    assert len(steps) == 2  # the second training was not begun, and no notebook was executed
    assert [run.name.split("-")[0] for run in (tmp_path / "runs").iterdir()] == ["probe"]


@pytest.mark.slow
def test_walkthrough_from_nothing_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "walk"
    cli.main(["walkthrough", "--out", str(out), "--epochs", "2"])
    text = capsys.readouterr().out
    assert re.search(r"baseline( +\d+\.\d){4}\nCORSD( +\d+\.\d){4}\nchange( +[+-]\d+\.\d){4}", text)
    assert "make lab" in text and (out / "01_walkthrough.html").as_uri() in text

    runs = {path.name.split("-")[0]: load_run(path) for path in (out / "runs").iterdir()}
    assert sorted(runs) == ["corsd", "probe"] and all(run.finished for run in runs.values())
    executed = nbformat.read(out / "01_walkthrough.ipynb", as_version=4)
    assert "widgets" not in executed.metadata and (out / "01_walkthrough.ipynb").stat().st_size < 1_000_000
    check_page((out / "01_walkthrough.html").read_text(encoding="utf-8"))

    written = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.*")}
    first = list(walkthrough.train_both(out / "runs", 2).values())
    assert all(run.test is not None for run in first)
    assert written == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.*")}  # opened, not trained again


def check_page(page: str) -> None:
    """Figures and pictures are in the page, and nothing in it is fetched from elsewhere."""
    assert page.count('class="plotly-graph-div"') >= 6  # five figures and the explorer's
    assert "plotly.js v" in page
    assert len(re.findall(r'<img[^>]+src="data:image/', page)) >= 3
    loaded = re.findall(r"<(?:script|link|img|iframe|video)\b[^>]*", re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", page))
    assert loaded and not [tag for tag in loaded if re.search(r"(src|href)=.(https?:)?//", tag)]
    assert "@import" not in page and "return (student - teacher.detach())" not in page
