"""Images of the probe set of a run, if the data is available."""

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
    """Images of the probe set of a run, loaded on first use. Explorers also work without them.

    The images come from `data`, or from the data set of the run in `data_root` (default: $CORSD_DATA, else "data"). All
    explorers that use a data set share it, so it is read once. `missing` is a sentence with the reason why there are no images,
    or "" if there are images. If `wanted` is set to False, `missing` says that the images are not loaded, and no data is read.
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
            return "The images are not loaded yet."
        return self._loaded if isinstance(self._loaded, str) else ""

    @property
    def data(self) -> ImageData:
        """The data set. Raises `CorsdError` if it is missing."""
        if isinstance(self._loaded, str):
            raise CorsdError(self._loaded)
        return self._loaded

    def tensors(self, positions: list[int]) -> Tensor:
        """Images as inputs of the network, (n, C, H, W) float32, normalised. Raises `CorsdError` if the data is missing."""
        return run_images(self.run, positions, self.data)

    def pixels(self, positions: list[int]) -> Tensor:
        """Images as pixels, (n, C, H, W) uint8. Raises `CorsdError` if the data is missing."""
        return run_pixels(self.run, positions, self.data)

    def png(self, position: int, side: int = 128) -> bytes:
        """PNG of an image with a side of about `side` pixels, enlarged without smoothing; b"" if the data is missing."""
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
    """Data set of a run. If another explorer still holds the same one, it is shared, because CIFAR-100 takes 180 MB."""
    asked = [*(getattr(run.config, name) for name in _OF_DATA), run.data.name]
    key = repr([*asked, run.data.splits, root, os.environ.get("CORSD_DATA"), os.getcwd()])
    with _READING:
        data = _SHARED.get(key) or run_data(run, None, root)
        _SHARED[key] = data
    return data


def png_of(pixels: Tensor, factor: int = 1) -> bytes:
    """PNG of a uint8 image (1 or 3, H, W), in which each pixel becomes a square with a side of `factor` pixels."""
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array)
    file = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
