"""Small images with what a network says of them, as HTML; shown by the explorers of stages and of exits."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from corsd_lib.analysis.images import run_pixels
from corsd_lib.figures.style import PALETTE
from corsd_lib.runs import Run
from corsd_lib.widgets.probe_images import ProbeImages, image_html, png_of

RIGHT, WRONG = PALETTE[2], PALETTE[1]


class Thumbnails:
    """PNGs of a run's images by split and position, each made once; nothing where the data is not. Pages enlarge them."""

    def __init__(self, run: Run, images: ProbeImages) -> None:
        self.images, self._run = images, run
        self._pngs: dict[tuple[str, int], bytes] = {}

    def of(self, positions: Sequence[int], split: str = "probe") -> Mapping[int, bytes]:
        """Position -> PNG of images of a split; empty where the data is missing."""
        if self.images.missing:
            return {}
        new = [p for p in dict.fromkeys(positions) if (split, p) not in self._pngs]
        if new:
            for position, pixels in zip(new, run_pixels(self._run, new, self.images.data, split), strict=True):
                self._pngs[split, position] = png_of(pixels)
        return {p: self._pngs[split, p] for p in positions}


def thumbnail(png: bytes | None, lines: Sequence[str], right: bool, side: int = 64) -> str:
    """One image (or none) over `lines` of text, which are escaped; underlined by whether it is `right`."""
    said = html.escape(", ".join(lines))
    picture = image_html(png, ", ".join(lines), side) if png else ""
    cut = "overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
    text = "".join(f'<div style="{cut}">{html.escape(line)}</div>' for line in lines)
    return (
        f'<div title="{said}" style="display:inline-block;width:{side + 12}px;margin:2px;vertical-align:top;text-align:center;'
        f'font-size:11px;line-height:1.35;border-bottom:3px solid {RIGHT if right else WRONG}">{picture}{text}</div>'
    )


def html_table(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str = "") -> str:
    """A table of cells that are HTML already; the first of a row is its name."""
    heads = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    lines = "".join(_row(cells) for cells in rows)
    return f"<table>{f'<caption>{caption}</caption>' if caption else ''}<tr>{heads}</tr>{lines}</table>"


def _row(cells: Iterable[str]) -> str:
    name, *values = cells
    return f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
