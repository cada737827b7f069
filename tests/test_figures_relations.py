"""Heatmaps: the order, the groups and the tree on top of the cells belong to the cells; a difference says what changed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from corsd_lib import figures
from corsd_lib.analysis.relations import class_order, linkage_of
from corsd_lib.errors import CorsdError
from corsd_lib.figures.marks import boundary_shapes, group_ticks

NAMES = ["cat", "dog", "7", "<b>eel</b>", "fox"]
ESCAPED = ["cat", "dog", "7", "&lt;b&gt;eel&lt;/b&gt;", "fox"]
MATRIX = np.random.default_rng(0).random((5, 5), dtype=np.float32)


def points_of(path: str) -> list[list[tuple[float, float]]]:
    """Corners of every stroke of an SVG path of M, L and Z."""
    strokes = [stroke for stroke in path.replace("Z", "").split("M") if stroke]
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in stroke.split("L"))] for stroke in strokes]


def shape(figure: Any, name: str) -> Any:
    return next(s for s in figure.layout.shapes if s.name == name)


def test_the_order_moves_rows_columns_and_names_together() -> None:
    order = [3, 0, 4, 2, 1]
    (trace,) = figures.relation_heatmap(MATRIX, NAMES, order=order).data
    assert list(trace.x) == list(trace.y) == [ESCAPED[k] for k in order]
    for i, j in np.ndindex(5, 5):
        assert trace.z[i, j] == MATRIX[order[i], order[j]]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 5]])
def test_an_order_that_is_none_is_refused(order: list[int]) -> None:
    with pytest.raises(CorsdError, match="not a permutation of 5"):
        figures.relation_heatmap(MATRIX, NAMES, order=order)


def test_lines_stand_between_groups_through_the_whole_matrix() -> None:
    figure = figures.relation_heatmap(MATRIX, NAMES, groups=[4, 4, 1, 1, 1])
    strokes = points_of(shape(figure, "boundaries").path)
    assert strokes == [[(1.5, -0.5), (1.5, 4.5)], [(-0.5, 1.5), (4.5, 1.5)]]
    rim, line = (shape(figure, name) for name in ("boundaries rim", "boundaries"))
    assert rim.path == line.path and rim.line.width > line.line.width
    assert line.line.color == "#ffffff" and rim.line.color.startswith("rgba(0, 0, 0")  # light in dark: seen on all of Viridis
    assert [s.name for s in figure.layout.shapes] == ["boundaries rim", "boundaries"]  # the line over its rim


def test_many_groups_are_framed_and_one_group_has_no_line() -> None:
    frames = points_of(boundary_shapes(np.repeat(np.arange(100), 10), 1000)[1]["path"])
    assert len(frames) == 100
    assert frames[3] == [(29.5, 29.5), (39.5, 29.5), (39.5, 39.5), (29.5, 39.5)]
    assert boundary_shapes([2, 2, 2], 3) == []
    with pytest.raises(CorsdError, match=r"groups have shape \(2,\) for 3 rows"):
        boundary_shapes([0, 1], 3)


def test_group_names_stand_at_the_middles_of_the_groups() -> None:
    names = ["<water>", "no one's", "a name that is much too long for an axis"]
    figure = figures.relation_heatmap(MATRIX, NAMES, groups=[2, 2, 2, 0, 0], group_names=names)
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert list(axis.tickvals) == [ESCAPED[1], ESCAPED[4]]
        assert list(axis.ticktext) == ["a name that is much too l…", "&lt;water&gt;"]
    with pytest.raises(CorsdError, match="groups are numbered 0 to 2 and have 2 names"):
        figures.relation_heatmap(MATRIX, NAMES, groups=[2, 2, 2, 0, 0], group_names=names[:2])


def test_names_of_many_groups_do_not_smear() -> None:
    labels = [str(i) for i in range(300)]
    ticks = group_ticks(np.repeat(np.arange(100), 3), labels, [f"g{i}" for i in range(100)])
    assert len(ticks["tickvals"]) <= 40 and ticks["ticktext"][1] == f"g{int(ticks['tickvals'][1]) // 3}"
    axis = figures.relation_heatmap(np.eye(100), [str(i) for i in range(100)]).layout.xaxis
    assert axis.nticks == 30 and axis.tickfont.size == 10


def test_the_tree_stands_over_its_columns_at_its_heights() -> None:
    relation = torch.tensor([[1.0, 0.2, 0.9, 0.1], [0.2, 1.0, 0.2, 0.7], [0.9, 0.2, 1.0, 0.3], [0.1, 0.7, 0.3, 1.0]])
    linkage = linkage_of(relation).numpy()
    figure = figures.relation_heatmap(relation, ["a", "b", "c", "d"], dendrogram=linkage)
    columns = list(figure.data[0].x)
    assert columns == ["abcd"[k] for k in class_order("cluster", relation)]
    tree = shape(figure, "dendrogram")
    assert (tree.xref, tree.yref) == ("x", "y domain")  # in cells, so that it cannot be beside them
    strokes = points_of(tree.path)
    feet = {x for stroke in strokes for x, y in stroke if y == pytest.approx(1.008)}
    assert feet == {0, 1, 2, 3}
    pair = sorted(columns.index(name) for name in "ac")  # the closest two, at 1 - 0.9
    (arch,) = [s for s in strokes if sorted((s[0][0], s[-1][0])) == pair and s[0][1] == s[-1][1] == pytest.approx(1.008)]
    top = max(y for stroke in strokes for _, y in stroke)
    assert (arch[1][1] - 1.008) / (top - 1.008) == pytest.approx(0.1 / linkage[-1, 2], abs=1e-3)
    (said,) = [note.text for note in figure.layout.annotations]
    assert "1 - relation" in said and f"{linkage[-1, 2]:.2f}" in said
    assert figure.layout.height > figures.relation_heatmap(relation, ["a", "b", "c", "d"]).layout.height


def test_a_tree_that_does_not_fit_is_refused() -> None:
    relation = torch.eye(4) * 0.5 + torch.tensor([[0, 0.4, 0, 0], [0.4, 0, 0, 0], [0, 0, 0, 0.4], [0, 0, 0.4, 0]])
    linkage = linkage_of(relation)
    with pytest.raises(CorsdError, match="branches would cross"):
        figures.relation_heatmap(relation, list("abcd"), dendrogram=linkage, order=[0, 2, 1, 3])
    figures.relation_heatmap(relation, list("abcd"), dendrogram=linkage, order=[1, 0, 2, 3])  # another turn of the same tree
    with pytest.raises(CorsdError, match=r"the dendrogram has shape \(3, 4\) for 5 rows"):
        figures.relation_heatmap(MATRIX, NAMES, dendrogram=linkage)
    with pytest.raises(CorsdError, match="2 rows or more"):
        figures.relation_heatmap([[1.0]], ["a"], dendrogram=np.zeros((0, 4)))


def test_images_are_called_images() -> None:
    layout = figures.relation_heatmap(MATRIX, ["cat"] * 5, unit="image").layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("second image", "first image")
    assert figures.relation_heatmap(MATRIX, NAMES).layout.yaxis.title.text == "class of the first image"
    with pytest.raises(CorsdError, match="unit 'pair' is not known; allowed: class, image"):
        figures.relation_heatmap(MATRIX, NAMES, unit="pair")


def test_a_difference_is_drawn_around_zero_between_fixed_ends() -> None:
    order = [4, 3, 2, 1, 0]
    (trace,) = figures.relation_difference(MATRIX, MATRIX.T * 0.5, NAMES, order=order).data
    np.testing.assert_array_equal(trace.z, (MATRIX - MATRIX.T * 0.5)[::-1, ::-1])
    assert trace.z.dtype == np.float32 and trace.zmin == -trace.zmax == -0.5
    middle = next(colour for place, colour in trace.colorscale if place == 0.5)
    assert (0.5, middle) in figures.DIVERGING and len(figures.DIVERGING) % 2 == 1
    assert trace.colorbar.title.text == "<br>difference of relations"  # an empty line away from the numbers
    assert list(trace.colorbar.ticktext) == ["≤ -0.5", "-0.25", "0", "+0.25", "≥ +0.5"]  # what is beyond looks the same
    assert figures.relation_difference(MATRIX, MATRIX, NAMES, limit=1).data[0].zmax == 1


def test_bytes_are_subtracted_as_scores() -> None:
    small, large = np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)
    (trace,) = figures.relation_difference(small, large, ["a", "b"]).data
    np.testing.assert_array_equal(trace.z, np.full((2, 2), -1, np.float32))


def test_a_difference_says_what_changed() -> None:
    after, before = np.array([[0.9, 0.02], [0.3, 0.7]]), np.full((2, 2), 0.5)
    title = figures.relation_difference(after, before, ["<a>", "b"]).layout.title.text.replace("<br>", " ")
    assert title == "Relation +0.30 within a class, -0.34 between classes; most changed: &lt;a&gt; with b (-0.48)"
    images = figures.relation_difference(after, before, ["<a>", "b"], unit="image").layout.title.text.replace("<br>", " ")
    assert images == "Relations differ by 0.32 on average; most changed: &lt;a&gt; with b (-0.48)"
    assert figures.relation_difference(after, before, ["a", "b"], "mine").layout.title.text == "mine"
    nothing = figures.relation_difference(after * np.nan, before, ["a", "b"]).layout.title.text
    assert nothing == "No pair has a relation in both"
    assert "0.40" in figures.relation_difference([[0.9]], [[0.5]], ["a"]).layout.title.text
    with pytest.raises(CorsdError, match=re.escape("has shape (2, 2) and the reference (1, 1)")):
        figures.relation_difference(after, [[1.0]], ["a", "b"])


@pytest.mark.parametrize("dark", [False, True])
def test_both_ends_of_the_diverging_scale_differ_from_its_middle_and_from_each_other(dark: bool) -> None:
    def grey(colour: str) -> float:
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) / 3 / 255

    def blueness(colour: str) -> int:
        return int(colour[5:7], 16) - int(colour[1:3], 16)  # the axis that all common kinds of colour vision have

    low, middle, high = (figures.DIVERGING[k][1] for k in (0, 2, 4))
    assert grey(middle) - max(grey(low), grey(high)) > 0.4
    assert blueness(low) > 60 and blueness(high) < -60
    assert middle.lower() != figures.template(dark).layout.plot_bgcolor.lower()  # zero is not a blank cell


def test_long_names_stand_upright_in_room_of_their_own() -> None:
    short, long = ([f"{name} {k}" for k in range(20)] for name in ("owl", "Nelson Sharp tailed Sparrow"))
    plain, wide = (figures.relation_heatmap(np.eye(20, dtype=np.float32), names) for names in (short, long))
    assert wide.layout.width > plain.layout.width and wide.layout.height > plain.layout.height
    assert plain.layout.xaxis.tickangle == wide.layout.xaxis.tickangle == 90 and wide.layout.xaxis.dtick == 1
    assert figures.relation_heatmap(np.eye(3, dtype=np.float32), short[:3]).layout.xaxis.tickangle == 0
