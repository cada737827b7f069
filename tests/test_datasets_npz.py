"""npz:PATH: what is read, and every wrong kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corsd_lib.datasets import ImageArrays, load_dataset
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


def test_colour_arrays(tmp_path: Path) -> None:
    arrays = good() | {
        "class_names": np.array(["cat", "dog", "car"]),
        "superclass_names": np.array(["pet", "thing"]),
        "superclass_of_class": np.array([0, 0, 1], dtype=np.uint8),
        "comment": np.array([1.5]),  # what else lies in the file does not matter
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
        ({"train_y": None, "test_y": None}, "lacks train_y, test_y; it holds train_x, test_x"),
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
        ({"train_y": np.array([[0], [1], [2], [0], [1], [2]])}, r"shape \(6, 1\)"),
        ({"train_y": np.array([0.0, 1, 2, 0, 1, 2])}, "train_y is float64 .* whole numbers"),
        ({"train_y": np.array([True] * 6)}, "train_y is bool"),
        ({"train_y": np.array([0, 1, -1, 0, 1, 2])}, "train_y is -1 at row 2"),
        ({"train_y": np.array([0, 1, 3, 0, 1, 3])}, "no label 2 but has 3"),
        ({"train_y": np.array([0, 1, 2**63 - 1, 0, 1, 2])}, f"train_y is {2**63 - 1} at row 2"),
        ({"train_y": np.array([0, 1, 2**64 - 1, 0, 1, 2], np.uint64)}, f"train_y is {2**64 - 1} at row 2"),
        ({"test_y": np.array([0, 3])}, r"test label is 3|test_y has label 3"),
        ({"class_names": np.array(["a", "b"])}, r"train_y is 2 at row 2; allowed: 0\.\.1"),
        ({"class_names": np.array(["a", "b", "c", "d"])}, "no train image of d"),
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
            "array train_y cannot be read: Object arrays",
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
    with pytest.raises(CorsdError, match=r"single\.npy holds a single array"):
        load_dataset(f"npz:{tmp_path / 'single.npy'}")
    with pytest.raises(CorsdError, match=r"absent\.npz does not exist"):
        load_dataset(f"npz:{tmp_path / 'absent.npz'}")
    with pytest.raises(CorsdError, match="does not exist"):
        load_dataset(f"npz:{tmp_path}")
