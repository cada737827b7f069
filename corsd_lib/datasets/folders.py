"""Image folders: ImageNet, and folders of the form `train/<class>/*.jpg`, or `<class>/*.jpg` without a split."""

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

MEMORY_LIMIT = 2 * 1024**3  # bytes; larger folders are streamed
TEST_FRACTION = 0.2  # default for a folder of classes without a split
SPLIT_SEED = 0  # fixed, so that all trainings on a folder have the same test images
SAMPLE = 50  # number of images whose width and height are read


class Parts(NamedTuple):
    """The listings of the splits of a folder, and notices on how it was read."""

    train: Listing
    test: Listing
    validation: Listing | None = None
    notices: tuple[str, ...] = ()
    generated_split: bool = False  # whether train and test were split from one folder


def load_imagenet(root: Path, image_size: int | None) -> ImageData:
    """ImageNet in torchvision's folder layout: train/<wnid> and val/<wnid> in `<root>/imagenet` or `<root>`.

    Images are streamed from files, with the usual mean and std of ImageNet; `image_size` is 224 by default. Class names are
    English words if torchvision's meta.bin exists or all thousand classes are present, else the names of the folders. Raises
    CorsdError if train/ or val/ is missing, if their class folders differ, if a class has no images, and for an invalid
    meta.bin.
    """
    folder = next((f for f in (root / "imagenet", root) if (f / "train").is_dir() and (f / "val").is_dir()), None)
    if folder is None:
        raise CorsdError(
            f"imagenet is neither in {root / 'imagenet'} nor in {root}; expected train/ and val/ with a "
            "folder for each class there (its licence forbids automatic download: get it from https://image-net.org)"
        )
    listings, notices = list_parts(folder, {"train": "train", "test": "val"})
    train, val = listings["train"], listings["test"]
    names = _imagenet_names(folder, train.class_names)
    side = image_size or 224
    data = image_data("imagenet", _stream(train, side), _stream(val, side), None, names, side)
    return replace(data, crop_scale=0.08, notices=notices)


def load_folder(name: str, folder: Path, image_size: int | None, test_fraction: float | None = None) -> ImageData:
    """A folder with train/ and test/ or val/, each with the same class folders; `image_size` is 64 by default.

    The test set is test/, or val/ if there is no test/. If all three exist, val/ (or valid/, validation/, dev/) is the
    validation split; `load_dataset` ignores it if `validation_fraction` is given. A folder that has only class folders is
    split: about `test_fraction` of each class (0.2 by default) is the test set, see `split_classes`.

    If the centre squares of all images, with a side of 8/7 of `image_size`, fit into `MEMORY_LIMIT` bytes, they are kept in
    memory. Mean and standard deviation are then those of the training split. Otherwise images are streamed from files, mean and
    standard deviation are those of ImageNet, and random crops are taken from the whole image. Like torchvision, the function
    ignores orientation tags (EXIF). Raises CorsdError for missing folders, two folders that mean the same split, splits with
    different classes, fewer than two classes, a class without images or with too few to split, an image that cannot be read,
    and a `test_fraction` for a folder that has a split.
    """
    parts = _parts(folder, test_fraction)
    side = image_size or 64
    listings = [parts.train, parts.test, *([parts.validation] if parts.validation else [])]
    train, test, *validation = load_splits(listings, side, stored_side(side))
    data = image_data(name, train, test, validation[0] if validation else None, parts.train.class_names, side)
    notices = (*parts.notices, *_enlarged_notice(parts.train.paths, side))
    return replace(data, notices=notices, generated_split=parts.generated_split)


def load_splits(listings: Sequence[Listing], side: int, stored: int) -> list[Split]:
    """The images of every listing: in memory if the images of all listings fit into `MEMORY_LIMIT`, else as files.

    In memory they are squares with a side of `stored` pixels. `side`: side of the square input of the network, in pixels.
    Raises CorsdError for an image that cannot be read.
    """
    needed = sum(len(listing.paths) for listing in listings) * 3 * stored**2
    return [_stream(one, side) if needed > MEMORY_LIMIT else _in_memory(one, stored) for one in listings]


def _parts(folder: Path, test_fraction: float | None) -> Parts:
    if not folder.is_dir():
        problem = "it is a file" if folder.exists() else "there is no such folder"
        raise CorsdError(f"{folder} is not a folder of images: {problem}")
    splits, unused = split_folders(folder)
    if set(splits) == {"train"} and len(unused) > 1 and not visible_folders(folder / splits["train"]):
        splits = {}  # "train" is a class here, such as in a folder of vehicles
    if not splits:
        return split_classes(folder, TEST_FRACTION if test_fraction is None else test_fraction)
    if test_fraction is not None:
        there = " and ".join(f"{name}/" for name in splits.values())
        raise CorsdError(
            f"test_fraction is {test_fraction} for {folder}, which has {there}; allowed: only for a folder without a split"
        )
    if "train" not in splits or len(splits) < 2:
        there = ", ".join(f"{shown_text(name)}/" for name in visible_folders(folder)[:5])
        one = f"; to split the images of {splits['train']}/, name that folder" if "train" in splits else ""
        raise CorsdError(
            f"{folder} has {there} in it; expected train/ and val/ or test/, each with a folder for each class{one}"
        )
    listings, notices = list_parts(folder, splits)
    test = listings.get("test") or listings["validation"]
    notices = (*notices, *(f"{name}/ is not used" for name in unused))
    return Parts(listings["train"], test, listings.get("validation") if "test" in listings else None, notices)


def split_classes(folder: Path, fraction: float) -> Parts:
    """Split a folder that has only class folders into a training and a test split.

    An image is in the test set if a hash of its name "class/file" and `SPLIT_SEED` is below `fraction`, in (0, 1). The split of
    an image never depends on the training seed. About `fraction` of the images of a class are in the test set; the share
    is closer to `fraction` in larger classes. Both splits have at least one image of each class: a split that would have none
    gets the image whose hash is nearest to `fraction`. In all other cases the split of an image does not depend on other
    images. Raises CorsdError for a class with fewer than two images. Source: ours.
    """
    names = class_folders(folder)
    whole, notices = list_images(folder, names)
    check_two_each(torch.tensor(whole.labels), fraction, names, "test_fraction")
    held_out = _held_out(whole, fraction)
    indices = range(len(whole.paths))
    train, test = (whole.subset([i for i in indices if (i in held_out) == wanted]) for wanted in (False, True))
    sizes = f"{len(train.paths):,} train, {len(test.paths):,} test images"
    said = f"no train/ and test/: about test_fraction {fraction} of each class is test ({sizes})"
    return Parts(train, test, notices=(*notices, said), generated_split=True)


def _held_out(listing: Listing, fraction: float) -> set[int]:
    """Indices of the files whose name has a hash, a number in [0, 1), below `fraction`.

    Every class must have at least two files. Whatever the hashes are, the result has at least one file of each class and lacks
    at least one.
    """
    of_class: dict[int, list[tuple[float, int]]] = {}
    for row, (name, label) in enumerate(zip(listing.names, listing.labels, strict=True)):
        of_class.setdefault(label, []).append((_hash_fraction(name), row))
    held_out: set[int] = set()
    for pairs in map(sorted, of_class.values()):
        count = sum(value < fraction for value, _ in pairs)
        held_out.update(row for _, row in pairs[: min(max(count, 1), len(pairs) - 1)])
    return held_out


def _hash_fraction(name: str) -> float:
    """Hash of a file name and `SPLIT_SEED` as a number in [0, 1)."""
    digest = hashlib.sha256(f"{SPLIT_SEED}:{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _enlarged_notice(paths: Sequence[str], side: int) -> tuple[str, ...]:
    """A notice if more than half of a sample of images have a shorter side below `side`, the input of the network; else ()."""
    sizes = image_sizes(paths[:: -(-len(paths) // SAMPLE)])
    middle = sorted(sizes, key=min)[len(sizes) // 2]
    if min(middle) >= side:
        return ()
    return (f"images of about {middle[0]}x{middle[1]} are enlarged to {side}x{side}; image_size sets another side",)


def image_data(
    name: str, train: Split, test: Split, validation: Split | None, class_names: tuple[str, ...], side: int
) -> ImageData:
    """A data set of image folders.

    Mean and standard deviation are those of the training split if its images are in memory, else those of ImageNet.
    """
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
    """Class names for WordNet ids such as n01440764.

    They come from torchvision's meta.bin if it exists, else from torchvision's list if there are exactly 1,000 ids. In all
    other cases the ids are returned. Raises CorsdError for an invalid meta.bin.
    """
    meta = folder / "meta.bin"
    if meta.is_file():
        words = _class_names_by_wordnet_id(meta)
        return tuple(words.get(wnid, (wnid,))[0] for wnid in wnids)
    if len(wnids) == 1000 and all(wnid.startswith("n") and wnid[1:].isdigit() for wnid in wnids):
        from torchvision.models import ResNet18_Weights

        return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])  # in the order of the sorted ids
    return wnids


def _class_names_by_wordnet_id(meta: Path) -> Mapping[str, Sequence[str]]:
    """Read the dict WordNet id -> class names from torchvision's meta.bin.

    The file contains a pair: this dict, and the ids of the validation images. Raises `CorsdError` if it does not.
    """
    try:
        words, _ = torch.load(meta, weights_only=True)
        sound = all(isinstance(names, tuple) and names and isinstance(names[0], str) for names in words.values())
    except Exception as error:  # torch and pickle raise UnpicklingError, RuntimeError, EOFError, KeyError and more
        raise CorsdError(f"{meta} cannot be read: it is not the meta.bin that torchvision's ImageNet writes") from error
    if not sound:
        raise CorsdError(
            f"{meta} does not map WordNet ids to class names; expected the meta.bin that torchvision's ImageNet writes"
        )
    return words
