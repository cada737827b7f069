"""Choosing one of a run's probe images by its class and its place in it, and taking in an image of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as ipw
import numpy as np
import torch
import traitlets
from torch import Tensor

from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import short_name
from corsd_lib.runs import DataInfo

_NONE = -1  # ipywidgets shows a choice of the value None as no choice at all


class ImageChoice(ipw.HBox):
    """A list of classes and a number within the class; `position` in the probe set, None for none of them.

    `labels` (N,) of the probe images; classes without an image are not offered. `optional`: "none" is.
    """

    position = traitlets.Int(allow_none=True, default_value=None)

    def __init__(self, labels: Tensor, names: Sequence[str], description: str, optional: bool = False) -> None:
        self._of_class = {c: (labels == c).nonzero().flatten().tolist() for c in labels.unique().tolist()}
        options = [(f"{short_name(names[c])} ({len(rows)})", c) for c, rows in self._of_class.items()]
        none = [("none", _NONE)] if optional else []
        self.class_choice = ipw.Dropdown(options=[*none, *options], description=description, layout={"width": "280px"})
        self.number = ipw.BoundedIntText(min=1, max=1, description="number", layout={"width": "170px"})
        self._following = False
        super().__init__([self.class_choice, self.number])
        self.show(None)
        self.class_choice.observe(lambda _: self._chosen(1), "value")
        self.number.observe(lambda _: self._chosen(self.number.value), "value")

    def _chosen(self, number: int) -> None:
        if self._following:
            return
        of_class = self._of_class.get(self.class_choice.value)
        self.show(None if of_class is None else of_class[number - 1])

    def show(self, position: int | None) -> None:
        """Choose `position` (or none) in both controls; told once."""
        self._following = True  # class and number change one by one: what stands in between is nobody's choice
        of_class = next((c for c, rows in self._of_class.items() if position in rows), None)
        offered = self.class_choice.options[0][1] == _NONE
        self.class_choice.value = _NONE if of_class is None and offered else of_class
        rows = [] if of_class is None else self._of_class[of_class]
        self.number.max, self.number.disabled = max(1, len(rows)), of_class is None
        self.number.value = 1 if position is None or of_class is None else rows.index(position) + 1
        self._following = False
        self.position = position


def own_pixels(image: Any, data: DataInfo) -> Tensor:
    """An image of one's own as the run's network takes it: uint8 (C, S, S), 0 to 255, with the run's channels and side S.

    `image`: uint8 tensor or array (H, W), (C, H, W) or (H, W, C), grey or RGB; its shorter side is scaled to S, its middle is
    kept. Raises `CorsdError` for anything else.
    """
    from torchvision.transforms.v2 import functional as T

    shape, kind = getattr(image, "shape", ()), str(getattr(image, "dtype", type(image).__name__))
    if kind not in ("uint8", "torch.uint8") or len(shape) not in (2, 3) or 0 in shape:
        raise _unfit(shape, kind)
    pixels = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.shape[0] not in (1, 3):
        pixels = pixels.permute(2, 0, 1)
    if pixels.shape[0] not in (1, 3):
        raise _unfit(shape, kind)
    if pixels.shape[0] != data.channels:
        pixels = T.rgb_to_grayscale(pixels) if data.channels == 1 else pixels.expand(data.channels, -1, -1)
    if pixels.shape[1:] != (data.image_size, data.image_size):
        pixels = T.center_crop(T.resize(pixels, [data.image_size], antialias=True), [data.image_size])
    return pixels.contiguous()


def _unfit(shape: Any, kind: str) -> CorsdError:
    allowed = "uint8 (H, W), (1 or 3, H, W) or (H, W, 1 or 3), 0 to 255"
    return CorsdError(f"image of shape {tuple(shape)} and type {kind}; allowed: {allowed}")
