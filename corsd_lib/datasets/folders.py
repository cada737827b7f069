"""Image folders: ImageNet, and anybody's own `train/<class>/*.jpg`, or `<class>/*.jpg` without a split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
from corsd_lib.datasets.decoding import image_sizes, read_squares, stored_side
from corsd_lib.datasets.listing import Listing, class_folders, list_images, list_parts, split_folders, visible_folders
from corsd_lib.datasets.selection import check_two_each
from corsd_lib.errors import CorsdError, shown_text

MEMORY_LIMIT = 2 * 1024**3  # bytes of pixels that a folder may take in memory; above, it streams
TEST_FRACTION = 0.2  # of a folder of classes without a split
SPLIT_SEED = 0  # of that split: all trainings on a folder are tested on the same images
SAMPLE = 50  # images whose size tells whether a folder is one of small images


class Parts(NamedTuple):
    """The listings of a data set's splits, and what a user should know of them."""

    train: Listing
    test: Listing
    validation: Listing | None = None
    notices: tuple[str, ...] = ()
    own_split: bool = False  # train and test were one folder


def load_imagenet(root: Path, image_size: int | None) -> ImageData:
    """ImageNet in torchvision's folder layout: train/<wnid> and val/<wnid> in `<root>/imagenet` or `<root>`.

    Streamed from files, `image_size` 224 by default; mean and std are the constants in general use. Class
    names are words where torchvision's meta.bin or the full thousand classes tell them, else folder names.
    Raises CorsdError when the folders are missing or differ, and for a meta.bin that is another file.
    """
    folder = next((f for f in (root / "imagenet", root) if (f / "train").is_dir() and (f / "val").is_dir()), None)
    if folder is None:
        raise CorsdError(
            f"imagenet is neither in {root / 'imagenet'} nor in {root}; expected train/ and val/ with a "
            "folder a class there (its licence forbids automatic download: get it from https://image-net.org)"
        )
    listings, notices = list_parts(folder, {"train": "train", "test": "val"})
    train, val = listings["train"], listings["test"]
    names = _imagenet_names(folder, train.class_names)
    side = image_size or 224
    data = image_data("imagenet", _stream(train, side), _stream(val, side), None, names, side)
    return replace(data, crop_scale=0.08, notices=notices)


def load_folder(name: str, folder: Path, image_size: int | None, test_fraction: float | None = None) -> ImageData:
    """Any folder with train/ and test/ or val/, each with the same class folders; `image_size` 64 by default.

    The last is the test set; where there are all three, val/ is the validation split (unless a fraction of train is asked
    for); val/ may be called valid/, validation/ or dev/. A folder of class folders alone is split: about `test_fraction` of
    each class (0.2 by default) is the test set, see `split_classes`.
    Images whose squares (side 8/7 of `image_size`, from the centre) fit together in `MEMORY_LIMIT` bytes are kept in memory
    with their own statistics; above, they stream from files, with ImageNet's, and random crops are of the whole picture.
    Orientation tags (EXIF) are not applied, as in torchvision. Raises CorsdError for missing folders, differing classes, a
    class without images, an unreadable image, and for a `test_fraction` where there is a split.
    """
    parts = _parts(folder, test_fraction)
    side = image_size or 64
    listings = [parts.train, parts.test, *([parts.validation] if parts.validation else [])]
    train, test, *validation = placed(listings, side, stored_side(side))
    data = image_data(name, train, test, validation[0] if validation else None, parts.train.class_names, side)
    notices = (*parts.notices, *_enlarged(parts.train.paths, side))
    return replace(data, notices=notices, own_split=parts.own_split)


def placed(listings: Sequence[Listing], side: int, stored: int) -> list[Split]:
    """The images of every listing, in memory as squares of `stored` pixels where all fit in `MEMORY_LIMIT`, else as files.

    `side`: of the square that the network sees, pixels. Raises CorsdError for an image that cannot be read.
    """
    needed = sum(len(listing.paths) for listing in listings) * 3 * stored**2
    return [_stream(one, side) if needed > MEMORY_LIMIT else _in_memory(one, stored) for one in listings]


def _parts(folder: Path, test_fraction: float | None) -> Parts:
    if not folder.is_dir():
        problem = "it is a file" if folder.exists() else "there is no such folder"
        raise CorsdError(f"{folder} is no folder of images: {problem}")
    splits, unused = split_folders(folder)
    if set(splits) == {"train"} and len(unused) > 1 and not visible_folders(folder / splits["train"]):
        splits = {}  # it is a class, as among vehicles
    if not splits:
        return split_classes(folder, TEST_FRACTION if test_fraction is None else test_fraction)
    if test_fraction is not None:
        there = " and ".join(f"{name}/" for name in splits.values())
        raise CorsdError(f"test_fraction is {test_fraction} for {folder}, which has {there}; allowed: where there is no split")
    if "train" not in splits or len(splits) < 2:
        there = ", ".join(f"{shown_text(name)}/" for name in visible_folders(folder)[:5])
        one = f"; to split the images of {splits['train']}/, name that folder" if "train" in splits else ""
        raise CorsdError(f"{folder} has {there} in it; expected train/ and val/ or test/, each with a folder a class{one}")
    listings, notices = list_parts(folder, splits)
    test = listings.get("test") or listings["validation"]
    notices = (*notices, *(f"{name}/ is not used" for name in unused))
    return Parts(listings["train"], test, listings.get("validation") if "test" in listings else None, notices)


def split_classes(folder: Path, fraction: float) -> Parts:
    """Split a folder of class folders alone into train and test.

    An image is of the test set where a hash of its own name, class/file, and of `SPLIT_SEED` is below `fraction`, in (0, 1):
    whatever images are added, removed or renamed, all others stay where they are, and the seed of a training is no matter. So
    a class has about `fraction` of its images in the test set, more exactly the more it has. At least one image of each class
    is in either: where the hash leaves one side empty it gets the image that is nearest to it, which may go back when images
    are added. Raises CorsdError for a class with fewer than two images. Ours.
    """
    names = class_folders(folder)
    whole, notices = list_images(folder, names)
    check_two_each(torch.tensor(whole.labels), fraction, names, "test_fraction")
    held_out = _held_out(whole, fraction)
    rows = range(len(whole.paths))
    train, test = whole.subset([r for r in rows if r not in held_out]), whole.subset([r for r in rows if r in held_out])
    sizes = f"{len(train.paths):,} train, {len(test.paths):,} test images"
    said = f"no train/ and test/: about test_fraction {fraction} of each class is test ({sizes})"
    return Parts(train, test, notices=(*notices, said), own_split=True)


def _held_out(listing: Listing, fraction: float) -> set[int]:
    """The rows of a listing, two of every class or more, whose hash is below `fraction`: of each class some and not all."""
    of_class: dict[int, list[tuple[float, int]]] = {}
    for row, (name, label) in enumerate(zip(listing.names, listing.labels, strict=True)):
        of_class.setdefault(label, []).append((_hashed(name), row))
    held_out: set[int] = set()
    for pairs in map(sorted, of_class.values()):
        count = sum(value < fraction for value, _ in pairs)
        held_out.update(row for _, row in pairs[: min(max(count, 1), len(pairs) - 1)])
    return held_out


def _hashed(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name."""
    digest = hashlib.sha256(f"{SPLIT_SEED}:{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _enlarged(paths: Sequence[str], side: int) -> tuple[str, ...]:
    """A notice where at least half of the images are smaller than the network sees them; some of them are looked at."""
    sizes = image_sizes(paths[:: -(-len(paths) // SAMPLE)])
    middle = sorted(sizes, key=min)[len(sizes) // 2]
    if min(middle) >= side:
        return ()
    return (f"images of {middle[0]}x{middle[1]} or so are enlarged to {side}x{side}; image_size sets another side",)


def image_data(
    name: str, train: Split, test: Split, validation: Split | None, class_names: tuple[str, ...], side: int
) -> ImageData:
    """A data set of own classes; mean and deviation are those of train where it is in memory, else ImageNet's."""
    usual = (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = channel_statistics(train.images) if isinstance(train, ImageArrays) else usual
    own = torch.arange(len(class_names))
    return ImageData(name, train, test, class_names, class_names, own, mean, std, side, "resized_crop", validation)


def _stream(listing: Listing, side: int) -> Split:
    count = len(listing.paths)
    return ImageFiles(listing.paths, torch.tensor(listing.labels), torch.arange(count), side, listing.root)


def _in_memory(listing: Listing, stored: int) -> Split:
    images = read_squares(listing.paths, stored, label="reading images")
    return ImageArrays(images, torch.tensor(listing.labels), torch.arange(len(images)), listing.names)


def _imagenet_names(folder: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Words for WordNet ids (n01440764): from the devkit as torchvision parsed it, or the usual thousand."""
    meta = folder / "meta.bin"
    if meta.is_file():
        words = _words(meta)
        return tuple(words.get(wnid, (wnid,))[0] for wnid in wnids)
    if len(wnids) == 1000 and all(wnid.startswith("n") and wnid[1:].isdigit() for wnid in wnids):
        from torchvision.models import ResNet18_Weights

        return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])  # in the order of the sorted ids
    return wnids


def _words(meta: Path) -> Mapping[str, Sequence[str]]:
    """The names of every WordNet id in torchvision's meta.bin: (names by id, ids of the validation images)."""
    try:
        words, _ = torch.load(meta, weights_only=True)
        sound = all(isinstance(names, tuple) and names and isinstance(names[0], str) for names in words.values())
    except Exception as error:  # torch and pickle raise UnpicklingError, RuntimeError, EOFError, KeyError and more
        raise CorsdError(f"{meta} cannot be read: it is not the meta.bin that torchvision's ImageNet writes") from error
    if not sound:
        raise CorsdError(f"{meta} holds other things than names; expected the meta.bin that torchvision's ImageNet writes")
    return words
