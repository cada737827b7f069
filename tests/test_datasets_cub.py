"""cub200 from a small tree in the official layout: names, boxes, attributes, download, wrong files."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corsd_lib.datasets import ImageArrays, ImageData, cub, load_dataset
from corsd_lib.errors import CorsdError

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Bobolink")
# (class, red, in train); the red of each image tells which one it is
IMAGES = [(1, 10, 1), (1, 40, 0), (2, 70, 1), (2, 100, 1), (3, 130, 0), (3, 160, 1), (3, 190, 0)]
BOX = (20.0, 20.0, 35.0, 28.0)  # x, y, width, height in images of 100 x 80


def write(folder: Path, name: str, lines: list[str]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")


def make_cub(root: Path) -> Path:
    """A tree of 3 classes and 7 images, the second one grey; attributes.txt beside it as in the archive."""
    folder = root / "CUB_200_2011"
    names = []
    for number, (c, red, _) in enumerate(IMAGES, start=1):
        names.append(f"{CLASSES[c - 1]}/Bird_{number:04}.jpg")
        image = Image.new("RGB", (100, 80), (red, 50, 200))
        image.paste((red, 250, 0), (20, 20, 55, 48))  # the bird: green, without blue
        path = folder / "images" / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        (image.convert("L") if number == 2 else image).save(path, quality=95)
    write(folder, "classes.txt", [f"{i} {name}" for i, name in enumerate(CLASSES, start=1)])
    write(folder, "images.txt", [f"{i} {name}" for i, name in enumerate(names, start=1)])
    write(folder, "image_class_labels.txt", [f"{i} {c}" for i, (c, _, _) in enumerate(IMAGES, start=1)])
    write(folder, "train_test_split.txt", [f"{i} {train}" for i, (_, _, train) in enumerate(IMAGES, start=1)])
    write(folder, "bounding_boxes.txt", [f"{i} {' '.join(map(str, BOX))}" for i in range(1, len(IMAGES) + 1)])
    write(folder, "attributes/class_attribute_labels_continuous.txt", ["0.0 25", "100.0 1e1", "50 0"])
    write(root, "attributes.txt", ["1 has_bill_shape::curved_(up_or_down)", "2 has_wing_color::blue"])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_cub(tmp_path)


def reds(data: ImageData, part: str) -> list[int]:
    split = getattr(data, part)
    return [round(value) for value in split.images[:, 0].float().mean((1, 2)).tolist()]


def test_the_official_layout(folder: Path) -> None:
    data = load_dataset("cub200", folder.parent)
    assert isinstance(data.train, ImageArrays) and isinstance(data.test, ImageArrays)
    assert data.train.images.shape == (4, 3, 73, 73) and data.test.images.shape == (3, 3, 73, 73)
    assert reds(data, "train") == pytest.approx([10, 70, 100, 160], abs=2)
    assert data.train.labels.tolist() == [0, 1, 1, 2] and data.test.labels.tolist() == [0, 2, 2]
    assert data.train.index.tolist() == [0, 1, 2, 3]
    assert data.class_names == ("Black footed Albatross", "Laysan Albatross", "Bobolink")
    assert data.superclass_names == ("Albatross", "Bobolink") and data.superclass_of_class.tolist() == [
        0,
        0,
        1,
    ]
    assert (data.image_size, data.augmentation, data.channels) == (64, "resized_crop", 3)
    assert data.mean == pytest.approx(data.train.images.double().mean((0, 2, 3)) / 255)
    assert "2 attributes a class: has_bill_shape" in data.summary()


def test_grey_images_become_rgb(folder: Path) -> None:
    test = load_dataset("cub200", folder.parent).test
    assert isinstance(test, ImageArrays)
    grey, colour = test.images[0].float(), test.images[1].float()
    assert (grey[0] - grey[1]).abs().max() == 0 == (grey[1] - grey[2]).abs().max()
    assert (colour[0] - colour[1]).abs().max() > 100


def test_ids_tie_the_files_together_not_the_order_of_lines(folder: Path) -> None:
    before = load_dataset("cub200", folder.parent)
    for name in ("image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"):
        write(folder, name, (folder / name).read_text().splitlines()[::-1])
    after = load_dataset("cub200", folder.parent)
    assert torch.equal(before.train.labels, after.train.labels) and reds(before, "train") == reds(after, "train")


def test_crop_to_box_shows_the_bird(folder: Path) -> None:
    whole, cropped = (load_dataset("cub200", folder.parent, crop_to_box=crop).train for crop in (False, True))
    assert isinstance(whole, ImageArrays) and isinstance(cropped, ImageArrays)
    # box 35 x 28 in a square of side 40: 28 / 40 of the rows and 35 / 40 of the columns are bird
    green = (cropped.images[:, 1] > 150).float().mean((1, 2))
    assert green == pytest.approx(torch.full((4,), 28 * 35 / 40**2), abs=0.03)
    assert (whole.images[:, 1] > 150).float().mean() < 0.2


def test_image_size_and_selection(folder: Path) -> None:
    data = load_dataset("cub200", folder.parent, image_size=28, per_class=1)
    assert isinstance(data.train, ImageArrays)
    assert data.image_size == 28 and data.train.images.shape == (3, 3, 32, 32)


def test_attributes_beside_inside_or_absent(folder: Path) -> None:
    beside = load_dataset("cub200", folder.parent)
    assert beside.attributes is not None and beside.attributes.dtype == torch.float32
    assert beside.attributes.tolist() == pytest.approx(np.array([[0, 0.25], [1, 0.1], [0.5, 0]]))
    assert beside.attribute_names == ("has_bill_shape::curved_(up_or_down)", "has_wing_color::blue")
    shutil.move(folder.parent / "attributes.txt", folder / "attributes.txt")
    assert load_dataset("cub200", folder.parent).attribute_names == beside.attribute_names
    (folder / "attributes.txt").unlink()
    assert load_dataset("cub200", folder.parent).attribute_names == ()
    shutil.rmtree(folder / "attributes")
    assert load_dataset("cub200", folder.parent).attributes is None


# --------------------------------------------------------------------------------------------- what is wrong


def test_absent_data_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorsdError) as caught:
        load_dataset("cub200", tmp_path)
    assert str(tmp_path / "CUB_200_2011") in str(caught.value)
    assert "corsd data cub200 --download" in str(caught.value)


def test_a_truncated_or_absent_image_is_named(folder: Path) -> None:
    path = folder / "images" / CLASSES[1] / "Bird_0003.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(CorsdError, match=r"Bird_0003\.jpg cannot be read"):
        load_dataset("cub200", folder.parent)
    path.unlink()
    with pytest.raises(CorsdError, match=r"Bird_0003\.jpg does not exist"):
        load_dataset("cub200", folder.parent)


@pytest.mark.parametrize(
    ("name", "line", "text", "message"),
    [
        (
            "images.txt",
            2,
            "two images/x.jpg",
            r"images\.txt, line 2: 'two images/x\.jpg' is not valid",
        ),
        ("images.txt", 2, "2", r"images\.txt, line 2: '2'"),
        ("images.txt", 2, "2 ../x.jpg", r"images\.txt, line 2: .* \(it is not below images/\)"),
        ("images.txt", 2, "2 /x.jpg", r"images\.txt, line 2: .* \(it is not below images/\)"),
        ("image_class_labels.txt", 3, "3 4", r"image_class_labels\.txt, line 3: .*4 is not in 1\.\.3"),
        ("image_class_labels.txt", 3, "3 0", r"0 is not in 1\.\.3"),
        (
            "image_class_labels.txt",
            3,
            "30 1",
            r"image_class_labels\.txt has 7 entries that do not match images\.txt",
        ),
        ("train_test_split.txt", 1, "1 2", r"train_test_split\.txt, line 1: .*2 is not in 0\.\.1"),
        ("train_test_split.txt", 1, "2 1", r"train_test_split\.txt has 6 entries"),
        ("train_test_split.txt", 1, "1 0", "no train image of Black footed Albatross"),
        ("bounding_boxes.txt", 7, "7 1 2 3", r"bounding_boxes\.txt, line 7"),
        ("bounding_boxes.txt", 7, "7 1 2 0 4", "width and height above 0"),
        ("bounding_boxes.txt", 7, "7 nan 2 3 4", "finite"),
        ("classes.txt", 2, "5 002.Laysan_Albatross", r"classes\.txt numbers its classes \[1, 5, 3\]"),
        ("../attributes.txt", 2, "", "names 1 attributes; expected 2"),
        ("images.txt", 2, "", r"images\.txt, line 2: ''"),
        ("classes.txt", 2, "2 001.Black_footed_Albatross", r"classes\.txt has 'Black footed Albatross' more than once"),
        ("bounding_boxes.txt", 7, "7 100 0 5 5", r"Bird_0007\.jpg is 100x80; its box .* lies outside"),
        ("attributes/class_attribute_labels_continuous.txt", 1, "0.0 101", "with percentages 0 to 100"),
        ("attributes/class_attribute_labels_continuous.txt", 1, "0.0 nan", "with percentages 0 to 100"),
        ("attributes/class_attribute_labels_continuous.txt", 1, "", "has 2 rows; expected 3"),
        ("attributes/class_attribute_labels_continuous.txt", 1, "0.0 x", "continuous.txt cannot be read"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, name: str, line: int, text: str, message: str) -> None:
    lines = (folder / name).read_text().splitlines()
    lines[line - 1] = text
    write(folder, name, lines)
    with pytest.raises(CorsdError, match=message):
        load_dataset("cub200", folder.parent, crop_to_box=True)


def test_a_blank_last_line_is_no_error(folder: Path) -> None:
    before = load_dataset("cub200", folder.parent, crop_to_box=True)
    for name in ("classes", "images", "image_class_labels", "train_test_split", "bounding_boxes", "../attributes"):
        path = folder / f"{name}.txt"
        path.write_text(path.read_text() + "\n  \n")
    after = load_dataset("cub200", folder.parent, crop_to_box=True)
    assert torch.equal(before.train.labels, after.train.labels) and before.attribute_names == after.attribute_names


def test_a_text_file_in_another_encoding_is_named(folder: Path) -> None:
    (folder / "classes.txt").write_bytes("1 001.Königsalbatros\n".encode("latin-1"))
    with pytest.raises(CorsdError, match=r"classes\.txt is not valid UTF-8"):
        load_dataset("cub200", folder.parent)


@pytest.mark.parametrize("name", ["classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CorsdError, match=rf"{name} is missing; expected the official layout"):
        load_dataset("cub200", folder.parent)


def test_boxes_are_needed_only_for_cropping(folder: Path) -> None:
    (folder / "bounding_boxes.txt").unlink()
    load_dataset("cub200", folder.parent)
    with pytest.raises(CorsdError, match=r"bounding_boxes\.txt is missing"):
        load_dataset("cub200", folder.parent, crop_to_box=True)


def test_names_and_columns_of_attributes_must_agree(folder: Path) -> None:
    write(folder.parent, "attributes.txt", ["1 only_one"])
    with pytest.raises(CorsdError, match="names 1 attributes; expected 2"):
        load_dataset("cub200", folder.parent)


# -------------------------------------------------------------------------------------------------- download


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An archive with the official one's contents, served where the library looks for that."""
    make_cub(tmp_path / "made")
    served = tmp_path / "served"
    served.mkdir()
    path = served / "CUB_200_2011.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("attributes.txt", "CUB_200_2011"):
            tar.add(tmp_path / "made" / name, name)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(cub, "CUB_URL", f"http://127.0.0.1:{server.server_address[1]}/{path.name}")
        monkeypatch.setattr(cub, "CUB_MD5", hashlib.md5(path.read_bytes()).hexdigest())
        monkeypatch.setattr(cub, "CUB_BYTES", path.stat().st_size)
        yield path
        server.shutdown()


def test_download_unpacks_the_archive_once(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    data = load_dataset("cub200", root, download=True)
    assert len(data.train) == 4 and len(data.attribute_names) == 2
    assert {path.name for path in root.iterdir()} == {"CUB_200_2011", "CUB_200_2011.tgz"}
    archive.unlink()
    (root / "CUB_200_2011.tgz").unlink()
    assert len(load_dataset("cub200", root, download=True).train) == 4  # there already: nothing is asked for


def test_what_another_process_has_unpacked_meanwhile_is_kept(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_cub(root)
    cub.fetch_cub(root)
    assert len(load_dataset("cub200", root).train) == 4


def test_an_archive_put_there_by_hand_is_used(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.move(archive, root / archive.name)  # the server has it no more
    assert len(load_dataset("cub200", root, download=True).train) == 4


def test_a_corrupt_archive_leaves_no_folder(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    content = bytearray(archive.read_bytes())
    content[1000] ^= 255
    archive.write_bytes(content)
    with pytest.raises(CorsdError, match=r"CUB_200_2011\.tgz has md5 .* it is corrupt"):
        load_dataset("cub200", root, download=True)
    assert {path.name for path in root.iterdir()} == {"CUB_200_2011.tgz.corrupt"}


def test_another_archive_is_refused(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "attributes.txt", "something.txt")
    monkeypatch.setattr(cub, "CUB_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cub, "CUB_BYTES", archive.stat().st_size)
    with pytest.raises(CorsdError, match="does not contain the folder CUB_200_2011"):
        load_dataset("cub200", tmp_path / "root", download=True)
