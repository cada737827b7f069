"""Figures hold the arrays they were given, in the units and names they claim; bad shapes are refused by name."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from corsd_lib import figures
from corsd_lib.errors import CorsdError
from corsd_lib.figures import style
from corsd_lib.figures.style import GREY, LONGEST, class_labels, hover_name, hover_names, name_html, short_names, unique_labels

NAMES = ("cat", "dog", "eel")
MATRIX = np.linspace(0, 1, 9, dtype=np.float32).reshape(3, 3)


def metrics(exits: int, epochs: int = 3) -> pd.DataFrame:
    rows = range(1, epochs + 1)
    top1 = {f"train_top1.exit{k}": [10.0 * k + e for e in rows] for k in range(1, exits + 1)}
    return pd.DataFrame({"epoch": list(rows), "lr": 0.1, "loss.total": [3.0, 2.0, 1.0][:epochs], "loss.task": 0.5, **top1})


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def seen_by_dichromat(colour: str, kind: str) -> np.ndarray:
    """Linear RGB of "#rrggbb" without red or green cones: Viénot, Brettel and Mollon 1999."""
    red, green, blue = ((int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5))
    if kind == "protan":
        return np.array([0.1124 * red + 0.8876 * green, 0.0040 * red - 0.0040 * green + blue])
    return np.array([0.2928 * red + 0.7072 * green, -0.0223 * red + 0.0223 * green + blue])


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_no_two_colours_of_the_palette_look_alike_to_the_colour_blind(kind: str) -> None:
    seen = [seen_by_dichromat(colour, kind) for colour in figures.PALETTE]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 0.05
    assert min(np.linalg.norm(seen_by_dichromat(GREY, kind) - one) for one in seen) > 0.05
    alike = [seen_by_dichromat(colour, kind) for colour in ("#d62728", "#7a6a00")]  # a red and an olive: the check can fail
    assert np.linalg.norm(alike[0] - alike[1]) < 0.1


@pytest.mark.parametrize(
    "names", [["a", "a", "b", "a"], ["x", "x", "x (2)"], ["x (2)", "x", "x"], ["<i>", "<i>", "&lt;i&gt;"]], ids=str
)
def test_labels_are_unique_whatever_the_names(names: list[str]) -> None:
    labels = unique_labels(names)
    assert len(set(labels)) == len(names) and not any("<" in label for label in labels)
    assert all(label.startswith(html.escape(name, quote=False)) for label, name in zip(labels, names, strict=True))


LONG = ["<b>" + "n" * 9_997, "cat", "<b>" + "n" * 500]


def test_long_names_are_cut_and_stay_different() -> None:
    assert short_names(["cat", "cat", "d" * LONGEST]) == ["cat", "cat (2)", "d" * LONGEST]
    assert short_names(LONG) == ["<b>" + "n" * (LONGEST - 4) + "…", "cat", "<b>" + "n" * (LONGEST - 4) + "… (2)"]
    assert [html.unescape(label) for label in class_labels(LONG)] == short_names(LONG) and "<" not in "".join(
        class_labels(LONG)
    )


def test_hover_and_title_have_the_whole_of_a_long_name() -> None:
    lines = hover_name(LONG[0]).split("<br>")
    assert html.unescape("".join(lines)) == LONG[0] and max(len(html.unescape(line)) for line in lines) == 80
    assert hover_names(LONG) == [hover_name(LONG[0]), "cat", hover_name(LONG[2])]
    assert name_html("a & b") == "a &amp; b"
    whole, short = name_html(LONG[0]).removeprefix('<span title="').removesuffix("</span>").split('">')
    assert html.unescape(whole) == LONG[0] and html.unescape(short) == short_names(LONG)[0]


def test_a_heatmap_keeps_room_for_its_cells_whatever_its_names() -> None:
    plain = figures.relation_heatmap(np.eye(3), ["a", "cat", "b"])
    assert plain.data[0].hovertext is None
    for drawn in (figures.relation_heatmap(np.eye(3), LONG), figures.relation_difference(np.eye(3), np.zeros((3, 3)), LONG)):
        (heatmap,) = drawn.data
        assert list(heatmap.x) == class_labels(LONG) and drawn.layout.width < plain.layout.width + 400
        assert heatmap.hovertext[0][1] == f"{hover_name(LONG[0])} with cat" and "%{hovertext}" in heatmap.hovertemplate
    turned = figures.relation_heatmap(np.eye(3), LONG, order=[1, 0, 2])
    assert turned.data[0].hovertext[0][1] == f"cat with {hover_name(LONG[0])}"


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_the_page_in_both_templates(dark: bool) -> None:
    layout = figures.template(dark).layout
    light, deep = sorted(map(luminance, (layout.font.color, layout.paper_bgcolor)), reverse=True)
    assert (light + 0.05) / (deep + 0.05) > 7
    assert (luminance(layout.paper_bgcolor) < 0.1) is dark
    figure = figures.relation_heatmap(MATRIX, NAMES, dark=dark)
    assert figure.layout.template.layout.paper_bgcolor == layout.paper_bgcolor


@pytest.mark.parametrize("matrix", [MATRIX, MATRIX.astype(np.float64), np.rint(MATRIX * 255).astype(np.uint8), MATRIX.tolist()])
def test_relation_heatmap_shows_scores_between_fixed_ends_as_binary_float32(matrix: Any) -> None:
    (trace,) = figures.relation_heatmap(matrix, NAMES, "a finding").data
    assert trace.z.dtype == np.float32
    np.testing.assert_allclose(trace.z, MATRIX, atol=0.5 / 255)
    assert (trace.zmin, trace.zmax) == (0, 1)
    assert list(trace.x) == list(trace.y) == list(NAMES)
    assert json.loads(go.Figure(trace).to_json())["data"][0]["z"]["dtype"] == "f4"


def test_relation_heatmap_escapes_names_and_keeps_equal_ones_apart() -> None:
    (trace,) = figures.relation_heatmap(MATRIX, ("<b>a</b>", "7", "7")).data
    assert list(trace.x) == ["&lt;b&gt;a&lt;/b&gt;", "7", "7 (2)"]
    layout = figures.relation_heatmap(MATRIX, ("1", "2", "30")).layout
    assert layout.xaxis.type == layout.yaxis.type == "category"  # numbers as names are no positions


def test_relation_heatmap_names_every_class_while_there_is_room() -> None:
    few, many = (figures.relation_heatmap(np.eye(n), [str(i) for i in range(n)]).layout.xaxis.dtick for n in (20, 100))
    assert few == 1 and many is None


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (3,)])
def test_relation_heatmap_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(CorsdError, match=rf"{len(shape) and shape[0]}.*3 class names"):
        figures.relation_heatmap(np.zeros(shape), NAMES)


def test_training_curves_draw_every_exit_and_every_part_of_every_run() -> None:
    figure = figures.training_curves({"one exit": metrics(1), "three <exits>": metrics(3)}, "a finding")
    drawn = [(trace.name, trace.yaxis) for trace in figure.data]
    parts = ["total", "task"]
    assert [name for name, axis in drawn if axis == "y"] == ["exit 1 (the only one)"]
    assert [name for name, axis in drawn if axis == "y3"] == ["exit 1 (shallowest)", "exit 2", "exit 3 (deepest)"]
    assert [name for name, axis in drawn if axis == "y2"] == [name for name, axis in drawn if axis == "y4"] == parts
    deepest = next(trace for trace in figure.data if trace.name == "exit 3 (deepest)")
    np.testing.assert_array_equal(deepest.y, [31, 32, 33])
    np.testing.assert_array_equal(deepest.x, [1, 2, 3])
    assert "(%)" in figure.layout.yaxis.title.text and figure.layout.yaxis2.type == "log"
    assert "three &lt;exits&gt;: train accuracy" in [note.text for note in figure.layout.annotations]


def test_lines_of_a_panel_all_look_different() -> None:
    styles = [tuple(figures.style.line_style(i).items()) for i in range(12)]
    assert len(set(styles)) == 12


def test_training_curves_refuse_runs_with_nothing_to_draw() -> None:
    with pytest.raises(CorsdError, match="'young'"):
        figures.training_curves({"young": pd.DataFrame()})
    with pytest.raises(CorsdError, match="at least one"):
        figures.training_curves({})


def test_exit_accuracy_bars_start_at_zero_and_carry_intervals() -> None:
    accuracy = {"a": [50.0, 60.0], "b": [55.0, 58.25]}
    figure = figures.exit_accuracy_bars(accuracy, "a finding", error={"a": [1, 2], "b": [3, 4]})
    assert [trace.name for trace in figure.data] == ["a", "b"]
    np.testing.assert_array_equal(figure.data[1].y, [55, 58.25])
    np.testing.assert_array_equal(figure.data[1].error_y.array, [3, 4])
    assert list(figure.data[1].text) == ["55.0", "58.2"]
    assert figure.layout.yaxis.range[0] == 0 and "(%)" in figure.layout.yaxis.title.text
    assert figures.exit_accuracy_bars(accuracy).data[0].error_y.array is None
    with pytest.raises(CorsdError, match=r"'c': 1"):
        figures.exit_accuracy_bars({"a": [1, 2], "c": [1]})


def test_exit_accuracy_points_cut_the_axis_and_show_a_reference() -> None:
    accuracy = {"a <b>": [90.0, 91.0], "b": [90.5, 92.25]}
    figure = figures.exit_accuracy_points(accuracy, error={"a <b>": [1, 2], "b": [3, 4]}, reference=("plain", 91.5))
    assert [trace.name for trace in figure.data if trace.showlegend is None] == ["a &lt;b&gt;", "b"]
    np.testing.assert_array_equal(figure.data[1].y, [90.5, 92.25])
    texts = figure.data[3]  # above the upper ends, in the columns of their points
    assert texts.offsetgroup == figure.data[1].offsetgroup and list(texts.text) == ["90.5", "92.2"]
    np.testing.assert_array_equal(texts.y, [93.5, 96.25])
    np.testing.assert_array_equal(figure.data[1].error_y.array, [3, 4])
    low, high = figure.layout.yaxis.range
    assert 86.5 < low < 87.5 and 96.25 < high < 97.25 and figure.layout.scattermode == "group"
    assert figure.layout.shapes[0].y0 == 91.5 and figure.layout.shapes[0].name == "plain, 91.5"
    with pytest.raises(CorsdError, match=r"exit_accuracy_points .*'c': 1"):
        figures.exit_accuracy_points({"a": [1, 2], "c": [1]})


def entry(label: str, *by_seed: tuple[float, ...], gain: Any = (None, None, None)) -> dict[str, Any]:
    """A row of a study's summary: seeds 0, 1, ... with the top-1 of its exits, half-widths of 1."""
    mean = [sum(exit) / len(exit) for exit in zip(*by_seed, strict=True)]
    ends = {"top1_low": [v - 1 for v in mean], "top1_high": [v + 1 for v in mean]}
    gains = dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True))
    return {"label": label, "top1": mean, **ends, "top1_by_seed": {str(s): list(v) for s, v in enumerate(by_seed)}, **gains}


def study(**rows: dict[str, Any]) -> dict[str, Any]:
    return {"baseline": "baseline", "methods": rows}


PLAIN = entry("plain <network>", (50.0,), (52.0,))
AHEAD = entry("ahead", (40.0, 45.0, 53.0), (42.0, 47.0, 55.0), gain=(3.0, 2.0, 4.0))
BEHIND = entry("behind", (49.0,), (51.0,), gain=(-1.0, -1.5, -0.5))
UNSURE = entry("unsure", (44.0, 51.5), (44.0, 55.5), gain=(2.5, -10.0, 15.0))
TIED = entry("tied", (49.0,), (51.0,), (48.0,), gain=(-1.0, None, None))
ALONE = entry("alone", (60.0,), gain=(10.0, None, None))


def test_accuracy_by_method_shows_every_exit_of_every_row_in_line_with_its_own_kind() -> None:
    figure = figures.accuracy_by_method(study(baseline=PLAIN, corsd=AHEAD, two=UNSURE))
    deepest, second, first = figure.data
    assert [trace.name for trace in figure.data] == ["exit 3 (deepest)", "exit 2", "exit 1 (shallowest)"]
    np.testing.assert_array_equal(deepest.x, [51, 54, 53.5])
    np.testing.assert_array_equal(second.x, [46, 44])
    np.testing.assert_array_equal(first.x, [41])
    assert [round(y) for y in deepest.y] == [0, 1, 2] and [round(y) for y in second.y] == [1, 2]
    assert first.y[0] < second.y[0] < deepest.y[1] and deepest.y[0] == 0  # shallow above deep; a lone exit in the middle
    assert list(deepest.error_x.array) == [1, 1, 1]
    assert deepest.hovertemplate[0].startswith("plain &lt;network&gt; (n = 2), exit 3 (deepest)<br>51.00 [50.00, 52.00] %")
    assert list(figure.layout.yaxis.ticktext) == [f"{label} (n = 2)" for label in ("plain &lt;network&gt;", "ahead", "unsure")]
    assert "(%), mean over n seeds" in figure.layout.xaxis.title.text and figure.layout.shapes[0].x0 == 51
    looks = [(trace.marker.color, trace.marker.symbol) for trace in figure.data]
    assert len({colour for colour, _ in looks}) == len({symbol for _, symbol in looks}) == 3


@pytest.mark.parametrize(
    "rows,title",
    [
        ({"baseline": PLAIN, "corsd": AHEAD}, "Best deepest exit on average: ahead, 54.0 %; plain &lt;network&gt;, 51.0 %"),
        ({"baseline": PLAIN, "b": BEHIND}, "Best deepest exit on average: plain &lt;network&gt;, 51.0 %"),
        ({"corsd": AHEAD}, "Best deepest exit on average: ahead, 54.0 %"),
    ],
)
def test_the_title_names_the_most_accurate_deepest_exit(rows: dict[str, Any], title: str) -> None:
    assert figures.accuracy_by_method(study(**rows)).layout.title.text.replace("<br>", " ") == title


def test_differences_by_exit_have_intervals_seeds_and_a_line_at_zero() -> None:
    above, unsure = [[1.0, -1.0], [2.0, 0.0], [3.0, 1.0]], [[0.5, 0.5]]
    figure = figures.differences_by_exit({"a minus b": above, "c <minus> d": unsure}, "Gains")
    titles = [note.text for note in figure.layout.annotations]
    assert titles[:2] == figures.exit_names(2) and "95 % interval" in titles[2]
    assert titles[2].endswith("blue: interval above 0, orange: below 0, grey: contains 0, or no interval")
    rings, mean = figure.data[:2]
    assert list(rings.x) == [1.0, 2.0, 3.0] and rings.marker.symbol == "circle-open"
    assert mean.x == (2.0,) and mean.error_x.array[0] == pytest.approx(2.484, abs=1e-3)
    colours = [trace.marker.color for trace in figure.data[1::2]]
    assert colours == [GREY, GREY, GREY, GREY]  # [-0.5, 4.5] contains 0; one seed has no interval
    certain = figures.differences_by_exit({"a": [[5.0], [5.1], [5.2]], "b": [[-5.0], [-5.1], [-5.2]]}, exits=["deepest"])
    assert [trace.marker.color for trace in certain.data[1::2]] == list(figures.PALETTE[:2])
    assert certain.layout.annotations[0].text == "deepest" and {shape.x0 for shape in certain.layout.shapes} == {0}
    assert figure.layout.yaxis.ticktext == ("a minus b", "c &lt;minus&gt; d")
    for refused in ({}, {"a": [[1.0], [1.0, 2.0]]}):
        with pytest.raises(CorsdError, match="same number of exits"):
            figures.differences_by_exit(refused)
    with pytest.raises(CorsdError, match=r"differences\['b'\] has no seeds"):
        figures.differences_by_exit({"a": [[1.0]], "b": []})
    with pytest.raises(CorsdError, match="exits has 1 titles; allowed: 2"):
        figures.differences_by_exit({"a": [[1.0, 2.0]]}, exits=["deepest"])


def test_gain_by_method_is_sorted_and_coloured_by_what_its_interval_says() -> None:
    rows = {"baseline": PLAIN, "b": BEHIND, "u": UNSURE, "c": AHEAD, "a": ALONE}
    figure = figures.gain_by_method(study(**rows))
    rings, gains = figure.data[::2], figure.data[1::2]
    labels = ["alone (n = 1)", "ahead (n = 2)", "unsure (n = 2)", "behind (n = 2)"]
    assert list(figure.layout.yaxis.ticktext) == labels
    assert [(trace.x[0], trace.y[0]) for trace in gains] == [(10, 0), (3, 1), (2.5, 2), (-1, 3)]
    assert [trace.error_x.array for trace in gains] == [None, (1,), (12.5,), (0.5,)]
    alone, ahead, unsure, behind = (trace.marker.color for trace in gains)
    assert (alone, ahead, behind) == (unsure, *figures.PALETTE[:2])
    assert [list(trace.x) for trace in rings] == [[10], [3, 3], [1.5, 3.5], [-1, -1]]  # of each seed: 51.5 - 50 and 55.5 - 52
    assert all(trace.error_x.array is None for trace in rings)
    assert gains[1].hovertemplate == ("ahead (n = 2)<br>3.00 [2.00, 4.00] points<extra></extra>",)
    axis = figure.layout.xaxis.title.text
    assert figure.layout.shapes[0].x0 == 0 and "points" in axis
    assert axis.endswith("<br>blue: interval above 0, orange: below 0, grey: contains 0, or no interval")


def test_gains_keep_the_order_of_the_tables_and_the_axis_says_what_is_compared() -> None:
    rows = study(baseline=PLAIN, b=BEHIND, u=UNSURE, c=AHEAD)
    figure = figures.gain_by_method(rows, sort=False)
    assert list(figure.layout.yaxis.ticktext) == ["behind (n = 2)", "unsure (n = 2)", "ahead (n = 2)"]
    assert figure.layout.title.text == figures.gain_by_method(rows).layout.title.text
    assert figure.layout.xaxis.title.text.startswith("gain over plain")
    behind = figures.gain_by_method(study(baseline=PLAIN, b=BEHIND))
    assert behind.layout.xaxis.title.text.startswith("difference from plain")


def test_a_long_label_takes_two_lines() -> None:
    label = "relation terms without class KD and without auxiliary classifiers"
    figure = figures.gain_by_method(study(baseline=PLAIN, c={**AHEAD, "label": label}))
    assert list(figure.layout.yaxis.ticktext) == [
        "relation terms without class KD and without auxiliary<br>classifiers (n = 2)"
    ]


def test_a_tie_is_grey_without_a_bar_and_n_is_that_of_the_pairs() -> None:
    figure = figures.gain_by_method(study(baseline=PLAIN, t=TIED, u=UNSURE))
    unsure, tied = figure.data[1], figure.data[3]
    assert tied.marker.color == unsure.marker.color and tied.error_x.array is None
    assert list(figure.layout.yaxis.ticktext) == ["unsure (n = 2)", "tied (n = 2)"]  # of three seeds two have a partner
    assert "n pairs of seeds" in figure.layout.xaxis.title.text
    shown = list(figures.accuracy_by_method(study(baseline=PLAIN, t=TIED)).layout.yaxis.ticktext)
    assert shown == ["plain &lt;network&gt; (n = 2)", "tied (n = 3)"]


def test_an_exit_that_was_not_trained_does_not_stretch_the_axis() -> None:
    untrained = entry("untrained", (1.0, 1.2, 49.0), (1.0, 1.2, 51.0))
    figure = figures.accuracy_by_method(study(baseline=PLAIN, a=untrained))
    assert [trace.name for trace in figure.data] == ["exit 3 (deepest)"]
    assert list(figures.accuracy_by_method(study(a=untrained, b=AHEAD)).data[2].x) == [41.0]


@pytest.mark.parametrize(
    "rows,title",
    [
        ([UNSURE, AHEAD], "Deepest exit: ahead gains 3.0 points [2.0, 4.0] over the plain &lt;network&gt;"),
        ([ALONE, UNSURE], "No gain over the plain &lt;network&gt; has an interval above zero"),
        ([UNSURE, BEHIND], "No gain over the plain &lt;network&gt; has an interval above zero; clearly below: behind"),
        (
            [{**BEHIND, "label": str(n)} for n in range(4)],
            "No gain over the plain &lt;network&gt; has an interval above zero; 4 lie clearly below",
        ),
        ([ALONE, TIED], "No gain over the plain &lt;network&gt; has an interval: that takes three seeds that differ"),
    ],
)
def test_the_title_states_the_gain_that_the_interval_bears_out(rows: list[dict[str, Any]], title: str) -> None:
    methods = {"baseline": PLAIN, **{row["label"]: row for row in rows}}
    assert figures.gain_by_method(study(**methods)).layout.title.text == title


def test_figures_of_a_study_refuse_one_with_nothing_to_draw() -> None:
    with pytest.raises(CorsdError, match="needs a variant with a record"):
        figures.accuracy_by_method(study())
    with pytest.raises(CorsdError, match="a seed in common with the baseline"):
        figures.gain_by_method(study(baseline=PLAIN))


def unseen_line(variant: str, exit_name: str, mean: float | None, half: float | None = None, **other: Any) -> dict[str, Any]:
    ends = {"low": None, "high": None} if half is None else {"low": mean - half, "high": mean + half}
    line = {"variant": variant, "label": f"<{variant}>", "exit": exit_name, "score": "cosine", "figure": "recall_at_1", "n": 3}
    return {**line, "mean": mean, **ends, "over": None, **other}


UNSEEN_LINES = [
    unseen_line("plain", "deepest exit", 14.0, 1.0),
    unseen_line("plain", "deepest exit", 2.0, figure="map_at_r"),
    unseen_line("corsd", "exit 1", 16.0, 0.5),
    unseen_line("corsd", "deepest exit", 15.0, 0.25),
    unseen_line("corsd", "deepest exit", 15.0, 0.25, over="plain"),
    unseen_line("corsd", "deepest exit", 9.0, score="relation"),
]


def test_unseen_by_exit_aligns_the_variants_at_the_deepest_exit() -> None:
    figure = figures.unseen_by_exit({"unseen": UNSEEN_LINES})
    plain, corsd = figure.data
    assert list(figure.layout.xaxis.ticktext) == ["exit 1", "deepest exit"]
    assert (list(plain.y), list(corsd.y)) == ([14.0], [16.0, 15.0])
    assert np.rint(plain.x).tolist() == [1] and np.rint(corsd.x).tolist() == [0, 1] and plain.x[0] != corsd.x[1]
    assert (list(plain.error_y.array), list(corsd.error_y.array)) == ([1.0], [0.5, 0.25])
    assert plain.name == "&lt;plain&gt; (n = 3)" and "[13.00, 15.00] %" in plain.hovertemplate[0]
    assert "highest at the deepest exit on average: &lt;corsd&gt;, 15.0 %" in figure.layout.title.text
    assert "recall@1 by cosine (%)" in figure.layout.yaxis.title.text
    seeds = [{**line, "by_seed": {"0": line["mean"] - 1, "4": line["mean"] + 1}} for line in UNSEEN_LINES]
    rings = figures.unseen_by_exit({"unseen": seeds}).data[3]
    assert list(rings.y) == [15.0, 17.0, 14.0, 16.0] and rings.marker.symbol == "circle-open" and not rings.showlegend
    assert rings.hovertemplate[1] == "&lt;corsd&gt;, exit 1, seed 4<br>17.00 %<extra></extra>"
    (relation,) = figures.unseen_by_exit({"unseen": UNSEEN_LINES}, score="relation").data
    assert list(relation.y) == [9.0] and relation.error_y.array is None


def test_unseen_by_exit_names_what_there_is_not() -> None:
    with pytest.raises(CorsdError, match="needs a study with held-out classes"):
        figures.unseen_by_exit(study(baseline=PLAIN))
    with pytest.raises(CorsdError, match=r"measure 'recall'.*recall_at_1, map_at_r"):
        figures.unseen_by_exit({"unseen": UNSEEN_LINES}, "recall")
    with pytest.raises(CorsdError, match=r"score 'l2'.*cosine, relation"):
        figures.unseen_by_exit({"unseen": UNSEEN_LINES}, score="l2")
    with pytest.raises(CorsdError, match="no variant has map_at_r by relation"):
        figures.unseen_by_exit({"unseen": UNSEEN_LINES}, "map_at_r", "relation")


def test_image_strip_puts_every_pixel_in_its_place() -> None:
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 1, 4, 4)
    figure = figures.image_strip(images, ("a", "<b>", "c"), columns=2)
    canvas, gap = np.asarray(figure.data[0].z), 2
    np.testing.assert_array_equal(canvas[gap : gap + 4, :4, 0], images[0, 0])
    np.testing.assert_array_equal(canvas[gap : gap + 4, 4 + gap : 8 + gap, 2], images[1, 0])
    np.testing.assert_array_equal(canvas[4 + 2 * gap :, :4, 1], images[2, 0])
    assert (canvas[..., 3] == 255).sum() == images.size
    assert [note.text for note in figure.layout.annotations] == ["a", "&lt;b&gt;", "c"]
    colour = np.random.default_rng(0).integers(0, 256, (1, 3, 4, 4), dtype=np.uint8)
    shown = np.asarray(figures.image_strip(colour, ("x",)).data[0].z)[2:6, :4, :3]
    np.testing.assert_array_equal(shown, colour[0].transpose(1, 2, 0))


def test_a_strip_of_few_images_has_room_for_its_title() -> None:
    images = np.zeros((2, 1, 4, 4), np.uint8)
    figure = figures.image_strip(images, "ab", "A title of some fifty characters stays in one line", columns=2)
    assert "<br>" not in figure.layout.title.text and figure.layout.width == 560
    left, right = figure.layout.xaxis.domain  # the images keep their largest size
    assert left == 0 and (right - left) * 560 == pytest.approx(224)


@pytest.mark.parametrize(("shape", "kind"), [((2, 4, 4), "uint8"), ((2, 2, 4, 4), "uint8"), ((2, 1, 4, 4), "float32")])
def test_image_strip_refuses_what_are_no_images(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(CorsdError, match=f"{kind}; allowed: uint8"):
        figures.image_strip(np.zeros(shape, kind), ("a", "b"))
    with pytest.raises(CorsdError, match="1 captions for 2 images"):
        figures.image_strip(np.zeros((2, 1, 4, 4), np.uint8), ("a",))


def test_a_long_title_is_broken_and_given_room() -> None:
    short, long = (figures.relation_heatmap(MATRIX, NAMES, title).layout for title in ("short", "a long finding " * 10))
    assert "<br>" not in short.title.text and long.title.text.count("<br>") >= 2
    assert long.margin.t >= short.margin.t + 40
    several = figures.relation_heatmap(MATRIX, NAMES, "a\nb\nc\nd\ne").layout
    top = several.title.pad.t - 11  # where plotly sets the first of several lines: measured
    assert top + 5 * 1.3 * figures.template().layout.title.font.size < several.margin.t


def test_png_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(style, "_DRAW", "import sys; sys.exit('Kaleido requires Google Chrome')")
    with pytest.raises(CorsdError, match=r"figure\.png: Kaleido requires Google Chrome.*Chromium"):
        figures.save_png(go.Figure(), tmp_path / "figure.png")
    monkeypatch.setattr(style, "_DRAW", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(CorsdError, match=r"figure\.png: its process ended with status -9"):
        figures.save_png(go.Figure(), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_png_of_a_browser_that_never_answers_ends_in_an_error_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As kaleido has been seen to wait for its Chromium, which is a process of its process."""
    browser = "import subprocess; p = subprocess.Popen(['sleep', '600'])"
    monkeypatch.setattr(style, "_DRAW", f"{browser}; open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); p.wait()")
    monkeypatch.setattr(style, "DRAW_SECONDS", 3)
    with pytest.raises(CorsdError, match=r"cannot draw .*figure\.png: it was not drawn within 3 seconds"):
        figures.save_png(go.Figure(), tmp_path / "figure.png")
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium to draw with")
def test_png_is_drawn(tmp_path: Path) -> None:
    from PIL import Image

    pytest.importorskip("kaleido")
    path = figures.save_png(figures.relation_heatmap(MATRIX, NAMES), tmp_path / "figure.png", scale=1)
    with Image.open(path) as picture:
        assert picture.size == (560, 540) and len(set(picture.convert("RGB").get_flattened_data())) > 9


@pytest.mark.parametrize("colors", [0, 257])
def test_a_number_of_colors_that_a_palette_cannot_hold_is_named_before_anything_is_drawn(colors: int, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=f"colors = {colors}; allowed: 1 to 256"):
        figures.save_png(go.Figure(), tmp_path / "figure.png", colors=colors)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium to draw with")
def test_a_png_of_few_colors_looks_the_same_and_is_small(tmp_path: Path) -> None:
    from PIL import Image

    pytest.importorskip("kaleido")
    figure = go.Figure(go.Scatter(y=[1, 3, 2]), {"template": figures.template(), "title": "a line, and words"})
    paths = [figures.save_png(figure, tmp_path / f"{n}.png", width=500, colors=n) for n in (None, 256)]
    with Image.open(paths[0]) as one, Image.open(paths[1]) as other:
        assert other.mode == "P" and np.abs(np.asarray(one.convert("RGB"), float) - other.convert("RGB")).mean() < 0.5
    assert paths[1].stat().st_size < 0.6 * paths[0].stat().st_size


@pytest.mark.parametrize(("module", "missing"), [("figures", "plotly"), ("widgets", "ipywidgets"), ("widgets", "anywidget")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module: str, missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import corsd_lib.{module}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "MissingPackage" in last and missing in last and "corsd_lib[notebooks]" in last


def test_a_picture_does_not_replace_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CorsdError, match=r"config.json exists and is not a picture"):
        figures.save_png(go.Figure(), tmp_path / "config.json")
    assert (tmp_path / "config.json").read_text() == "{}"
