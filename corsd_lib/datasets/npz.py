"""Data sets that are an .npz file of plain arrays."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from corsd_lib.datasets.archive import read_archive
from corsd_lib.datasets.arrays import (
    ImageArrays,
    ImageData,
    as_arrays,
    channel_statistics,
    check_class_names,
    check_distinct,
    check_names,
    resize_arrays,
    some,
)
from corsd_lib.datasets.selection import VALIDATION_NAMES
from corsd_lib.errors import CorsdError

REQUIRED = ("train_x", "train_y", "test_x", "test_y")
VALIDATION = tuple(f"{name}_{part}" for name in VALIDATION_NAMES for part in "xy")
OPTIONAL = ("class_names", "superclass_names", "superclass_of_class")


class ArrayContent(NamedTuple):
    """The content of an .npz file. Optional arrays that the file lacks are None.

    `checksum`: hexadecimal checksum of the train images.
    """

    train: ImageArrays
    test: ImageArrays
    checksum: str
    class_names: tuple[str, ...] | None = None
    superclass_names: tuple[str, ...] | None = None
    superclass_of_class: Tensor | None = None  # int64 (C,)
    validation: ImageArrays | None = None
    notices: tuple[str, ...] = ()

    def resized(self, path: Path, image_size: int | None, side: int) -> ArrayContent:
        """The same content, with images resized to `side` x `side` pixels.

        Raises CorsdError if the images are not square and no `image_size` was requested; `path` is for the message.
        """
        height, width = self.train.images.shape[2:]
        if image_size is None and height != width:
            raise CorsdError(f"{path}: images are {height}x{width}; allowed: square ones, or give image_size to resize them")
        train, test = _resized(self.train, side), _resized(self.test, side)
        return self._replace(train=train, test=test, validation=self.validation and _resized(self.validation, side))


def _resized(split: ImageArrays, side: int) -> ImageArrays:
    return ImageArrays(resize_arrays(split.images, side), split.labels, split.index)


def load_npz(name: str, path: Path, image_size: int | None) -> ImageData:
    """A data set from an .npz file; see `read_npz` for its layout and errors.

    Unnamed classes are called "0", "1", ...; without superclasses each class is its own superclass. Images are resized
    bilinearly if they do not have `image_size`. The default augmentation flips colour images but not grey ones, which are
    mostly characters.
    """
    content = read_npz(path)
    side = image_size or content.train.images.shape[2]
    content = content.resized(path, image_size, side)
    train = content.train
    class_names = content.class_names or tuple(map(str, range(int(train.labels.max()) + 1)))
    own = torch.arange(len(class_names))
    mean, std = channel_statistics(train.images)
    return ImageData(
        name,
        train,
        content.test,
        class_names=class_names,
        superclass_names=content.superclass_names or class_names,
        superclass_of_class=own if content.superclass_of_class is None else content.superclass_of_class,
        mean=mean,
        std=std,
        image_size=side,
        augmentation="crop_flip" if train.images.shape[1] == 3 else "crop",
        validation=content.validation,
        notices=content.notices,
    )


def read_npz(path: Path) -> ArrayContent:
    """Read and check an .npz file; nothing in it is unpickled.

    Required: `train_x`, `test_x` uint8 (N, H, W, 3), or (N, H, W) or (N, H, W, 1) for grey; `train_y`, `test_y` whole numbers
    (N,) or (N, 1) in 0..C-1. Optional: `val_x` and `val_y` (or `valid_`, `validation_`, `dev_`) likewise; `class_names` (C,)
    strings; `superclass_names` (S,) strings with `superclass_of_class` (C,) whole numbers in 0..S-1. Other arrays are ignored,
    and a notice names them. Raises CorsdError, with the file, the array and what is allowed, if an array breaks these rules,
    and if the file cannot be read.
    """
    known = (*REQUIRED, *VALIDATION, *OPTIONAL)
    archive = read_archive(path, f"an .npz file with {', '.join(REQUIRED)}", known.__contains__, REQUIRED)
    arrays = archive.arrays
    class_names = _names(path, arrays, "class_names")
    held_out = _validation_part(path, arrays)
    parts = ("train", "test", *([held_out] if held_out else []))
    splits = {part: _split(path, arrays, part, class_names) for part in parts}
    _check_shapes(path, arrays, splits)
    classes = len(class_names) if class_names else _count_classes(path, splits)
    if class_names is None:
        check_class_names(str(path), tuple(map(str, range(classes))))
    superclass_names = _names(path, arrays, "superclass_names")
    return ArrayContent(
        splits["train"],
        splits["test"],
        _checksum(archive.checksums["train_x"], arrays["train_x"]),
        class_names,
        superclass_names,
        _superclasses(path, arrays, classes, superclass_names),
        splits[held_out] if held_out else None,
        (f"arrays that are not used: {some(archive.others)}",) if archive.others else (),
    )


def _validation_part(path: Path, arrays: dict[str, np.ndarray]) -> str | None:
    """Prefix of the arrays `<prefix>_x` and `<prefix>_y` of the validation split; None if there is none.

    Raises CorsdError if one of the two is missing and if there are several prefixes.
    """
    there = [name for name in VALIDATION_NAMES if f"{name}_x" in arrays or f"{name}_y" in arrays]
    if len(there) > 1:
        raise CorsdError(f"{path} has validation arrays under several names, {' and '.join(there)}; expected one name")
    for key in (f"{name}_{part}" for name in there for part in "xy"):
        if key not in arrays:
            raise CorsdError(f"{path} lacks {key}; expected {there[0]}_x and {there[0]}_y, or neither")
    return there[0] if there else None


def _check_shapes(path: Path, arrays: dict[str, np.ndarray], splits: dict[str, ImageArrays]) -> None:
    for part, split in splits.items():
        if split.images.shape[1:] != splits["train"].images.shape[1:]:
            shapes = " and ".join(str(arrays[key].shape[1:]) for key in ("train_x", f"{part}_x"))
            raise CorsdError(f"{path}: train_x and {part}_x contain images of shapes {shapes}; expected the same")


def _checksum(crc: int, images: np.ndarray) -> str:
    """Hexadecimal checksum of images: their CRC-32 and a sum modulo 2**64.

    `crc`: the CRC-32 of all bytes, which was verified when they were read. The sum is that of the 64-bit words and of the
    remaining bytes.
    """
    words = np.ascontiguousarray(images).reshape(-1)
    whole = len(words) // 8 * 8
    total = int(words[:whole].view(np.uint64).sum()) + int(words[whole:].sum())
    return f"{crc:08x}{total % 2**64:016x}"


def _split(path: Path, arrays: dict[str, np.ndarray], part: str, class_names: tuple[str, ...] | None) -> ImageArrays:
    pixels, key = arrays[f"{part}_x"], f"{path}: {part}_x"
    grey = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 1)
    colour = pixels.ndim == 4 and pixels.shape[3] == 3
    if pixels.dtype != np.uint8 or not (grey or colour) or not pixels.size:
        allowed = "uint8 of shape (N, H, W, 3), (N, H, W, 1) or (N, H, W), not empty"
        raise CorsdError(f"{key} is {pixels.dtype} of shape {pixels.shape}; allowed: {allowed}")
    images = torch.from_numpy(pixels)
    images = images.reshape(pixels.shape[:3]).unsqueeze(1) if grey else images.permute(0, 3, 1, 2)  # -> (N, 1 or 3, H, W)
    labels = _whole_numbers(path, arrays, f"{part}_y", len(pixels), len(class_names) if class_names else None)
    return as_arrays(images.contiguous(), labels)


def _whole_numbers(path: Path, arrays: dict[str, np.ndarray], key: str, length: int, count: int | None) -> Tensor:
    """The array `key`, whole numbers of shape (length,) or (length, 1), as int64 (length,).

    Values must be in 0..count-1, or in 0..2**31-1 if `count` is None. Raises CorsdError if the type, the shape or a value is
    wrong.
    """
    values = arrays[key]
    if values.dtype.kind not in "iu" or values.shape not in ((length,), (length, 1)):
        raise CorsdError(
            f"{path}: {key} is {values.dtype} of shape {values.shape}; expected whole numbers of shape ({length},)"
        )
    values = values.reshape(length)
    wrong = np.flatnonzero((values < 0) | (values >= (2**31 if count is None else count)))
    if wrong.size:
        names = "superclass_names" if key == "superclass_of_class" else "class_names"
        allowed = "0..C-1 for C classes" if count is None else f"0..{count - 1}, for {names} has {count}"
        raise CorsdError(f"{path}: {key} is {values[wrong[0]]} at row {wrong[0]}; allowed: {allowed}")
    return torch.from_numpy(values.astype(np.int64))


def _count_classes(path: Path, splits: dict[str, ImageArrays]) -> int:
    """Number of classes C of data without class names. Raises CorsdError unless train labels are 0..C-1 without a gap, and
    others are in that range.
    """
    found = splits["train"].labels.unique()
    gap = (found != torch.arange(len(found))).nonzero()
    if len(gap):
        raise CorsdError(f"{path}: train_y has no label {int(gap[0])} but has {int(found[-1])}; expected 0..C-1 without a gap")
    for part, split in splits.items():
        largest = int(split.labels.max())
        if largest >= len(found):
            raise CorsdError(f"{path}: {part}_y has label {largest}; allowed: 0..{len(found) - 1}, as in train_y")
    return len(found)


def _names(path: Path, arrays: dict[str, np.ndarray], key: str) -> tuple[str, ...] | None:
    if key not in arrays:
        return None
    names = arrays[key]
    if names.dtype.kind != "U" or names.ndim != 1 or not names.size:
        raise CorsdError(f"{path}: {key} is {names.dtype} of shape {names.shape}; expected strings of shape (n,), n > 0")
    try:
        texts = tuple(map(str, names))
    except ValueError as error:  # numpy accepts any 32 bits as a character
        raise CorsdError(f"{path}: {key} cannot be read: {error}") from error
    check_names(f"{path}: {key}", texts)
    check_distinct(f"{path}: {key}", texts)
    return texts


def _superclasses(
    path: Path, arrays: dict[str, np.ndarray], classes: int, superclass_names: tuple[str, ...] | None
) -> Tensor | None:
    if ("superclass_of_class" in arrays) != (superclass_names is not None):
        raise CorsdError(f"{path} has only one of superclass_names and superclass_of_class; expected both or neither")
    if superclass_names is None:
        return None
    return _whole_numbers(path, arrays, "superclass_of_class", classes, len(superclass_names))
