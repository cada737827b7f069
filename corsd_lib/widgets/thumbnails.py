"""Small images of a run, each read and encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from corsd_lib.analysis.images import run_pixels
from corsd_lib.runs import Run
from corsd_lib.widgets.probe_images import ProbeImages, png_of


class Thumbnails:
    """PNGs of a run's images by split and position, each made once; none without the data. Pages enlarge them."""

    def __init__(self, run: Run, images: ProbeImages) -> None:
        self.images, self._run = images, run
        self._pngs: dict[tuple[str, int], bytes] = {}

    def of(self, positions: Sequence[int], split: str = "probe") -> Mapping[int, bytes]:
        """Position -> PNG of images of a split; empty where the data is missing."""
        if self.images.missing:
            return {}
        new = [p for p in dict.fromkeys(positions) if (split, p) not in self._pngs]
        if new:
            for position, pixels in zip(new, run_pixels(self._run, new, self.images.data, split), strict=True):
                self._pngs[split, position] = png_of(pixels)
        return {p: self._pngs[split, p] for p in positions}
