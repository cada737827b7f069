"""Sample runs: found on this machine, or downloaded once with a checksum; the list of the release is that of the clone."""

from __future__ import annotations

import functools
import http.server
import json
import runpy
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from corsd_lib import CorsdError, bundle, committed_run, sample_run
from corsd_lib.files import read_json
from corsd_lib.runs import samples

ROOT = Path(__file__).resolve().parents[1]
PACKER = runpy.run_path(str(ROOT / "results" / "samples.py"))
NAME = "cifar100_small/baseline"  # the smallest


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As with an installed package that carries nothing: no clone, an empty cache, and no address of releases."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "site" / "corsd_lib" / "bundle.py"))
    monkeypatch.setenv("CORSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CORSD_RELEASES", raising=False)
    monkeypatch.setattr(samples, "_repository", lambda: None)
    monkeypatch.setattr(samples, "WAIT", 0.001)
    return tmp_path


@pytest.fixture(scope="module")
def archive() -> tuple[str, bytes]:
    """File name and content of the archive of `NAME`."""
    return f"{NAME.replace('/', '-')}.tar", PACKER["packed"](ROOT / "results" / "cifar100_small" / "runs" / "baseline")


@pytest.fixture
def release(archive: tuple[str, bytes], away: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive in a folder that stands for the release."""
    folder = away / "release"
    folder.mkdir()
    (folder / archive[0]).write_bytes(archive[1])
    monkeypatch.setenv("CORSD_RELEASES", str(folder))
    return folder


@pytest.fixture
def served(release: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The same folder behind HTTP; yields the paths that are asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(release))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("CORSD_RELEASES", f"http://127.0.0.1:{server.server_address[1]}/")
        yield asked
        server.shutdown()


def test_the_list_is_that_of_the_committed_runs() -> None:
    archives = PACKER["archives"]()
    assert json.loads(PACKER["LIST"].read_text()) == PACKER["listed"](archives), "run `make samples`"
    runs = {f"{path.parts[-4]}/{path.parts[-2]}" for path in (ROOT / "results").glob("*/runs/*/config.json")}
    assert set(archives) == runs and NAME in runs
    assert len({file for file, _ in archives.values()}) == len(runs)


def test_the_archive_of_a_run_does_not_depend_on_its_copy(tmp_path: Path, archive: tuple[str, bytes]) -> None:
    copy = tmp_path / "baseline"
    shutil.copytree(ROOT / "results" / "cifar100_small" / "runs" / "baseline", copy, copy_function=shutil.copyfile)
    (copy / "embeddings").mkdir(exist_ok=True)
    (copy / "embeddings" / "umap-0.safetensors").touch()  # what an explorer has left there
    text = (copy / "metrics.jsonl").read_bytes()
    (copy / "metrics.jsonl").write_bytes(text.replace(b"\n", b"\r\n"))  # as git checks it out on Windows
    assert PACKER["packed"](copy) == archive[1]


def test_in_a_clone_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CORSD_RELEASES", "http://127.0.0.1:9")
    assert sample_run(NAME).path == committed_run(NAME).path == ROOT / "results" / "cifar100_small" / "runs" / "baseline"


def test_a_run_is_downloaded_once_and_then_found_in_the_cache(away: Path, served: list[str]) -> None:
    run = sample_run(NAME)
    assert run.finished and run.config.method == "baseline" and len(run.network().exits) == 1
    assert away / "cache" in run.path.parents and run.path.parts[-3:] == ("cifar100_small", "runs", "baseline")
    original = ROOT / "results" / "cifar100_small" / "runs" / "baseline"
    assert run.test == committed_run(NAME).test == read_json(original / "test.json")
    assert served == ["/cifar100_small-baseline.tar"]
    assert not list((away / "cache").rglob("*.tar*"))  # unpacked, it is not needed


def test_a_folder_serves_as_well_and_a_run_of_the_package_needs_none(release: Path) -> None:
    assert sample_run(NAME).config.method == "baseline"
    inside = release.parent / "site" / "corsd_lib" / "_bundle" / "results" / "digits" / "runs" / "corsd"
    shutil.copytree(ROOT / "results" / "digits" / "runs" / "corsd", inside)
    assert sample_run("digits/corsd").path == inside


def test_a_wrong_archive_is_not_unpacked(release: Path, away: Path) -> None:
    whole = (release / "cifar100_small-baseline.tar").read_bytes()
    (release / "cifar100_small-baseline.tar").write_bytes(whole[:-1] + b"x")
    with pytest.raises(
        CorsdError, match=r"'cifar100_small/baseline' is not .*\.tar has sha256 \w+, expected \w+; it is corrupt"
    ):
        sample_run(NAME)
    assert not list((away / "cache").rglob("config.json"))
    (release / "cifar100_small-baseline.tar").write_bytes(whole)
    assert sample_run(NAME).finished


OFFLINE = (
    r"^sample run 'cifar100_small/baseline' is not on this machine.*{}.*, or use digits/corsd, which comes with the package$"
)


def test_without_a_network_one_error_says_what_to_do(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORSD_RELEASES", "http://127.0.0.1:9/release")
    with pytest.raises(
        CorsdError, match=OFFLINE.format("3 tries failed.* Connect to the internet and call sample_run again, or ")
    ):
        sample_run(NAME)
    monkeypatch.delenv("CORSD_RELEASES")
    with pytest.raises(CorsdError, match=OFFLINE.format("set CORSD_RELEASES to a URL or folder with the archives, or ")):
        sample_run(NAME)
    (away / "cache").mkdir(exist_ok=True)
    monkeypatch.setenv("CORSD_RELEASES", str(away))
    monkeypatch.setenv("CORSD_CACHE", str(away / "file"))
    (away / "file").touch()
    with pytest.raises(CorsdError, match=OFFLINE.format("cannot write")):
        sample_run(NAME)


def test_the_release_of_a_version_is_that_of_its_repository(monkeypatch: pytest.MonkeyPatch, away: Path) -> None:
    monkeypatch.setattr(samples, "_repository", lambda: "https://github.com/OWNER/NAME")
    assert samples._address() == f"https://github.com/OWNER/NAME/releases/download/v{samples.__version__}"


@pytest.mark.parametrize(
    ("urls", "found"),
    [
        (None, None),
        (["Paper, https://arxiv.org/abs/2305.00918"], None),
        (["Repository, https://github.com/a/b.git", "Paper, https://c.d"], "https://github.com/a/b"),
    ],
)
def test_the_repository_is_the_one_that_the_installation_names(
    urls: list[str] | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = type("Message", (), {"get_all": lambda self, key: urls if key == "Project-URL" else None})()
    fake = ModuleType("metadata")
    fake.metadata = lambda name: message  # type: ignore[attr-defined]
    monkeypatch.setattr(samples, "metadata", fake)
    assert samples._repository() == found


@pytest.mark.parametrize("name", ["cifar100/corsd", "digits", "", "/", "digits/corsd/config.json", "../results"])
def test_a_name_that_is_not_there_lists_those_that_are(name: str, away: Path) -> None:
    with pytest.raises(CorsdError, match=r"there is no sample run .*; there are: cifar100_small/baseline, .*digits/corsd"):
        sample_run(name)
