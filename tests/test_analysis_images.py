"""Images of a run's data, as its network sees them and as people do. More of `run_images` in test_attribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY

from corsd_lib import Run, TrainConfig, train
from corsd_lib.analysis.images import run_images, run_pixels
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError
from corsd_lib.runs import load_data


@pytest.fixture(scope="module")
def data(tiny_run: Run) -> ImageData:
    return load_data(tiny_run.config)


def stored(data: ImageData, split: str, positions: list[int]) -> torch.Tensor:
    """The bytes of the data set itself."""
    return getattr(data, split).images[positions]


def test_pixels_are_those_of_the_data_to_the_bit(tiny_run: Run, data: ImageData) -> None:
    for split in ("train", "validation", "test"):
        positions = [3, 0, 7, 3]
        pixels = run_pixels(tiny_run, positions, data, split)
        assert pixels.dtype == torch.uint8 and pixels.shape == (4, 1, 8, 8)
        assert pixels.equal(stored(data, split, positions))
        assert len(pixels.unique()) > 8  # not an empty image


def test_pixels_of_the_probe_set_are_found_by_their_index(tiny_run: Run, data: ImageData) -> None:
    probes, validation = tiny_run.probes, data.validation
    assert probes.split == "validation" and validation is not None
    positions = list(range(len(probes.index)))[::-1]
    rows = [validation.index.tolist().index(i) for i in probes.index[positions].tolist()]
    assert run_pixels(tiny_run, positions, data).equal(stored(data, "validation", rows))
    assert validation.labels[rows].equal(probes.labels[positions])


def test_pixels_come_back_from_every_value_and_normalisation(tmp_path: Path) -> None:
    """Three channels with a mean and deviation each, and every value from 0 to 255 in each channel."""
    generator = np.random.default_rng(0)
    values = np.stack([generator.permutation(256).reshape(16, 16) for _ in range(3 * 20)]).reshape(20, 3, 16, 16)
    images, labels = values.astype(np.uint8).transpose(0, 2, 3, 1), np.arange(20) % 2
    np.savez(tmp_path / "all.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    changes = {"data": f"npz:{tmp_path / 'all.npz'}", "per_class": None, "epochs": 1, "probe_size": 4, "method": "baseline"}
    run = train(TrainConfig(**{**TINY, **changes}, out=str(tmp_path / "run")), progress=False)
    pixels = run_pixels(run, list(range(20)), split="test")
    np.testing.assert_array_equal(pixels.numpy(), images.transpose(0, 3, 1, 2))
    assert all(len(channel.unique()) == 256 for channel in pixels[0])


def test_images_are_the_pixels_normalised(tiny_run: Run, data: ImageData) -> None:
    images = run_images(tiny_run, [1, 4], data, "train")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    torch.testing.assert_close(images, (stored(data, "train", [1, 4]) / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_what_is_not_there_is_refused(tiny_run: Run, data: ImageData) -> None:
    with pytest.raises(
        CorsdError, match=r"positions \[50\] are not in probe, which has 50 images; allowed: one or more from 0 to 49"
    ):
        run_pixels(tiny_run, [50], data)
    with pytest.raises(CorsdError, match=r"split 'tests'.*probe, train, validation, test"):
        run_pixels(tiny_run, [0], data, "tests")
