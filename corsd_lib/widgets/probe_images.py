"""The images behind a run's snapshots, where the data is."""

from __future__ import annotations

import io
import os
import threading
from functools import cached_property
from weakref import WeakValueDictionary

from PIL import Image
from torch import Tensor

from corsd_lib.analysis.images import run_images, run_pixels
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError
from corsd_lib.runs import Run, run_data


class ProbeImages:
    """Images of the probe set of a run by position, loaded when first asked for; a run is explored without its data too.

    `data`, else the run's own from `data_root` ($CORSD_DATA, "data"), read once for all explorers that look at it. `missing`
    says in a sentence why there are none, and is "" when there are. While they are not `wanted` nothing is read.
    """

    def __init__(self, run: Run, data: ImageData | None = None, data_root: str | None = None) -> None:
        self.run, self._given, self._root, self.wanted = run, data, data_root, True

    @cached_property
    def _loaded(self) -> ImageData | str:
        try:
            data = self._given or _shared_data(self.run, self._root)
            run_images(self.run, [0], data)
        except CorsdError as error:
            return f"No images here: {error}"
        return data

    @property
    def missing(self) -> str:
        if not self.wanted:
            return "The images are not read yet."
        return self._loaded if isinstance(self._loaded, str) else ""

    @property
    def data(self) -> ImageData:
        """The data set; `CorsdError` where there is none."""
        if isinstance(self._loaded, str):
            raise CorsdError(self._loaded)
        return self._loaded

    def tensors(self, positions: list[int]) -> Tensor:
        """(n, C, H, W) float32 as the network sees them; `CorsdError` where there are none."""
        return run_images(self.run, positions, self.data)

    def pixels(self, positions: list[int]) -> Tensor:
        """(n, C, H, W) uint8; `CorsdError` where there are none."""
        return run_pixels(self.run, positions, self.data)

    def png(self, position: int, side: int = 128) -> bytes:
        """The image as a PNG of about `side` pixels, every pixel of it a square; b"" where there are none."""
        if self.missing:
            return b""
        (pixels,) = self.pixels([position])
        factor = max(1, side // pixels.shape[1])
        return png_of(pixels, factor)


_OF_DATA = (
    "data",
    "data_root",
    "per_class",
    "validation_fraction",
    "test_fraction",
    "seed",
    "image_size",
    "crop_to_box",
    "hold_out_classes",
    "hold_out",
    "hold_out_seed",
)  # see `load_data`
_SHARED: WeakValueDictionary[str, ImageData] = WeakValueDictionary()
_READING = threading.Lock()


def _shared_data(run: Run, root: str | None) -> ImageData:
    """The data set of a run; the one that another explorer still holds when it is the same, as CIFAR-100 takes 180 MB."""
    asked = [*(getattr(run.config, name) for name in _OF_DATA), run.data.name]
    key = repr([*asked, run.data.splits, root, os.environ.get("CORSD_DATA"), os.getcwd()])
    with _READING:
        data = _SHARED.get(key) or run_data(run, None, root)
        _SHARED[key] = data
    return data


def png_of(pixels: Tensor, factor: int = 1) -> bytes:
    """PNG of a uint8 image (1 or 3, H, W), each pixel a square of `factor` pixels."""
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array)
    file = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
