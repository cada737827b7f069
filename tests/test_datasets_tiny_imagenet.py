"""tiny_imagenet from a small tree in the layout of its zip file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from corsd_lib.datasets import ImageArrays, ImageFiles, folders, load_dataset
from corsd_lib.errors import CorsdError

pytestmark = pytest.mark.filterwarnings("ignore::corsd_lib.datasets.DataNotice")

WNIDS = ("n02124075", "n03126707", "n02012849")  # a cat and the two cranes, not in order
VAL = [("val_0.JPEG", 2, 200), ("val_1.JPEG", 0, 210), ("val_2.JPEG", 1, 220)]


def draw(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (value,) * 3).save(path, "JPEG", quality=95)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for c, wnid in enumerate(WNIDS):
        for i in range(2):
            draw(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * (c + 1) + i)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    for name, _, value in VAL:
        draw(root / "val" / "images" / name, value)
    lines = [f"{name}\t{WNIDS[c]}\t0\t32\t44\t62" for name, c, _ in VAL]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n\n")
    draw(root / "test" / "images" / "test_0.JPEG", 0)
    words = ["n00001740\tentity", "n02124075\tEgyptian cat", "n03126707\tcrane", "n02012849\tcrane, wading bird"]
    (root / "words.txt").write_text("\n".join(words) + "\n")
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    return root


@pytest.mark.parametrize("itself", [False, True])
def test_the_layout_of_the_zip_file_is_read(folder: Path, itself: bool) -> None:
    data = load_dataset("tiny_imagenet", folder if itself else folder.parent)
    assert isinstance(data.train, ImageArrays) and isinstance(data.test, ImageArrays)
    assert data.class_names == ("crane (n02012849)", "Egyptian cat", "crane (n03126707)")  # in the order of the ids
    assert data.train.images.shape == (6, 3, 64, 64) and data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.images[:, 0, 5, 5].tolist() == [30, 31, 10, 11, 20, 21]
    assert data.test.labels.tolist() == [0, 1, 2] and data.test.images[:, 0, 5, 5].tolist() == [200, 210, 220]
    assert (data.name, data.image_size, data.augmentation, data.validation) == ("tiny_imagenet", 64, "crop_flip", None)
    assert data.mean == pytest.approx([20.5 / 255] * 3)
    assert data.notices == ("test/ is not used: its images have no labels; val/ is the test set",)


def test_the_options_of_every_data_set_apply(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("tiny_imagenet", folder.parent, validation_fraction=0.5, image_size=32)
    assert data.validation is not None and len(data.validation) == 3 and data.train.images.shape[2:] == (32, 32)  # type: ignore[union-attr]
    monkeypatch.setattr(folders, "MEMORY_LIMIT", 9 * 3 * 64 * 64 - 1)
    streamed = load_dataset("tiny_imagenet", folder.parent)
    assert isinstance(streamed.train, ImageFiles) and streamed.train.load(2).float().mean() == 10


def test_without_words_the_ids_are_the_names(folder: Path) -> None:
    (folder / "words.txt").unlink()
    assert load_dataset("tiny_imagenet", folder.parent).class_names == tuple(sorted(WNIDS))


@pytest.mark.parametrize(
    "line,message",
    [
        (
            "val_0.JPEG\tn00000000\t0",
            r"val_annotations\.txt, line 4: .* does not name a class of train/; expected FILE, tab, CLASS",
        ),
        ("val_0.JPEG", "does not name a class of train/"),
        *[
            (f"{name}\tn03126707\t0", r"val_annotations\.txt, line 4: '.*' is not a file name; expected one of val/images")
            for name in ("../../test/x.JPEG", "..", "", "a/b.JPEG", "/x.JPEG", "x" * 999 + "/")
        ],
        ("absent.JPEG\tn03126707\t0", r"absent\.JPEG does not exist"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, line: str, message: str) -> None:
    with open(folder / "val" / "val_annotations.txt", "r+") as file:
        lines = file.read().rstrip()
        file.seek(0)
        file.write(f"{lines}\n{line}\n")
    with pytest.raises(CorsdError, match=message):
        load_dataset("tiny_imagenet", folder.parent)


def test_wrong_text_files_are_named(folder: Path) -> None:
    (folder / "words.txt").write_bytes(b"n02124075\t\xff")
    with pytest.raises(CorsdError, match=r"words\.txt is not valid UTF-8"):
        load_dataset("tiny_imagenet", folder.parent)
    (folder / "val" / "val_annotations.txt").write_text("\n")
    with pytest.raises(CorsdError, match=r"val_annotations\.txt is empty"):
        load_dataset("tiny_imagenet", folder.parent)


def test_absent_data_says_where_it_looked_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        CorsdError, match=r"neither in .*tiny-imagenet-200 nor in .*; expected train/ and val/val_annotations.*http"
    ):
        load_dataset("tiny_imagenet", tmp_path)


def test_as_any_folder_it_is_pointed_to_its_name_or_read_once_val_is_sorted(folder: Path) -> None:
    with pytest.raises(
        CorsdError, match=r"/ lacks n.*; this is Tiny-ImageNet in its original layout: load it as tiny_imagenet"
    ):
        load_dataset(f"folder:{folder}")
    for name, c, _ in VAL:  # as people sort it by hand
        (folder / "val" / WNIDS[c]).mkdir()
        shutil.move(folder / "val" / "images" / name, folder / "val" / WNIDS[c] / name)
    (folder / "val" / "images").rmdir()
    (folder / "val" / "val_annotations.txt").unlink()
    data = load_dataset(f"folder:{folder}")
    assert torch.bincount(data.train.labels).tolist() == [2, 2, 2] and data.test.labels.tolist() == [0, 1, 2]
    assert "test/ is not used: it has no class folders" in data.notices
