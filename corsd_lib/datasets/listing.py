"""Which files of a folder are images, of which class and of which split; and which are passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from corsd_lib.datasets.arrays import check_class_names, names_below, some
from corsd_lib.datasets.selection import VALIDATION_NAMES
from corsd_lib.errors import CorsdError, check_text, shown_text

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train", "training"), "validation": VALIDATION_NAMES, "test": ("test", "testing")}
# What systems and programs leave behind; so is everything that begins with a dot.
SYSTEM_FOLDERS = (
    "__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found",
)  # fmt: skip
SYSTEM_FILES = ("thumbs.db", "desktop.ini")


class Listing(NamedTuple):
    """The image files of one split and the class of each, in the order of the sorted class folders; all below `root`."""

    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    root: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The paths below `root`: class/file, wherever the folder lies."""
        return names_below(self.root, self.paths)

    def subset(self, rows: Sequence[int]) -> Listing:
        """The files at positions `rows`, in that order."""
        return Listing(self.class_names, tuple(self.paths[r] for r in rows), tuple(self.labels[r] for r in rows), self.root)


Listed = tuple[Listing, tuple[str, ...]]  # and notices of what was passed over


def split_folders(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Folders of `folder` that are splits, by what they are ("train", "validation", "test"), and the others.

    Case is no matter. Raises CorsdError where two are the same split.
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
    """Names of the folders in `folder`, sorted, without those of the system."""
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _of_system(entry.name)))


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders of `folder`. Raises CorsdError for fewer than two, and names that are not valid UTF-8."""
    names = visible_folders(folder)
    if not names:
        raise CorsdError(f"{folder} has no class folders; expected one folder of images a class")
    check_class_names(str(folder), names)
    return names


def list_parts(folder: Path, splits: Mapping[str, str]) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """The listing of every split of `folder`, whose names are the values of `splits`, and notices.

    A split without class folders, such as test images without labels, is passed over where another is left to test on. Raises
    CorsdError for a split with other classes than train, saying which lacks which.
    """
    classes = class_folders(folder / splits["train"])
    unlabelled = [split for split in splits if split != "train" and _is_unlabelled(folder / splits[split], classes)]
    used = {split: name for split, name in splits.items() if split not in unlabelled}
    if len(used) < 2:  # nothing is left to test on: say what is wrong with what there is
        unlabelled, used = [], dict(splits)
    for split, name in used.items():
        if split != "train":
            _check_same_classes(folder, splits["train"], classes, name)
    notices = [f"{splits[split]}/ is not used: it has no class folders" for split in unlabelled]
    listings = {}
    for split, name in used.items():
        listings[split], more = list_images(folder / name, classes)
        notices += [f"{name}/: {notice}" for notice in more]
    return listings, tuple(notices)


def list_images(folder: Path, class_names: tuple[str, ...]) -> Listed:
    """The images below every class folder of `folder`, at any depth, and notices of the files that were passed over.

    Raises CorsdError for a class without images.
    """
    from torchvision.datasets.folder import make_dataset

    skipped: Counter[str] = Counter()

    def is_image(path: str) -> bool:
        *folders, name = Path(path).relative_to(folder).parts
        if any(map(_of_system, folders)) or name.startswith(".") or name.lower() in SYSTEM_FILES:
            return False
        known = name.lower().endswith(EXTENSIONS)
        if not known:
            skipped[shown_text(Path(name).suffix.lower()) or "no extension"] += 1
        return known

    numbers = {name: number for number, name in enumerate(class_names)}
    samples = make_dataset(str(folder), numbers, is_valid_file=is_image, allow_empty=True)
    paths, labels = tuple(path for path, _ in samples), tuple(label for _, label in samples)
    notices = _skipped(skipped) + _beside(folder)
    found = set(labels)
    empty = [name for number, name in enumerate(class_names) if number not in found]
    if empty:
        seen = f" ({'; '.join(notices)})" if notices else ""
        named = "" if skipped else f", named {', '.join(EXTENSIONS)}"
        raise CorsdError(f"{folder} has no image in the class folders {some(empty, 5)}{seen}; expected one in each{named}")
    return Listing(class_names, paths, labels, str(folder)), notices


def _skipped(kinds: Counter[str]) -> tuple[str, ...]:
    if not kinds:
        return ()
    often = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    counts = ", ".join(f"{count:,} {kind}" for kind, count in often)
    more = f" and {len(kinds) - 5} more kinds" if len(kinds) > 5 else ""
    return (f"files that are not read: {counts}{more}; read are {', '.join(EXTENSIONS)}",)


def _beside(folder: Path) -> tuple[str, ...]:
    names = [entry.name for entry in folder.iterdir() if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]
    count = sum(not name.startswith(".") for name in names)
    return (f"images that are not read: {count:,}, beside the class folders",) if count else ()


def _is_unlabelled(folder: Path, classes: tuple[str, ...]) -> bool:
    """Whether its images lie together: in the folder itself, or in one that is no class."""
    names = visible_folders(folder)
    return not names or (len(names) == 1 and names[0] not in classes)


def _check_same_classes(folder: Path, train: str, classes: tuple[str, ...], part: str) -> None:
    there = visible_folders(folder / part)
    if not there:
        raise CorsdError(f"{folder / part} has no class folders; expected one folder of images a class, as in {train}/")
    check_text(f"{folder / part}: class", *there)
    sides = ((train, [name for name in there if name not in classes]), (part, [name for name in classes if name not in there]))
    lacking = [f"{side}/ lacks {some(names, 5)}" for side, names in sides if names]
    if lacking:
        hint = "; this is Tiny-ImageNet as it comes: load it as tiny_imagenet" if _is_tiny_imagenet(folder) else ""
        raise CorsdError(f"{folder}: {' and '.join(lacking)}; expected the same class folders in both{hint}")


def _is_tiny_imagenet(folder: Path) -> bool:
    return (folder / "val" / "val_annotations.txt").is_file()


def _of_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
