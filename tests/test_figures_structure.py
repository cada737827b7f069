"""Structure over depth and epochs: every number at its exit and epoch, runs laid deepest exit over deepest exit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from corsd_lib import figures
from corsd_lib.analysis.structure import STRUCTURE
from corsd_lib.errors import CorsdError
from corsd_lib.figures.structure import MEASURES
from corsd_lib.figures.style import GREY


def table(exits: int, epochs: tuple[int, ...] = (0, 5, 9), base: float = 0.0) -> pd.DataFrame:
    """Column i at exit k after epoch e is base + i + k / 10 + e / 100."""
    places = [(epoch, k) for epoch in epochs for k in range(1, exits + 1)]
    columns = {name: [base + i + k / 10 + e / 100 for e, k in places] for i, name in enumerate(STRUCTURE)}
    return pd.DataFrame({"epoch": [e for e, _ in places], "exit": [k for _, k in places], **columns})


def lines(figure: Any, axis: str) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.yaxis == axis}


def said(figure: Any) -> str:
    return figure.layout.title.text.replace("<br>", " ")


def test_every_measure_of_the_analysis_has_a_name_and_a_unit() -> None:
    assert tuple(MEASURES) == STRUCTURE
    figure = figures.structure_over_depth(table(2), STRUCTURE)
    units = [axis.title.text for axis in figure.select_yaxes()]
    assert units == [MEASURES[name][1] for name in STRUCTURE]
    assert [note.text for note in figure.layout.annotations][:3] == [MEASURES[name][0] for name in STRUCTURE[:3]]


def test_depth_draws_the_last_epoch_and_the_first_dotted() -> None:
    figure = figures.structure_over_depth(table(3), ("silhouette", "nc1"))
    i = STRUCTURE.index("nc1")
    drawn = lines(figure, "y2")
    assert list(drawn) == ["epoch 9", "epoch 0"]
    np.testing.assert_allclose(drawn["epoch 9"].y, [i + k / 10 + 0.09 for k in (1, 2, 3)], rtol=1e-6)
    np.testing.assert_allclose(drawn["epoch 0"].y, [i + k / 10 for k in (1, 2, 3)], rtol=1e-6)
    assert (drawn["epoch 9"].line.dash, drawn["epoch 0"].line.dash) == ("solid", "dot")
    assert figure.layout.yaxis.type is None and figure.layout.yaxis2.type == "log"
    assert [trace.showlegend for trace in figure.data] == [True, False, True, False]
    assert said(figure) == "Silhouette (-1 to 1): 4.19 at exit 1, 4.39 at exit 3"


def test_runs_that_begin_with_the_same_values_share_one_grey_line() -> None:
    one, other = table(3), table(3)
    other.loc[other["epoch"] == 9, "silhouette"] += 1
    same = figures.structure_over_depth({"a": one, "b": other}, ("silhouette",))
    assert [trace.name for trace in same.data] == ["a, epoch 9", "all, epoch 0", "b, epoch 9"]
    assert same.data[1].line.color == GREY and same.data[1].line.dash == "dot"

    other.loc[other["epoch"] == 0, "silhouette"] += 1
    different = figures.structure_over_depth({"a": one, "b": other}, ("silhouette",))
    assert [trace.name for trace in different.data] == ["a, epoch 9", "a, epoch 0", "b, epoch 9", "b, epoch 0"]
    assert GREY not in [trace.line.color for trace in different.data]


def test_ticks_of_a_logarithmic_axis_have_room() -> None:
    rows = table(2)
    rows["nc1"] = np.geomspace(0.28, 2.3, len(rows))
    rows["within"] = np.geomspace(1e-5, 80, len(rows))
    figure = figures.structure_over_epochs(rows, ("nc1", "within"))
    near, wide = figure.layout.yaxis.tickvals, figure.layout.yaxis2.tickvals
    assert [tick for tick in near if 0.28 <= tick <= 2.3] == [0.3, 0.5, 1, 2]
    assert [tick for tick in wide if 1e-5 <= tick <= 80] == [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10]


def test_one_snapshot_is_one_line_of_one_point_an_exit() -> None:
    figure = figures.structure_over_depth(table(1, (4,)), ("silhouette",))
    assert [trace.name for trace in figure.data] == ["epoch 4"] and list(figure.data[0].x) == [1]
    assert said(figure) == "Silhouette (-1 to 1): 4.14 at exit 1"


def test_runs_are_laid_deepest_exit_over_deepest_exit() -> None:
    tables = {"<all>": table(3, base=1), "one": table(1)}
    figure = figures.structure_over_depth(tables, ("silhouette",))
    deep, _, single, _ = figure.data
    assert (deep.name, single.name) == ("&lt;all&gt;, epoch 9", "one, epoch 9")
    assert list(deep.x) == [1, 2, 3] and list(single.x) == [3]
    assert list(single.text) == ["one, epoch 9, exit 1 of 1"]
    assert deep.line.color != single.line.color
    assert said(figure) == "Silhouette (-1 to 1) at the deepest exit: &lt;all&gt; 5.39, one 4.19"

    epochs = figures.structure_over_epochs(tables, ("silhouette",))
    (single,) = lines(epochs, "y2").values()
    assert single.name == "exit 3 (deepest)" and single.line == lines(epochs, "y")["exit 3 (deepest)"].line
    assert list(single.text)[1] == "one, exit 1 of 1, epoch 5"
    assert epochs.layout.yaxis2.matches == "y"  # one scale for both runs
    assert {"&lt;all&gt;", "one"} <= {note.text for note in epochs.layout.annotations}
    shown = [trace.name for trace in epochs.data if trace.showlegend]
    assert shown == ["exit 1 (shallowest)", "exit 2", "exit 3 (deepest)"]


def test_epochs_draw_every_exit_in_the_order_of_time() -> None:
    shuffled = table(2).sample(frac=1, random_state=0)
    figure = figures.structure_over_epochs(shuffled, ("within", "nearest_mean_top1"))
    deepest = lines(figure, "y2")["exit 2 (deepest)"]
    assert list(deepest.x) == [0, 5, 9] and deepest.y.dtype == np.float32
    np.testing.assert_allclose(deepest.y, [5.2, 5.25, 5.29], rtol=1e-6)
    assert "(% of images)" in deepest.hovertemplate
    title = "Variance within classes (embedding units squared) at the deepest exit, first to last epoch: 0.2 to 0.29"
    assert said(figure) == title
    assert figures.structure_over_epochs(shuffled, title="mine").layout.title.text == "mine"


@pytest.mark.parametrize("draw", [figures.structure_over_depth, figures.structure_over_epochs])
def test_what_cannot_be_drawn_is_named(draw: Any) -> None:
    with pytest.raises(CorsdError, match="measure 'beauty' is not known; allowed: within"):
        draw(table(2), ("beauty",))
    with pytest.raises(CorsdError, match="run 'young' has an empty table"):
        draw({"young": table(2).iloc[:0]})
    with pytest.raises(CorsdError, match="column 'nc1' is not known"):
        draw(table(2).drop(columns="nc1"), ("nc1",))
    nothings: list[Any] = [{}, table(2)]
    for nothing in nothings:
        with pytest.raises(CorsdError, match="one or more of each"):
            draw(nothing, ())
