"""What a notebook shows of a run, a study and a data set."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from corsd_lib import Study, load_dataset, load_run
from corsd_lib.cards import Facts, card
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import Run

ROOT = Path(__file__).parents[1]
VOID = {"br", "img", "hr"}


class _Page(HTMLParser):
    """The texts of the cells of a page; it fails for tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.cells += [""] if tag in ("td", "th") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def _value(html: str, name: str) -> str:
    """The cell after the one with the text `name`."""
    cells = _Page(html).cells
    return cells[cells.index(name) + 1]


def test_a_run_shows_what_was_trained_and_how_good_it_is(tiny_run: Run) -> None:
    html = tiny_run._repr_html_()
    assert _value(html, "method") == "corsd" and _value(html, "epochs") == "2 of 2" and _value(html, "snapshots") == "3"
    assert _value(html, "network") == "resnet8 of width 4" and str(tiny_run.path) in html
    test = tiny_run.test
    assert test is not None and _value(html, "exit 3") == f"{test['exits'][2]['top1']:.2f}"
    assert _value(html, "batch_size") == "16"  # of the configuration


def test_an_unfinished_run_has_no_figures(tiny_run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run.path, tmp_path / "run")
    (folder / "test.json").unlink()
    html = load_run(folder)._repr_html_()
    assert _value(html, "epochs") == "2 of 2" and "exit 1" not in _Page(html).cells


def test_a_damaged_run_shows_its_error(tiny_run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run.path, tmp_path / "run")
    config = read_json(folder / "config.json")
    config["train"]["method"] = "<b>none</b>"
    write_json(folder / "config.json", config)
    html = load_run(folder)._repr_html_()
    assert "&lt;b&gt;none" in html and _Page(html).tags.count("b") == 1  # it is the class of the object
    assert "is not known" in _value(html, "error")


def test_a_data_set_shows_its_splits_and_classes() -> None:
    data = load_dataset("digits", validation_fraction=0.2)
    html = data._repr_html_()
    assert _value(html, "train") == f"{len(data.train):,} images" and _value(html, "an image") == "1x8x8"
    assert "validation" in _Page(html).cells and "10 classes" in _Page(html).cells and "notes" not in html


def test_names_of_classes_are_escaped() -> None:
    data: ImageData = load_dataset("digits")
    names = ("<script>alert(1)</script>", *data.class_names[1:])
    html = replace(data, name="a & b", class_names=names, notices=("<img src=x>",))._repr_html_()
    page = _Page(html)
    assert "script" not in page.tags and "img" not in page.tags and "&lt;script&gt;" in html and "a &amp; b" in html
    assert "<img src=x>" in page.cells


def test_a_study_shows_which_seeds_have_a_record() -> None:
    study = Study.from_file(ROOT / "results" / "digits")
    html, records = study._repr_html_(), study.records()
    done = sum(map(len, records.values()))
    assert _value(html, "records") == f"{done} of {len(study.jobs())}" and done
    cells = _Page(html).cells
    for name, variant in study.variants.items():
        at = cells.index(variant.label)
        assert cells[at - 1] == name and cells[at + 2] == (", ".join(map(str, records.get(name, {}))) or "none")


def test_a_card_has_the_colours_of_the_notebook() -> None:
    html = card("Run", "x", lambda: Facts({}))
    colours = re.findall(r"color: ([^;]+)", html)
    assert colours and set(colours) <= {"inherit", "rgba(128, 128, 128, .5)"} and "background: none" in html


def test_an_error_that_is_not_ours_is_not_hidden() -> None:
    def broken() -> Facts:
        raise ZeroDivisionError

    def damaged() -> Facts:
        raise CorsdError("half a file")

    with pytest.raises(ZeroDivisionError):
        card("Run", "x", broken)
    assert _value(card("Run", "x", damaged), "error") == "half a file"
