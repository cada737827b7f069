"""Inter- and intra-class structure over depth and over the epochs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.figures.style import GREY, exit_names, line_style, set_title, template

if TYPE_CHECKING:
    import pandas as pd

# For each measure of `corsd_lib.analysis.structure`: what it is, its unit or range, whether its axis is logarithmic.
MEASURES: dict[str, tuple[str, str, bool]] = {
    "within": ("variance within classes", "embedding units squared", True),
    "between": ("variance between classes", "embedding units squared", True),
    "total": ("variance", "embedding units squared", True),
    "between_fraction": ("variance the class explains", "share, 0 to 1", False),
    "silhouette": ("silhouette", "-1 to 1", False),
    "nearest_mean_top1": ("nearest class mean is correct", "% of images", False),
    "nc1": ("variance collapse NC1", "log axis, smaller = more collapsed", True),
    "mean_cosine": ("cosine between class means", "mean, -1 to 1", False),
    "cosine_deviation": ("spread of these cosines", "standard deviation", False),
    "simplex_gap": ("simplex gap", "0 to 2, 0 = simplex", False),
}
DEFAULT_MEASURES = ("between_fraction", "silhouette", "nearest_mean_top1", "nc1")
Tables = Mapping[str, "pd.DataFrame"]


def structure_over_depth(
    table: pd.DataFrame | Tables, measures: Sequence[str] = DEFAULT_MEASURES, title: str = "", *, dark: bool = False
) -> go.Figure:
    """Structure at every exit after the last epoch, shallow -> deep: a panel for each measure, a line for each run.

    `table`: the table of `class_structure`, or a dict from the name of each run to its table. A dotted line shows the first
    epoch of a run; if all runs begin with the same values, there is one grey line for all. Runs are aligned at the deepest
    exit. The default title states values of the first measure. Raises `CorsdError` for an unknown measure or a missing column,
    and if there is no data.
    """
    tables = _checked(table, measures)
    most = max(rows["exit"].max() for rows in tables.values())
    figure = _panels(measures, [""])
    same_start = _same_start(tables, measures)
    for i, (name, rows) in enumerate(tables.items()):
        first, last = int(rows["epoch"].min()), int(rows["epoch"].max())
        for epoch in (last, first) if last > first else (last,):
            if same_start and epoch == first and i > 0:
                continue  # the line of the first run is at the same place
            shared, run = same_start and epoch == first, f"{name}, epoch {epoch}" if name else f"epoch {epoch}"
            look = {"dash": "dot", "width": 1.5} if epoch == first < last else {}
            part = rows[rows["epoch"] == epoch].sort_values("exit")
            label = f"all, epoch {epoch}" if shared else _escaped(run)
            hover = [f"{label}, exit {k} of {part['exit'].max()}" for k in part["exit"]]
            places = part["exit"] + most - part["exit"].max()
            line = {**line_style(i), **look, **({"color": GREY} if shared else {})}
            _add_lines(figure, 1, part, places, measures, label, line, hover)
    figure.update_traces(marker_size=7)
    figure.for_each_trace(lambda trace: trace.update(legendrank=2000) if trace.name.startswith("all, ") else None)
    ticks = {"tickvals": list(range(1, most + 1)), "range": [0.7, most + 0.3]}
    figure.update_xaxes(title="exit (1 = shallowest)", **ticks)
    return _finish(figure, measures, 1, title or _depth_finding(tables, measures[0]), dark)


def structure_over_epochs(
    table: pd.DataFrame | Tables, measures: Sequence[str] = DEFAULT_MEASURES, title: str = "", *, dark: bool = False
) -> go.Figure:
    """Structure over the epochs: a panel for each measure, a line for each exit, a row for each run.

    `table` and errors as in `structure_over_depth`. The panels of a measure have the same scales in all rows. The deepest exits
    of all runs have the same line style. The default title states the first and the last value of the first measure at the
    deepest exit.
    """
    tables = _checked(table, measures)
    most = max(rows["exit"].max() for rows in tables.values())
    names = exit_names(most)
    figure = _panels(measures, list(tables))
    for row, (run, rows) in enumerate(tables.items(), start=1):
        exits = int(rows["exit"].max())
        for k in range(1, exits + 1):
            part, i = rows[rows["exit"] == k].sort_values("epoch"), k - 1 + most - exits
            said = _escaped(f"{run}, exit {k} of {exits}" if run else names[i])
            hover = [f"{said}, epoch {epoch}" for epoch in part["epoch"]]
            _add_lines(figure, row, part, part["epoch"], measures, names[i], line_style(i), hover)
    figure.update_traces(marker_size=4)
    figure.update_xaxes(title="epoch", row=len(tables))
    return _finish(figure, measures, len(tables), title or _epochs_finding(tables, measures[0]), dark)


def _same_start(tables: Tables, measures: Sequence[str]) -> bool:
    """True if there are several runs, each with more than one epoch, and all begin with the same values.

    Runs with the same seed begin with the same values. Their lines for the first epoch would hide each other.
    """
    starts = [rows[rows["epoch"] == rows["epoch"].min()].sort_values("exit") for rows in tables.values()]
    columns = ["epoch", "exit", *measures]
    trained = all(rows["epoch"].nunique() > 1 for rows in tables.values())
    return (
        trained
        and len(starts) > 1
        and all(len(start) == len(starts[0]) for start in starts)
        and all(np.allclose(start[columns], starts[0][columns], rtol=1e-3, equal_nan=True) for start in starts[1:])
    )


def _checked(table: pd.DataFrame | Tables, measures: Sequence[str]) -> Tables:
    """Check `table` and `measures`. Returns a dict from run names to tables; a single table gets the name "".

    Raises `CorsdError` for an unknown measure, a missing column and an empty table.
    """
    tables: Tables = table if isinstance(table, Mapping) else {"": table}
    for measure in measures:
        check_choice("measure", measure, MEASURES)
    if not measures or not tables:
        raise CorsdError(f"the figure has {len(measures)} measures and {len(tables)} runs; allowed: one or more of each")
    for name, rows in tables.items():
        if rows.empty:
            raise CorsdError(f"run {name!r} has an empty table")
        for measure in measures:
            check_choice(f"run {name!r}: column", measure, rows.columns)
    return tables


def _panels(measures: Sequence[str], runs: Sequence[str]) -> go.Figure:
    """Empty panels: a column for each measure, a row for each run, with its name at the right."""
    from plotly.subplots import make_subplots

    rows = len(runs)
    return make_subplots(
        rows=rows,
        cols=len(measures),
        column_titles=[MEASURES[measure][0] for measure in measures],
        row_titles=[_escaped(name) for name in runs],
        horizontal_spacing=0.24 / len(measures),
        vertical_spacing=0.16 / rows,
        shared_xaxes=rows > 1,
    )


def _add_lines(
    figure: go.Figure,
    row: int,
    rows: pd.DataFrame,
    x: pd.Series,
    measures: Sequence[str],
    label: str,
    line: Mapping[str, Any],
    hover: Sequence[str],
) -> None:
    """One line in every panel of a row; lines of the same label have one entry in the legend and are hidden together."""
    new = label not in {trace.legendgroup for trace in figure.data}
    for column, measure in enumerate(measures, start=1):
        what, unit, _ = MEASURES[measure]
        figure.add_scatter(
            x=x.to_numpy(np.float32),
            y=rows[measure].to_numpy(np.float32),
            mode="lines+markers",
            line=line,
            name=label,
            legendgroup=label,
            showlegend=new and column == 1,
            text=hover,
            hovertemplate=f"%{{text}}<br>{what} %{{y:.3g}} ({unit})<extra></extra>",
            row=row,
            col=column,
        )


def _finish(figure: go.Figure, measures: Sequence[str], rows: int, title: str, dark: bool) -> go.Figure:
    for column, measure in enumerate(measures, start=1):
        _, unit, logarithmic = MEASURES[measure]
        values = np.concatenate([trace.y for trace in figure.select_traces(col=column)])
        look = {"type": "log", "tickvals": _log_ticks(values)} if logarithmic else {}
        figure.update_yaxes(title=unit, tickformat="~g", col=column, **look)
        for row in range(2, rows + 1):  # the axes of a column follow its first axis, which must not follow itself
            figure.update_yaxes(matches="y" if column == 1 else f"y{column}", row=row, col=column)
    wide = max(560, 60 + 250 * len(measures))
    figure.update_layout(template=template(dark), width=wide, height=110 + 250 * rows, margin={"b": 70, "r": 36})
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    figure.update_annotations(font_size=13)
    set_title(figure, title, wide // 9, below=30)
    return figure


def _log_ticks(values: Any) -> list[float]:
    """Ticks of a logarithmic axis that do not touch: the wider the range of the values, the fewer in each decade."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return []
    low, high = np.log10(positive.min()), np.log10(positive.max())
    digits = (1, 2, 3, 5) if high - low < 1.3 else (1, 2, 5) if high - low < 3 else (1,)
    return [float(f"{digit}e{decade}") for decade in range(int(low) - 2, int(high) + 2) for digit in digits]


def _depth_finding(tables: Tables, measure: str) -> str:
    """`measure` after the last epoch, as text: at the first and last exit of one run, or at the deepest exits of several."""
    what = _sentence(measure)
    last = [rows[rows["epoch"] == rows["epoch"].max()].sort_values("exit") for rows in tables.values()]
    if len(tables) > 1:
        said = [f"{name} {rows[measure].iloc[-1]:.3g}" for name, rows in zip(tables, last, strict=True)]
        return _escaped(f"{what} at the deepest exit: {', '.join(said)}")
    values, exits = last[0][measure], last[0]["exit"]
    ends = [f"{values.iloc[k]:.3g} at exit {exits.iloc[k]}" for k in dict.fromkeys((0, len(values) - 1))]
    return _escaped(f"{what}: {', '.join(ends)}")


def _epochs_finding(tables: Tables, measure: str) -> str:
    said = []
    for name, rows in tables.items():
        deepest = rows[rows["exit"] == rows["exit"].max()].sort_values("epoch")
        ends = [f"{deepest[measure].iloc[k]:.3g}" for k in dict.fromkeys((0, len(deepest) - 1))]
        said.append(f"{f'{name} ' if name else ''}{' to '.join(ends)}")
    return _escaped(f"{_sentence(measure)} at the deepest exit, first to last epoch: {', '.join(said)}")


def _sentence(measure: str) -> str:
    name, unit, _ = MEASURES[measure]
    return f"{name[:1].upper()}{name[1:]} ({unit})"


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)
