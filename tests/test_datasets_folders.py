"""folder:PATH and imagenet: image folders in memory or streamed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corsd_lib.datasets import ImageArrays, ImageFiles, folders, load_dataset
from corsd_lib.datasets.arrays import IMAGENET_MEAN, IMAGENET_STD
from corsd_lib.errors import CorsdError


def make_images(folder: Path, classes: dict[str, int], size: tuple[int, int] = (30, 20)) -> None:
    """`classes`: name -> number of images; pixel value = 10 * (class + 1) + number."""
    for c, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (10 * (c + 1) + i,) * 3).save(folder / name / f"{i:03}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_images(tmp_path / "train", {"cat": 3, "dog": 2})
    make_images(tmp_path / "val", {"cat": 1, "dog": 2})
    return tmp_path


def values(split: ImageArrays) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_a_folder_is_read_into_memory(folder: Path) -> None:
    data = load_dataset(f"folder:{folder}")
    assert isinstance(data.train, ImageArrays) and isinstance(data.test, ImageArrays)
    assert data.train.images.shape == (5, 3, 73, 73)
    assert values(data.train) == [10, 11, 12, 20, 21] and data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert values(data.test) == [10, 20, 21] and data.validation is None
    assert data.class_names == data.superclass_names == ("cat", "dog")
    assert (data.name, data.image_size, data.augmentation) == (f"folder:{folder}", 64, "resized_crop")
    assert data.crop_scale == 0.4
    pixels = np.array([10, 11, 12, 20, 21]) / 255
    assert data.mean == pytest.approx([pixels.mean()] * 3) and data.std == pytest.approx([pixels.std()] * 3)


def test_a_third_folder_is_the_validation_split(folder: Path) -> None:
    make_images(folder / "test", {"cat": 4, "dog": 1})
    data = load_dataset(f"folder:{folder}")
    assert data.validation is not None and (len(data.validation), len(data.test)) == (3, 5)
    asked = load_dataset(f"folder:{folder}", validation_fraction=0.5)
    assert asked.validation is not None and (len(asked.train), len(asked.validation)) == (2, 3)
    (folder / "val").rename(folder / "aside")
    assert len(load_dataset(f"folder:{folder}").test) == 5


def test_a_large_folder_streams(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 8 * 3 * 32 * 32  # 8 images of 28 * 8 / 7
    monkeypatch.setattr(folders, "MEMORY_LIMIT", needed)
    assert isinstance(load_dataset(f"folder:{folder}", image_size=28).train, ImageArrays)
    monkeypatch.setattr(folders, "MEMORY_LIMIT", needed - 1)
    data = load_dataset(f"folder:{folder}", image_size=28, per_class=2)
    assert isinstance(data.train, ImageFiles) and isinstance(data.test, ImageFiles)
    assert data.train.image_size == data.image_size == 28 and data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.train.load(3).shape == (3, 20, 30) and data.train.load(3).unique().tolist() == [21]
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_hidden_and_other_files_are_passed_over(folder: Path) -> None:
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / ".ipynb_checkpoints").mkdir()
    shutil.copy(next((folder / "train" / "cat").glob("*.png")), folder / "train" / "cat" / ".ipynb_checkpoints" / "copy.png")
    (folder / "train" / "notes.txt").write_text("mine")
    (folder / "train" / "cat" / "._000.png").write_text("what macOS leaves behind")
    (folder / "train" / "cat" / "Thumbs.db").write_text("what Windows leaves behind")
    data = load_dataset(f"folder:{folder}")
    assert isinstance(data.train, ImageArrays) and values(data.train) == [10, 11, 12, 20, 21]


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=r"absent is no folder of images: there is no such folder"):
        load_dataset(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(
        CorsdError, match=r"train has cat/, dog/ in it; expected train/ and val/ or test/, each with a folder a cl"
    ):
        load_dataset(f"folder:{folder / 'train'}")
    (folder / "val" / "fox").mkdir()
    with pytest.raises(CorsdError, match="train/ and val/ differ in the classes fox"):
        load_dataset(f"folder:{folder}")
    (folder / "train" / "fox").mkdir()
    with pytest.raises(CorsdError, match="expected at least one image in every class folder") as caught:
        load_dataset(f"folder:{folder}")
    assert "fox" in str(caught.value)
    (folder / "val").rename(folder / "aside")
    with pytest.raises(CorsdError, match="has aside/, train/ in it"):
        load_dataset(f"folder:{folder}")
    (folder / "val").mkdir()
    with pytest.raises(CorsdError, match=r"differ|has no class folders"):
        load_dataset(f"folder:{folder}")


def test_a_truncated_image_is_named(folder: Path) -> None:
    path = folder / "val" / "dog" / "001.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorsdError, match=r"dog/001\.png cannot be read"):
        load_dataset(f"folder:{folder}")


# -------------------------------------------------------------------------------------------------- imagenet


@pytest.mark.parametrize("below", ["imagenet", "."])
def test_imagenet_streams_torchvisions_layout(tmp_path: Path, below: str) -> None:
    for part, count in (("train", 3), ("val", 1)):
        make_images(tmp_path / below / part, {"n01440764": count, "n01443537": count})
    data = load_dataset("imagenet", tmp_path, validation_fraction=0.3, per_class=1)
    assert isinstance(data.train, ImageFiles) and isinstance(data.validation, ImageFiles)
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 2, 2)
    assert (data.image_size, data.train.image_size, data.augmentation) == (224, 224, "resized_crop")
    assert data.crop_scale == 0.08
    assert (data.mean, data.std, data.channels) == (IMAGENET_MEAN, IMAGENET_STD, 3)
    assert data.class_names == ("n01440764", "n01443537")
    assert load_dataset("imagenet", tmp_path, image_size=160).train.image_size == 160
    torch.save(({"n01440764": ("tench", "Tinca tinca")}, []), tmp_path / below / "meta.bin")
    assert load_dataset("imagenet", tmp_path).class_names == ("tench", "n01443537")


def test_the_thousand_classes_have_words(tmp_path: Path) -> None:
    wnids = tuple(f"n{number:08}" for number in range(1000))
    names = folders._imagenet_names(tmp_path, wnids)
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")
    assert folders._imagenet_names(tmp_path, wnids[:999]) == wnids[:999]


def test_absent_imagenet_says_where_it_looked(tmp_path: Path) -> None:
    for download in (False, True):
        with pytest.raises(CorsdError, match=r"imagenet is neither in .*imagenet nor in .*image-net\.org"):
            load_dataset("imagenet", tmp_path, download=download)
