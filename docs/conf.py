"""Sphinx settings of the documentation site. build.py makes the sources; see `make docs`."""

from __future__ import annotations

import inspect
import re
import sys
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from corsd_docs.docstrings import as_rst
from corsd_docs.files import EXTRA, ROOT, repository
from corsd_docs.reference import documented, linked
from corsd_docs.staging import BRANCH

from corsd_lib import __version__

project = "CORSD notebooks"
author = "CORSD notebooks contributors"
version = release = __version__
language = "en"
REPOSITORY = repository()
BACKLINK = re.compile(r'(class="viewcode-back" href="[^"#]*#)([\w.]+)')

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode" if REPOSITORY else "sphinx.ext.viewcode",
    "corsd_docs.mathml",
]
html_math_renderer = "mathml"

nb_execution_mode = "off"  # the committed notebooks have their outputs
nb_merge_streams = True
myst_enable_extensions = ["attrs_inline", "dollarmath", "html_image"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
nitpick_ignore_regex = [
    # Types of other projects: their pages are not on this machine, and the build needs no network.
    ("py:.*", r"(torch|numpy|np|npt|pandas|pd|plotly|go|traitlets|t|anywidget|collections|pathlib|threading|subprocess)\..*"),
    ("py:class", r"huggingface_hub\..*"),
    ("py:class", "Tensor|Fabric"),
    # Type variables, and short names of types in the source.
    ("py:class", r"P|corsd_lib\.methods\.base\.Value|Record|Tables"),
]

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_extra_path = [str(EXTRA)] if EXTRA.is_dir() else []
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
if REPOSITORY:
    html_theme_options |= {"source_repository": REPOSITORY, "source_branch": BRANCH, "source_directory": "docs/"}


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """The address of the source of a documented object."""
    try:
        value = reduce(getattr, info["fullname"].split("."), import_module(info["module"]))
        value = inspect.unwrap(getattr(value, "fget", getattr(value, "func", value)))  # of a property, its function
        lines, first = inspect.getsourcelines(value)
        file = Path(inspect.getsourcefile(value) or "").relative_to(ROOT)
    except (AttributeError, OSError, TypeError, ValueError, ImportError):
        return None  # a constant
    return f"{REPOSITORY}/blob/{BRANCH}/{file.as_posix()}#L{first}-L{first + len(lines) - 1}"


def _docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    try:
        own = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        own = set()
    own |= {name.rpartition(".")[2], *getattr(obj, "__annotations__", ())}
    lines[:] = as_rst(lines, {key: path for key, path in linked().items() if key not in own})


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples, whose docstrings say nothing."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def _backlinks(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """On pages of source, links to the documentation: viewcode takes all objects of a module to have the same prefix."""
    if page.startswith("_modules/corsd_lib") and "body" in context:
        context["body"] = BACKLINK.sub(lambda link: link[1] + documented(link[2]), context["body"])


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-skip-member", _skip)
    app.connect("html-page-context", _backlinks)
