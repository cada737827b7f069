"""Files to pixels: squares around boxes, shrunk decoding, and files that cannot be read."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from corsd_lib.datasets import ImageFiles
from corsd_lib.datasets.decoding import read_rgb, read_squares, square_around, stored_side
from corsd_lib.errors import CorsdError


def smooth(width: int, height: int) -> Image.Image:
    """A picture that smaller decoding hardly changes: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, np.full_like(x, 99)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def save(image: Image.Image, path: Path) -> str:
    image.save(path, quality=95)
    return str(path)


# --------------------------------------------------------------------------------------------------- squares


def test_a_square_has_an_eighth_of_room_and_the_box_in_its_middle() -> None:
    assert square_around((40, 50, 75, 64), 200, 200) == pytest.approx((37.5, 37, 77.5, 77))  # 35 wide -> side 40


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((0, 0, 35, 35), (0, 0, 40, 40)),  # shifted right and down, into the image
        ((65, 65, 100, 100), (60, 60, 100, 100)),  # shifted left and up
        ((0, 0, 100, 100), (0, 0, 100, 100)),  # larger than the image: clipped
        ((-20, 10, 15, 45), (0, 7.5, 40, 47.5)),  # a box that sticks out
    ],
)
def test_squares_are_shifted_into_the_image(box: tuple, square: tuple) -> None:
    assert square_around(box, 100, 100) == pytest.approx(square)


@given(
    width=st.integers(1, 600),
    height=st.integers(1, 600),
    a=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    b=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_square_holds_its_box_and_lies_in_the_image(width: int, height: int, a: tuple, b: tuple) -> None:
    left, right = sorted((a[0] * width, b[0] * width))
    top, bottom = sorted((a[1] * height, b[1] * height))
    x0, y0, x1, y1 = square_around((left, top, right, bottom), width, height)
    assert 0 <= x0 <= left + 1e-6 and right - 1e-6 <= x1 <= width
    assert 0 <= y0 <= top + 1e-6 and bottom - 1e-6 <= y1 <= height
    side = max(right - left, bottom - top) * 8 / 7
    assert x1 - x0 == pytest.approx(min(side, width)) and y1 - y0 == pytest.approx(min(side, height))


@pytest.mark.parametrize("size", [(500, 375), (100, 80), (1600, 900), (60, 300)])
def test_a_file_gives_its_centre_square(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    path = save(smooth(width, height), tmp_path / "a.jpg")
    square = read_squares([path], 40)[0].float()
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    at = (np.arange(40) + 0.5) * side / 40 - 0.5  # where the middle of each pixel lies in the file
    assert np.abs(square[0].mean(0).numpy() - 255 * (left + at) / width).max() < 4
    assert np.abs(square[1].mean(1).numpy() - 255 * (top + at) / height).max() < 4
    assert (square[2] - 99).abs().max() < 6


def test_shrunk_decoding_sees_what_full_decoding_sees(tmp_path: Path) -> None:
    jpg, png = save(smooth(1000, 700), tmp_path / "a.jpg"), save(smooth(1000, 700), tmp_path / "a.png")
    boxes = [(100.0, 200.0, 500.0, 400.0), (600.0, 300.0, 990.0, 690.0)]
    for box in boxes:
        shrunk, full = (read_squares([path], 73, [box])[0].int() for path in (jpg, png))
        assert (shrunk - full).abs().max() <= 4


def test_the_networks_centre_crop_shows_the_box(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 300), (0, 255, 0))
    image.paste((255, 0, 0), (100, 80, 240, 220))  # 140 x 140
    path = save(image, tmp_path / "a.png")
    side = stored_side(64)
    assert side == 73
    square = read_squares([path], side, [(100.0, 80.0, 240.0, 220.0)])[0]
    margin = (side - 64) // 2
    inside = square[:, margin + 1 : -margin - 1, margin + 1 : -margin - 1].float()
    assert inside[0].min() > 250 and inside[1].max() < 5
    assert square[1, :3].float().min() > 250 and square[1, :, -3:].float().min() > 250  # green all around


def test_order_is_kept_over_many_files_and_threads(tmp_path: Path) -> None:
    paths = [save(Image.new("L", (9, 7), value), tmp_path / f"{value}.png") for value in range(200)]
    squares = read_squares(paths, 4)
    assert squares.shape == (200, 3, 4, 4) and squares.dtype == torch.uint8 and squares.is_contiguous()
    assert torch.equal(squares.flatten(1), torch.arange(200, dtype=torch.uint8)[:, None].expand(200, 48))


# -------------------------------------------------------------------------------------------- kinds of files


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_usual_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode)
    path = save(image, tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    files = ImageFiles((path,), torch.tensor([0]), torch.tensor([0]), 4)
    loaded = files.load(0)
    assert loaded.shape == (3, 6, 8) and loaded.dtype == torch.uint8 and loaded.min() > 250


def test_load_gives_the_full_image(tmp_path: Path) -> None:
    path = save(smooth(20, 10), tmp_path / "a.png")
    files = ImageFiles((path,), torch.tensor([0]), torch.tensor([0]), 4)
    assert np.array_equal(files.load(0).permute(1, 2, 0).numpy(), np.asarray(smooth(20, 10)))


def broken_files(folder: Path) -> dict[str, str]:
    whole = Path(save(smooth(200, 100), folder / "whole.jpg")).read_bytes()
    png = Path(save(smooth(200, 100), folder / "whole.png")).read_bytes()
    contents = {
        "truncated.jpg": whole[: len(whole) // 2],
        "truncated.png": png[: len(png) // 2],
        "empty.jpg": b"",
        "text.jpg": b"this is no image",
        "header.png": png[:20],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.new("I;16", (8, 8), 60000).save(folder / "deep.png")
    return {name: str(folder / name) for name in [*contents, "deep.png", "absent.jpg"]}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    good = save(smooth(30, 30), tmp_path / "good.jpg")
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(CorsdError, match=rf"image .*{name} "):
            read_rgb(path)
        with pytest.raises(CorsdError, match=rf"image .*{name} "):
            read_squares([good] * 40 + [path] + [good] * 40, 20)
    with pytest.raises(CorsdError, match=r"deep\.png has pixels of mode I;16; allowed: 8 bits per channel"):
        read_rgb(str(tmp_path / "deep.png"))
    with pytest.raises(CorsdError, match=r"absent\.jpg does not exist"):
        read_rgb(str(tmp_path / "absent.jpg"))


@pytest.mark.parametrize("name", ["a.png", "a.eps"])
def test_the_content_must_be_a_format_that_is_listed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    smooth(20, 10).save(tmp_path / "a.eps")
    path = (tmp_path / "a.eps").rename(tmp_path / name)

    def started(*_: object, **__: object) -> None:
        pytest.fail("Ghostscript would be started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    for read in (read_rgb, lambda path: read_squares([path], 4)):
        with pytest.raises(CorsdError, match=rf"{name} cannot be read: its content is none of JPEG, PNG, BMP, PPM, TIFF, WEBP"):
            read(str(path))


def test_a_wrong_name_is_no_matter_where_the_content_is_listed(tmp_path: Path) -> None:
    smooth(20, 10).save(tmp_path / "a.gif")
    assert read_rgb(str((tmp_path / "a.gif").rename(tmp_path / "a.jpg"))).shape == (10, 20, 3)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels, black, and holds the first few."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 100_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it is decoded"))
    for read in (read_rgb, lambda path: read_squares([path], 4)):
        with warnings.catch_warnings(), pytest.raises(CorsdError, match=r"bomb\.png .*; allowed: 89,478,485 in all"):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            read(str(path))


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        place = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket must be short
        bound.bind("socket.png")
        os.chdir(place)
        (tmp_path / "device.png").symlink_to("/dev/zero")
        for name in ("pipe", "folder", "socket", "device"):
            with pytest.raises(CorsdError, match=rf"{name}\.png is not a regular file; allowed: files, and links to files"):
                read_rgb(str(tmp_path / f"{name}.png"))
    path = save(smooth(8, 8), tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(path)
    assert read_rgb(str(tmp_path / "link.png")).shape == (8, 8, 3)


def test_a_box_outside_its_image_is_named(tmp_path: Path) -> None:
    path = save(smooth(100, 80), tmp_path / "a.png")
    for box in ((100, 0, 120, 20), (0, 80, 10, 90), (-20, 0, 0, 10), (0, -9, 5, 0), (300, 300, 310, 310)):
        with pytest.raises(CorsdError, match=rf"a\.png is 100x80; its box .*: {box[0]}, {box[1]}, .* lies outside"):
            read_squares([path], 8, [box])
    assert read_squares([path], 8, [(-20.0, 10.0, 15.0, 45.0)]).shape == (1, 3, 8, 8)  # one that sticks out is moved


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it reads in spite of damage
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF"])
def test_damaged_bytes_are_pixels_or_one_error(tmp_path: Path, kind: str) -> None:
    draw, buffer, path = random.Random(0), io.BytesIO(), tmp_path / "a.jpg"
    smooth(13, 9).save(buffer, kind)
    for _ in range(50):
        content = bytearray(buffer.getvalue())
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(min(len(content), 200))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        for read in (read_rgb, lambda path: read_squares([path], 4)[0].numpy()):
            try:
                assert read(str(path)).dtype == np.uint8
            except CorsdError as error:
                assert "a.jpg" in str(error)
