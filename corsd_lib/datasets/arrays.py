"""The types of a data set: images in memory or on disk, labels, names and statistics."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corsd_lib.cards import Facts, card
from corsd_lib.datasets.archive import check_memory
from corsd_lib.datasets.decoding import read_rgb
from corsd_lib.errors import CorsdError, check_choice, check_text, shortened

AUGMENTATIONS = ("crop", "crop_flip", "resized_crop")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


@dataclass(frozen=True, eq=False, repr=False)
class ImageArrays:
    """Images of one split in memory.

    `images` uint8 (N, C, H, W), values 0..255. `labels` int64 (N,). `index` int64 (N,): the index of each image in the official
    order of the complete split; in a `subset` each image keeps its index. `names`: N file names, as in `ImageFiles`, or empty
    for images that are not files. Raises CorsdError if a dtype or a shape is wrong.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise CorsdError(f"images are {_describe(self.images)}; expected uint8 of shape (N, C, H, W)")
        _check_labels_and_index(self.labels, self.index, len(self.images))
        if self.names and len(self.names) != len(self.images):
            raise CorsdError(
                f"there are {len(self.names)} names for {len(self.images)} images; expected one for each image, or none"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"ImageArrays({len(self):,} images of {_dimensions(self.images.shape[1:])})"

    def subset(self, indices: Tensor) -> ImageArrays:
        """A copy of the images at `indices`, int64 (M,), in that order."""
        names = tuple(self.names[i] for i in indices.tolist()) if self.names else ()
        return ImageArrays(self.images[indices], self.labels[indices], self.index[indices], names)


@dataclass(frozen=True, eq=False, repr=False)
class ImageFiles:
    """Images of one split as files, which are decoded when they are used and not kept in memory.

    `paths`: N file names; `labels`, `index` int64 (N,) as in `ImageArrays`; `image_size`: side in pixels of the square input of
    the network; `root`: a folder that contains all of them, or "". Raises CorsdError if a dtype or a length is wrong.
    """

    paths: tuple[str, ...]
    labels: Tensor
    index: Tensor
    image_size: int
    root: str = ""

    def __post_init__(self) -> None:
        _check_labels_and_index(self.labels, self.index, len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"ImageFiles({len(self):,} files, seen at {self.image_size}x{self.image_size})"

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files at `indices`, int64 (M,), in that order."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return ImageFiles(paths, self.labels[indices], self.index[indices], self.image_size, self.root)

    @property
    def names(self) -> tuple[str, ...]:
        """The paths relative to `root`, with parts separated by "/"."""
        return names_below(self.root, self.paths)

    def load(self, i: int) -> Tensor:
        """Image `i` at its full resolution: uint8 (3, H, W), RGB. Raises CorsdError if the file cannot be read."""
        # In channels-last layout torch resizes about twice as fast, with the same result.
        return torch.from_numpy(read_rgb(self.paths[i])).permute(2, 0, 1)


Split = ImageArrays | ImageFiles


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A data set with its splits.

    - `superclass_of_class` int64 (C,);
    - `mean`, `std`: one value for each channel, of pixels / 255 over the full train split;
    - `image_size`: side in pixels of the square input of the network; stored images may be larger, for cropping;
    - `augmentation`: the default of the data set, one of `AUGMENTATIONS`;
    - `attributes` float32 (C, A) in [0, 1], or None;
    - `crop_scale`: smallest share of the image area in a "resized_crop"; 0.08 for ImageNet, as usual; 0.4 by default, so that
      most of a bird stays in the image (ours);
    - `notices`: remarks on how the files were read;
    - `unseen`: the classes that are held out of all splits, with their own labels and names, see `datasets.holdout`;
    - `generated_split`: whether this library chose the test set, by `test_fraction`.

    Raises CorsdError if names, labels and superclasses do not match, and for names that `check_names` refuses.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]
    superclass_of_class: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    augmentation: str = "crop_flip"
    validation: Split | None = None
    attributes: Tensor | None = None
    attribute_names: tuple[str, ...] = ()
    crop_scale: float = 0.4
    notices: tuple[str, ...] = ()
    unseen: ImageData | None = None
    generated_split: bool = False

    def __post_init__(self) -> None:
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_text("data set", self.name)
        check_names(f"{self.name}: class", self.class_names)
        check_names(f"{self.name}: superclass", self.superclass_names)
        check_names(f"{self.name}: attribute", self.attribute_names)
        for part, split in self._splits().items():
            check_range(f"{self.name}: {part} label", split.labels, self.num_classes)
        if len(self.superclass_of_class) != self.num_classes:
            raise CorsdError(
                f"{self.name}: superclass_of_class has {len(self.superclass_of_class)} entries for "
                f"{self.num_classes} classes; expected one for each class"
            )
        check_range(f"{self.name}: superclass_of_class", self.superclass_of_class, len(self.superclass_names))
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise CorsdError(
                f"{self.name}: mean is {self.mean} and std is {self.std}; expected {self.channels} values in each, "
                "one for each channel"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Number of channels of an image: 1 (grey) or 3 (RGB)."""
        return self.train.images.shape[1] if isinstance(self.train, ImageArrays) else 3

    def summary(self) -> str:
        """Summary in a few lines of text: sizes, classes, superclasses, image side, statistics, notices."""
        sizes = ", ".join(f"{len(split):,} {part}" for part, split in self._splits().items())
        side = _dimensions((self.channels, self.image_size, self.image_size))
        lines = [
            f"{self.name}: {sizes} images, {side}",
            f"{self.num_classes} classes: {some(self.class_names)}",
        ]
        if len(self.superclass_names) != self.num_classes:
            lines.append(f"{len(self.superclass_names)} superclasses: {some(self.superclass_names)}")
        if self.attributes is not None:
            lines.append(f"{self.attributes.shape[1]} attributes a class: {some(self.attribute_names)}")
        if self.unseen is not None:
            held_out, images = self.unseen.num_classes, len(self.unseen.test)
            lines.append(f"{held_out} classes held out, {images:,} test images: {some(self.unseen.class_names)}")
        lines.append(f"mean {_decimals(self.mean)}, std {_decimals(self.std)}; augmentation {self.augmentation}")
        lines += [f"note: {notice}" for notice in self.notices]
        return "\n".join(lines)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split):,} {part}" for part, split in self._splits().items())
        grouped = len(self.superclass_names) != self.num_classes
        classes = f"{self.num_classes} classes" + f" in {len(self.superclass_names)} superclasses" * grouped
        side = _dimensions((self.channels, self.image_size, self.image_size))
        return f"ImageData({self.name}: {sizes}, {classes}, {side})"

    def _repr_html_(self) -> str:
        return card("ImageData", self.name, self._facts)

    def _facts(self) -> Facts:
        """Rows of the HTML card: splits, classes, and how images are normalised."""
        classes = {f"{self.num_classes} classes": some(self.class_names)}
        if len(self.superclass_names) != self.num_classes:
            classes[f"{len(self.superclass_names)} superclasses"] = some(self.superclass_names)
        if self.unseen is not None:
            classes[f"{self.unseen.num_classes} classes held out"] = some(self.unseen.class_names)
        rows = {
            **{part: f"{len(split):,} images" for part, split in self._splits().items()},
            "an image": _dimensions((self.channels, self.image_size, self.image_size)),
            **classes,
            "mean": _decimals(self.mean),
            "standard deviation": _decimals(self.std),
            "augmentation": self.augmentation,
        }
        notes = {"notes": [["from reading the files"], *([note] for note in self.notices)]} if self.notices else {}
        return Facts(rows, folded=notes)

    def _splits(self) -> dict[str, Split]:
        held_out = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **held_out, "test": self.test}


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and population standard deviation of pixels / 255 by channel; images uint8 (N, C, H, W), N > 0.

    The deviation is at least 1/255, so that a constant channel can be normalised. The sums are exact, because they are sums of
    whole numbers in float64.
    """
    # One thread of numpy, because memory bandwidth is the limit, and threads of torch slow each other down on shared cores.
    total = np.zeros(images.shape[1])
    squares = np.zeros_like(total)
    for block in images.split(256):
        pixels = block.numpy().astype(np.float64).reshape(*block.shape[:2], -1)  # (<=256, C, H * W)
        total += pixels.sum((0, 2))
        squares += np.einsum("ncp,ncp->c", pixels, pixels)
    count = images.numel() / images.shape[1]
    mean = total / count / 255
    variance = np.maximum(squares / count / 255**2 - mean**2, 0)
    # A constant channel has deviation 0; one grey level in its place keeps the normalisation finite.
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def resize_arrays(images: Tensor, image_size: int) -> Tensor:
    """Resize images uint8 (N, C, H, W) to uint8 (N, C, image_size, image_size), bilinearly. Images of that size are returned as
    they are.

    Raises CorsdError if the available memory is not enough.
    """
    if images.shape[-2:] == (image_size, image_size):
        return images
    count, channels = images.shape[:2]
    check_memory(f"{count:,} images of {image_size}x{image_size} pixels take", count * channels * image_size**2)
    resized = torch.empty(count, channels, image_size, image_size, dtype=torch.uint8)
    block_size = max(1, min(1024, 2**26 // (channels * image_size**2)))  # images that are converted to float32 at a time
    for block, out in zip(images.split(block_size), resized.split(block_size), strict=True):
        scaled = torch.nn.functional.interpolate(block.float(), (image_size, image_size), mode="bilinear", antialias=True)
        out.copy_(scaled.round_().clamp_(0, 255))
    return resized


def as_arrays(images: Tensor, labels: Tensor | Sequence[int]) -> ImageArrays:
    """A whole split as `ImageArrays`, from images uint8 (N, C, H, W) and labels (N,). Its index is 0..N-1."""
    return ImageArrays(images, torch.as_tensor(labels, dtype=torch.int64), torch.arange(len(images)))


def names_below(root: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Paths relative to the folder `root`, with parts separated by "/"."""
    return tuple(path.removeprefix(root + os.sep).replace(os.sep, "/") for path in paths)


def check_range(what: str, values: Tensor, count: int) -> None:
    """Raise CorsdError for the first of `values`, whole numbers (N,), that is not in 0..count-1; `what` begins the message."""
    wrong = ((values < 0) | (values >= count)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise CorsdError(f"{what} is {int(values[row])} at row {row}; allowed: 0..{count - 1}")


def check_names(what: str, names: Sequence[str]) -> None:
    """Raise CorsdError unless all `names` are valid UTF-8, not empty and without line breaks."""
    check_text(what, *names)
    for name in names:
        if name.splitlines() != [name] or not name.strip():
            raise CorsdError(f"{what} {shortened(name)}; allowed: a non-empty name without line breaks")


def check_class_names(what: str, names: Sequence[str]) -> None:
    """Raise CorsdError unless there are at least two classes, with names that `check_names` accepts."""
    check_names(f"{what}: class", names)
    if len(names) < 2:
        raise CorsdError(
            f"{what}: the data has {'one class, ' + repr(names[0]) if names else 'no class'}; at least two are needed"
        )


def check_distinct(what: str, names: Sequence[str]) -> None:
    """Raise CorsdError for the first name that is repeated in `names`; `what` begins the message."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise CorsdError(f"{what} has {shortened(twice)} more than once; expected distinct names")


def _check_labels_and_index(labels: Tensor, index: Tensor, count: int) -> None:
    for what, values in (("labels", labels), ("index", index)):
        if values.dtype != torch.int64 or values.shape != (count,):
            raise CorsdError(f"{what} are {_describe(values)}; expected int64 of shape ({count},), one for each image")


def _describe(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"


def _dimensions(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def some(names: Sequence[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _decimals(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
