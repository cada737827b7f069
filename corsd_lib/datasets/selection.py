"""Choice of training images: a stratified validation split, a number of images of each class, label noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from corsd_lib.datasets.arrays import Split
from corsd_lib.errors import CorsdError

VALIDATION_NAMES = ("val", "valid", "validation", "dev")  # names of validation splits


def split_validation(
    train: Split, fraction: float, class_names: tuple[str, ...], generator: torch.Generator
) -> tuple[Split, Split]:
    """Split train into (train, validation). Of n images of a class, round(fraction * n), at least one, go to validation.

    `fraction` in (0, 1); at least one image of every class stays in the training split. Raises CorsdError for a class with
    fewer than two images.
    """
    counts = check_two_each(train.labels, fraction, class_names, "validation_fraction")
    wanted = torch.minimum((counts.double() * fraction + 0.5).floor().long().clamp_min(1), counts - 1)
    held_out = torch.zeros(len(train), dtype=torch.bool)
    held_out[stratified_indices(train.labels, wanted, generator)] = True
    return train.subset((~held_out).nonzero().flatten()), train.subset(held_out.nonzero().flatten())


def check_two_each(labels: Tensor, fraction: float, class_names: tuple[str, ...], what: str) -> Tensor:
    """Number of images of every class, int64 (C,), from `labels` int64 (N,).

    Raises CorsdError for a class with fewer than two images. `what` and `fraction`: name and value of the option, for
    the message.
    """
    counts = torch.bincount(labels, minlength=len(class_names))
    if int(counts.min()) < 2:
        poorest = int(counts.argmin())
        raise CorsdError(
            f"{what} {fraction} needs at least 2 train images of every class; "
            f"class {class_names[poorest]!r} has {int(counts[poorest])}"
        )
    return counts


def pick_per_class(train: Split, per_class: int, class_names: tuple[str, ...], generator: torch.Generator) -> Split:
    """Keep `per_class` random images of every class. Raises CorsdError if a class has fewer."""
    counts = torch.bincount(train.labels, minlength=len(class_names))
    if int(counts.min()) < per_class:
        poorest = int(counts.argmin())
        raise CorsdError(
            f"per_class {per_class} is more than the {int(counts.min())} training images of class {class_names[poorest]!r}, "
            f"not counting validation images; allowed: 1 to {int(counts.min())}"
        )
    return train.subset(stratified_indices(train.labels, torch.full_like(counts, per_class), generator))


def with_label_noise(train: Split, share: float, num_classes: int, generator: torch.Generator) -> Split:
    """`train` with round(`share` * N) wrong labels, chosen uniformly from the other classes; `share` in [0, 1).

    Symmetric noise as in van Rooyen et al. 2015, arXiv 1505.07634; here `share` is the share of labels that are wrong. With the
    same generator state a larger share includes the wrong labels of a smaller one. `num_classes` is 2 or more.
    """
    order = torch.randperm(len(train), generator=generator)
    shift = torch.randint(1, num_classes, (len(train),), generator=generator)
    wrong = order[: int(share * len(train) + 0.5)]
    labels = train.labels.clone()
    labels[wrong] = (labels[wrong] + shift[wrong]) % num_classes
    return replace(train, labels=labels)


def stratified_indices(labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """`wanted[c]` random indices of each class c, in ascending order: int64 (M,), from labels int64 (N,) and wanted int64 (C,).

    With the same generator state, the indices for a larger `wanted` include those for a smaller one. A study of the number of
    labels thus keeps the images of its smaller training sets.
    """
    order = torch.randperm(len(labels), generator=generator)
    order = order[torch.argsort(labels[order], stable=True)]  # class by class, shuffled inside each
    counts = torch.bincount(labels, minlength=len(wanted))
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - starts.repeat_interleave(counts)  # position among the images of its class
    return order[rank < wanted.repeat_interleave(counts)].sort().values
