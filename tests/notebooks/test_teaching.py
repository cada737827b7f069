"""The teacher's pages: course page, glossary and notes for instructors name every notebook, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from test_notebooks import FOLDER, LINK, NOTEBOOKS, every_notebook, load_build, markdown

README, GLOSSARY, INSTRUCTORS = (FOLDER / f"{name}.md" for name in ("README", "GLOSSARY", "INSTRUCTORS"))
ANCHORS = re.findall(r'^- <a id="([\w-]+)"></a>\*\*[^*]+:\*\* \S', GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)


def minutes(name: str) -> int:
    """Reading and exercises of a notebook, as the course page has them."""
    (row,) = re.findall(rf"^\| \[{name}\w+\].*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    return sum(map(int, re.search(r"(\d+) \+ (\d+)", row).groups()))  # type: ignore[union-attr]


def test_the_glossary_has_sixty_terms_in_order_a_line_each() -> None:
    lines = [line for line in GLOSSARY.read_text(encoding="utf-8").splitlines() if line.startswith("-")]
    assert len(lines) == len(ANCHORS) == len(set(ANCHORS)) >= 60
    terms = [line.partition("**")[2].partition(":**")[0].lower() for line in lines]
    assert terms == sorted(terms)


@every_notebook
def test_terms_are_linked_once_each_to_an_entry(path: Path) -> None:
    linked = re.findall(r"\]\(GLOSSARY\.md#([\w-]+)\)", markdown(path))
    assert len(linked) == len(set(linked)) >= 5 and set(linked) <= set(ANCHORS)


def linked(*texts: str) -> list[str]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in texts])
    load_build().link_terms(notebook)
    return [cell.source for cell in notebook.cells]


def test_the_first_use_in_a_paragraph_is_linked() -> None:
    heading, first, second = linked("# An exit", "- an exit\n\n| exit |\n\nTwo exits and an exit.", "An exit.")
    assert (heading, second) == ("# An exit", "An exit.")
    assert first == "- an exit\n\n| exit |\n\nTwo [exits](GLOSSARY.md#exit) and an exit."
    assert linked("A probe image. The probe images.")[0].count("GLOSSARY") == 1
    assert linked("An `exit`, $exit$, [exit](x.md), exit-free, existence.") == [
        "An `exit`, $exit$, [exit](x.md), exit-free, existence."
    ]


def test_a_linked_paragraph_is_filled_and_breaks_no_formula() -> None:
    (text,) = linked("word " * 14 + "$a + b + c$ `x = y z` and the embedding\nof an exit " + "word " * 10)
    assert max(map(len, text.splitlines())) <= 88 and len(text.splitlines()) > 2
    assert "$a + b + c$" in text and "`x = y z`" in text and "[embedding](GLOSSARY.md#embedding)" in text


def test_pages_of_the_course_lead_to_the_glossary(tmp_path: Path) -> None:
    index = load_build().write_pages(NOTEBOOKS[:1], tmp_path / "course")
    page = (tmp_path / "course/01_walkthrough.html").read_text(encoding="utf-8")
    glossary = (tmp_path / "course/GLOSSARY.html").read_text(encoding="utf-8")
    assert 'href="GLOSSARY.html#exit"' in page and "GLOSSARY.md" not in page
    assert 'id="exit"' in glossary and 'href="02_exits.html"' in glossary
    assert 'href="GLOSSARY.html"' in index.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [README, GLOSSARY, INSTRUCTORS], ids=lambda page: page.stem)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


@every_notebook
def test_notes_have_time_mistakes_questions_and_a_quiz(path: Path) -> None:
    text = INSTRUCTORS.read_text(encoding="utf-8")
    title = markdown(path).splitlines()[0].removeprefix("# ")
    (notes,) = re.findall(rf"(?ms)^## {re.escape(title)}$(.*?)(?=^## |\Z)", text)
    (stated,) = re.findall(r"\*\*Time\.\*\* (\d+) minutes", notes)
    assert int(stated) == minutes(path.stem[:2])
    assert "**What students get wrong**" in notes and "**Discuss.**" in notes
    quiz = re.findall(r"(?s)<details><summary>(\d)\. [^<]+[.?]</summary>\n\n\S.*?\n</details>", notes)
    assert quiz == [str(number) for number in range(1, len(quiz) + 1)] and 3 <= len(quiz) <= 5


@every_notebook
def test_learning_time_is_the_same_on_every_page(path: Path) -> None:
    row = re.compile(rf"^\| \[{path.stem}\].*\| (\d+) \+ (\d+)", re.MULTILINE)
    pages = [re.search(row, page.read_text(encoding="utf-8")) for page in (README, FOLDER.parent / "README.md")]
    said = re.search(
        r"\*\*Learning time:\*\* (\d+) minutes (?:of reading|with the explorer), (\d+) minutes",
        " ".join(markdown(path).split()),
    )
    assert said is not None and [page and page.groups() for page in pages] == [said.groups()] * 2


def test_the_paths_take_the_time_that_they_say() -> None:
    rows = dict(
        re.findall(r"^\| (90 minutes|half a day|two days) \| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = {path: [minutes(n) for n in re.findall(r"\[(\d\d)\]", row)] for path, row in rows.items()}
    assert named["90 minutes"][0] == 70 and rows["90 minutes"].endswith("70 + 20")
    assert rows["half a day"].endswith(f"| {sum(named['half a day'])}")
    first, second = named["two days"][:5], named["two days"][5:]
    extra = [minutes(n) for n in ("05", "06", "08", "09", "10")]
    assert rows["two days"].endswith(f"| {sum(first)} + 420")
    assert sum(second) + 2 * min(extra) - 10 <= 420 <= sum(second) + 2 * max(extra) + 10


def test_every_path_has_prerequisites_and_outcomes() -> None:
    text = README.read_text(encoding="utf-8")
    for path in ("90 minutes", "Half a day", "Two days"):
        (said,) = re.findall(rf"(?ms)^\*\*{path}\.\*\*(.*?)(?=^$)", text)
        assert "*You should know*" in said and "*Afterwards you can*" in said


def test_the_reading_list_gives_a_reason_and_an_address_for_each_paper() -> None:
    text = README.read_text(encoding="utf-8").partition("## Reading list")[2].partition("\n## ")[0]
    paper = r"^\| .+? \d{4}, \*.+\*, \[arXiv (\d{4}\.\d{4,5})\]\(https://arxiv\.org/abs/(\S+)\) \| .{20,} \|$"
    rows = re.findall(paper, text, re.MULTILINE)
    assert len(rows) >= 10 and all(shown == target for shown, target in rows)
    assert len(rows) == text.count("\n| ") - 2
