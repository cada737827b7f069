"""Decoding of image files: one at its full resolution, or many as squares of equal size."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from corsd_lib.datasets.archive import check_memory
from corsd_lib.datasets.progress import progress_bar
from corsd_lib.errors import CorsdError

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
MARGIN = 8 / 7  # stored side / input side; the margin is for random crops, as in 256 / 224 for ImageNet
# Pillow detects the format by content. Other formats are refused, because one of them (EPS) starts a program.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
MAX_PIXELS = 89_478_485  # pixels of one image: Pillow's own limit, 256 MiB as RGB
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def stored_side(image_size: int) -> int:
    """Side in pixels of the stored squares for a network with input images of `image_size` pixels."""
    return round(image_size * MARGIN)


def read_rgb(path: str) -> np.ndarray:
    """Decode one file at its full resolution: uint8 (H, W, 3), RGB. Raises CorsdError if it cannot be read."""
    with _open_image(path) as image:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def image_sizes(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (width, height) in pixels for every file, read from its header alone. Raises CorsdError if a file cannot be
    read.
    """
    sizes = []
    for path in paths:
        with _open_image(path) as image:
            sizes.append(image.size)
    return sizes


def read_squares(paths: Sequence[str], side: int, boxes: Sequence[Box] | None = None, *, label: str = "decoding") -> Tensor:
    """Decode files to squares uint8 (N, 3, side, side), in several threads.

    `boxes`: one for each file; the square around the box is cut out (`square_around`). If `boxes` is None, the largest centre
    square is cut out. `label` names the progress bar. Raises CorsdError for the first file that cannot be read, and if there is
    not enough memory.
    """
    check_memory(f"{len(paths):,} images of {side}x{side} pixels take", len(paths) * 3 * side**2)
    squares = np.empty((len(paths), 3, side, side), dtype=np.uint8)

    def read(rows: range) -> int:
        for row in rows:
            squares[row] = _read_square(paths[row], side, boxes[row] if boxes else None).transpose(2, 0, 1)
        return len(rows)

    blocks = [range(start, min(start + 32, len(paths))) for start in range(0, len(paths), 32)]
    with (
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
        progress_bar(total=len(paths), desc=label, unit=" images", delay=1, leave=False) as bar,
    ):
        for count in pool.map(read, blocks):
            bar.update(count)
    return torch.from_numpy(squares)


def square_around(box: Box, width: int, height: int) -> Box:
    """The square of side max(w, h) * 8/7 around a box w x h in an image of width x height pixels.

    The square is centred on the box. If it extends beyond the image, it is moved inside; if it is larger than the image, it is
    cut to the image. The square contains all of the box that lies in the image. If the square was neither moved nor cut, the
    box lies in the inner 7/8 of the square, which a centre crop keeps.
    """
    left, top, right, bottom = box
    side = max(right - left, bottom - top) * MARGIN
    x0, x1 = _move_inside((left + right) / 2, side, width)
    y0, y1 = _move_inside((top + bottom) / 2, side, height)
    return x0, y0, x1, y1


def _move_inside(centre: float, side: float, limit: int) -> tuple[float, float]:
    side = min(side, limit)
    start = min(max(centre - side / 2, 0.0), limit - side)
    return start, min(start + side, limit)


def _centre_square(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _read_square(path: str, side: int, box: Box | None) -> np.ndarray:
    """Decode an image, crop the square around its box (or its middle) and resize it: uint8 (side, side, 3), RGB.

    Raises `CorsdError` for a file that cannot be read and for a box outside the image.
    """
    from PIL.Image import Resampling

    with _open_image(path) as image:
        width, height = image.size
        _check_box(path, box, width, height)
        left, top, right, bottom = square_around(box, width, height) if box else _centre_square(width, height)
        shrink = side / min(right - left, bottom - top)
        # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which is cheaper; draft never goes below the requested size.
        image.draft(None, (max(1, round(width * shrink)), max(1, round(height * shrink))))
        x, y = image.width / width, image.height / height
        region = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
        return np.asarray(image.convert("RGB").resize((side, side), Resampling.BILINEAR, box=region))


def _check_box(path: str, box: Box | None, width: int, height: int) -> None:
    """Raise `CorsdError` if the box has no pixel in common with the image.

    A box may extend beyond the edge, because `square_around` returns a square inside the image.
    """
    if box is not None and not (box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0):
        edges = ", ".join(f"{edge:g}" for edge in box)
        raise CorsdError(
            f"image {path} is {width}x{height}; its box (left, top, right, bottom: {edges}) lies outside the image"
        )


@contextmanager
def _open_image(path: str) -> Iterator[Image]:
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise CorsdError(f"image {path} is not a regular file; allowed: files, and links to files")
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise CorsdError(f"image {path} has {size} pixels; allowed: {MAX_PIXELS:,} in all")
            if image.mode in _DEEP_MODES:
                raise CorsdError(f"image {path} has pixels of mode {image.mode}; allowed: 8 bits per channel")
            yield image
    except CorsdError:
        raise
    except FileNotFoundError:
        raise CorsdError(f"image {path} does not exist") from None
    except Image.DecompressionBombError as error:
        raise CorsdError(f"image {path} has too many pixels; allowed: {MAX_PIXELS:,} in all") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise CorsdError(f"image {path} cannot be read: its content is none of {known}, or is damaged") from error
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise CorsdError(f"image {path} cannot be read, it may be truncated or corrupt: {error}") from error
