"""The course as pages: one a notebook and an index, nothing fetched from elsewhere, every link leading somewhere."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from corsd_lib._notebooks import title_of, write_course

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_course(NOTEBOOKS, tmp_path_factory.mktemp("course") / "pages").parent


def test_the_index_names_every_notebook_by_its_question(course: Path) -> None:
    entries = re.findall(r'<a href="([^"]+)">([^<]+)</a>', (course / "index.html").read_text(encoding="utf-8"))
    assert entries == [(f"{path.stem}.html", html.escape(title_of(path))) for path in NOTEBOOKS]
    assert entries[0][1] == "01 Can a network teach itself?"


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_a_page_draws_its_figures_with_the_plotly_beside_it_and_fetches_nothing(course: Path, name: str) -> None:
    page = (course / f"{name}.html").read_text(encoding="utf-8")
    assert '<script src="plotly.min.js"></script>' in page and (course / "plotly.min.js").stat().st_size > 1_000_000
    assert 'class="plotly-graph-div"' in page and "application/vnd.plotly" not in page and '"type":"scattergl"' not in page
    assert "@media screen and (prefers-color-scheme: dark)" in page and "@media print" in page
    tags = re.findall(r"<(?:script|link|img|iframe|video)\b[^>]*", re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", page))
    assert tags and not [tag for tag in tags if re.search(r"""(src|href)=.(https?:)?//""", tag)]
    for target in re.findall(r'<a href="([^"#]+)', page):
        assert target.startswith("https://") or (course / target).exists() or (FOLDER / target).exists(), target
