"""Links of the built site: each leads to a file, and to a place in it, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}


class _Page(HTMLParser):
    """The links, the anchors, and what is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors.update(value for key in ("id", "name") if (value := found.get(key)))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag in LOADED and found.get(LOADED[tag]):
            self.loaded.append(str(found[LOADED[tag]]))
        if tag == "link" and found.get("href") and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(str(found["href"]))


def broken_links(site: Path) -> list[str]:
    """What is wrong with the links of the pages of `site`, a line each."""
    # The pages of explorers have no links, and are large.
    files = [path for path in sorted(site.rglob("*.html")) if "explorers" not in path.relative_to(site).parts]
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in files}
    wrong = []
    for path, page in pages.items():
        here = path.relative_to(site)
        for link in page.loaded:
            if re.match(r"(https?:)?//", link):
                wrong.append(f"{here} loads {link}")
        for link in {*page.links, *page.loaded}:
            wrong += [f"{here}: {link} {problem}" for problem in _problem(path, link, pages)]
    return sorted(wrong)


def _problem(path: Path, link: str, pages: dict[Path, _Page]) -> list[str]:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return []
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return ["leads to no file"]
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return ["leads to no place on its page"]
    return []
