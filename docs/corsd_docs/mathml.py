"""A math renderer of Sphinx that writes MathML: browsers draw it without a script and without a network."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def _inline(self: Any, node: Any) -> None:
    self.body.append(convert(node.astext()))
    _skip(node)


def _block(self: Any, node: Any) -> None:
    formula = convert(node.astext().strip(), display="block")
    self.body.append(f'<div class="formula" tabindex="0">{formula}</div>')
    _skip(node)


def _skip(node: Any) -> None:
    from docutils.nodes import SkipNode

    raise SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
