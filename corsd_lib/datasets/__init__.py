"""Data sets: `load_dataset` loads any of them as `ImageData`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from corsd_lib.datasets.arrays import AUGMENTATIONS, ImageArrays, ImageData, ImageFiles, Split, check_class_names
from corsd_lib.datasets.cub import load_cub
from corsd_lib.datasets.folders import load_folder, load_imagenet
from corsd_lib.datasets.holdout import HOLD_OUT, split_classes
from corsd_lib.datasets.notices import DataNotice, say
from corsd_lib.datasets.npz import load_npz
from corsd_lib.datasets.selection import pick_per_class, split_validation
from corsd_lib.datasets.shapes import load_shapes
from corsd_lib.datasets.small import load_cifar, load_digits
from corsd_lib.datasets.tiny_imagenet import load_tiny_imagenet
from corsd_lib.errors import CorsdError, check_choice, check_text, enough_memory, is_whole, shortened

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "HOLD_OUT",
    "DataNotice",
    "ImageArrays",
    "ImageData",
    "ImageFiles",
    "Split",
    "data_root",
    "load_dataset",
]

DATASETS = ("digits", "shapes", "cifar10", "cifar100", "cub200", "tiny_imagenet", "imagenet", "folder:PATH", "npz:PATH")
LARGEST_SIDE = 65_535  # pixels; a run on disk cannot store more


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    per_class: int | None = None,
    validation_fraction: float = 0.0,
    test_fraction: float | None = None,
    seed: int = 0,
    image_size: int | None = None,
    crop_to_box: bool = False,
    hold_out_classes: int = 0,
    hold_out: str = "random",
    hold_out_seed: int = 0,
    download: bool = False,
) -> ImageData:
    """Load a data set by name, one of `DATASETS`, from `root` (default: $CORSD_DATA, else "data").

    A relative PATH in folder:PATH and npz:PATH is searched in `root`, if that is given, and then in the working directory.
    Images are uint8 in 0..255, in memory as (N, C, H, W), or streamed from files if they are too large (imagenet, large
    folders). Options:

    - `per_class`: number of images of each class to train on, chosen at random from the training images after the validation
      split is taken off;
    - `validation_fraction` in [0, 1): share of the training images of each class that becomes the `validation` split;
    - `test_fraction` in (0, 1): approximate share of each class that becomes the test set of a folder without a split; 0.2 by
      default, the same images for every seed;
    - `seed`: chooses the images of `validation_fraction` and `per_class`;
    - `image_size`: side in pixels of the input of the network, by default that of the data set;
    - `crop_to_box` (cub200): crop to the bird;
    - `hold_out_classes`: number of classes that are removed from all splits before anything else is chosen. The field `unseen`
      of the result has these classes with all their images. `hold_out`, one of `HOLD_OUT`, and `hold_out_seed` determine which
      classes these are, see `datasets.holdout`;
    - `download` (cifar10, cifar100, cub200): download missing files.

    `mean` and `std` of the result are those of the full train split, or those of ImageNet if images are streamed. Remarks on
    how the files were read are in `notices` of the result and are shown once in a process as warnings (`DataNotice`). Raises
    CorsdError for unknown names, missing or corrupt files, values out of range, and data with fewer than two classes.
    """
    _check_name(name, root)
    _check_flags(name, crop_to_box=crop_to_box, download=download)
    seed = _whole("seed", seed, 0, 2**63 - 1)
    per_class = None if per_class is None else _whole("per_class", per_class, 1, 2**31 - 1, ", or None")
    image_size = None if image_size is None else _whole("image_size", image_size, 1, LARGEST_SIDE, ", or None")
    hold_out_classes = _whole("hold_out_classes", hold_out_classes, 0, 2**31 - 1)
    hold_out_seed = _whole("hold_out_seed", hold_out_seed, 0, 2**63 - 1)
    check_choice("hold_out", hold_out, HOLD_OUT)
    validation_fraction = _share("validation_fraction", validation_fraction)
    test_fraction = None if test_fraction is None else _test_share(name, test_fraction)
    with enough_memory(f"data set {name!r}"), _readable(name):
        data = _load(name, root, image_size, crop_to_box, test_fraction, download)
    _check_every_class(data)
    if hold_out_classes:
        data = split_classes(data, hold_out_classes, hold_out, hold_out_seed)
        _check_every_class(data)
    generator = torch.Generator().manual_seed(seed)
    if validation_fraction > 0 and data.validation is not None:
        unused = "the validation split of the data is not used: validation_fraction takes one from the training images"
        data = replace(data, notices=(*data.notices, unused))
    if validation_fraction > 0:
        train, validation = split_validation(data.train, validation_fraction, data.class_names, generator)
        data = replace(data, train=train, validation=validation)
    if per_class is not None:
        data = replace(data, train=pick_per_class(data.train, per_class, data.class_names, generator))
    say(data.name, data.notices)
    return data


def data_root(root: str | Path | None = None) -> Path:
    """The folder of data sets: `root` if given, else the environment variable CORSD_DATA, else "data". ~ is the home folder.

    Raises CorsdError for the home folder of an unknown user.
    """
    return _expand_home("data root", root or os.environ.get("CORSD_DATA") or "data")


def _expand_home(what: str, path: str | Path) -> Path:
    """`path` with ~ replaced by the home folder. Raises CorsdError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise CorsdError(f"{what} {shortened(str(path))}: {user!r} has no home folder; allowed: a user who has one") from error


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn an OSError about an unreadable file or folder into CorsdError."""
    try:
        yield
    except OSError as error:
        too_long = error.errno == errno.ENAMETOOLONG or not error.filename
        where = f"data set {shortened(name)}" if too_long else error.filename
        raise CorsdError(f"cannot read {where}: {error.strerror or error}") from error


def _user_path(path: str, root: str | Path | None) -> Path:
    """The folder or file of folder:PATH or npz:PATH.

    A relative `path` is looked for in `root`, if that is given, and then in the working directory. If it is in neither, raises
    CorsdError that names both places. An absolute path is not checked.
    """
    own = _expand_home("data set", path)
    if own.is_absolute():
        return own
    places = [*([_expand_home("data root", root) / own] if root else []), own]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        looked = " nor at ".join(str(place.absolute()) for place in places)
        hint = "" if root else "; a relative path starts at the working directory, or at a data root (--data-root, root=)"
        raise CorsdError(f"{path} does not exist: it is {'neither' if root else 'not'} at {looked}{hint}")
    return found


def _load(
    name: str,
    given: str | Path | None,
    image_size: int | None,
    crop_to_box: bool,
    test_fraction: float | None,
    download: bool,
) -> ImageData:
    kind, _, path = name.partition(":")
    root = data_root(given)
    if kind == "folder":
        return load_folder(name, _user_path(path, given), image_size, test_fraction)
    if kind == "npz":
        return load_npz(name, _user_path(path, given), image_size)
    if kind == "digits":
        return load_digits(image_size)
    if kind == "shapes":
        return load_shapes(image_size)
    if kind == "cub200":
        return load_cub(root, image_size, crop_to_box, download)
    if kind == "tiny_imagenet":
        return load_tiny_imagenet(root, image_size)
    if kind == "imagenet":
        return load_imagenet(root, image_size)
    return load_cifar(name, root, image_size, download)


def _check_name(name: object, root: str | Path | None) -> None:
    if not isinstance(name, str):
        raise CorsdError(f"data set {shortened(name)} is of type {type(name).__name__}; allowed: {', '.join(DATASETS)}")
    if root is not None and not isinstance(root, str | os.PathLike):
        raise CorsdError(f"data root {shortened(root)} is of type {type(root).__name__}; allowed: a path, or None")
    kind, colon, path = name.partition(":")
    check_choice("data set", f"{kind}:PATH" if colon and path else name, DATASETS)
    check_text("data set", name)
    check_text("data root", str(data_root(root)))


def _check_flags(name: str, **flags: object) -> None:
    for what, value in flags.items():
        if not isinstance(value, bool):
            raise CorsdError(f"{what} is {shortened(value)}; allowed: True or False")
    if flags["crop_to_box"] and name != "cub200":
        raise CorsdError(f"crop_to_box is on for {shortened(name)}; allowed: only for cub200, the set with bounding boxes")


def _whole(what: str, value: Any, low: int, high: int, otherwise: str = "") -> int:
    """`value` as an int, from a whole number of Python or numpy. Raises CorsdError unless it is in [`low`, `high`].

    `otherwise` is appended to the message: other values that are allowed.
    """
    if not is_whole(value, low, high):
        raise CorsdError(
            f"{what} is {shortened(value)}; allowed: a whole number of at least {low} and at most {high}{otherwise}"
        )
    return int(value)


def _share(what: str, value: object) -> float:
    """`value` as a float, from a number of Python or numpy. Raises CorsdError unless it is in [0, 1)."""
    if isinstance(value, Real) and not isinstance(value, bool) and value < 1 and not value < 0:
        return float(value)
    raise CorsdError(f"{what} is {shortened(value)}; allowed: 0 up to but not including 1")


def _test_share(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not value < 1 or value <= 0:
        raise CorsdError(f"test_fraction is {shortened(value)}; allowed: above 0 and below 1, or None")
    if not name.startswith("folder:"):
        raise CorsdError(f"test_fraction is {value!r} for {name!r}; allowed: only for folder:PATH without a split")
    return float(value)


def _check_every_class(data: ImageData) -> None:
    check_class_names(data.name, data.class_names)
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    empty = [data.class_names[c] for c in (counts == 0).nonzero().flatten().tolist()]
    if empty or not len(data.test):
        problem = f"no train image of {', '.join(empty[:5])}" if empty else "no test image"
        raise CorsdError(f"{data.name} has {problem}; expected at least one train image of each class and one test image")
