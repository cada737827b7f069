"""Slides: what is chosen, one file that fetches nothing, and nothing that a slide cuts off."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from test_notebooks import FOLDER, load_build, read

TALKS = ("01_walkthrough", "11_compare_methods")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return load_build()


@pytest.fixture(scope="module")
def pages(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("slides")
    return {name: build.write_slides(FOLDER / f"{name}.ipynb", folder) for name in TALKS}


def types_of(name: str) -> list[str]:
    return [cell.metadata["slideshow"]["slide_type"] for cell in read(FOLDER / f"{name}.ipynb").cells]


def test_two_notebooks_have_slides_and_every_cell_of_them_a_type(build: ModuleType) -> None:
    assert tuple(path.stem for path in sorted(FOLDER.glob("*.ipynb")) if build.has_slides(read(path))) == TALKS
    for name in TALKS:
        types = types_of(name)
        assert types[0] == "slide" and set(types) == {"slide", "subslide", "fragment", "-", "skip"}
        titles = [c.source.partition("\n")[0] for c in read(FOLDER / f"{name}.ipynb").cells]
        (answer,) = [types[i] for i, title in enumerate(titles) if title.startswith("## Answer: ")]
        assert answer == "slide"


def test_cells_without_a_type_are_skipped_only_where_others_have_one(build: ModuleType) -> None:
    cells = [nbformat.v4.new_markdown_cell(text) for text in ("first", "second")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    build.skip_the_rest(notebook)
    assert not build.has_slides(notebook)
    notebook.cells[0].metadata["slideshow"] = {"slide_type": "slide"}
    build.skip_the_rest(notebook)
    assert [cell.metadata["slideshow"]["slide_type"] for cell in notebook.cells] == ["slide", "skip"]


@pytest.mark.parametrize("name", TALKS)
def test_slides_are_one_file_that_fetches_nothing(name: str, pages: dict[str, Path]) -> None:
    page = pages[name].read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]*\bsrc\s*=", page) and not re.search(r"<link\b", page)
    assert "unpkg" not in page and "cdnjs" not in page
    outside = re.sub(r"(?s)(<(script|style)[^>]*>).*?</\2>", r"\1", page)
    assert not re.search(r"""<(?:img|iframe|video|script)[^>]*(?:src)=["'](?!data:)""", outside)
    assert "reveal.js 5.2.0" in page and page.count("Reveal.initialize(") >= 1
    assert outside.count("<section>") >= sum(kind in ("slide", "subslide") for kind in types_of(name))
    assert page.count("data:image/png") >= 3 and "<math " in page and "FORMULA-" not in page
    assert ".ipynb" not in outside
    assert "run_study(study" not in outside and "Exercise 1, implement" not in outside


def test_reveal_keeps_its_licence() -> None:
    assert "Permission is hereby granted, free of charge" in (FOLDER / "reveal/LICENSE").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("name", TALKS)
def test_slides_run_without_a_request_and_nothing_is_cut_off(name: str, pages: dict[str, Path], browser: Any) -> None:
    errors: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": 1100, "height": 720})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(pages[name].as_uri())
    page.wait_for_function("Reveal.isReady()", timeout=90_000)
    slides: list[dict[str, Any]] = page.evaluate(HEIGHTS)
    page.close()
    assert errors == [] and {url for url in requests if not url.startswith("data:")} == {pages[name].as_uri()}
    assert len(slides) == sum(kind in ("slide", "subslide") for kind in types_of(name))
    assert {slide["text"]: slide["height"] for slide in slides if slide["height"] > 720} == {}


HEIGHTS = """() => Reveal.getSlides().map(slide => {
    const {h, v} = Reveal.getIndices(slide)
    Reveal.slide(h, v, 99)
    return {height: slide.scrollHeight, text: slide.innerText.slice(0, 40)}
})"""
