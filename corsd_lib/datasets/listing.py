"""The image files of a folder with their classes and splits, and notices of files that are ignored."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from corsd_lib.datasets.arrays import check_class_names, names_below, some
from corsd_lib.datasets.selection import VALIDATION_NAMES
from corsd_lib.errors import CorsdError, check_text, shown_text

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train", "training"), "validation": VALIDATION_NAMES, "test": ("test", "testing")}
# Files of operating systems and programs; names that begin with a dot are ignored too.
SYSTEM_FOLDERS = (
    "__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found",
)  # fmt: skip
SYSTEM_FILES = ("thumbs.db", "desktop.ini")


class Listing(NamedTuple):
    """The image files of one split and the label of each file. All files are below `root`."""

    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    root: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The paths relative to `root`: class/file."""
        return names_below(self.root, self.paths)

    def subset(self, indices: Sequence[int]) -> Listing:
        """The files at `indices`, in that order."""
        paths, labels = tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices)
        return Listing(self.class_names, paths, labels, self.root)


Listed = tuple[Listing, tuple[str, ...]]  # with notices of ignored files


def split_folders(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The folders in `folder` that are splits, as a dict split -> name of its folder, and the names of the others.

    The splits are "train", "validation" and "test". Upper and lower case count as the same. Raises CorsdError if two folders
    mean the same split, such as val/ and valid/.
    """
    splits: dict[str, str] = {}
    others = []
    for name in visible_folders(folder):
        split = next((split for split, names in SPLITS.items() if name.lower() in names), None)
        if split is None:
            others.append(name)
        elif split in splits:
            raise CorsdError(f"{folder} has {splits[split]}/ and {name}/, which both mean {split}; expected one of them")
        else:
            splits[split] = name
    return splits, tuple(map(shown_text, others))


def visible_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in `folder`, sorted, without hidden folders and those of operating systems."""
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_system_entry(entry.name)))


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders of `folder`. Raises CorsdError for fewer than two, and for names that are not valid UTF-8."""
    names = visible_folders(folder)
    if not names:
        raise CorsdError(f"{folder} has no class folders; expected a folder of images for each class")
    check_class_names(str(folder), names)
    return names


def list_parts(folder: Path, splits: Mapping[str, str]) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """Listings of the splits of `folder` as a dict split -> `Listing`, and notices about what was ignored.

    `splits`: split -> name of its folder. A split without class folders, such as test images without labels, is ignored if
    another one can be the test set. Raises CorsdError, with the names of missing classes, if the classes of a split are not
    those of the training split.
    """
    classes = class_folders(folder / splits["train"])
    unlabelled = [split for split in splits if split != "train" and _is_unlabelled(folder / splits[split], classes)]
    used = {split: name for split, name in splits.items() if split not in unlabelled}
    if len(used) < 2:  # no test images are left: check all splits, so that the error explains why
        unlabelled, used = [], dict(splits)
    for split, name in used.items():
        if split != "train":
            _check_same_classes(folder, splits["train"], classes, name)
    notices = [f"{splits[split]}/ is not used: it has no class folders" for split in unlabelled]
    index = _DirectoryIndex([folder / name / one for name in used.values() for one in classes])
    listings = {}
    for split, name in used.items():
        listings[split], more = list_images(folder / name, classes, index)
        notices += [f"{name}/: {notice}" for notice in more]
    return listings, tuple(notices)


class _DirectoryIndex:
    """Index of the directories below the class folders of a data set.

    Each directory is read once, even if several links lead to it. A directory inside a class folder belongs to that class,
    even if a link in another class or split leads to it. A link to a folder above itself (a loop) is not followed.
    """

    def __init__(self, class_folders: Sequence[Path]) -> None:
        self.folders: dict[Path, list[tuple[str, list[str]]]] = {folder: [] for folder in class_folders}
        self.revisits: Counter[Path] = Counter()  # class folder -> number of links in it to folders that were indexed before
        self._seen: set[str] = set()
        waiting = sorted(((folder, str(folder)) for folder in class_folders), key=lambda pair: os.path.islink(pair[1]))
        while waiting:
            waiting = [(folder, link) for folder, start in waiting for link in self._walk(folder, start)]

    def _walk(self, folder: Path, start: str) -> list[str]:
        """Add `start` and all directories below it to the index of the class folder `folder`.

        `start` is `folder` itself or a link inside it. Directories that are in the index already are skipped. Symlinks to
        directories are not followed here; their sorted paths are returned.
        """
        links: list[str] = []
        real = os.path.realpath(start)
        if os.path.islink(start) and os.path.realpath(os.path.dirname(start)).startswith(os.path.join(real, "")):
            self.revisits[folder] += 1
            return links
        for directory, below, files in os.walk(start):
            real = os.path.realpath(directory)
            if real in self._seen:
                self.revisits[folder] += 1
                below.clear()
                continue
            self._seen.add(real)
            below[:] = [name for name in below if not _is_system_entry(name)]
            links += [path for name in below if os.path.islink(path := os.path.join(directory, name))]
            self.folders[folder].append((directory, sorted(files)))
        return sorted(links)


def list_images(folder: Path, class_names: tuple[str, ...], index: _DirectoryIndex | None = None) -> Listed:
    """The images below every class folder of `folder`, at any depth, sorted by class folder, and notices of ignored files.

    `index`: an index that covers all splits of the data set, so that every directory is read only once; by default one of
    `folder` alone. Raises CorsdError for a class without images.
    """
    index = index or _DirectoryIndex([folder / name for name in class_names])
    skipped: Counter[str] = Counter()
    paths, labels = list[str](), list[int]()
    for number, name in sorted(enumerate(class_names), key=lambda pair: pair[1]):
        found = [os.path.join(where, file) for where, files in sorted(index.folders[folder / name]) for file in files]
        images = [path for path in found if _is_image(os.path.basename(path), skipped)]
        paths += images
        labels += [number] * len(images)
    revisits = sum(index.revisits[folder / name] for name in class_names)
    notices = _skipped_notice(skipped) + _outside_notice(folder) + _links_notice(revisits)
    return _listing(folder, class_names, paths, labels, notices, bool(skipped))


def _is_image(name: str, skipped: Counter[str]) -> bool:
    """Whether a file is an image, by its name.

    Other files are counted in `skipped` by their extension, except hidden files and those of operating systems.
    """
    if name.startswith(".") or name.lower() in SYSTEM_FILES:
        return False
    known = name.lower().endswith(EXTENSIONS)
    if not known:
        skipped[shown_text(Path(name).suffix.lower()) or "no extension"] += 1
    return known


def _listing(
    folder: Path, class_names: tuple[str, ...], paths: list[str], labels: list[int], notices: tuple[str, ...], others: bool
) -> Listed:
    """A listing with its notices. Raises CorsdError unless every class has an image.

    `others`: whether the folders also contain files that are not images, for the message.
    """
    found = set(labels)
    empty = [name for number, name in enumerate(class_names) if number not in found]
    if empty:
        seen = f" ({'; '.join(notices)})" if notices else ""
        named = "" if others else f", with the extension {', '.join(EXTENSIONS)}"
        raise CorsdError(
            f"{folder} has no image in the class folders {some(empty, 5)}{seen}; expected at least one in each{named}"
        )
    return Listing(class_names, tuple(paths), tuple(labels), str(folder)), notices


def _skipped_notice(kinds: Counter[str]) -> tuple[str, ...]:
    if not kinds:
        return ()
    often = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    counts = ", ".join(f"{count:,} {kind}" for kind, count in often)
    more = f" and {len(kinds) - 5} more kinds" if len(kinds) > 5 else ""
    return (f"files that are not read: {counts}{more}; read are {', '.join(EXTENSIONS)}",)


def _links_notice(revisits: int) -> tuple[str, ...]:
    if not revisits:
        return ()
    return (
        f"links to a folder above them, or to one that is read already: {revisits:,}, not followed; each folder is read once",
    )


def _outside_notice(folder: Path) -> tuple[str, ...]:
    names = [entry.name for entry in folder.iterdir() if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]
    count = sum(not name.startswith(".") for name in names)
    return (f"images that are not read: {count:,}, beside the class folders",) if count else ()


def _is_unlabelled(folder: Path, classes: tuple[str, ...]) -> bool:
    """Whether the images of a split have no class folders: they are in `folder` itself, or in a single folder that is not a
    class.
    """
    names = visible_folders(folder)
    return not names or (len(names) == 1 and names[0] not in classes)


def _check_same_classes(folder: Path, train: str, classes: tuple[str, ...], part: str) -> None:
    there = visible_folders(folder / part)
    if not there:
        raise CorsdError(f"{folder / part} has no class folders; expected a folder of images for each class, as in {train}/")
    check_text(f"{folder / part}: class", *there)
    sides = ((train, [name for name in there if name not in classes]), (part, [name for name in classes if name not in there]))
    lacking = [f"{side}/ lacks {some(names, 5)}" for side, names in sides if names]
    if lacking:
        hint = "; this is Tiny-ImageNet in its original layout: load it as tiny_imagenet" if _is_tiny_imagenet(folder) else ""
        raise CorsdError(f"{folder}: {' and '.join(lacking)}; expected the same class folders in both{hint}")


def _is_tiny_imagenet(folder: Path) -> bool:
    return (folder / "val" / "val_annotations.txt").is_file()


def _is_system_entry(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
