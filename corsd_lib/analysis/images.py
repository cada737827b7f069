"""Images of the data of a run: as input of its network, and as pixels for display."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from corsd_lib.batches import evaluation_batches
from corsd_lib.datasets import ImageData, Split
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.runs import Run, run_data

__all__ = ["run_images", "run_pixels"]

SPLITS = ("probe", "train", "validation", "test")


def run_images(run: Run, positions: Sequence[int], data: ImageData | None = None, split: str = "probe") -> Tensor:
    """Images as inputs of the network of a run: (N, C, H, W) float32, normalised and centre-cropped, not augmented.

    `positions`: N indices of images in `split`, one or more. `split`: "probe" for the probe set of the run; "train",
    "validation" or "test" for a split of `data`. `data` is loaded if it is not given. Raises `CorsdError` for an unknown split
    or image, and the errors of `run_data`.
    """
    check_choice("split", split, SPLITS)
    data = run_data(run, data)
    chosen = _select_images(run, positions, data, split)
    batches = evaluation_batches(data, chosen, workers=0)
    return torch.cat([images for images, _ in batches])


def run_pixels(run: Run, positions: Sequence[int], data: ImageData | None = None, split: str = "probe") -> Tensor:
    """Images as pixels for display: uint8 (N, C, H, W), 0 to 255. Arguments and errors as in `run_images`."""
    images = run_images(run, positions, data, split)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (run.data.mean, run.data.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).byte()


def _select_images(run: Run, positions: Sequence[int], data: ImageData, split: str) -> Split:
    name = run.probes.split if split == "probe" else split
    images: Split | None = getattr(data, name)
    if images is None:
        raise CorsdError(
            f"data {data.name!r} has no split {name!r}: pass data that was loaded with a validation_fraction, or use split "
            "'train' or 'test'"
        )
    count = len(run.probes.index) if split == "probe" else len(images)
    wrong = [p for p in positions if p not in range(count)]
    if wrong or not len(positions):
        raise CorsdError(
            f"positions {shortened(wrong or list(positions))} are not in {split}, which has {count} images; "
            f"allowed: one or more from 0 to {count - 1}"
        )
    wanted = torch.as_tensor(positions)
    if split != "probe":
        return images.subset(wanted)
    same = run.probes.index[wanted][:, None] == images.index  # (N, images of the split)
    if not bool(same.any(1).all()):
        missing = wanted[~same.any(1)].tolist()
        raise CorsdError(
            f"probe images {shortened(missing)} are not in split {name!r} of data {data.name!r}: "
            "load it with the settings of the run"
        )
    return images.subset(same.int().argmax(1))
