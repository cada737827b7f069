"""Links from the notebooks to GLOSSARY.md: the first use of each term in the running text of a notebook."""

from __future__ import annotations

import re
import textwrap
from functools import cache
from pathlib import Path

import nbformat

FILE = Path(__file__).resolve().parent / "GLOSSARY.md"
WIDTH = 88  # of a line of text
# Words that a notebook also uses in another sense.
AMBIGUOUS = frozenset({"agreement", "baseline", "gain", "hint", "lift", "record", "row", "run", "seed"})
# What is no running text: links, pictures, code, formulas. Capturing, so that `split` keeps them at odd places.
FIXED = re.compile(r"(!?\[[^\]]*\]\([^)]*\)|`[^`]*`|\$[^$]+\$)")
LABEL = re.compile(r"\*\*[^*]{1,40}:\*\*")  # such as **Run time:**, which stays in one line
OTHER_BLOCKS = re.compile(r"[#>|!\d]|[-*+] |\$\$|```| ")  # how blocks begin that are no paragraphs


@cache
def anchors() -> dict[str, str]:
    """The terms that are linked, in lower case but for abbreviations, and their anchors; long terms first."""
    found = re.findall(r'^- <a id="([\w-]+)"></a>\*\*([^:]+):\*\*', FILE.read_text(encoding="utf-8"), re.MULTILINE)
    names = {term.split(",")[0]: anchor for anchor, term in found if anchor not in AMBIGUOUS}
    named = {name if re.search("[A-Z]{2}", name) else name.lower(): anchor for name, anchor in names.items()}
    return dict(sorted(named.items(), key=lambda entry: -len(entry[0])))


def link_terms(notebook: nbformat.NotebookNode) -> None:
    """Link the first use of each term in a paragraph of `notebook`; its lines are filled anew where they get too long."""
    waiting = dict(anchors())
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not {"solution", "answer"} & set(cell.metadata.get("tags", [])):
            blocks = cell.source.split("\n\n")
            fenced = "```" in cell.source
            cell.source = "\n\n".join(b if fenced or OTHER_BLOCKS.match(b) else _linked(b, waiting) for b in blocks)


def _linked(paragraph: str, waiting: dict[str, str]) -> str:
    """The paragraph with its first uses of `waiting` terms linked, which are taken out of `waiting`."""
    flat = paragraph.replace("\n", " ")
    text = flat
    for term in list(waiting):
        linked = _with_link(text, term, waiting[term])
        if linked != text:
            text = linked
            del waiting[term]
    return paragraph if text == flat else _filled(text)


def _with_link(text: str, term: str, anchor: str) -> str:
    """The text with its first use of `term`, also in the plural and not as the beginning of a longer term, as a link."""
    longer = "|".join(re.escape(name[len(term) :].rstrip("s")) for name in anchors() if name.startswith(f"{term} "))
    use = re.compile(rf"(?<![\w-])({re.escape(term)}(?:es|s)?)(?![\w-])" + (f"(?!{longer})" if longer else ""))
    pieces = FIXED.split(text)
    for place in range(0, len(pieces), 2):
        if use.search(pieces[place]):
            pieces[place] = use.sub(rf"[\1](GLOSSARY.md#{anchor})", pieces[place], count=1)
            break
    return "".join(pieces)


def _filled(text: str) -> str:
    """Lines of at most `WIDTH` characters that break no formula, code or link."""
    whole = text
    for kept in (FIXED, LABEL):
        whole = kept.sub(lambda fixed: fixed[0].replace(" ", "\0"), whole)
    return textwrap.fill(whole, WIDTH, break_long_words=False, break_on_hyphens=False).replace("\0", " ")
