"""Images behind the snapshots of a run, and how explorers write them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from corsd_lib import Run, load_run
from corsd_lib.analysis.images import run_images, run_pixels
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import TrainConfig, load_data
from corsd_lib.widgets import probe_images
from corsd_lib.widgets.probe_images import ProbeImages, png_of
from corsd_lib.widgets.thumbnails import Thumbnails


@pytest.fixture(scope="module")
def data(tiny_run: Run) -> ImageData:
    return load_data(tiny_run.config)


def opened(png: bytes) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_images_are_the_runs_own(tiny_run: Run, data: ImageData) -> None:
    for images in (ProbeImages(tiny_run), ProbeImages(tiny_run, data)):
        assert images.missing == ""
        assert images.pixels([7, 2]).equal(run_pixels(tiny_run, [7, 2], data))
        assert images.tensors([7, 2]).equal(run_images(tiny_run, [7, 2], data))
    assert ProbeImages(tiny_run, data).data is data


def test_data_is_loaded_once_and_only_when_asked_for(tiny_run: Run, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []

    def load(run: Run, given: None, root: str | None) -> ImageData:
        loaded.append(root)
        return data

    monkeypatch.setattr(probe_images, "run_data", load)
    images = ProbeImages(tiny_run, data_root="elsewhere")
    assert loaded == []
    images.png(0), images.pixels([1]), images.missing
    assert loaded == ["elsewhere"]


def test_without_data_a_sentence_says_why(tiny_run: Run, tmp_path: Path) -> None:
    content = read_json(tiny_run.path / "config.json")
    content["train"]["data"] = content["data"]["name"] = f"npz:{tmp_path / 'gone.npz'}"
    write_json(tmp_path / "run" / "config.json", content)
    (tmp_path / "run" / "probe.safetensors").write_bytes((tiny_run.path / "probe.safetensors").read_bytes())
    images = ProbeImages(load_run(tmp_path / "run"))
    assert images.missing.startswith("No images here: ") and "gone.npz" in images.missing
    assert images.png(0) == b""
    for ask in (images.pixels, images.tensors):
        with pytest.raises(CorsdError, match=r"No images here: .*gone\.npz"):
            ask([0])
    with pytest.raises(CorsdError, match=r"gone\.npz"):
        _ = images.data


def test_other_data_than_the_runs_is_not_shown_as_if_it_were(tiny_run: Run) -> None:
    from dataclasses import replace

    images = ProbeImages(tiny_run, load_data(replace(tiny_run.config, validation_fraction=0.0)))
    assert images.missing.startswith("No images here: ") and "validation" in images.missing


def test_a_png_holds_every_pixel_as_a_square(tiny_run: Run, data: ImageData) -> None:
    picture = opened(ProbeImages(tiny_run, data).png(5, side=40))
    pixels = run_pixels(tiny_run, [5], data)[0, 0].numpy()
    assert picture.shape == (40, 40, 3)  # 8 pixels of 5 x 5
    np.testing.assert_array_equal(picture, np.kron(pixels, np.ones((5, 5), np.uint8))[..., None].repeat(3, axis=2))


def test_a_png_keeps_colours_and_sides() -> None:
    pixels = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(opened(png_of(pixels)), pixels.permute(1, 2, 0).numpy())


def test_runs_share_images_only_where_all_that_chooses_images_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            asked.add(name)
            return getattr(TrainConfig(), name)

    monkeypatch.setattr("corsd_lib.runs.data.load_dataset", lambda *_, **__: None)
    load_data(Watched())  # type: ignore[arg-type]
    assert asked == set(probe_images._OF_DATA)


def test_a_page_gets_thumbnails_of_the_digits_and_of_others_on_request(tiny_run: Run, tmp_path: Path) -> None:
    thumbnails = Thumbnails(tiny_run, ProbeImages(tiny_run))
    found = thumbnails.packed([7, 2], None)["faces"]
    ends = found["ends"].tolist()
    pngs = [found["bytes"][begin:end].tobytes() for begin, end in zip([0, *ends], ends, strict=False)]
    for png, pixels in zip(pngs, run_pixels(tiny_run, [7, 2]), strict=True):
        np.testing.assert_array_equal(opened(png)[..., 0], pixels[0])
    assert found["positions"].tolist() == [7, 2] and thumbnails.packed([7, 2], False) == {}
    content = read_json(tiny_run.path / "config.json")
    content["train"]["data"] = content["data"]["name"] = f"npz:{tmp_path / 'gone.npz'}"
    write_json(tmp_path / "run" / "config.json", content)
    (tmp_path / "run" / "probe.safetensors").write_bytes((tiny_run.path / "probe.safetensors").read_bytes())
    run = load_run(tmp_path / "run")
    others = Thumbnails(run, ProbeImages(run))
    assert others.packed([7, 2], None) == {}
    with pytest.raises(CorsdError, match=r"No images here: .*gone\.npz"):
        others.packed([7, 2], True)
