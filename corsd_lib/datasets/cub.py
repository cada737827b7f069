"""Caltech-UCSD Birds 200 (2011): fine-grained classes, bounding boxes and attributes, in the official layout."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from corsd_lib.datasets.arrays import ImageArrays, ImageData, channel_statistics, check_distinct
from corsd_lib.datasets.decoding import Box, read_squares, stored_side
from corsd_lib.datasets.download import download, unpacked
from corsd_lib.errors import CorsdError, shortened

CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1"
CUB_MD5 = "97eceeb196236b17998738112f37df78"
CUB_BYTES = 1_150_585_339
FOLDER = "CUB_200_2011"

Value = TypeVar("Value")


def load_cub(root: Path, image_size: int | None, crop_to_box: bool, fetch: bool) -> ImageData:
    """CUB-200-2011 from `<root>/CUB_200_2011`: 200 birds, 5,994 train and 5,794 test images, official split.

    Images are in memory as uint8 (N, 3, S, S), with S = 8/7 of `image_size` (default: 64). With `crop_to_box` each image is cut
    to the square around the bird, without it to the centre square. Grey images become RGB. The data set has no superclasses;
    here a superclass is the last word of a class name (Albatross, Warbler, ...). Attributes are float32 (200, 312) in [0, 1],
    None if their files are missing. With `fetch` the archive is downloaded if the folder is missing. Raises CorsdError for
    missing, contradictory or corrupt files. Source: Wah et al., Caltech CNS-TR-2011-001.
    """
    folder = root / FOLDER
    if fetch and not folder.exists():
        fetch_cub(root)
    if not folder.is_dir():
        raise CorsdError(f"cub200 is not in {folder}; fetch it with: corsd data cub200 --download")
    side = image_size or 64
    class_names, superclass_names, superclass_of_class = _classes(folder)
    train, test = _splits(folder, len(class_names), side, crop_to_box)
    mean, std = channel_statistics(train.images)
    attributes, attribute_names = _attributes(folder, len(class_names))
    return ImageData(
        "cub200",
        train,
        test,
        class_names=class_names,
        superclass_names=superclass_names,
        superclass_of_class=superclass_of_class,
        mean=mean,
        std=std,
        image_size=side,
        augmentation="resized_crop",
        attributes=attributes,
        attribute_names=attribute_names,
    )


def fetch_cub(root: Path) -> None:
    """Download CUB_200_2011.tgz into `root` (1.15 GB, resumed and verified) and unpack it to `<root>/CUB_200_2011`.

    An existing archive is used. The folder is created only when it is complete. Raises CorsdError if the download fails, and
    for an archive that is corrupt or lacks the folder.
    """
    archive = download(CUB_URL, root / f"{FOLDER}.tgz", CUB_MD5, CUB_BYTES)
    with unpacked(archive) as contents:
        if (root / FOLDER).is_dir():  # another process has unpacked it meanwhile
            return
        if not (contents / FOLDER).is_dir():
            raise CorsdError(f"{archive} does not contain the folder {FOLDER}; expected the official archive")
        if (contents / "attributes.txt").exists():  # the official archive has it beside the folder
            os.replace(contents / "attributes.txt", contents / FOLDER / "attributes.txt")
        os.replace(contents / FOLDER, root / FOLDER)


def _splits(folder: Path, classes: int, image_size: int, crop_to_box: bool) -> tuple[ImageArrays, ImageArrays]:
    paths = _table(folder / "images.txt", lambda text: str(folder / "images" / _inside(text)))
    labels = _table(folder / "image_class_labels.txt", lambda text: _between(int(text), 1, classes) - 1, paths)
    in_train = _table(folder / "train_test_split.txt", lambda text: _between(int(text), 0, 1), paths)
    boxes = _table(folder / "bounding_boxes.txt", _box, paths) if crop_to_box else None
    splits = []
    for part, wanted in (("train", 1), ("test", 0)):
        ids = [i for i in paths if in_train[i] == wanted]
        images = read_squares(
            [paths[i] for i in ids],
            stored_side(image_size),
            [boxes[i] for i in ids] if boxes else None,
            label=f"reading cub200 {part}",
        )
        splits.append(ImageArrays(images, torch.tensor([labels[i] for i in ids]), torch.arange(len(ids))))
    return splits[0], splits[1]


def _classes(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...], Tensor]:
    table = _table(folder / "classes.txt", lambda text: re.sub(r"^\d+\.", "", text).replace("_", " "))
    if list(table) != list(range(1, len(table) + 1)):
        raise CorsdError(f"{folder / 'classes.txt'} numbers its classes {list(table)[:3]}...; expected 1, 2, 3, ...")
    check_distinct(f"{folder / 'classes.txt'}", tuple(table.values()))
    groups = [name.split()[-1] for name in table.values()]
    superclass_names = tuple(dict.fromkeys(groups))
    of_class = torch.tensor([superclass_names.index(group) for group in groups])
    return tuple(table.values()), superclass_names, of_class


def _attributes(folder: Path, classes: int) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class attributes float32 (C, A) and their A names; None and () if the data has no attributes.

    A value says how often an attribute was seen in images of the class, from 0 to 1; the file has percentages. The names are ()
    if there is no attributes.txt. Raises CorsdError for a file that cannot be read, for a value out of range, if the number of
    rows is not C, and if the number of names is not A.
    """
    file = folder / "attributes" / "class_attribute_labels_continuous.txt"
    if not file.is_file():
        return None, ()
    try:
        values = np.loadtxt(file, dtype=np.float32, ndmin=2) / 100
    except ValueError as error:
        raise CorsdError(f"{file} cannot be read: {error}") from error
    if len(values) != classes or not ((values >= 0) & (values <= 1)).all():
        raise CorsdError(f"{file} has {len(values)} rows; expected {classes}, one for each class, with percentages 0 to 100")
    # The official archive has attributes.txt beside the folder, copies often inside.
    lists = [path for path in (folder / "attributes.txt", folder.parent / "attributes.txt") if path.exists()]
    names = tuple(_table(lists[0], str).values()) if lists else ()
    if lists and len(names) != values.shape[1]:
        raise CorsdError(f"{lists[0]} names {len(names)} attributes; expected {values.shape[1]}, the columns of {file}")
    return torch.from_numpy(values), names


def _table(file: Path, parse: Callable[[str], Value], ids: dict[int, str] | None = None) -> dict[int, Value]:
    """Read the lines `<id> <value>` of an official text file as {id: parse(value)}.

    Raises CorsdError for a missing or invalid file, and if its ids are not those of `ids`.
    """
    if not file.is_file():
        raise CorsdError(f"{file} is missing; expected the official layout of CUB-200-2011")
    try:
        lines = file.read_text(encoding="utf-8").rstrip().splitlines()  # text editors may leave blank lines at the end
    except UnicodeDecodeError as error:
        raise CorsdError(f"{file} is not valid UTF-8: {error}") from error
    table: dict[int, Value] = {}
    for number, line in enumerate(lines, start=1):
        try:
            key, value = line.split(maxsplit=1)
            table[int(key)] = parse(value.strip())
        except ValueError as error:
            raise CorsdError(f"{file}, line {number}: {shortened(line)} is not valid ({error})") from error
    if not table or (ids is not None and table.keys() != ids.keys()):
        raise CorsdError(f"{file} has {len(table)} entries that do not match images.txt; expected one for each image")
    return table


def _inside(path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError("it is not below images/")
    return path


def _between(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError(f"{value} is not in {low}..{high}")
    return value


def _box(text: str) -> Box:
    x, y, width, height = map(float, text.split())
    if not (math.isfinite(x + y + width + height) and width > 0 and height > 0):
        raise ValueError("a box needs finite numbers, width and height above 0")
    return x, y, x + width, y + height
