"""The course as pages: one a notebook and an index, nothing fetched from elsewhere, every link leading somewhere."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from test_notebooks import load_build

from corsd_lib._notebooks import Formulas

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return load_build().pages.write_course(NOTEBOOKS, tmp_path_factory.mktemp("course") / "pages").parent


def test_the_index_names_every_notebook_by_its_question(course: Path) -> None:
    entries = re.findall(r'<a href="([^"]+)">([^<]+)</a>', (course / "index.html").read_text(encoding="utf-8"))
    assert entries == [(f"{path.stem}.html", html.escape(load_build().pages.title_of(path))) for path in NOTEBOOKS]
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


def test_formulas_become_mathml_and_code_stays() -> None:
    formulas = Formulas()
    text = formulas.take_out("a price of `$5` and $r_{ij}$:\n\n$$\\frac{1}{2}\n\\|x\\|$$\n\n```\n$HOME $\n```")
    assert "`$5`" in text and "$HOME $" in text and "frac" not in text
    page = formulas.put_back(text)
    assert re.findall(r"<m\w+[^>]*>\\[^<]*", page) == [], "LaTeX that the converter does not know"
    assert page.count("<math ") == 2 and page.count("</math>") == 2
    assert re.search(r'<math [^>]*display="inline".*?<msub>', page) and re.search(r'display="block".*?<mfrac>', page)


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_a_page_shows_no_raw_latex(course: Path, name: str) -> None:
    page = re.sub(r"(?s)<(script|style|pre)\b.*?</\1>", "", (course / f"{name}.html").read_text(encoding="utf-8"))
    assert "$$" not in page and "FORMULA-" not in page and not re.search(r"\\(mathrm|frac|sum|mathcal)", page)
    assert re.findall(r"<m\w+[^>]*>\\[^<]*", page) == [], "LaTeX that the converter does not know"
    assert page.count("<math ") == page.count("</math>")
