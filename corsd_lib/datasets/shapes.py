"""Drawn colour images whose true relations are known: every two of the 16 classes share 0, 1 or 2 of 3 attributes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch

from corsd_lib.datasets.arrays import ImageArrays, ImageData, as_arrays, channel_statistics, resize_arrays

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "orange": (213, 94, 0),
    "blue": (0, 114, 178),
}  # Okabe and Ito: safe for colour-blind readers
TEXTURES = ("plain", "striped")
CLASSES = tuple(product(SHAPES, COLOURS, TEXTURES))
TRAIN_PER_CLASS, TEST_PER_CLASS = 200, 50
SIDE = 32  # pixels

Array = np.ndarray


def load_shapes(image_size: int | None) -> ImageData:
    """16 classes of drawn shapes, uint8 (N, 3, 32, 32): 3,200 train (200 of each class), 800 test (50 of each class).

    A class is a shape (circle, square, triangle, cross), a colour (orange, blue) and a texture (plain, striped). Position,
    size, angle, light, background, a bar in front and noise vary from image to image. Superclasses are the shapes. `attributes`
    (16, 8) are 0 or 1: the four shapes, the two colours, the two textures. The images are the same for every seed of a
    training; another version of numpy may round a pixel to the next value. For an `image_size` other than 32 the images are
    resized once, bilinearly. Source: ours.
    """
    side = image_size or SIDE
    train, test = (_split(count, stream, side) for count, stream in ((TRAIN_PER_CLASS, 0), (TEST_PER_CLASS, 1)))
    mean, std = channel_statistics(train.images)
    columns: tuple[tuple[str, ...], ...] = (SHAPES, tuple(COLOURS), TEXTURES)
    return ImageData(
        "shapes",
        train,
        test,
        class_names=tuple(" ".join((colour, texture, shape)) for shape, colour, texture in CLASSES),
        superclass_names=SHAPES,
        superclass_of_class=torch.tensor([SHAPES.index(shape) for shape, _, _ in CLASSES]),
        mean=mean,
        std=std,
        image_size=side,
        augmentation="crop_flip",
        attributes=torch.tensor([[float(a in c) for column in columns for a in column] for c in CLASSES]),
        attribute_names=tuple(a for column in columns for a in column),
    )


def _split(per_class: int, stream: int, side: int) -> ImageArrays:
    """`per_class` images of each class, with labels 0, 1, ..., 15, 0, 1, ...; `side` in pixels. `stream` seeds the random
    numbers: 0 for the training split, 1 for the test split.
    """
    drawn = [_draw(*c, per_class, np.random.RandomState([stream, label])) for label, c in enumerate(CLASSES)]
    images = torch.from_numpy(np.stack(drawn, axis=1).reshape(-1, SIDE, SIDE, 3)).permute(0, 3, 1, 2).contiguous()
    return as_arrays(resize_arrays(images, side), torch.arange(len(CLASSES)).repeat(per_class))


def _draw(shape: str, colour: str, texture: str, count: int, random: np.random.RandomState) -> Array:
    """`count` random images of one class, uint8 (count, 32, 32, 3)."""
    # The numbers of RandomState never change (NEP 19); those of newer generators may.

    def uniform(low: float, high: float, *channels: int) -> Array:
        return random.uniform(low, high, (count, 1, 1, *channels))

    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2  # pixels from the middle
    u, v = _rotate(x - uniform(-3, 3), y - uniform(-3, 3), uniform(0, 2 * np.pi))
    size = uniform(7, 10.5)
    stripes = np.sin(2 * np.pi * _rotate(u, v, uniform(0, 2 * np.pi))[0] / uniform(3.5, 5) + uniform(0, 2 * np.pi))
    across, _ = _rotate(x, y, uniform(0, 2 * np.pi))

    surface = np.array(COLOURS[colour]) * uniform(0.7, 1.15, 1) + uniform(-25, 25, 3)
    if texture == "striped":
        light = 0.4 + 0.4 * np.clip(2 * stripes, -1, 1)[..., None]
        surface = surface + light * (uniform(225, 255, 1) - surface)
    slope = _rotate(x, y, uniform(0, 2 * np.pi))[0][..., None] / SIDE
    image = uniform(50, 210, 3) + uniform(-90, 90, 3) * slope
    image = _paint_over(image, surface, OUTLINES[shape](u / size, v / size) * size)
    image = _paint_over(image, uniform(30, 230, 3), np.abs(across - uniform(-8, 8)) - uniform(0.5, 1.2))
    return np.clip(np.rint(image + random.normal(0, 8, image.shape)), 0, 255).astype(np.uint8)


def _rotate(x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _paint_over(below: Array, above: Array, distance: Array) -> Array:
    """Image with `above` painted over `below` where `distance`, in pixels from the outline, is negative; at the edge they are
    blended over one pixel.
    """
    opacity = np.clip(0.5 - distance, 0, 1)[..., None]
    return below + opacity * (above - below)


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(v, np.sqrt(3) / 2 * np.abs(u) - v / 2) - 0.75


def _cross(u: Array, v: Array) -> Array:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 1.15, v - 0.4), np.maximum(u - 0.4, v - 1.15))


# Distance from the outline, negative inside. All four have about the same area, so that the size does not reveal the shape.
OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda u, v: np.hypot(u, v) - 1,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.87,
    "triangle": _triangle,
    "cross": _cross,
}
