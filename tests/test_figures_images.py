"""Images as points and as pixels: point i is image i in every panel; a map is signed and on one scale with the others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from corsd_lib import figures
from corsd_lib.errors import CorsdError
from corsd_lib.figures.embeddings import legend_of, point_look

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.standard_normal((2, 4, 2))
LABELS = [1, 0, 1, 2]
NAMES = ["cat", "<dog>", "eel"]


def test_a_panel_an_exit_and_a_point_an_image() -> None:
    figure = figures.embedding_scatter(POINTS, LABELS, NAMES, ["exit <1>", "exit 2"], "a finding", quality=["a", "b & c"])
    panels = figure.data[:2]
    for panel, points in zip(panels, POINTS, strict=True):
        assert panel.type == "scatter" and panel.x.dtype == panel.y.dtype == np.float32
        np.testing.assert_array_equal(np.stack([panel.x, panel.y], 1), points.astype(np.float32))
        assert list(panel.text) == ["&lt;dog&gt;", "cat", "&lt;dog&gt;", "eel"]
    assert [note.text for note in figure.layout.annotations] == ["exit &lt;1&gt;", "exit 2"]
    assert [axis.title.text for axis in figure.select_xaxes()] == ["a", "b &amp; c"]
    assert {axis.matches for axis in figure.select_xaxes()} == {"x"} and {a.matches for a in figure.select_yaxes()} == {"y"}
    assert figure.layout.yaxis.scaleanchor == "x"
    assert json.loads(figure.to_json())["data"][0]["x"]["dtype"] == "f4"
    assert [trace.name for trace in figure.data[2:]] == ["cat", "&lt;dog&gt;", "eel"]  # in the order of the labels


def test_names_stand_over_the_middle_of_their_class() -> None:
    figure = figures.embedding_scatter(POINTS, LABELS, NAMES, ["exit 1", "exit 2"], annotate=True)
    names = [note for note in figure.layout.annotations if note.text not in ("exit 1", "exit 2")]
    assert [note.text for note in names] == ["&lt;dog&gt;", "cat", "eel"] * 2
    np.testing.assert_allclose([names[3].x, names[3].y], np.median(POINTS[1, [0, 2]], axis=0), rtol=1e-6)
    assert [note.xref for note in names] == ["x"] * 3 + ["x2"] * 3


def test_names_that_would_touch_are_moved_apart() -> None:
    points = np.array([[[0.0, 0.0], [0.01, 0.0], [0.02, 0.01], [9.0, 9.0]]])
    names = ["a", "b", "c", "d"]
    notes = figures.embedding_scatter(points, range(4), names, ["exit 1"], annotate=True).layout.annotations[1:]
    places = [(note.xshift, note.yshift) for note in notes[:3]]
    assert all(abs(x - u) > 11 or abs(y - v) > 14 for k, (x, y) in enumerate(places) for u, v in places[:k]) and notes[
        3
    ].yshift == pytest.approx(13)


def test_the_order_of_the_legend_can_be_chosen_and_the_rest_is_grey() -> None:
    kinds = ["trees", "rest", "fish", "rest"]
    order = ["trees", "fish", "rest"]
    figure = figures.embedding_scatter(POINTS, LABELS, NAMES, ["1", "2"], colour_by=kinds, order=order, grey="rest")
    assert [trace.name for trace in figure.data[2:]] == order
    first, second, *_ = figures.PALETTE
    panel, entry = figure.data[1].marker, figure.data[4].marker
    assert list(panel.color) == [first, entry.color, second, entry.color] and entry.color not in figures.PALETTE
    assert list(panel.opacity) == [1, 0.25, 1, 0.25] and set(panel.symbol) == {"circle"}


def test_only_many_points_take_webgl_of_which_a_page_has_little() -> None:
    for images, kind in ((4000, "scatter"), (4001, "scattergl")):
        figure = figures.embedding_scatter(np.zeros((2, images, 2)), np.zeros(images, int), ["cat"], ["1", "2"])
        assert [trace.type for trace in figure.data[:2]] == [kind] * 2


def test_points_look_as_their_kind_in_the_legend() -> None:
    kinds = [f"kind {i:02d}" for i in range(20)]
    look, legend = point_look(kinds), legend_of(kinds)
    looks = set()
    for code, symbol, entry in zip(look["color"], look["symbol"], legend, strict=True):
        colour = next(c for place, c in look["colorscale"] if place > (code + 0.4) / len(figures.PALETTE))
        assert (entry.marker.color, entry.marker.symbol) == (colour, symbol)
        looks.add((colour, symbol))
    assert len(looks) == 20 and look["color"].dtype == np.float32
    assert (look["cmin"], look["cmax"]) == (-0.5, 5.5)
    with pytest.raises(CorsdError, match="colour_by contains 'new', which is not in the given order: old"):
        point_look(["new"], ["old"])


def test_colours_tell_names_or_numbers() -> None:
    titles = ["1", "2"]
    by_name = figures.embedding_scatter(
        POINTS, LABELS, NAMES, titles, colour_by=["no", "yes", "no", "no"], colour_name="<right>"
    )
    assert [trace.name for trace in by_name.data[2:]] == ["no", "yes"]
    assert list(by_name.data[0].marker.color) == list(by_name.data[1].marker.color) == [0, 1, 0, 0]
    assert by_name.layout.legend.title.text == "&lt;right&gt;"
    for numbers in (torch.tensor([0.1, 0.2, 0.3, 0.4]), [1, 2, 3, 4]):
        by_number = figures.embedding_scatter(POINTS, LABELS, NAMES, titles, colour_by=numbers, colour_name="confidence")
        first, second = by_number.data
        np.testing.assert_allclose(first.marker.color, np.asarray(numbers, np.float32))
        assert first.marker.showscale and not second.marker.showscale
        assert first.marker.colorbar.title.text == "confidence"
    many = [f"c{i}" for i in range(100)]
    crowd = figures.embedding_scatter(np.zeros((1, 100, 2)), range(100), many, ["1"])
    assert len(crowd.data) == 1 and crowd.data[0].text[99] == "c99"  # no legend of a hundred: hover says it


def test_captions_are_text_in_lines() -> None:
    captions = ["cat\nimage 7", "a<br>b", "", "x"]
    (panel, *_) = figures.embedding_scatter(POINTS, LABELS, NAMES, ["1", "2"], captions=captions).data
    assert list(panel.text) == ["cat<br>image 7", "a&lt;br&gt;b", "", "x"]
    assert panel.hovertemplate == "%{text}<extra></extra>"


def test_more_than_four_panels_go_on_in_a_second_row() -> None:
    figure = figures.embedding_scatter(np.zeros((5, 4, 2)), LABELS, NAMES, list("abcde"))
    assert figure.data[4].yaxis == "y5" and figure.layout.yaxis5.domain[1] < figure.layout.yaxis.domain[0]


def test_what_does_not_fit_the_points_is_named() -> None:
    with pytest.raises(CorsdError, match=r"coordinates have shape \(2, 4\)"):
        figures.embedding_scatter(POINTS[..., 0], LABELS, NAMES, ["1", "2"])
    with pytest.raises(CorsdError, match="3 labels; 4 are expected"):
        figures.embedding_scatter(POINTS, LABELS[:3], NAMES, ["1", "2"])
    with pytest.raises(CorsdError, match="1 titles; 2 are expected"):
        figures.embedding_scatter(POINTS, LABELS, NAMES, ["1"])
    with pytest.raises(CorsdError, match="5 captions; 4 are expected"):
        figures.embedding_scatter(POINTS, LABELS, NAMES, ["1", "2"], captions=["a"] * 5)
    with pytest.raises(CorsdError, match="2 colour_by; 4 are expected"):
        figures.embedding_scatter(POINTS, LABELS, NAMES, ["1", "2"], colour_by=["a", "b"])


IMAGES = RANDOM.integers(0, 256, (2, 3, 5, 4), dtype=np.uint8)
MAPS = np.stack([np.full((5, 4), 0.1), np.zeros((5, 4))]).astype(np.float32)
MAPS[0, 2, 3], MAPS[1, 1, 0] = -4.0, 1.0


def test_an_attribution_stands_beside_its_image_and_over_it() -> None:
    figure = figures.image_attribution(IMAGES, MAPS, ["<cat>", "dog"])
    image, map_, grey, over = figure.data[4:]
    np.testing.assert_array_equal(np.asarray(image.z), IMAGES[1].transpose(1, 2, 0))
    np.testing.assert_array_equal(map_.z, MAPS[1])
    np.testing.assert_array_equal(over.z, MAPS[1])
    shades = np.asarray(grey.z)
    assert (shades[..., 0] == shades[..., 2]).all()
    np.testing.assert_allclose(shades[..., 0], IMAGES[1].mean(0), atol=1)
    assert [note.text for note in figure.layout.annotations][::3] == ["&lt;cat&gt;", "dog"]


def test_all_maps_of_a_call_share_a_symmetric_range() -> None:
    figure = figures.image_attribution(IMAGES, MAPS, ["a", "b"])
    limit = float(np.percentile(np.abs(MAPS), 99.5))
    axis = figure.layout.coloraxis
    assert axis.cmin == -axis.cmax and axis.cmax == pytest.approx(limit)
    overlays = [trace for trace in figure.data if trace.name == "over"]
    assert len(overlays) == 2 and {(trace.zmin, trace.zmax) for trace in overlays} == {(-axis.cmax, axis.cmax)}
    assert {trace.coloraxis for trace in figure.data if trace.name == "map"} == {"coloraxis"}
    assert overlays[0].colorscale[2] == (0.5, "rgba(233, 231, 227, 0)")  # where the map is zero the image is seen
    flat = figures.image_attribution(IMAGES, MAPS * 0, ["a", "b"], unit="share & sign").layout.coloraxis
    assert flat.cmax == 1 and flat.colorbar.title.text == "share &amp; sign"


def test_the_title_says_on_how_few_pixels_half_of_the_attribution_lies() -> None:
    # Of 5.9 in the first map, 4 are on one pixel of twenty; of the second, all.
    title = figures.image_attribution(IMAGES, MAPS, ["<cat>", "dog"]).layout.title.text
    assert (
        title.replace("<br>", " ")
        == "Half of the attribution lies on 5 % of the pixels of &lt;cat&gt; and 5 % of the pixels of dog"
    )
    even = figures.image_attribution(IMAGES, np.stack([MAPS[0] * 0 + 1, MAPS[0] * 0]), ["a", "b"]).layout.title.text
    assert even == "Half of the attribution lies on 50 % of the pixels of a and nothing in b"
    assert figures.image_attribution(IMAGES, MAPS, ["a", "b"], "mine").layout.title.text == "mine"


@pytest.mark.parametrize(
    "maps,message",
    [
        (MAPS[:1], r"maps have shape \(1, SIDES\) for images of shape .*; allowed: \(2, SIDES\)$"),
        (MAPS[:, :4], r"maps have shape .*; allowed: \(2, SIDES\)$"),
        (np.full_like(MAPS, np.nan), "^maps have values that are NaN or infinite; allowed: finite values$"),
    ],
)
def test_maps_that_do_not_fit_the_images_are_refused(maps: np.ndarray, message: str) -> None:
    sides = ", ".join(map(str, MAPS.shape[1:]))
    with pytest.raises(CorsdError, match=message.replace("SIDES", sides)):
        figures.image_attribution(IMAGES, maps, ["a", "b"])


def test_grey_images_have_attributions_too() -> None:
    figure = figures.image_attribution(IMAGES[:, :1], MAPS, ["a", "b"])
    np.testing.assert_array_equal(np.asarray(figure.data[0].z)[..., 1], IMAGES[0, 0])
