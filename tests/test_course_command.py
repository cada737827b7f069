"""`corsd course`: a copy to work in, which never overwrites an answer, opened in JupyterLab."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from corsd_lib import bundle, cli, cli_course

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The course has two files; the working directory is empty."""
    monkeypatch.setattr(bundle, "FILES", ("notebooks/01_*.ipynb", "notebooks/GLOSSARY.md"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "corsd-course"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("course")
    cli_course.copy_course(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_links_of_the_copied_pages_lead_to_copied_files(whole: Path) -> None:
    links = [
        (page, target)
        for page in whole.rglob("*.md")
        for target in re.findall(r"(?<=\]\()[^)#\s]+|(?<=src=\")[^\"#]+", page.read_text(encoding="utf-8"))
        if not re.match("[a-z]+:", target)
    ]
    broken = [f"{page.relative_to(whole)}: {target}" for page, target in links if not (page.parent / target).exists()]
    assert len(links) > 50 and not broken


def test_the_command_that_opens_them_again_quotes_its_path(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["course", "--no-open", "--out", "my course"])
    first = Path("my course", "notebooks", "01_walkthrough.ipynb")
    assert f"jupyter lab '{first}'" in capsys.readouterr().out


def test_the_notebooks_are_copied_and_a_second_time_nothing_changes(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["course", "--no-open"])
    first = Path("corsd-course", "notebooks", "01_walkthrough.ipynb")
    assert f"jupyter lab {first}" in capsys.readouterr().out
    assert set(content(small)) == {"notebooks/01_walkthrough.ipynb", "notebooks/GLOSSARY.md"}
    assert first.read_bytes() == (ROOT / "notebooks" / "01_walkthrough.ipynb").read_bytes()
    (small / "notebooks" / "GLOSSARY.md").unlink()
    (small / "notebooks" / "mine.ipynb").touch()
    before = first.stat().st_mtime_ns
    cli.main(["course", "--no-open"])
    assert first.stat().st_mtime_ns == before and (small / "notebooks" / "GLOSSARY.md").exists()


@pytest.mark.parametrize("changed", ["notebooks/01_walkthrough.ipynb", "notebooks/GLOSSARY.md"])
def test_a_changed_file_is_never_overwritten(small: Path, changed: str, capsys: pytest.CaptureFixture[str]) -> None:
    (small / changed).parent.mkdir(parents=True)
    (small / changed).write_text("my answer")
    with pytest.raises(SystemExit) as end:
        cli.main(["course"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert f"differ from those of the course: {Path(changed)}. No file was overwritten" in said and "--out" in said
    assert content(small) == {changed: b"my answer"}  # the other one was not copied either


def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder_are_named(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "notebooks" / "GLOSSARY.md").mkdir(parents=True)
    Path("file").touch()
    Path("run").mkdir()
    Path("run/config.json").touch()
    for folder, option, said in (
        (small, "--out", "GLOSSARY.md"),
        (Path("file"), "--to", "file is a file; allowed: a folder"),
        (Path("run"), "--out", "run is the folder of a run; choose another folder with --out"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["course", "--no-open", option, str(folder)])
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error


def test_a_folder_that_cannot_be_read_is_named(small: Path) -> None:
    with pytest.raises(cli_course.CorsdError, match=r"^cannot read x+/notebooks/.*: File name too long$"):
        cli_course.copy_course(Path("x" * 300))


def test_a_package_without_notebooks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "corsd_lib" / "bundle.py"))
    with pytest.raises(cli_course.CorsdError, match=r"the notebooks are not in .*: install corsd_lib again"):
        cli_course.copy_course(tmp_path / "course")


def test_jupyterlab_opens_the_first_notebook_and_its_status_is_passed_on(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(cli_course.subprocess, "run", run)
    with pytest.raises(SystemExit) as end:
        cli.main(["course"])
    first = str(Path("corsd-course", "notebooks", "01_walkthrough.ipynb"))
    assert end.value.code == 3 and started == [[sys.executable, "-m", "jupyter", "lab", first]]


def test_every_relative_link_and_picture_of_a_copied_notebook_is_there(whole: Path) -> None:
    notebooks = sorted((whole / "notebooks").rglob("*.ipynb"))
    assert len(notebooks) == len(list((ROOT / "notebooks").rglob("[01]*.ipynb")))
    for notebook in notebooks:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            assert re.match(r"https?:", target) or (notebook.parent / target).exists(), f"{notebook.name}: {target}"
