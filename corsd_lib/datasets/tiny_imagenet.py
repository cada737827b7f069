"""Tiny-ImageNet, in the layout of its zip file: 200 classes of ImageNet at 64 x 64 pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from corsd_lib.datasets.arrays import ImageData
from corsd_lib.datasets.folders import image_data, load_splits
from corsd_lib.datasets.listing import Listing, class_folders, list_images
from corsd_lib.errors import CorsdError, shortened

FOLDER = "tiny-imagenet-200"
ANNOTATIONS = Path("val", "val_annotations.txt")


def load_tiny_imagenet(root: Path, image_size: int | None) -> ImageData:
    """Tiny-ImageNet from `<root>/tiny-imagenet-200`, or `root` itself: 100,000 train and 10,000 test images, 200 classes.

    Train images are train/<wnid>/images/*.JPEG. The test set is val/images/*.JPEG with val/val_annotations.txt, because the
    images in test/ have no labels. The name of a class is the first of its names in words.txt, or its WordNet id if words.txt
    or the entry is missing. If two classes share a name, their ids are added in brackets. Images are in memory at 64 x 64
    pixels (1.35 GB). For another `image_size` they are resized, and streamed if they need more than 2 GiB. Raises CorsdError
    for missing or contradictory files. Source: Le and Yang, Stanford CS231N, 2015.
    """
    folder = next((f for f in (root / FOLDER, root) if (f / "train").is_dir() and (f / ANNOTATIONS).is_file()), None)
    if folder is None:
        raise CorsdError(
            f"tiny_imagenet is neither in {root / FOLDER} nor in {root}; expected train/ and {ANNOTATIONS.as_posix()} there, "
            "as http://cs231n.stanford.edu/tiny-imagenet-200.zip unpacks"
        )
    wnids = class_folders(folder / "train")
    # The notices are dropped: they would be about the files of boxes beside the images.
    train, _ = list_images(folder / "train", wnids)
    side = image_size or 64
    splits = load_splits([train, _validation(folder, wnids)], side, side)
    data = image_data("tiny_imagenet", splits[0], splits[1], None, _names(folder / "words.txt", wnids), side)
    unlabelled = ("test/ is not used: its images have no labels; val/ is the test set",) if (folder / "test").is_dir() else ()
    return replace(data, augmentation="crop_flip", notices=unlabelled)


def _validation(folder: Path, wnids: tuple[str, ...]) -> Listing:
    """Images of val/images with their labels, in the order of the lines `<file>\\t<wnid>\\t<box>` of the annotations.

    Raises CorsdError for an invalid line.
    """
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    paths, labels = [], []
    for number, line in enumerate(_lines(folder / ANNOTATIONS), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in numbers:
            raise CorsdError(
                f"{folder / ANNOTATIONS}, line {number}: {shortened(line)} does not name a class of train/; "
                "expected FILE, tab, CLASS"
            )
        if name in ("", "..") or name != Path(name).name:
            raise CorsdError(
                f"{folder / ANNOTATIONS}, line {number}: {shortened(name)} is not a file name; expected one of val/images"
            )
        paths.append(str(folder / "val" / "images" / name))
        labels.append(numbers[wnid])
    if not paths:
        raise CorsdError(f"{folder / ANNOTATIONS} is empty; expected a line for each image of val/images")
    return Listing(wnids, tuple(paths), tuple(labels), str(folder / "val"))


def _names(file: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    words = _first_words(file) if file.is_file() else {}
    names = [words.get(wnid, wnid) for wnid in wnids]
    counts = Counter(names)
    return tuple(f"{name} ({wnid})" if counts[name] > 1 else name for name, wnid in zip(names, wnids, strict=True))


def _first_words(file: Path) -> Mapping[str, str]:
    """First name of every WordNet id, from lines `<wnid>\\t<name>, <name>`."""
    pairs = (line.partition("\t") for line in _lines(file))
    return {wnid: words.partition(",")[0].strip() or wnid for wnid, _, words in pairs}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise CorsdError(f"{file} is not valid UTF-8: {error}") from error
