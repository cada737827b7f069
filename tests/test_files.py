from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from corsd_lib import files
from corsd_lib.errors import CorsdError
from corsd_lib.files import (
    read_json,
    read_lines,
    read_tensors,
    remove_parts,
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
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".other.1.part").touch()
    remove_parts(tmp_path)
    assert _names(tmp_path) == ["deep", "file"] and _names(tmp_path / "deep") == []


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
        with pytest.raises(CorsdError, match=rf"{file} is not valid JSON"):
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
        with pytest.raises(CorsdError, match=rf"{file} is not a whole safetensors file"):
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
        with pytest.raises(CorsdError, match="not a whole safetensors file"):
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
    with pytest.raises(CorsdError, match=r"README.md must have one <!-- b --> and, after it, one <!-- /b --> to put the table"):
        write_between(document, "b", "new")
    assert document.read_text(encoding="utf-8") == text
    with pytest.raises(CorsdError, match=r"cannot read .*other.md: No such file"):
        write_between(tmp_path / "other.md", "b", "new")
