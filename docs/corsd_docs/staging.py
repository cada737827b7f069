"""Files of the repository as pages of the site: Markdown and notebooks, with links that lead to pages of the site."""

from __future__ import annotations

import html
import json
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corsd_docs.files import DOCS, ROOT, Writer, repository

BRANCH = "main"
PLOTLY = "application/vnd.plotly.v1+json"
# Files of the repository and the pages that they become; those of docs/ and the notebooks come to these.
PAGES = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "data/README.md": "guides/data.md",
    "docs/README.md": "guides/other_tools.md",
    "notebooks/README.md": "course/index.md",
    "notebooks/GLOSSARY.md": "course/glossary.md",
    "notebooks/INSTRUCTORS.md": "course/instructors.md",
    "results/README.md": "results/index.md",
}
ABOUT = {  # source that a page is about; folders with a README lead to its page
    "corsd_lib/methods": "methods/index.md",
    "corsd_lib/losses.py": "api/losses.md",
}
TERM = re.compile(r'<a id="([\w-]+)"></a>(\*\*[^*]+\*\*)')  # of the glossary
# Code is matched first, so that nothing in it is a link.
LINK = re.compile(
    r"(?s)(?P<code>```.*?```|`[^`\n]*`)"
    r"|(?P<picture>!?)\[(?P<text>(?:[^\[\]`]|`[^`]*`)*)\]\((?P<target>[^)\s]+)\)"
    r'|(?P<before><img[^>]*?\ssrc=")(?P<source>[^"]+)'
)


def all_pages() -> dict[str, str]:
    """Every file of the repository that becomes a page, and the page."""
    found = dict(PAGES)
    for path in sorted(DOCS.glob("*.md")) + sorted(DOCS.glob("[a-z]*/*.md")):
        found.setdefault(f"docs/{path.relative_to(DOCS).as_posix()}", path.relative_to(DOCS).as_posix())
    for path in notebooks():
        found[f"notebooks/{path.name}"] = f"course/{path.name}"
    for path in sorted((ROOT / "results").glob("*/*.md")):
        study = path.parent.name
        found[path.relative_to(ROOT).as_posix()] = f"results/{study if path.stem == 'table' else f'{study}_{path.stem}'}.md"
    return found


def notebooks() -> list[Path]:
    """The notebooks of the course in their order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def stage(write: Writer) -> None:
    """Write every page, and the pictures and files that it links to."""
    pages = all_pages()
    used: set[str] = set()
    for source, page in pages.items():
        if page.startswith("methods/"):
            continue  # methods.py adds to these
        content = (ROOT / source).read_text(encoding="utf-8")
        change = _changing(source, page, pages, used)
        write(page, _notebook(content, change) if page.endswith(".ipynb") else _text(source, content, change))
    for name in sorted(used):
        write(name, (ROOT / name).read_bytes())


def _text(source: str, content: str, change: Callable[[str], str]) -> str:
    """A Markdown file as a page."""
    text = change(TERM.sub(r"[\2]{#term-\1}", content) if source.endswith("GLOSSARY.md") else content)
    if source == "notebooks/README.md":
        text += _tree([*(path.stem for path in notebooks()), "glossary", "instructors"])
    if source == "results/README.md":
        studies = [page for page in all_pages().values() if page.startswith("results/") and page != "results/index.md"]
        text += _tree([Path(page).stem for page in studies])
    return text


def _tree(names: list[str]) -> str:
    """A table of contents that shows in the sidebar only."""
    return "\n".join(["", "```{toctree}", ":hidden:", "", *names, "```", ""])


def _notebook(content: str, change: Callable[[str], str]) -> str:
    """A notebook with its links changed, and with pictures in place of figures, whose title is the alternative text."""
    notebook = json.loads(content)
    notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # cells may have % and !
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = change("".join(cell["source"]))
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).pop(PLOTLY, None)
            if figure is not None:
                cell["metadata"]["mystnb"] = {"image": {"alt": _title(figure)}}
    return json.dumps(notebook)


def _title(figure: dict[str, Any]) -> str:
    """The title of a plotly figure as plain text, or the titles of its axes and panels."""
    layout = figure.get("layout", {})
    parts = [layout, *(layout[name] for name in sorted(layout) if re.match("[xy]axis", name))]
    titles = [part.get("title", {}).get("text", "") for part in parts]
    titles += [note.get("text", "") for note in layout.get("annotations", [])]
    found = titles[0] or ", ".join(dict.fromkeys(filter(None, titles))) or "figure"
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", found).split()))


def _changing(source: str, page: str, pages: dict[str, str], used: set[str]) -> Callable[[str], str]:
    """A function that changes the links of the file `source`, which becomes `page`; it adds to `used` what they need."""

    def target(link: str) -> str | None:
        """Where a link leads from the page: "" to nothing on the site, None for one that stays."""
        name, mark, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        if not name or re.match(r"[a-z]+:", link) or not (ROOT / path).exists():
            return None
        if path == "notebooks/GLOSSARY.md" and anchor:
            return f"#term-{anchor}"
        found = pages.get(path) or ABOUT.get(path) or pages.get(f"{path}/README.md")
        if found:
            return _relative(found, page) + mark + anchor
        if (ROOT / path).is_file() and Path(path).suffix != ".py":
            used.add(path)
            return _relative(path, page)
        address = repository()
        return f"{address}/blob/{BRANCH}/{path}" if address else ""

    def changed(match: re.Match[str]) -> str:
        if match["code"] is not None:
            return match[0]
        if match["source"] is not None:
            return match["before"] + (target(match["source"]) or match["source"])
        found = target(match["target"])
        if found is None:
            return match[0]
        return f"{match['picture']}[{match['text']}]({found})" if found else match["text"]

    return lambda text: LINK.sub(changed, text)


def _relative(name: str, page: str) -> str:
    return Path(os.path.relpath(name, posixpath.dirname(page) or ".")).as_posix()


def page_text(source: str, page: str, write: Writer) -> str:
    """The text of the file `source` of docs/ with its links changed, for a page that gets more."""
    used: set[str] = set()
    text = _changing(source, page, all_pages(), used)((ROOT / source).read_text(encoding="utf-8"))
    for name in used:
        write(name, (ROOT / name).read_bytes())
    return text
