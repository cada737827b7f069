"""Runs on the Hugging Face Hub, of which a folder takes the place here."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from corsd_lib import cli, export_run, load_run, push_run
from corsd_lib.errors import CorsdError, MissingPackage
from corsd_lib.runs import Run, TrainConfig
from corsd_lib.training import train

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub of the extra hub")


class Hub:
    """Repositories as folders: <root>/<owner>/<name>/<commit>, with the commits in order."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> SimpleNamespace:
        assert exist_ok
        full = repo_id if "/" in repo_id else f"me/{repo_id}"
        (self.root / full).mkdir(parents=True, exist_ok=True)
        self.private.setdefault(full, private)
        return SimpleNamespace(repo_id=full)

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        allow_patterns: list[str],
        delete_patterns: list[str],
        commit_message: str,
    ) -> SimpleNamespace:
        commits = sorted((self.root / repo_id).iterdir())
        new = self.root / repo_id / f"c{len(commits)}"
        shutil.copytree(commits[-1], new) if commits else new.mkdir()
        for name in _matching(new, delete_patterns):
            (new / name).unlink()
        for name in _matching(Path(folder_path), allow_patterns):
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(folder_path) / name, new / name)
        return SimpleNamespace(oid=new.name)

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        huggingface_hub.utils.validate_repo_id(repo_id)
        commits = {folder.name: folder for folder in sorted((self.root / repo_id).glob("*"))}
        if not commits or (revision or list(commits)[-1]) not in commits:
            raise OSError(f"404 Client Error: {repo_id} at {revision}\nmore about it")
        source = commits[revision or list(commits)[-1]]
        target = self.root.parent / "cache" / repo_id / source.name
        for name in _matching(source, allow_patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
        return str(target)


def _matching(folder: Path, patterns: list[str]) -> list[str]:
    """Relative names of the files that the client of the Hub selects for these patterns."""
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    return list(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=patterns))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **options: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


@pytest.fixture(scope="module")
def exported(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return export_run(tiny_run, tmp_path_factory.mktemp("export") / "corsd", snapshots=2, probe_images=30)


def _names(folder: Path) -> list[str]:
    return _matching(folder, ["*"])


def _same_weights(a: Run, b: Run) -> bool:
    theirs = b.network().state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.network().state_dict().items())


def test_a_pushed_run_is_the_run_that_comes_back(hub: Hub, exported: Run) -> None:
    name = push_run(exported, "me/corsd")
    assert name == "hf:me/corsd@c0" and hub.private == {"me/corsd": False}
    back = load_run(name)
    assert _names(back.path) == _names(exported.path)
    assert back.config == exported.config and back.test == exported.test and _same_weights(back, exported)
    assert load_run("hf:me/corsd").path == back.path


def test_a_run_that_is_not_exported_is_exported_first(hub: Hub, tiny_run: Run) -> None:
    before = _names(tiny_run.path)
    back = load_run(push_run(tiny_run, "corsd", private=True))
    assert hub.private == {"me/corsd": True}  # the owner is that of the account
    assert back.finished and "README.md" in _names(back.path) and "checkpoint.safetensors" not in _names(back.path)
    assert _names(tiny_run.path) == before


def test_a_revision_selects_an_earlier_run(hub: Hub, exported: Run, tiny: Callable[..., TrainConfig]) -> None:
    first = push_run(exported, "me/corsd")
    other = train(tiny("other", method="baseline", epochs=1), progress=False)
    second = push_run(other, "me/corsd")
    assert load_run(first).config.method == "corsd" and load_run(second).config.method == "baseline"
    assert load_run("hf:me/corsd").config.method == "baseline"
    assert "probes/epoch_0002.safetensors" not in _names(load_run(second).path)  # of the run before


def test_only_the_files_of_a_run_travel(hub: Hub, exported: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.path, tmp_path / "run")
    for name in ("setup.py", "model.pkl", "probes/notes.txt", ".git-credentials"):
        (folder / name).write_text("raise SystemExit")
    name = push_run(load_run(folder), "me/corsd")
    there = hub.root / "me/corsd/c0"
    assert _names(there) == _names(exported.path)
    (there / "conftest.py").write_text("raise SystemExit")
    (there / "weights.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert _names(load_run(name).path) == _names(exported.path)


def test_what_was_changed_on_the_way_is_refused(hub: Hub, exported: Run) -> None:
    name = push_run(exported, "me/corsd")
    file = hub.root / "me/corsd/c0/weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorsdError, match="does not match its checksum"):
        load_run(name).network()


@pytest.mark.parametrize(
    "name,message",
    [
        ("hf:", "the name of a run is 'hf:'; allowed: hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:me/corsd@", "the name of a run is 'hf:me/corsd@'; allowed: "),
        ("hf:@main", "the name of a run is 'hf:@main'; allowed: "),
        ("hf:me/nothing", "hf:me/nothing cannot be downloaded: 404 Client Error: me/nothing at None"),
        ("hf:me/corsd@other", "hf:me/corsd@other cannot be downloaded: 404 Client Error: me/corsd at other"),
        ("hf:a/b/c", "hf:a/b/c cannot be downloaded: "),
        ("hf:me/empty", "hf:me/empty: "),
    ],
)
def test_what_is_not_a_run_of_the_hub_is_one_error(name: str, message: str, hub: Hub, exported: Run) -> None:
    push_run(exported, "me/corsd")
    (hub.root / "me/empty/c0").mkdir(parents=True)
    with pytest.raises(CorsdError, match=re.escape(message)) as raised:
        load_run(name)
    assert "\n" not in str(raised.value)


def test_an_upload_that_is_refused_is_one_error(hub: Hub, exported: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("401 Client Error\nInvalid username or password.")

    monkeypatch.setattr(hub, "create_repo", refused)
    with pytest.raises(CorsdError, match=rf"^{exported.path} cannot be uploaded to me/corsd: 401 Client Error$"):
        push_run(exported, "me/corsd")


def test_an_incomplete_run_is_not_uploaded(hub: Hub, tiny_run: Run, exported: Run, tmp_path: Path) -> None:
    for run, message in ((exported, "is an incomplete export"), (tiny_run, "is not finished")):
        folder = shutil.copytree(run.path, tmp_path / run.path.name)
        (folder / "test.json").unlink()
        with pytest.raises(CorsdError, match=message):
            push_run(load_run(folder), "me/corsd")
    assert not hub.root.exists()


def test_a_missing_package_is_named(exported: Run, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    needs = r"needs huggingface_hub, which is not installed: pip install 'corsd_lib\[hub\]'"
    with pytest.raises(MissingPackage, match=f"run 'hf:me/corsd' {needs}"):
        load_run("hf:me/corsd")
    with pytest.raises(MissingPackage, match=f"a run on the Hub {needs}"):
        push_run(exported, "me/corsd")
    with pytest.raises(MissingPackage, match=f"the model card of an export {needs}"):
        export_run(tiny_run, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_the_command_line_pushes_and_reads(hub: Hub, exported: Run, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["push", str(exported.path), "--repo", "me/corsd"])
    assert capsys.readouterr().out.startswith("hf:me/corsd@c0: ")
    cli.main(["evaluate", "hf:me/corsd"])
    assert "exit 3" in capsys.readouterr().out
