"""Classes that are held out of the training, to evaluate embeddings on unseen classes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from corsd_lib.datasets.arrays import ImageData, Split
from corsd_lib.errors import CorsdError, check_choice

HOLD_OUT = ("random", "last", "superclasses")


def split_classes(data: ImageData, count: int, how: str = "random", seed: int = 0) -> ImageData:
    """A copy of `data` without `count` of its C classes; the field `unseen` of the copy contains the held-out classes.

    `count` is at least 2 and at most C - 2. `how` is the choice of the held-out classes:

    - "random": chosen with `seed`; for the same seed a larger `count` includes the classes of a smaller one;
    - "last": those with the largest labels, as usual for CUB-200-2011;
    - "superclasses": whole superclasses, chosen with `seed`.

    In the copy and in `unseen`, labels and superclasses are renumbered and keep their order. Mean and standard deviation stay
    those of the full train split. Raises `CorsdError` for an unknown `how`, for a `count` out of range, if the held-out classes
    have no test image, and if all validation images are of these classes. For "superclasses" it also raises `CorsdError` unless
    all superclasses have the same number of classes, at least 2, and `count` is a multiple of this number.
    """
    if not 2 <= count <= data.num_classes - 2:
        most = data.num_classes - 2
        raise CorsdError(
            f"hold_out_classes is {count} for {data.name} with {data.num_classes} classes; allowed: 0, or 2 to {most}"
        )
    held_out = torch.zeros(data.num_classes, dtype=torch.bool)
    held_out[_classes_to_hold_out(data, count, how, seed)] = True
    unseen = _with_classes(data, held_out)
    if not len(unseen.test):
        raise CorsdError(f"{data.name} has no test image of the {count} held-out classes; expected one or more")
    seen = _with_classes(data, ~held_out)
    if seen.validation is not None and not len(seen.validation):
        raise CorsdError(
            f"hold_out_classes is {count} for {data.name}, whose validation images are all of those classes; "
            "expected one or more of another class, or no validation images"
        )
    if unseen.validation is not None and not len(unseen.validation):
        unseen = replace(unseen, validation=None)
    return replace(seen, unseen=unseen)


def _classes_to_hold_out(data: ImageData, count: int, how: str, seed: int) -> Tensor:
    """Labels int64 (count,) of the classes to hold out."""
    check_choice("hold_out", how, HOLD_OUT)
    if how == "last":
        return torch.arange(data.num_classes - count, data.num_classes)
    generator = torch.Generator().manual_seed(seed)
    if how == "random":
        return torch.randperm(data.num_classes, generator=generator)[:count]
    size = _superclass_size(data)
    if count % size:
        raise CorsdError(f"hold_out_classes is {count} for whole superclasses of {data.name}; allowed: multiples of {size}")
    drawn = torch.randperm(len(data.superclass_names), generator=generator)[: count // size]
    return torch.isin(data.superclass_of_class, drawn).nonzero().flatten()


def _superclass_size(data: ImageData) -> int:
    """Number of classes in each superclass. Raises `CorsdError` unless it is above 1 and the same for all superclasses."""
    sizes = torch.bincount(data.superclass_of_class, minlength=len(data.superclass_names)).unique().tolist()
    if len(sizes) > 1 or sizes == [1]:
        unequal = f"superclasses of different sizes, {sizes[0]} to {sizes[-1]} classes"
        found = "no superclasses" if sizes == [1] else unequal
        raise CorsdError(f"hold_out is 'superclasses' for {data.name}, which has {found}; allowed for it: 'random' or 'last'")
    return sizes[0]


def _with_classes(data: ImageData, kept: Tensor) -> ImageData:
    """`data` with only the classes for which `kept`, bool (C,), is True. Labels and superclasses are renumbered."""
    classes = kept.nonzero().flatten()
    groups, superclass_of_class = data.superclass_of_class[classes].unique(return_inverse=True)
    return replace(
        data,
        train=_split_with(data.train, kept),
        test=_split_with(data.test, kept),
        validation=None if data.validation is None else _split_with(data.validation, kept),
        class_names=tuple(data.class_names[c] for c in classes.tolist()),
        superclass_names=tuple(data.superclass_names[g] for g in groups.tolist()),
        superclass_of_class=superclass_of_class,
        attributes=None if data.attributes is None else data.attributes[classes],
    )


def _split_with(split: Split, kept: Tensor) -> Split:
    """The images of a split whose class is kept, with labels renumbered. `kept`, bool (C,): True for classes to keep."""
    images = split.subset(kept[split.labels].nonzero().flatten())
    return replace(images, labels=(kept.cumsum(0) - 1)[images.labels])
