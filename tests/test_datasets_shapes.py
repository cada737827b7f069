"""The drawn shapes: sizes, classes that share attributes, images that differ and can be told apart."""

from __future__ import annotations

import hashlib

import pytest
import torch

from corsd_lib.datasets import ImageData, load_dataset
from corsd_lib.datasets.shapes import COLOURS, OUTLINES, SHAPES


@pytest.fixture(scope="module")
def shapes() -> ImageData:
    return load_dataset("shapes")


def test_sixteen_classes_of_colour_images(shapes: ImageData) -> None:
    assert shapes.train.images.shape == (3200, 3, 32, 32)
    assert shapes.test.images.shape == (800, 3, 32, 32)
    assert torch.bincount(shapes.train.labels).tolist() == [200] * 16
    assert torch.bincount(shapes.test.labels).tolist() == [50] * 16
    assert shapes.superclass_names == SHAPES


def test_class_names_and_superclasses_agree_with_the_attributes(shapes: ImageData) -> None:
    assert shapes.attributes is not None
    for name, row, group in zip(shapes.class_names, shapes.attributes, shapes.superclass_of_class, strict=True):
        held = {a for a, value in zip(shapes.attribute_names, row.tolist(), strict=True) if value}
        assert held == set(name.split())
        assert shapes.superclass_names[group] in held


def test_two_classes_share_at_most_two_of_three_attributes(shapes: ImageData) -> None:
    assert shapes.attributes is not None
    shared = shapes.attributes @ shapes.attributes.T
    assert shared.diagonal().tolist() == [3.0] * 16
    counts = torch.bincount(shared.triu(1)[torch.triu(torch.ones(16, 16), 1) == 1].long())
    assert counts.tolist() == [24, 56, 40]  # of 120 pairs: none, one, two attributes in common


def test_no_image_is_in_train_and_test_and_none_twice(shapes: ImageData) -> None:
    images = torch.cat([shapes.train.images, shapes.test.images]).flatten(1).numpy()
    assert len({hashlib.sha256(image.tobytes()).digest() for image in images}) == 4000


def test_every_loading_gives_the_same_images(shapes: ImageData) -> None:
    again = load_dataset("shapes", seed=7)
    assert torch.equal(shapes.train.images, again.train.images)
    assert torch.equal(shapes.test.images, again.test.images)


def test_colour_is_seen_in_the_middle_of_plain_shapes(shapes: ImageData) -> None:
    """Of the two colours orange has more red than blue: also in the noise, behind the bar and on any background."""
    middle = shapes.train.images[:, :, 14:18, 14:18].float().mean((2, 3))  # (N, 3)
    redder = (middle[:, 0] > middle[:, 2]).float()
    for colour, expected in zip(COLOURS, (1, 0), strict=True):
        of_colour = torch.tensor([name.startswith(f"{colour} plain") for name in shapes.class_names])[shapes.train.labels]
        assert (redder[of_colour] == expected).float().mean() > 0.9


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_cover_the_same_area(shape: str) -> None:
    import numpy as np

    u, v = np.meshgrid(*[np.linspace(-2, 2, 801)] * 2)
    area = (OUTLINES[shape](u, v) < 0).mean() * 16
    assert area == pytest.approx(np.pi, rel=0.08)


def test_another_size_is_resized_once() -> None:
    data = load_dataset("shapes", image_size=16)
    assert data.train.images.shape == (3200, 3, 16, 16)
    assert data.image_size == 16
