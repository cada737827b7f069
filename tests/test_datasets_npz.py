"""npz:PATH: what is read, and every wrong kind of file."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corsd_lib.datasets import ImageArrays, ImageData, archive, load_dataset
from corsd_lib.errors import CorsdError

Arrays = dict[str, Any]


def good(grey: bool = False) -> Arrays:
    rng = np.random.default_rng(0)
    channels = () if grey else (3,)
    return {
        "train_x": rng.integers(0, 256, (6, 5, 5, *channels), dtype=np.uint8),
        "train_y": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "test_x": rng.integers(0, 256, (2, 5, 5, *channels), dtype=np.uint8),
        "test_y": np.array([2, 0]),
    }


def load(tmp_path: Path, arrays: Arrays, **options: Any) -> Any:
    np.savez(tmp_path / "mine.npz", **arrays)
    return load_dataset(f"npz:{tmp_path / 'mine.npz'}", **options)


@pytest.mark.filterwarnings("ignore::corsd_lib.datasets.DataNotice")
def test_colour_arrays(tmp_path: Path) -> None:
    arrays = good() | {
        "class_names": np.array(["cat", "dog", "car"]),
        "superclass_names": np.array(["pet", "thing"]),
        "superclass_of_class": np.array([0, 0, 1], dtype=np.uint8),
        "comment": np.array([1.5]),  # what else lies in the file is named
    }
    data = load(tmp_path, arrays)
    assert isinstance(data.train, ImageArrays)
    assert np.array_equal(data.train.images.numpy(), arrays["train_x"].transpose(0, 3, 1, 2))
    assert np.array_equal(data.test.images.numpy(), arrays["test_x"].transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == [2, 0] and data.test.index.tolist() == [0, 1]
    assert data.class_names == ("cat", "dog", "car") and data.superclass_names == ("pet", "thing")
    assert data.superclass_of_class.tolist() == [0, 0, 1]
    assert (data.image_size, data.augmentation, data.name) == (5, "crop_flip", f"npz:{tmp_path / 'mine.npz'}")
    assert data.mean == pytest.approx(arrays["train_x"].mean((0, 1, 2)) / 255)
    assert data.notices == ("arrays that are not used: comment",)
    assert data.summary().endswith("\nnote: arrays that are not used: comment")


def test_grey_arrays_without_names(tmp_path: Path) -> None:
    data = load(tmp_path, good(grey=True))
    assert data.train.images.shape == (6, 1, 5, 5)
    assert data.class_names == data.superclass_names == ("0", "1", "2")
    assert (data.channels, data.augmentation) == (1, "crop")


def test_image_size_and_the_other_options_apply(tmp_path: Path) -> None:
    data = load(tmp_path, good(), image_size=8, validation_fraction=0.5, per_class=1)
    assert data.train.images.shape == (3, 3, 8, 8) and len(data.validation) == 3


def test_images_that_are_not_square_need_an_image_size(tmp_path: Path) -> None:
    arrays = good()
    arrays["train_x"], arrays["test_x"] = arrays["train_x"][:, :3], arrays["test_x"][:, :3]
    with pytest.raises(CorsdError, match="3x5; allowed: square ones, or give image_size"):
        load(tmp_path, arrays)
    assert load(tmp_path, arrays, image_size=4).train.images.shape == (6, 3, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_x": None}, "lacks train_x"),
        ({"train_y": None, "test_y": None}, "lacks train_y, test_y; it contains train_x, test_x"),
        ({"train_x": np.zeros((6, 5, 5, 3), np.float32)}, r"train_x is float32 .* allowed: uint8"),
        ({"train_x": np.zeros((6, 5, 5, 3), np.int64)}, "train_x is int64"),
        ({"train_x": np.zeros((6, 3, 5, 5), np.uint8)}, r"shape \(6, 3, 5, 5\); allowed: .*\(N, H, W, 3\)"),
        ({"train_x": np.zeros((6, 25), np.uint8)}, r"shape \(6, 25\)"),
        ({"train_x": np.zeros((0, 5, 5, 3), np.uint8), "train_y": np.zeros(0, np.int64)}, "not empty"),
        (
            {"test_x": np.zeros((0, 5, 5, 3), np.uint8), "test_y": np.zeros(0, np.int64)},
            "test_x .* not empty",
        ),
        (
            {"test_x": np.zeros((2, 6, 6, 3), np.uint8)},
            r"shapes \(5, 5, 3\) and \(6, 6, 3\); expected the same",
        ),
        ({"test_x": np.zeros((2, 5, 5), np.uint8)}, r"shapes \(5, 5, 3\) and \(5, 5\)"),
        ({"train_y": np.array([0, 1, 2, 0, 1])}, r"train_y is int64 of shape \(5,\); .*\(6,\)"),
        ({"train_y": np.array([[0, 1, 2], [0, 1, 2]])}, r"shape \(2, 3\)"),
        ({"train_y": np.array([0.0, 1, 2, 0, 1, 2])}, "train_y is float64 .* whole numbers"),
        ({"train_y": np.array([True] * 6)}, "train_y is bool"),
        ({"train_y": np.array([0, 1, -1, 0, 1, 2])}, "train_y is -1 at row 2"),
        ({"train_y": np.array([0, 1, 3, 0, 1, 3])}, "no label 2 but has 3"),
        ({"train_y": np.array([0, 1, 2**63 - 1, 0, 1, 2])}, f"train_y is {2**63 - 1} at row 2"),
        ({"train_y": np.array([0, 1, 2**64 - 1, 0, 1, 2], np.uint64)}, f"train_y is {2**64 - 1} at row 2"),
        ({"test_y": np.array([0, 3])}, r"test label is 3|test_y has label 3"),
        ({"class_names": np.array(["a", "b"])}, r"train_y is 2 at row 2; allowed: 0\.\.1"),
        ({"class_names": np.array(["a", "b", "c", "d"])}, "no train image of d"),
        ({"train_y": np.zeros(6, int), "test_y": np.zeros(2, int)}, "the data has one class, '0'; at least two are needed"),
        ({"class_names": np.array(["a", "b", "a"])}, "class_names has 'a' more than once; expected distinct names"),
        ({"class_names": np.array(["a", "b", "\udcff"])}, r"class_names '\\udcff' is not valid UTF-8"),
        ({"class_names": np.array(["a", "b", ""])}, r"class_names ''; allowed: a non-empty name without line breaks"),
        ({"class_names": np.array(["a", "b", "c\nd"])}, r"class_names 'c\\nd'; allowed: a non-empty name without line breaks"),
        (
            {"superclass_names": np.array(["s", ""]), "superclass_of_class": np.array([0, 1, 0])},
            r"superclass_names ''; allowed: a non-empty name without line breaks",
        ),
        (
            {"superclass_names": np.array(["s", "s"]), "superclass_of_class": np.array([0, 1, 0])},
            "superclass_names has 's' more than once",
        ),
        ({"val_x": np.zeros((2, 5, 5, 3), np.uint8)}, "lacks val_y; expected val_x and val_y, or neither"),
        ({"dev_y": np.zeros(2, int)}, "lacks dev_x; expected dev_x and dev_y, or neither"),
        ({"val_x": np.zeros((2, 6, 6, 3), np.uint8), "val_y": np.array([0, 1])}, r"train_x and val_x contain .* \(6, 6, 3\)"),
        ({"val_x": np.zeros((2, 5, 5, 3), np.uint8), "val_y": np.array([0, 3])}, r"val_y has label 3; allowed: 0\.\.2"),
        (
            {"val_x": np.zeros((2, 5, 5, 3), np.uint8), "dev_x": np.zeros(2)},
            "has validation arrays under several names, val and dev",
        ),
        ({"class_names": np.array([1, 2, 3])}, "class_names is int64 .* strings"),
        ({"class_names": np.array([["a", "b", "c"]])}, r"class_names is .* shape \(1, 3\)"),
        ({"superclass_names": np.array(["s"])}, "both or neither"),
        ({"superclass_of_class": np.array([0, 0, 0])}, "both or neither"),
        (
            {"superclass_names": np.array(["s"]), "superclass_of_class": np.array([0, 0])},
            r"superclass_of_class is int64 of shape \(2,\); .*\(3,\)",
        ),
        (
            {"superclass_names": np.array(["s"]), "superclass_of_class": np.array([0, 1, 0])},
            r"superclass_of_class is 1 at row 1; allowed: 0\.\.0",
        ),
        (
            {"train_y": np.array([0, 1, 2, 0, 1, None], dtype=object)},
            "array train_y cannot be read: object arrays",
        ),
        ({"class_names": np.array(["a", "b", None], dtype=object)}, "array class_names cannot be read"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, changes: Arrays, message: str) -> None:
    arrays = {key: value for key, value in (good() | changes).items() if value is not None}
    with pytest.raises(CorsdError, match=message) as caught:
        load(tmp_path, arrays)
    assert "mine.npz" in str(caught.value)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", **good())
    whole = (tmp_path / "whole.npz").read_bytes()
    contents = {
        "empty": b"",
        "text": b"not an archive",
        "cut": whole[: len(whole) // 2],
        "flipped": bytearray(whole),
    }
    contents["flipped"][150] ^= 255  # inside train_x: the checksum no longer agrees
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(CorsdError, match=f"{name}.npz(: array train_x cannot be read| is not a readable .npz file)"):
            load_dataset(f"npz:{path}")
    np.save(tmp_path / "single.npy", good()["train_x"])
    with pytest.raises(CorsdError, match=r"single\.npy contains a single array"):
        load_dataset(f"npz:{tmp_path / 'single.npy'}")
    with pytest.raises(CorsdError, match=r"absent\.npz does not exist"):
        load_dataset(f"npz:{tmp_path / 'absent.npz'}")
    with pytest.raises(CorsdError, match=r"is a folder; expected an \.npz file with train_x"):
        load_dataset(f"npz:{tmp_path}")
    os.mkfifo(tmp_path / "pipe.npz")  # to open it would wait for ever
    with pytest.raises(CorsdError, match=r"pipe\.npz is not a regular file"):
        load_dataset(f"npz:{tmp_path / 'pipe.npz'}")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"test_y": np.array([-1, 0])}, r"test_y is -1 at row 0; allowed: 0\.\.C-1 for C classes$"),
        ({"test_y": np.array([0, 2**40])}, r"test_y is 1099511627776 at row 1; allowed: 0\.\.C-1 for C classes$"),
        (
            {"class_names": np.array(["a", "b"])},
            r"train_y is 2 at row \d; allowed: 0\.\.1, for class_names has 2$",
        ),
        (
            {"superclass_names": np.array(["a", "b"]), "superclass_of_class": np.array([0, 1, 5])},
            r"superclass_of_class is 5 at row 2; allowed: 0\.\.1, for superclass_names has 2$",
        ),
    ],
)
def test_a_limit_of_labels_says_where_it_is_from(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        load(tmp_path, good() | changes)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_validation_arrays_are_the_validation_split(tmp_path: Path, name: str) -> None:
    arrays = good() | {f"{name}_x": good()["test_x"][::-1], f"{name}_y": np.array([1, 2])}
    data = load(tmp_path, arrays)
    assert isinstance(data.validation, ImageArrays) and data.validation.labels.tolist() == [1, 2]
    assert np.array_equal(data.validation.images.numpy(), arrays[f"{name}_x"].transpose(0, 3, 1, 2))
    assert data.notices == () and load(tmp_path, arrays, image_size=8).validation.images.shape == (2, 3, 8, 8)
    with pytest.warns(UserWarning, match="validation split of the data is not used"):
        asked = load(tmp_path, arrays, validation_fraction=0.5)
    assert len(asked.validation) == 3 and any("validation_fraction" in notice for notice in asked.notices)


def test_a_last_axis_of_one_is_no_matter(tmp_path: Path) -> None:
    arrays = good(grey=True)
    plain = load(tmp_path, arrays)
    for part in ("train", "test"):
        arrays[f"{part}_x"], arrays[f"{part}_y"] = arrays[f"{part}_x"][..., None], arrays[f"{part}_y"][:, None]
    data = load(tmp_path, arrays)
    assert np.array_equal(data.train.images.numpy(), plain.train.images.numpy()) and data.channels == 1
    assert data.train.labels.tolist() == plain.train.labels.tolist() and data.test.labels.tolist() == [2, 0]


# ------------------------------------------------------------------------------------------ hostile and damaged files


def npy(declared: tuple[int, ...], dtype: str = "|u1", content: bytes = b"\0" * 100) -> bytes:
    """A .npy file whose header declares a shape, and some content."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": declared})
    return stream.getvalue() + content


def with_member(path: Path, content: bytes) -> Path:
    """A good file but for train_x."""
    np.savez(path, **{key: value for key, value in good().items() if key != "train_x"})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train_x.npy", content)
    return path


@pytest.mark.parametrize("declared", [(10**12, 224, 224, 3), (2**31, 2**31, 2**31, 3), (6, 5, 5, 3), (-1, 5, 5, 3), ()])
def test_a_header_that_does_not_fit_its_member_is_refused_before_memory_is_taken(
    tmp_path: Path, declared: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_member(tmp_path / "a.npz", npy(declared))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(CorsdError, match=r"a\.npz: array train_x cannot be read: it declares uint8 of shape .* does not fit"):
        load_dataset(f"npz:{path}")


def bomb(path: Path, count: int) -> Path:
    return with_member(path, npy((count, 100, 100, 3), content=bytes(count * 30_000)))


def test_a_bomb_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "a.npz", 100)
    assert path.stat().st_size < 10_000  # 3 MB of black images
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it is read"))
    monkeypatch.setattr(archive, "HARMLESS", 2_000_000)
    with pytest.raises(
        CorsdError, match=r"train_x cannot be read: it expands from .* GB to 0\.003 GB; allowed: a compression ratio"
    ):
        load_dataset(f"npz:{path}")


def test_what_compresses_well_and_is_small_is_read(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "a.npz",
        **good() | {"train_x": np.zeros((6, 400, 400), np.uint8), "test_x": np.zeros((2, 400, 400), np.uint8)},
    )
    assert len(load_dataset(f"npz:{tmp_path / 'a.npz'}").train) == 6


def test_more_than_the_memory_holds_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", **good())
    monkeypatch.setattr(archive, "_available_memory", lambda: 500)
    with pytest.raises(CorsdError, match=r"a\.npz expands to .* GB; available memory: 5e-07 GB"):
        load_dataset(f"npz:{tmp_path / 'a.npz'}")
    monkeypatch.setattr(archive, "_available_memory", lambda: None)
    assert len(load_dataset(f"npz:{tmp_path / 'a.npz'}").train) == 6


def test_the_available_memory_is_a_likely_number() -> None:
    assert 2**26 < (archive._available_memory() or 0) < 2**50


def test_arrays_on_top_of_each_other_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **good())
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        first = file.getinfo("train_x.npy")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    entry = content.rindex(b"train_x.npy") - 46  # in the central directory: the compressed size is at 20
    assert struct.unpack_from("<I", content, entry + 20) == (first.compress_size,)
    struct.pack_into("<I", content, entry + 20, 2**31)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CorsdError, match=r"a\.npz is not a readable \.npz file: its arrays overlap"):
        load_dataset(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("flag", [0x1, 0x20, 0x40])  # encrypted, patched, strongly encrypted
def test_flipped_flags_are_one_error(tmp_path: Path, flag: int) -> None:
    np.savez(tmp_path / "a.npz", **good())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"train_x.npy") - 24] ^= flag  # the local header's flags, and those of the directory
    content[content.rindex(b"train_x.npy") - 38] ^= flag
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CorsdError, match=r"a\.npz: array train_x cannot be read"):
        load_dataset(f"npz:{tmp_path / 'a.npz'}")


def test_a_member_without_a_header_is_named(tmp_path: Path) -> None:
    for content in (b"", b"\x93NUMPY\x09\x00v\x00", b"no array", npy((6, 5, 5, 3), "|O")):
        path = with_member(tmp_path / "a.npz", content)
        with pytest.raises(CorsdError, match=r"a\.npz: array train_x cannot be read"):
            load_dataset(f"npz:{path}")


@pytest.mark.filterwarnings("ignore::corsd_lib.datasets.DataNotice")
def test_damaged_bytes_are_a_data_set_or_one_error(tmp_path: Path) -> None:
    draw, path, errors = random.Random(0), tmp_path / "a.npz", 0
    names = {"class_names": np.array(["cat", "dog", "car"])}
    for save in (np.savez, np.savez_compressed):
        save(path, **good() | names)
        whole = path.read_bytes()
        heads = [
            i
            for key in (*good(), "class_names")
            for i in range(whole.index(key.encode()) - 30, whole.index(key.encode()) + 160)
        ]
        ends = range(len(whole) - 500, len(whole))  # the central directory
        for _ in range(200):
            content = bytearray(whole)
            for _ in range(draw.randint(1, 3)):
                content[draw.choice(draw.choice([heads, ends]))] ^= 1 << draw.randrange(8)
            path.write_bytes(content[: draw.choice([len(content)] * 9 + [draw.randrange(len(content))])])
            try:
                assert isinstance(load_dataset(f"npz:{path}"), ImageData)
            except CorsdError as error:
                assert "a.npz" in str(error)
                errors += 1
    assert 200 < errors < 400
