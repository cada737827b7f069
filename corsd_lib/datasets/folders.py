"""Image folders: ImageNet, and anybody's own `train/<class>/*.jpg`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from corsd_lib.datasets.arrays import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageArrays,
    ImageData,
    ImageFiles,
    Split,
    channel_statistics,
)
from corsd_lib.datasets.decoding import read_squares, stored_side
from corsd_lib.errors import CorsdError

MEMORY_LIMIT = 2 * 1024**3  # bytes of pixels that a folder may take in memory; above, it streams


class Listing(NamedTuple):
    """The image files of one split and the class of each, in the order of the sorted class folders."""

    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]


def load_imagenet(root: Path, image_size: int | None) -> ImageData:
    """ImageNet in torchvision's folder layout: train/<wnid> and val/<wnid> in `<root>/imagenet` or `<root>`.

    Streamed from files, `image_size` 224 by default; mean and std are the constants in general use. Class
    names are words where torchvision's meta.bin or the full thousand classes tell them, else folder names.
    Raises CorsdError when the folders are missing or differ.
    """
    folder = next((f for f in (root / "imagenet", root) if (f / "train").is_dir() and (f / "val").is_dir()), None)
    if folder is None:
        raise CorsdError(
            f"imagenet is neither in {root / 'imagenet'} nor in {root}; expected train/ and val/ with a "
            "folder a class there (its licence forbids automatic download: get it from https://image-net.org)"
        )
    train, val = _listings(folder, ("train", "val"))
    names = _imagenet_names(folder, train.class_names)
    side = image_size or 224
    data = _image_data("imagenet", _stream(train, side), _stream(val, side), None, names, side)
    return replace(data, crop_scale=0.08)


def load_folder(name: str, folder: Path, image_size: int | None) -> ImageData:
    """Any folder with train/ and test/ or val/, each with the same class folders; `image_size` 64 by default.

    The last is the test set; where there are all three, val/ is the validation split (unless a fraction of train is asked
    for). Images whose squares (side 8/7 of `image_size`, from the centre) fit together in `MEMORY_LIMIT` bytes are kept in
    memory with their own statistics; above, they stream from files, with ImageNet's, and random crops are of the whole
    picture. Orientation tags (EXIF) are not applied, as in torchvision. Raises CorsdError for missing folders, differing
    classes, a class without images, an unreadable image.
    """
    parts = [part for part in ("train", "val", "test") if (folder / part).is_dir()]
    if not folder.is_dir():
        raise CorsdError(f"{folder} is no folder of images: there is no such folder")
    if "train" not in parts or len(parts) < 2:
        there = ", ".join(sorted(f"{f.name}/" for f in folder.iterdir() if f.is_dir())[:5]) or "no folder"
        raise CorsdError(f"{folder} has {there} in it; expected train/ and val/ or test/, each with a folder a class")
    listings = dict(zip(parts, _listings(folder, parts), strict=True))
    side = image_size or 64
    needed = sum(len(listing.paths) for listing in listings.values()) * 3 * stored_side(side) ** 2
    place = _stream if needed > MEMORY_LIMIT else _in_memory
    splits = {part: place(listing, side) for part, listing in listings.items()}
    test = splits["test" if "test" in splits else "val"]
    validation = splits["val"] if len(parts) == 3 else None
    return _image_data(name, splits["train"], test, validation, listings["train"].class_names, side)


def _image_data(
    name: str, train: Split, test: Split, validation: Split | None, class_names: tuple[str, ...], side: int
) -> ImageData:
    usual = (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = channel_statistics(train.images) if isinstance(train, ImageArrays) else usual
    own = torch.arange(len(class_names))
    return ImageData(name, train, test, class_names, class_names, own, mean, std, side, "resized_crop", validation)


def _stream(listing: Listing, side: int) -> Split:
    count = len(listing.paths)
    return ImageFiles(listing.paths, torch.tensor(listing.labels), torch.arange(count), side)


def _in_memory(listing: Listing, side: int) -> Split:
    images = read_squares(listing.paths, stored_side(side), label="reading images")
    return ImageArrays(images, torch.tensor(listing.labels), torch.arange(len(images)))


def _listings(folder: Path, parts: Sequence[str]) -> list[Listing]:
    """The listing of every part, after a check that all have the same classes."""
    classes = {part: _class_folders(folder / part) for part in parts}
    for part in parts[1:]:
        differing = sorted(set(classes[parts[0]]) ^ set(classes[part]))
        if differing:
            raise CorsdError(
                f"{folder}: {parts[0]}/ and {part}/ differ in the classes {', '.join(differing[:5])}; "
                "expected the same class folders in both"
            )
    return [_list_images(folder / part, classes[part]) for part in parts]


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith(".")))
    if not names:
        raise CorsdError(f"{folder} has no class folders; expected one folder of images a class")
    return names


def _list_images(folder: Path, class_names: tuple[str, ...]) -> Listing:
    from torchvision.datasets.folder import is_image_file, make_dataset

    def is_visible_image(path: str) -> bool:
        hidden = any(part.startswith(".") for part in Path(path).relative_to(folder).parts)
        return is_image_file(path) and not hidden

    numbers = {name: number for number, name in enumerate(class_names)}
    try:
        samples = make_dataset(folder, numbers, is_valid_file=is_visible_image)
    except FileNotFoundError as error:
        raise CorsdError(f"{folder}: {error}; expected at least one image in every class folder") from error
    paths, labels = zip(*samples, strict=True)
    return Listing(class_names, paths, labels)


def _imagenet_names(folder: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Words for WordNet ids (n01440764): from the devkit as torchvision parsed it, or the usual thousand."""
    meta = folder / "meta.bin"
    if meta.is_file():
        words, _ = torch.load(meta, weights_only=True)
        return tuple(words[wnid][0] if wnid in words else wnid for wnid in wnids)
    if len(wnids) == 1000 and all(wnid.startswith("n") and wnid[1:].isdigit() for wnid in wnids):
        from torchvision.models import ResNet18_Weights

        return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])  # in the order of the sorted ids
    return wnids
