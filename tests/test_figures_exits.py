"""Early exit and calibration: costs in their unit, what is chosen is marked, gaps are where confidence is off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from corsd_lib import figures
from corsd_lib.analysis.exits import calibration_bins, early_exit_curve
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import calibration_error

CURVE = pd.DataFrame(
    {
        "threshold": [0.1, 0.5, 0.9, 1.01],
        "accuracy": [70.0, 79.25, 80.5, 80.0],
        "accuracy_drop": [10.0, 0.75, -0.5, 0.0],
        "macs": [1e6, 2e6, 3e6, 4e6],
        "fraction.exit1": [1.0, 0.6, 0.25, 0.0],
        "fraction.exit2": [0.0, 0.4, 0.75, 1.0],
    }
)


def test_an_early_exit_curve_is_in_percent_of_the_plain_network() -> None:
    figure = figures.early_exit_plot(CURVE, deepest_macs=2.5e6, threshold=0.9)
    line, star, ring = figure.data
    np.testing.assert_allclose(line.x, [40, 80, 120, 160])
    np.testing.assert_allclose(line.y, CURVE["accuracy"])
    assert line.x.dtype == line.y.dtype == np.float32
    wanted = "threshold 0.5<br>79.25 % correct, 80 % of the plain network's MACs<br>leave: exit 1 60 %, exit 2 40 %"
    assert line.text[1] == wanted
    assert star.x[0] == pytest.approx(120) and star.y[0] == 80.5 and star.hovertemplate.startswith("chosen: threshold 0.9<br>")
    assert line.mode == "markers" and "cost" in ring.name  # a line would join four settings
    assert (list(ring.x), list(ring.y)) == ([100], [80.0])  # the deepest exit of every row: accuracy + loss
    assert "% of the plain network's MACs" in figure.layout.xaxis.title.text and "(%)" in figure.layout.yaxis.title.text
    assert figure.layout.title.text == "Early exit at 0.9: 0.5 points won at 120 % of the plain network's MACs"


def test_several_curves_share_the_plot_and_the_title_compares_their_costs() -> None:
    curves = {"<fast>": CURVE, "slow": CURVE.assign(macs=CURVE["macs"] * 2), "bad": CURVE.assign(accuracy_drop=5.0)}
    figure = figures.early_exit_plot(curves)
    assert [trace.name for trace in figure.data] == ["&lt;fast&gt;", "slow", "bad"]
    assert len({(trace.line.color, trace.marker.symbol) for trace in figure.data}) == 3
    np.testing.assert_allclose(figure.data[1].x, [2, 4, 6, 8])
    title = figure.layout.title.text.replace("<br>", " ")
    assert title == "At most one point lost, at a cost of &lt;fast&gt; 2.00, slow 4.00, bad none million MACs"
    assert figure.layout.showlegend and not figures.early_exit_plot(CURVE).layout.showlegend
    large = figures.early_exit_plot(CURVE.assign(macs=CURVE["macs"] * 1000))
    assert "billion MACs" in large.layout.xaxis.title.text and large.data[0].x[0] == 1


def test_thresholds_are_chosen_by_name() -> None:
    figure = figures.early_exit_plot({"a": CURVE, "b": CURVE}, threshold={"b": 0.5})
    *_, star = figure.data
    assert len(figure.data) == 3 and star.marker.color == figure.data[1].line.color
    assert figure.layout.title.text == "b at 0.5: 0.8 points lost at 2.00 million MACs"
    both = figures.early_exit_plot({"a": CURVE, "b": CURVE}, threshold=0.5).data
    assert [trace.showlegend for trace in both[2:]] == [True, False]
    with pytest.raises(CorsdError, match=r"threshold 0\.7 is not in the curve of a; allowed: its thresholds, 0\.1 to 1\.01"):
        figures.early_exit_plot({"a": CURVE}, threshold=0.7)
    nothings: list[Any] = [{}, CURVE.iloc[:0]]
    for nothing in nothings:
        with pytest.raises(CorsdError, match="needs curves with one row or more"):
            figures.early_exit_plot(nothing)


def test_a_curve_of_the_analysis_can_be_drawn_whatever_the_rule() -> None:
    logits = [torch.randn(40, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    labels = torch.arange(40) % 3
    for rule in ("confidence", "entropy", "patience"):
        curve = early_exit_curve(logits, labels, [1e6, 2e6, 3e6], rule)
        figure = figures.early_exit_plot({rule: curve}, deepest_macs=2.9e6, threshold=curve["threshold"].iloc[-1])
        assert len(figure.data[0].x) == len(curve)


def bins(confidence: list[float], accuracy: list[float], images: list[int]) -> pd.DataFrame:
    edges = np.linspace(0, 100, len(images) + 1)
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "images": images, "confidence": confidence, "accuracy": accuracy}
    )


def test_reliability_shows_accuracy_gap_and_share_of_every_bin_with_images() -> None:
    nan = float("nan")
    tables = {"<1>": bins([20, nan, 90], [10, nan, 70], [3, 0, 1]), "2": bins([30, 50, 80], [0, 50, 80], [1, 1, 2])}
    figure = figures.reliability_diagram(tables)
    right, gap, honest, share = figure.data[:4]
    np.testing.assert_allclose(right.x, [100 / 6, 500 / 6])
    np.testing.assert_allclose(right.y, [10, 70])
    np.testing.assert_allclose(np.asarray(gap.base, float), [10, 70])
    np.testing.assert_allclose(gap.y, [10, 20])
    np.testing.assert_allclose(share.y, [75, 25])
    assert list(honest.x) == list(honest.y) == [0, 100]
    np.testing.assert_allclose(right.width, [100 / 3, 100 / 3])
    assert figure.layout.yaxis3.range[1] > 75 and figure.layout.yaxis4.range == figure.layout.yaxis3.range
    assert [note.text for note in figure.layout.annotations] == ["&lt;1&gt;", "2"]
    title = "Confidence is off by 12.5 points at &lt;1&gt; and 7.5 points at 2 on average: overconfident"
    assert figure.layout.title.text.replace("<br>", " ") == title
    assert [trace.showlegend for trace in figure.data] == [True, True, True, False] + [False] * 4


def test_the_gap_in_the_title_is_the_calibration_error() -> None:
    logits, labels = 3 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 4
    title = figures.reliability_diagram(calibration_bins(logits, labels)).layout.title.text
    assert f"off by {calibration_error(logits, labels):.1f} points on average" in title and "overconfident" in title


def test_exits_that_err_to_different_sides_are_given_no_side() -> None:
    sides = {"a": bins([20, 60], [30, 90], [1, 1]), "b": bins([20, 60], [0, 30], [1, 1])}
    assert "confident" not in figures.reliability_diagram(sides).layout.title.text
    assert "underconfident" in figures.reliability_diagram({"a": sides["a"]}).layout.title.text
    nothings: list[Any] = [{}, {"a": bins([np.nan], [np.nan], [0])}]
    for nothing in nothings:
        with pytest.raises(CorsdError, match="images in its bins"):
            figures.reliability_diagram(nothing)


def test_only_a_curve_of_many_settings_is_a_line() -> None:
    many = pd.concat([CURVE] * 3, ignore_index=True)
    assert figures.early_exit_plot(many).data[0].mode == "lines+markers"
