"""Build the site in docs/_build/html: `make docs`. It needs no network; a warning or a broken link is an error."""

from __future__ import annotations

import os
import sys

from corsd_docs.explorers import write_explorers
from corsd_docs.files import DOCS, HTML, ROOT, SOURCE, Writer
from corsd_docs.links import broken_links
from corsd_docs.methods import write_methods
from corsd_docs.reference import write_reference
from corsd_docs.staging import stage


def write_source() -> None:
    """Everything that Sphinx reads, and the live pages."""
    write = Writer(SOURCE)
    stage(write)
    write_methods(write)
    write_reference(write)
    write.finish()
    write_explorers()


def main() -> None:
    from sphinx.cmd.build import main as sphinx

    os.chdir(ROOT)
    write_source()
    status = sphinx(["-b", "html", "-c", str(DOCS), "-W", "--keep-going", "-n", "-q", *sys.argv[1:], str(SOURCE), str(HTML)])
    wrong = broken_links(HTML) if HTML.is_dir() else []
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    if status or wrong:
        sys.exit(1)
    print((HTML / "index.html").as_uri())


if __name__ == "__main__":
    main()
