"""Draw the screenshots of README.md: python notebooks/pictures.py. Trains for a minute or two; needs Chromium and playwright.
`python notebooks/pictures.py PICTURE PAGE` makes a picture of a page, which notebooks/build.py does for those of notebooks.

Both show pages without a kernel: the relation explorer of a run on the drawn shapes, whose images are free, with images of
the two classes under the pointer; and the report of the committed run of the small network on CIFAR-100.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from corsd_lib import RelationExplorer, TrainConfig, committed_run, load_run, train
from corsd_lib.files import write_atomic
from corsd_lib.sharing.report import write_report

IMAGES = Path(__file__).parent / "images"
ROOT = Path(__file__).parent.parent
SHAPES = TrainConfig(
    data="shapes",
    per_class=100,
    network="resnet8",
    width=16,
    method="corsd",
    epochs=20,
    batch_size=64,
    probe_every=5,
    probe_size=320,
    out=str(ROOT / "runs" / "readme-shapes"),
    resume=True,
)

# The middle of the cell of the selected pair, in the first map of the page.
CELL = """() => {
    const explorer = document.querySelector("section[data-kind=relation] .body").corsd;
    const { box, n, frame: [row, column] } = explorer.maps[0].map.shown;
    return { x: box.left + (column + 0.5) * box.side / n, y: box.top + (row + 0.5) * box.side / n };
}"""


def main() -> None:
    """Write relation_explorer.png and report.png into notebooks/images."""
    with TemporaryDirectory() as folder, sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1100, "height": 900}, device_scale_factor=1.5)
        _relation_explorer(page, Path(folder) / "explorer.html")
        _report(page, Path(folder) / "report.html")
        browser.close()


def _relation_explorer(page: Page, file: Path) -> None:
    """The selected pair has colour and texture in common, and the pointer is over it."""
    explorer = RelationExplorer(train(SHAPES, progress=True))
    explorer.selection = ("orange plain circle", "orange plain square")  # high in the map: its texts hide no names of axes
    explorer.to_html(file)
    page.goto(file.as_uri())
    canvas = page.locator("canvas").first
    canvas.wait_for()
    canvas.hover(position=page.evaluate(CELL))
    page.wait_for_timeout(1000)
    _write(page.screenshot(), "relation_explorer.png")


def _report(page: Page, file: Path) -> None:
    copy = shutil.copytree(committed_run("cifar100_small/corsd").path, file.with_name("corsd"))
    write_report([load_run(copy)], file)  # of a copy: a report keeps the embedding that it fits in its run
    page.goto(file.as_uri())
    section = page.locator("section", has=page.locator("canvas")).first
    section.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    _write(section.screenshot(), "report.png")


def page_picture(page_file: Path, picture: Path) -> None:
    """Write the upper part of a page, up to 1,700 pixels, as a picture."""
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.goto(page_file.resolve().as_uri())
        page.wait_for_timeout(2000)  # plotly draws
        height = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({"width": 900, "height": min(1700, height)})
        page.wait_for_timeout(500)
        _write(page.screenshot(), picture.name, picture.parent)
        browser.close()


def _write(png: bytes, name: str, folder: Path = IMAGES) -> None:
    """In 256 colours, a third of the bytes."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(out, "PNG", optimize=True)
    write_atomic(folder / name, out.getvalue())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        page_picture(Path(sys.argv[2]), Path(sys.argv[1]))
    else:
        main()
