from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from corsd_lib import files
from corsd_lib.errors import CorsdError
from corsd_lib.files import (
    LockedError,
    check_replaceable,
    is_locked,
    locked,
    read_json,
    read_lines,
    read_tensors,
    remove_parts,
    with_checksum,
    write_atomic,
    write_between,
    write_json,
    write_lines,
    write_tensors,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole or not at all ---


def test_a_written_file_is_there_whole_and_alone(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep" / "er" / "file", b"content")
    assert (tmp_path / "deep" / "er" / "file").read_bytes() == b"content"
    assert _names(tmp_path / "deep" / "er") == ["file"]


def test_a_folder_that_a_job_began_with_is_not_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    write_atomic(folder / "a" / "first", b"", folder.parent)
    write_atomic(folder / "b" / "c" / "second", b"", folder)
    assert _names(folder) == ["a", "b"] and _names(folder / "b" / "c") == ["second"]
    folder.rename(tmp_path / "moved")
    writers: list[Callable[[], None]] = [
        lambda: write_atomic(folder / "file", b"", folder),
        lambda: write_json(folder / "a" / "file", {}, within=folder),
        lambda: write_lines(folder / "b" / "c" / "file", [{}], within=folder),
        lambda: write_tensors(folder / "file", {}, within=folder),
    ]
    for write in writers:
        with pytest.raises(CorsdError, match=rf"cannot write into {folder}.*: {folder} was moved or removed in the meantime"):
            write()
    assert _names(tmp_path) == ["moved"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "file"
    write_atomic(file, b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(CorsdError, match=rf"cannot write {file}: No space left on device"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old" and _names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_killed_write_leaves_the_old_file(tmp_path: Path, step: str) -> None:
    file = tmp_path / "file"
    write_atomic(file, b"old")
    if (pid := os.fork()) == 0:
        setattr(files.os, step, lambda *_: os.kill(os.getpid(), 9))
        write_atomic(file, b"new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert file.read_bytes() == b"old"
    assert len(_names(tmp_path)) == 2  # and what it had begun to write, which the next training sweeps away
    remove_parts(tmp_path)
    assert _names(tmp_path) == ["file"]


def test_only_what_this_library_began_to_write_here_is_removed(tmp_path: Path) -> None:
    """Below it may be the folder of a run that is being trained, or a repository of the user's."""
    ours = f".weights.safetensors.{'0123456789abcdef' * 2}.part"
    others = [
        ".movie.part",
        ".file.1.part",
        "file.part",
        f"weights.{'0' * 32}.part",
        f".{'0' * 32}.part",
        f".x.{'g' * 32}.part",
    ]
    for folder in (tmp_path, tmp_path / ".git", tmp_path / "other run"):
        folder.mkdir(exist_ok=True)
        for name in (ours, *others):
            (folder / name).touch()
    remove_parts(tmp_path)
    assert _names(tmp_path) == sorted([*others, ".git", "other run"])
    assert all(_names(tmp_path / name) == sorted([ours, *others]) for name in (".git", "other run"))


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    file, contents = tmp_path / "file", [bytes([k]) * 1000 for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomic(file, content), contents * 4))
    assert file.read_bytes() in contents and _names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CorsdError, match=rf"cannot write {tmp_path / 'file' / 'sub' / 'x'}: "):
        write_atomic(tmp_path / "file" / "sub" / "x", b"")


# --- JSON ---


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"names": ["Möve", "漢"], "deep": {"x": [1, 2.5, None, True]}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Möve" in (tmp_path / "a.json").read_text(encoding="utf-8")  # readable by people too


def test_lines_come_back_and_a_missing_file_has_none(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"epoch": 1, "loss": 0.5}, {"epoch": 2}]
    write_lines(tmp_path / "a.jsonl", records)
    assert read_lines(tmp_path / "a.jsonl") == records
    assert read_lines(tmp_path / "b.jsonl") == []


def test_bad_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(CorsdError, match=rf"{file} does not exist"):
        read_json(file)
    for content in (b'{"a": 1', b"\xff\xfe"):
        file.write_bytes(content)
        advice = "; if you edited it, correct this place; else restore a copy"
        with pytest.raises(CorsdError, match=rf"{file} is not valid JSON: .*{advice}$"):
            read_json(file)
        with pytest.raises(CorsdError, match=rf"{file} is not valid JSON lines"):
            read_lines(file)
    with pytest.raises(CorsdError, match=rf"cannot read {tmp_path}: Is a directory"):
        read_json(tmp_path)


# --- tensors ---


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        "float": base.view(2, 3, 4) / 7,
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "double": base.double() / 3,
        "long": base.long() - 5,
        "byte": base.byte(),
        "bool": base > 3,
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "view": base.view(4, 6).T[1:, ::2],  # not contiguous, and shares its memory with "float"
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base),
    }
    write_tensors(tmp_path / "a.safetensors", tensors, {"note": "ü"})
    back, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"note": "ü"} and back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
        assert not back[name].requires_grad


def test_a_damaged_file_is_one_error_wherever_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with pytest.raises(CorsdError, match=rf"{file} does not exist"):
        read_tensors(file)
    write_tensors(file, {"a": torch.randn(100), "b": torch.randn(7)})
    whole = file.read_bytes()
    for length in (0, 4, 8, 60, len(whole) - 28, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CorsdError, match=rf"{file} is not a complete safetensors file"):
            read_tensors(file)


def test_a_reader_beside_a_writer_sees_a_whole_file_every_time(tmp_path: Path) -> None:
    """As an explorer does that follows a training."""
    file = tmp_path / "a.safetensors"

    def write(number: int) -> None:
        write_tensors(file, {"a": torch.full((10 + 997 * (number % 5),), number)}, {"number": str(number)})

    write(0)
    if (pid := os.fork()) == 0:
        for number in range(1, 400):
            write(number)
        os._exit(0)
    seen, reads = set(), 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        tensors, metadata = read_tensors(file)
        number = int(metadata["number"])
        assert torch.equal(tensors["a"], torch.full((10 + 997 * (number % 5),), number))
        seen.add(number)
        reads += 1
    assert len(seen) > 10 and reads > 30


def test_reading_tensors_executes_nothing(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    file = tmp_path / "a.safetensors"
    for write in (lambda: file.write_bytes(pickle.dumps(Harmful())), lambda: torch.save(Harmful(), file)):
        write()
        with pytest.raises(CorsdError, match="not a complete safetensors file"):
            read_tensors(file)
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(Harmful()))  # a pickle that is read does it
    assert (tmp_path / "harm").exists()


def test_text_goes_between_the_marks_of_a_document(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n", encoding="utf-8")
    write_between(document, "a", "new ± 1")
    assert document.read_text(encoding="utf-8") == "before\n<!-- a -->\nnew ± 1\n<!-- /a -->\nafter\n"
    document.write_text("<!-- a -->\n<!-- /a -->\nbetween\n<!-- b -->\nold\n<!-- /b -->\nthe end", encoding="utf-8")
    write_between(document, "a", "one")
    write_between(document, "b", "two")
    text = "<!-- a -->\none\n<!-- /a -->\nbetween\n<!-- b -->\ntwo\n<!-- /b -->\nthe end"
    assert document.read_text(encoding="utf-8") == text


# --- checksums ---


def _read_flat(file: Path) -> dict[str, Any]:
    tensors, metadata = read_tensors(file)
    return {**{k: v.tolist() for k, v in tensors.items()}, **metadata}


def _written(file: Path) -> Callable[[], dict[str, Any]]:
    """Write a file of the kind that its name says; what reads it."""
    if file.suffix == ".safetensors":
        write_tensors(file, {"a": torch.arange(40.0), "b": torch.arange(7)}, {"position": '{"epoch": 3}', "note": "ü"})
        return lambda: _read_flat(file)
    if file.suffix == ".jsonl":
        write_lines(file, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
        return lambda: {f"{i}.{k}": v for i, line in enumerate(read_lines(file)) for k, v in line.items()}
    write_json(file, with_checksum({"train": {"lr": 0.1, "milestones": (0.5,)}, "data": ["ü"], 3: None}))
    return lambda: read_json(file)


KINDS = ["a.safetensors", "a.json", "a.jsonl"]


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_named_and_never_read(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    read = _written(file)
    content, whole = read(), file.read_bytes()
    assert b"checksum" in whole and "checksum" not in str(content)
    draw, harmless = random.Random(0), 0
    for place in range(len(whole)):
        bit = draw.randrange(8)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            now = read()
        except CorsdError as error:
            assert str(error).startswith(f"{file} "), error
            continue
        harmless += 1  # in the name of the checksum or in white space: what was written is there
        assert all(now[key] == value for key, value in content.items()), (place, now)
    assert harmless < 0.1 * len(whole)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_content_is_the_same_file(tmp_path: Path, name: str) -> None:
    _written(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    for _ in range(5):  # safetensors alone would write its metadata in another order each time
        _written(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


def test_a_file_without_a_checksum_is_read_as_it_is(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.arange(3)}, tmp_path / "a.safetensors", {"position": "x"})
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "a.jsonl").write_text('{"epoch": 1}\n\n{"epoch": 2}\n')
    assert read_tensors(tmp_path / "a.safetensors")[1] == {"position": "x"}
    assert read_json(tmp_path / "a.json") == {"a": 1} and read_lines(tmp_path / "a.jsonl") == [{"epoch": 1}, {"epoch": 2}]


def test_a_checksum_is_of_the_values_and_an_edit_by_hand_is_told_how_it_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, with_checksum({"lr": 0.1, "epochs": 2}))
    plain = json.loads(file.read_text())
    assert list(plain) == ["lr", "epochs", "checksum"]
    file.write_text(json.dumps(plain, sort_keys=True))  # as an editor may lay it out
    assert read_json(file) == {"lr": 0.1, "epochs": 2}
    file.write_text(json.dumps({**plain, "lr": 0.2}))
    with pytest.raises(CorsdError, match=rf"{file} is damaged: .*if you edited it, remove its checksum"):
        read_json(file)
    file.write_text(json.dumps({"lr": 0.2, "epochs": 2}))
    assert read_json(file) == {"lr": 0.2, "epochs": 2}


def test_other_programs_read_a_safetensors_file_with_its_checksum(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = tmp_path / "a.safetensors"
    _written(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["note"] == "ü" and len(metadata["checksum"]) == 64
    assert load_file(file)["b"].tolist() == list(range(7))
    save_file(load_file(file), file, metadata)  # the same content, in another order perhaps
    assert read_tensors(file)[1]["note"] == "ü"
    save_file({**load_file(file), "b": torch.arange(7) + 1}, file, metadata)
    with pytest.raises(CorsdError, match=rf"{file} is damaged: its content does not match its checksum"):
        read_tensors(file)


def test_a_line_that_is_lost_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_lines(file, [{"epoch": k} for k in (1, 2, 3)])
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[2])
    with pytest.raises(CorsdError, match=rf"{file} is damaged: .*remove the checksum of its last line"):
        read_lines(file)


# --- locks ---


@pytest.fixture(params=["folder", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        (tmp_path / "folder").mkdir()
    return tmp_path / request.param


def test_one_process_has_a_lock_at_a_time(place: Path) -> None:
    assert not is_locked(place)
    with locked(place):
        assert is_locked(place)
        with pytest.raises(LockedError, match=rf"{place} is in use by another process"), locked(place):
            pytest.fail("it is locked")
    with locked(place):
        pass
    assert not is_locked(place) and not is_locked(place.parent / "nothing") and _names(place.parent) == [place.name]


def test_a_lock_is_waited_for(place: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(place, wait=60):
            order.append("second")

    with ThreadPoolExecutor(1) as pool, locked(place):
        waiting = pool.submit(second)
        time.sleep(0.05)
        order.append("first")
    waiting.result()
    assert order == ["first", "second"]
    with locked(place), pytest.raises(LockedError), locked(place, wait=0.15):
        pytest.fail("the wait is over")


def test_a_program_that_is_given_the_descriptor_shares_the_lock_and_a_fork_does_not(tmp_path: Path) -> None:
    with locked(tmp_path / "log") as log:
        program = subprocess.Popen(["sleep", "60"], stderr=log)
    try:
        assert is_locked(tmp_path / "log")
    finally:
        program.kill()
        program.wait()
    assert not is_locked(tmp_path / "log")
    (here, begun), (end, there) = os.pipe(), os.pipe()
    with locked(tmp_path):
        if (pid := os.fork()) == 0:  # such as a worker that reads images and outlives a training that is killed
            os.write(begun, b"x")
            os.read(end, 1)
            os._exit(0)
    try:
        os.read(here, 1)
        assert not is_locked(tmp_path)
    finally:
        os.write(there, b"x")
        os.waitpid(pid, 0)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_without_locks_in_the_file_system_it_goes_on_without_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked(place), locked(place, wait=60):
        assert not is_locked(place)


def test_without_locks_in_the_system_it_goes_on_without_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no fcntl, and opens no folders."""
    open_ = os.open

    def windows(path: Path, *flags: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_(path, *flags)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(os, "open", windows)
    with locked(place) as one, locked(place) as other:
        assert (one is None) == (other is None) == (place.name == "folder")


def test_what_cannot_be_locked_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CorsdError, match=rf"cannot write {tmp_path}/file/log: File exists"),
        locked(tmp_path / "file" / "log"),
    ):
        pytest.fail("there is no such place")


@pytest.mark.parametrize(
    "text",
    [
        "no marks",
        "<!-- b -->\n",
        "<!-- /b -->\n<!-- b -->\n",
        "the text stands before <!-- /b -->\n<!-- b -->\nold\n<!-- /b -->\nthe end",
        "<!-- b -->\n<!-- /b -->\n<!-- b -->\n<!-- /b -->\nthe end",
    ],
)
def test_a_document_with_other_marks_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(text, encoding="utf-8")
    with pytest.raises(CorsdError, match=r"README.md must contain <!-- b --> and, after it, <!-- /b -->, each once"):
        write_between(document, "b", "new")
    assert document.read_text(encoding="utf-8") == text
    with pytest.raises(CorsdError, match=r"cannot read .*other.md: No such file"):
        write_between(tmp_path / "other.md", "b", "new")


def test_a_pipe_in_the_way_of_a_page_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "page.html")
    check_replaceable(tmp_path / "page.html", b"<!doctype html", "a page")
