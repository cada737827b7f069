"""The real CIFAR-100 and CUB-200-2011, where $CORSD_DATA has them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corsd_lib.datasets import ImageArrays, ImageData, load_dataset
from corsd_lib.datasets.small import cifar_classes


def real(name: str, file: str, **options: bool) -> ImageData:
    root = os.environ.get("CORSD_DATA")
    if not root or not (Path(root) / file).exists():
        pytest.skip(f"needs {file} in $CORSD_DATA, which is {root or 'not set'}")
    return load_dataset(name, root, **options)


@pytest.fixture(scope="module")
def cifar100() -> ImageData:
    return real("cifar100", "cifar100.npz")


@pytest.fixture(scope="module")
def cub200() -> ImageData:
    return real("cub200", "CUB_200_2011")


def test_cifar100_is_the_published_one(cifar100: ImageData) -> None:
    assert isinstance(cifar100.train, ImageArrays) and isinstance(cifar100.test, ImageArrays)
    assert torch.bincount(cifar100.train.labels).tolist() == [500] * 100
    assert torch.bincount(cifar100.test.labels).tolist() == [100] * 100
    assert cifar100.mean == pytest.approx((0.50707516, 0.48654887, 0.44091784), abs=1e-7)
    unique = {image.tobytes() for image in cifar100.train.images.numpy()}
    assert len(unique) == 49_986  # published
    assert sum(image.tobytes() in unique for image in cifar100.test.images.numpy()) == 10


def test_our_superclasses_of_cifar100_are_the_official_ones(cifar100: ImageData) -> None:
    names, groups, of_class = cifar_classes("cifar100")
    assert (cifar100.class_names, cifar100.superclass_names) == (names, groups)
    assert torch.equal(cifar100.superclass_of_class, of_class)


@pytest.mark.slow
def test_cub200_is_the_official_split(cub200: ImageData) -> None:
    assert isinstance(cub200.train, ImageArrays) and isinstance(cub200.test, ImageArrays)
    assert (len(cub200.train), len(cub200.test), cub200.num_classes) == (5994, 5794, 200)
    assert cub200.train.images.shape[1:] == (3, 73, 73) and cub200.image_size == 64
    assert set(torch.bincount(cub200.train.labels).tolist()) == {29, 30}
    assert cub200.class_names[0] == "Black footed Albatross" and cub200.class_names[199] == "Common Yellowthroat"
    sizes = torch.bincount(cub200.superclass_of_class).tolist()
    largest = dict(zip(cub200.superclass_names, sizes, strict=True))
    assert (largest["Warbler"], largest["Sparrow"], len(sizes)) == (25, 21, 70)


def test_cub200_has_its_attributes(cub200: ImageData) -> None:
    assert cub200.attributes is not None and cub200.attributes.shape == (200, 312)
    assert cub200.attributes.min() >= 0 and 0.9 < cub200.attributes.max() <= 1
    assert len(set(cub200.attribute_names)) == 312
    # A cardinal is red: the colour is among the strongest attributes of its class.
    red = cub200.attribute_names.index("has_primary_color::red")
    assert cub200.attributes[cub200.class_names.index("Cardinal"), red] > 0.5


@pytest.mark.slow
def test_cub200_boxes_are_cut_out_of_their_own_images(cub200: ImageData) -> None:
    cropped = real("cub200", "CUB_200_2011", crop_to_box=True)
    assert isinstance(cropped.train, ImageArrays) and isinstance(cub200.train, ImageArrays)
    assert torch.equal(cropped.train.labels, cub200.train.labels)
    folder = Path(os.environ["CORSD_DATA"]) / "CUB_200_2011"
    lines = {name: (folder / name).read_text().split("\n")[:-1] for name in ("images.txt", "bounding_boxes.txt")}
    split = (folder / "train_test_split.txt").read_text().split("\n")[:-1]
    rows = [row for row, line in enumerate(split) if line.endswith(" 1")]
    compared = 0
    for number in range(0, len(rows), 300):
        x, y, w, h = map(float, lines["bounding_boxes.txt"][rows[number]].split()[1:])
        with Image.open(folder / "images" / lines["images.txt"][rows[number]].split()[1]) as file:
            image = file.convert("RGB")
        side = max(w, h) * 8 / 7
        left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
        if min(left, top) < 0 or left + side > image.width or top + side > image.height:
            continue  # shifted or clipped: its geometry is tested on drawn images
        ours = cropped.train.images[number].permute(1, 2, 0).int()
        plain = image.crop((round(left), round(top), round(left + side), round(top + side))).resize((73, 73))
        assert (ours - torch.from_numpy(np.array(plain)).int()).abs().float().mean() < 12
        compared += 1
    assert compared >= 3
