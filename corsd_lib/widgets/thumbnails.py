"""Thumbnails of the images of a run, each read and encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corsd_lib.analysis.images import run_pixels
from corsd_lib.runs import Run, portable_name
from corsd_lib.widgets.probe_images import ProbeImages, png_of

FREE = ("digits", "shapes")  # data sets whose images may be published
PAGE_SIDE = 48  # largest side of a thumbnail on a page, in pixels


class Thumbnails:
    """PNGs of the images of a run, each created once. Browsers enlarge them."""

    def __init__(self, run: Run, images: ProbeImages) -> None:
        self.images, self._run = images, run
        self._pngs: dict[tuple[str, int], bytes] = {}

    def of(self, positions: Sequence[int], split: str = "probe") -> Mapping[int, bytes]:
        """Dict position -> PNG of the images of a split at `positions`; empty if the data is missing."""
        if self.images.missing:
            return {}
        new = [p for p in dict.fromkeys(positions) if (split, p) not in self._pngs]
        if new:
            for position, pixels in zip(new, run_pixels(self._run, new, self.images.data, split), strict=True):
                self._pngs[split, position] = png_of(pixels)
        return {p: self._pngs[split, p] for p in positions}

    def packed(self, positions: Sequence[int], images: bool | None) -> dict[str, Any]:
        """PNGs of the probe images `positions` for a page, as {"faces": {"positions", "ends", "bytes"}}.

        "bytes" has the PNGs one after the other, and "ends" has the index at which each of them ends. The shorter side of a PNG
        is at most 48 pixels. Without PNGs the result is {}.

        `images`: whether to include the PNGs. With None they are included only if the data set is one of `FREE` and available.
        Raises `CorsdError` if `images` is True and the data is missing.
        """
        from torchvision.transforms.v2 import functional as T

        free = portable_name(self._run.data.name) in FREE
        if images is False or (images is None and (not free or self.images.missing)):
            return {}
        pixels = run_pixels(self._run, list(positions), self.images.data)
        if pixels.shape[-1] > PAGE_SIDE:
            pixels = T.resize(pixels, [PAGE_SIDE], antialias=True)
        pngs = [png_of(image) for image in pixels]
        ends = np.cumsum([len(png) for png in pngs]).astype(np.int32)
        together = np.frombuffer(b"".join(pngs), np.uint8)
        return {"faces": {"positions": np.asarray(positions, np.int32), "ends": ends, "bytes": together}}
