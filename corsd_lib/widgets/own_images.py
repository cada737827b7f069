"""The user's own images as inputs for the network of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from corsd_lib.errors import CorsdError
from corsd_lib.runs import DataInfo


def own_pixels(image: Any, data: DataInfo) -> Tensor:
    """The user's own image in the format of a run: uint8 (C, S, S), 0 to 255, with the number of channels and the side S of the
    run.

    `image`: uint8 tensor or array (H, W), (C, H, W) or (H, W, C), grey or RGB; its shorter side is scaled to S, then it is
    centre-cropped. Raises `CorsdError` for anything else.
    """
    from torchvision.transforms.v2 import functional as T

    shape, kind = getattr(image, "shape", ()), str(getattr(image, "dtype", type(image).__name__))
    if kind not in ("uint8", "torch.uint8") or len(shape) not in (2, 3) or 0 in shape:
        raise _format_error(shape, kind)
    pixels = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.shape[0] not in (1, 3):
        pixels = pixels.permute(2, 0, 1)
    if pixels.shape[0] not in (1, 3):
        raise _format_error(shape, kind)
    if pixels.shape[0] != data.channels:
        pixels = T.rgb_to_grayscale(pixels) if data.channels == 1 else pixels.expand(data.channels, -1, -1)
    if pixels.shape[1:] != (data.image_size, data.image_size):
        pixels = T.center_crop(T.resize(pixels, [data.image_size], antialias=True), [data.image_size])
    return pixels.contiguous()


def _format_error(shape: Any, kind: str) -> CorsdError:
    allowed = "uint8 (H, W), (1 or 3, H, W) or (H, W, 1 or 3), 0 to 255"
    return CorsdError(f"the image has shape {tuple(shape)} and type {kind}; allowed: {allowed}")
