"""A data set in one .npz file of plain arrays, checked before anything else touches it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from corsd_lib.datasets.arrays import ImageArrays, ImageData, as_arrays, channel_statistics, resize_arrays
from corsd_lib.errors import CorsdError

REQUIRED = ("train_x", "train_y", "test_x", "test_y")
OPTIONAL = ("class_names", "superclass_names", "superclass_of_class")


class ArrayContent(NamedTuple):
    """What a file of arrays holds; None stands for what it leaves out."""

    train: ImageArrays
    test: ImageArrays
    class_names: tuple[str, ...] | None = None
    superclass_names: tuple[str, ...] | None = None
    superclass_of_class: Tensor | None = None  # int64 (C,)


def load_npz(name: str, path: Path, image_size: int | None) -> ImageData:
    """A data set from an .npz file; see `read_npz` for its layout and the errors raised.

    Unnamed classes are called "0", "1", ...; without superclasses each class is its own. `image_size` other
    than the images' side resizes them, bilinearly. Colour images are flipped by default augmentation, grey
    ones (mostly characters) are not.
    """
    content = read_npz(path)
    height, width = content.train.images.shape[2:]
    if image_size is None and height != width:
        raise CorsdError(f"{path}: images are {height}x{width}; allowed: square ones, or give image_size to resize them")
    side = image_size or height
    train, test = (ImageArrays(resize_arrays(s.images, side), s.labels, s.index) for s in (content.train, content.test))
    class_names = content.class_names or tuple(map(str, range(int(train.labels.max()) + 1)))
    own = torch.arange(len(class_names))
    mean, std = channel_statistics(train.images)
    return ImageData(
        name,
        train,
        test,
        class_names=class_names,
        superclass_names=content.superclass_names or class_names,
        superclass_of_class=own if content.superclass_of_class is None else content.superclass_of_class,
        mean=mean,
        std=std,
        image_size=side,
        augmentation="crop_flip" if train.images.shape[1] == 3 else "crop",
    )


def read_npz(path: Path) -> ArrayContent:
    """Read and check an .npz file; nothing in it is unpickled.

    Required: `train_x`, `test_x` uint8 (N, H, W, 3), or (N, H, W) for grey; `train_y`, `test_y` whole numbers
    (N,) in 0..C-1. Optional: `class_names` (C,) strings; `superclass_names` (S,) strings with
    `superclass_of_class` (C,) whole numbers in 0..S-1. Raises CorsdError that names the file, the array and
    what is allowed.
    """
    arrays = _read_arrays(path)
    class_names = _names(path, arrays, "class_names")
    train, test = _split(path, arrays, "train", class_names), _split(path, arrays, "test", class_names)
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = " and ".join(str(arrays[key].shape[1:]) for key in ("train_x", "test_x"))
        raise CorsdError(f"{path}: train_x and test_x hold images of shapes {shapes}; expected the same")
    classes = len(class_names) if class_names else _count_classes(path, train, test)
    superclass_names = _names(path, arrays, "superclass_names")
    superclass_of_class = _superclasses(path, arrays, classes, superclass_names)
    return ArrayContent(train, test, class_names, superclass_names, superclass_of_class)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise CorsdError(f"{path} does not exist; expected an .npz file with {', '.join(REQUIRED)}")
    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CorsdError(f"{path} is not a readable .npz file: {error}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise CorsdError(f"{path} holds a single array; expected an .npz file with {', '.join(REQUIRED)}")
    with file:
        missing = [key for key in REQUIRED if key not in file.files]
        if missing:
            raise CorsdError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(file.files) or 'nothing'}")
        return {key: _read_array(path, file, key) for key in (*REQUIRED, *OPTIONAL) if key in file.files}


def _read_array(path: Path, file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return file[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorsdError(f"{path}: array {key} cannot be read: {error}") from error


def _split(path: Path, arrays: dict[str, np.ndarray], part: str, class_names: tuple[str, ...] | None) -> ImageArrays:
    pixels, key = arrays[f"{part}_x"], f"{path}: {part}_x"
    grey, colour = pixels.ndim == 3, pixels.ndim == 4 and pixels.shape[3] == 3
    if pixels.dtype != np.uint8 or not (grey or colour) or not pixels.size:
        raise CorsdError(
            f"{key} is {pixels.dtype} of shape {pixels.shape}; allowed: uint8 of shape (N, H, W, 3) or (N, H, W), not empty"
        )
    images = torch.from_numpy(pixels)
    images = images.unsqueeze(1) if grey else images.permute(0, 3, 1, 2)  # -> (N, 1 or 3, H, W)
    labels = _whole_numbers(path, arrays, f"{part}_y", len(pixels), len(class_names) if class_names else None)
    return as_arrays(images.contiguous(), labels)


def _whole_numbers(path: Path, arrays: dict[str, np.ndarray], key: str, length: int, count: int | None) -> Tensor:
    """An array of `length` whole numbers in 0..count-1 (no upper end if None) -> int64 (length,)."""
    values = arrays[key]
    if values.dtype.kind not in "iu" or values.shape != (length,):
        raise CorsdError(
            f"{path}: {key} is {values.dtype} of shape {values.shape}; expected whole numbers of shape ({length},)"
        )
    limit = 2**31 if count is None else count
    wrong = np.flatnonzero((values < 0) | (values >= limit))
    if wrong.size:
        raise CorsdError(f"{path}: {key} is {values[wrong[0]]} at row {wrong[0]}; allowed: 0..{limit - 1}")
    return torch.from_numpy(values.astype(np.int64))


def _count_classes(path: Path, train: ImageArrays, test: ImageArrays) -> int:
    """Number of classes of an unnamed set, whose train labels must be 0..C-1 without a gap."""
    found = train.labels.unique()
    gap = (found != torch.arange(len(found))).nonzero()
    if len(gap):
        raise CorsdError(f"{path}: train_y has no label {int(gap[0])} but has {int(found[-1])}; expected 0..C-1, no gap")
    if int(test.labels.max()) >= len(found):
        raise CorsdError(f"{path}: test_y has label {int(test.labels.max())}; allowed: 0..{len(found) - 1}, as in train_y")
    return len(found)


def _names(path: Path, arrays: dict[str, np.ndarray], key: str) -> tuple[str, ...] | None:
    if key not in arrays:
        return None
    names = arrays[key]
    if names.dtype.kind != "U" or names.ndim != 1 or not names.size:
        raise CorsdError(f"{path}: {key} is {names.dtype} of shape {names.shape}; expected strings of shape (n,), n > 0")
    return tuple(map(str, names))


def _superclasses(
    path: Path, arrays: dict[str, np.ndarray], classes: int, superclass_names: tuple[str, ...] | None
) -> Tensor | None:
    if ("superclass_of_class" in arrays) != (superclass_names is not None):
        raise CorsdError(f"{path} has only one of superclass_names and superclass_of_class; expected both or neither")
    if superclass_names is None:
        return None
    return _whole_numbers(path, arrays, "superclass_of_class", classes, len(superclass_names))
