"""Attributions of a run on disk, for images of the data that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from corsd_lib.attribution.engine import Attribution
from corsd_lib.attribution.maps import attribute_exit, attribute_pair
from corsd_lib.batches import Normalise, evaluation_batches
from corsd_lib.datasets import ImageData, Split
from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.evaluation import load_data
from corsd_lib.runs import Run

SPLITS = ("probe", "train", "validation", "test")


def run_images(run: Run, positions: Sequence[int], data: ImageData | None = None, split: str = "probe") -> Tensor:
    """Images as the run's network sees them, (N, C, H, W) float32: normalised and centre-cropped, not augmented.

    `positions` in `split`: "probe", the run's probe set, or "train", "validation" or "test" of `data`, which is loaded when not
    given. Raises `CorsdError` for a split or an image that is not there.
    """
    check_choice("split", split, SPLITS)
    data = data or load_data(run.config)
    rows = _rows_of(run, positions, data, split)
    batches = evaluation_batches(data, rows, workers=0)
    return torch.cat([images for images, _ in batches])


def _rows_of(run: Run, positions: Sequence[int], data: ImageData, split: str) -> Split:
    name = run.probes.split if split == "probe" else split
    images: Split | None = getattr(data, name)
    if images is None:
        raise CorsdError(f"data {data.name!r} has no split {name!r}: set a validation_fraction")
    count = len(run.probes.index) if split == "probe" else len(images)
    wrong = [p for p in positions if p not in range(count)]
    if wrong or not len(positions):
        raise CorsdError(f"positions {wrong or list(positions)} of {count} images of {split}; allowed: 0 to {count - 1}")
    wanted = torch.as_tensor(positions)
    if split != "probe":
        return images.subset(wanted)
    same = run.probes.index[wanted][:, None] == images.index  # (N, rows of the split)
    if not bool(same.any(1).all()):
        missing = wanted[~same.any(1)].tolist()
        raise CorsdError(f"probe images {missing} are not in split {name!r} of data {data.name!r}: load it as the run did")
    return images.subset(same.int().argmax(1))


def attribute_run(
    run: Run, position: int, exit: int, data: ImageData | None = None, *, split: str = "probe", **options: Any
) -> Attribution:
    """`attribute_exit` for the newest weights of a run and one image of its data, see `run_images`.

    `options`: target, method, steps, baseline of `attribute_exit`. Raises what the two raise.
    """
    data = data or load_data(run.config)
    (image,) = run_images(run, [position], data, split)
    return attribute_exit(run.network(), image, exit, **options, normalise=Normalise(data))


def attribute_run_pair(
    run: Run, first: int, second: int, exit: int, data: ImageData | None = None, *, split: str = "probe", **options: Any
) -> tuple[Attribution, Attribution]:
    """`attribute_pair` for the newest weights of a run and two images of its data, see `run_images`.

    With the run's relation networks, or the cosine where its method has none. `options`: method, steps, baseline.
    """
    data = data or load_data(run.config)
    a, b = run_images(run, [first, second], data, split)
    networks = run.method().relation_networks()
    relations = networks if len(networks) else "cosine"
    return attribute_pair(run.network(), relations, a, b, exit, **options, normalise=Normalise(data))
