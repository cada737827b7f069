"""Figures of the results of a study, and their files."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.figures.style import (
    GREY,
    INK,
    LONGEST,
    PALETTE,
    SYMBOLS,
    exit_names,
    hover_name,
    line_style,
    save_png,
    set_title,
    short_name,
    template,
)
from corsd_lib.studies.intervals import mean_interval
from corsd_lib.studies.summary import relative_to, trained_exits
from corsd_lib.studies.unseen_tables import METRICS as UNSEEN_METRICS

_COLOURS = "blue: interval above 0, orange: below 0, grey: contains 0, or no interval"  # of the means
_ENDS = ("top1", "top1_low", "top1_high")
Point = tuple[str, float, float, float | None, float | None]  # label, vertical position, mean, ends of the interval


def accuracy_by_method(summary: Mapping[str, Any], *, dark: bool = False) -> go.Figure:
    """Test top-1 (%) of each variant at each exit, with its 95 % interval.

    `summary`: from `summarise`. The title names the variant with the highest accuracy at the deepest exit. The label of a
    variant has its number of seeds n; an interval needs three seeds whose values are not all equal, see `mean_interval`. Within
    a variant shallow exits are drawn above deep ones. The dotted line is at the accuracy of the baseline's deepest exit. Exits
    that were not trained (`trained_exits`) are left out. `dark`: colours for a dark page. Raises `CorsdError` if there are no
    variants.
    """
    methods = summary["methods"]
    if not methods:
        raise CorsdError("accuracy_by_method needs a variant with a record")
    most = max(len(m["top1"]) for m in methods.values())
    figure = go.Figure()
    for back, name in enumerate(reversed(exit_names(most)), 1):  # counted from the deepest exit, which every variant has
        points = [
            (f"{_with_n(m)}, {name}", row + 0.15 * (len(m["top1"]) / 2 + 0.5 - back), *(m[k][-back] for k in _ENDS))
            for row, m in enumerate(methods.values())
            if len(m["top1"]) >= back and trained_exits(m)[-back]
        ]
        if not points:
            continue
        i = (back - 1) % len(PALETTE)
        _add_points(figure, points, "%", name=name, marker={"color": PALETTE[i], "symbol": SYMBOLS[i], "size": 9})
    best, reference = max(methods.values(), key=lambda m: m["top1"][-1]), methods.get(summary["baseline"])
    alone = all(len(m["top1_by_seed"]) == 1 for m in methods.values())
    where = "Best deepest exit of one seed" if alone else "Best deepest exit on average"
    title = f"{where}: {short_name(best['label'])}, {best['top1'][-1]:.1f} %"
    axis = "test top-1 (%), mean over n seeds, 95 % interval"
    if reference is not None:
        figure.add_vline(x=reference["top1"][-1], line={"dash": "dot", "width": 1, "color": INK[dark]})
        title += "" if best is reference else f"; {short_name(reference['label'])}, {reference['top1'][-1]:.1f} %"
        axis += f"; dotted: {html.escape(short_name(reference['label']))}"
    figure.update_layout(legend={"traceorder": "reversed", "orientation": "h", "y": 1, "yanchor": "bottom"}, xaxis_title=axis)
    return _with_rows(figure, [_with_n(m) for m in methods.values()], title, dark, legend=True)


def gain_by_method(summary: Mapping[str, Any], *, sort: bool = True, dark: bool = False) -> go.Figure:
    """Gain of every variant over the baseline at the deepest exit, in points, paired by seed, with 95 % interval.

    `summary`: from `summarise`. With `sort` the largest gain is on top, otherwise the variants have the order of the tables of
    the study. A ring is the gain for a single seed. A variant is grey if it has no interval or if its interval contains zero.
    If most gains are negative, the label of the axis is "difference from" instead of "gain over". Of the variants whose
    interval is above zero, the title names the one with the largest gain. If there are none, the title names or counts the
    variants whose interval is below zero. `dark`: colours for a dark page. Raises `CorsdError` if no variant has a gain.
    """
    compared = [m for m in summary["methods"].values() if m["gain"] is not None]
    by_gain = sorted(compared, key=lambda m: -m["gain"])
    methods = by_gain if sort else compared
    if not methods:
        raise CorsdError("gain_by_method needs a variant that has a seed in common with the baseline")
    reference = summary["methods"][summary["baseline"]]
    figure, labels = go.Figure(), list[str]()
    for row, m in enumerate(methods):
        pairs = [(s, top1[-1], reference["top1_by_seed"].get(s)) for s, top1 in m["top1_by_seed"].items()]
        seeds = [(f"{m['label']}, seed {s}", row + 0.25, a - b[-1], None, None) for s, a, b in pairs if b]
        labels.append(f"{short_name(m['label'], 2 * LONGEST)} (n = {len(seeds)})")
        _add_points(figure, seeds, "points", marker={"symbol": "circle-open", "size": 6, "color": GREY})
        low, high = m["gain_low"], m["gain_high"]
        colour = GREY if low is None or low <= 0 <= high else PALETTE[0 if low > 0 else 1]
        _add_points(
            figure,
            [(f"{m['label']} (n = {len(seeds)})", row, m["gain"], low, high)],
            "points",
            marker={"color": colour, "size": 10},
        )
    figure.add_vline(x=0, line={"width": 1, "color": INK[dark]})
    over = html.escape(short_name(reference["label"]), quote=False)
    what = "difference from" if sum(m["gain"] < 0 for m in methods) > len(methods) / 2 else "gain over"
    axis = f"{what} {over} (points of test top-1)<br>mean over n pairs of seeds, 95 % interval; rings: single seeds"
    axis += f"<br>{_COLOURS}"
    figure.update_layout(showlegend=False, xaxis_title=axis)
    return _with_rows(figure, labels, _gain_title(by_gain, short_name(reference["label"])), dark)


def differences_by_exit(
    differences: Mapping[str, Sequence[Sequence[float]]],
    title: str = "",
    *,
    exits: Sequence[str] | None = None,
    unit: str = "points of test accuracy",
    dark: bool = False,
) -> go.Figure:
    """Paired differences of two methods with their 95 % intervals: a row for each comparison, a panel for each exit.

    `differences`: a dict from the name of each comparison to one list for each seed, with a value for each exit, shallow ->
    deep. Each ring is one seed. A line marks 0. A mean is blue if its interval is above 0 and orange if its interval is below
    0. It is grey if it has no interval (see `mean_interval`) or if the interval contains 0. A note below the axis explains the
    colours. `exits`: titles of the panels, `exit_names` by default. `dark`: colours for a dark page. Raises `CorsdError` if
    there are no comparisons, if a comparison has no seeds, if the numbers of exits differ, and if `exits` has another length.
    """
    empty = [name for name, seeds in differences.items() if not seeds]
    if empty:
        raise CorsdError(f"differences[{empty[0]!r}] has no seeds; allowed: one or more")
    counts = {len(seed) for seeds in differences.values() for seed in seeds}
    if len(counts) != 1:
        raise CorsdError(f"differences have {sorted(counts)} exits; allowed: comparisons with the same number of exits")
    panels = list(exits or exit_names(max(counts)))
    if {len(panels)} != counts:
        raise CorsdError(f"exits has {len(panels)} titles; allowed: {max(counts)}, one for each exit")
    figure = make_subplots(
        1, len(panels), shared_yaxes=True, shared_xaxes="all", subplot_titles=panels, horizontal_spacing=0.02
    )
    for row, (name, seeds) in enumerate(differences.items()):
        for panel, values in enumerate(zip(*seeds, strict=True), 1):
            where = f"{name}, {panels[panel - 1]}"
            rings = [(where, row + 0.22, value, None, None) for value in values]
            place = {"row": 1, "col": panel, "showlegend": False}
            _add_points(figure, rings, unit, marker={"symbol": "circle-open", "size": 5, "color": GREY}, **place)
            mean, low, high = mean_interval(values)
            assert mean is not None
            colour = GREY if low is None or high is None or low <= 0 <= high else PALETTE[0 if low > 0 else 1]
            _add_points(figure, [(where, row - 0.08, mean, low, high)], unit, marker={"color": colour, "size": 9}, **place)
    figure.add_vline(x=0, line={"width": 1, "color": INK[dark]})
    _with_rows(figure, [short_name(name, 2 * LONGEST) for name in differences], title, dark, legend=True)
    note = f"difference in {unit}; rings: single seeds<br>dot and bar: mean and 95 % interval<br>{_COLOURS}"
    below = {"x": 0.5, "y": 0, "xref": "paper", "yref": "paper", "yanchor": "top", "yshift": -26, "showarrow": False}
    figure.add_annotation(text=note, **below)
    figure.update_xaxes(zeroline=False, nticks=7)  # otherwise narrow panels have few tick labels
    figure.update_layout(margin_b=90, height=figure.layout.height + 66)
    return figure


def unseen_by_exit(
    summary: Mapping[str, Any], measure: str = "recall_at_1", score: str = "cosine", *, dark: bool = False
) -> go.Figure:
    """A retrieval or few-shot metric (%) on held-out classes, by exit: one line for each variant, with 95 % intervals.

    `summary`: from `summarise`, of a study with held-out classes. `measure`: a column of `unseen_class_report`; `score`: a
    score of that report, such as "cosine". Exits are aligned at the deepest one. Each ring is one seed. The title names the
    variant with the highest mean at the deepest exit. Variants without an interval are considered only if no variant has one.
    `dark`: colours for a dark page. Raises `CorsdError` for a study without held-out classes and for a metric or score that no
    variant has.
    """
    lines = summary.get("unseen", [])
    if not lines:
        raise CorsdError("unseen_by_exit needs a study with held-out classes; this one has none")
    check_choice("measure", measure, dict.fromkeys(line["figure"] for line in lines))
    check_choice("score", score, dict.fromkeys(line["score"] for line in lines))
    wanted = [line for line in lines if (line["figure"], line["score"]) == (measure, score) and line["mean"] is not None]
    by_variant = dict[str, dict[str, Mapping[str, Any]]]()
    for line in wanted:  # `lines` repeats the values of a variant for each of its reference variants
        by_variant.setdefault(line["variant"], {})[line["exit"]] = line
    if not by_variant:
        raise CorsdError(f"no variant has {measure} by {score}")
    exits = max((list(by_exit) for by_exit in by_variant.values()), key=len)
    drawn = go.Figure()
    for i, by_exit in enumerate(by_variant.values()):
        points = [(exits.index(name) + 0.08 * (i - len(by_variant) / 2 + 0.5), line) for name, line in by_exit.items()]
        drawn.add_trace(_line_with_intervals(points, i))
        drawn.add_traces(_rings(points, i))
    deepest = [by_exit["deepest exit"] for by_exit in by_variant.values()]
    certain = [line for line in deepest if line["low"] is not None] or deepest  # one or two seeds may be high by chance
    best = max(certain, key=lambda line: line["mean"])
    title = f"Classes never seen: highest at the deepest exit on average: {short_name(best['label'])}, {best['mean']:.1f} %"
    drawn.update_layout(template=template(dark), width=860, height=380 + 22 * len(by_variant))
    drawn.update_layout(legend={"orientation": "h", "y": -0.24, "yanchor": "top"})
    note = "mean over n seeds, 95 % interval (three seeds or more); rings: single seeds"
    drawn.update_xaxes(tickvals=list(range(len(exits))), ticktext=exits, title=note)
    drawn.update_yaxes(title=f"{UNSEEN_METRICS[measure]} by {score} (%)")
    set_title(drawn, html.escape(title, quote=False), 96)
    return drawn


def _rings(points: Sequence[tuple[float, Mapping[str, Any]]], i: int) -> list[go.Scatter]:
    """One ring for each seed of the `i`-th variant, slightly to the right of the marks of its means.

    The list is empty for a summary that an earlier version of this library wrote: it has no values by seed.
    """
    found = [(x + 0.03, value, line, seed) for x, line in points for seed, value in line.get("by_seed", {}).items()]
    if not found:
        return []
    hover = [
        f"{hover_name(line['label'])}, {line['exit']}, seed {seed}<br>{v:.2f} %<extra></extra>" for _, v, line, seed in found
    ]
    look = {"symbol": "circle-open", "size": 5, "color": line_style(i)["color"]}
    x, y = [f[0] for f in found], [f[1] for f in found]
    return [go.Scatter(x=x, y=y, mode="markers", marker=look, showlegend=False, hovertemplate=hover)]


def _line_with_intervals(points: Sequence[tuple[float, Mapping[str, Any]]], i: int) -> go.Scatter:
    """Line of the `i`-th variant. `points`: pairs of a position on the axis and an entry of `unseen_lines`."""
    lines = [line for _, line in points]
    bars = [None if line["high"] is None else line["high"] - line["mean"] for line in lines]
    ends = ["" if line["low"] is None else f" [{line['low']:.2f}, {line['high']:.2f}]" for line in lines]
    label = f"{short_name(lines[0]['label'])} (n = {lines[0]['n']})"
    return go.Scatter(
        x=[x for x, _ in points],
        y=[line["mean"] for line in lines],
        error_y={"array": bars, "thickness": 1.6, "width": 4} if any(bars) else None,
        mode="lines+markers",
        name=html.escape(label),
        line=line_style(i),
        marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 9},
        hovertemplate=[
            f"{hover_name(label)}, {line['exit']}<br>{line['mean']:.2f}{end} %<extra></extra>"
            for line, end in zip(lines, ends, strict=True)
        ],
    )


def _gain_title(methods: Sequence[Mapping[str, Any]], reference: str) -> str:
    """Title of `gain_by_method`. `methods` are sorted by gain, the largest first; `reference` is the label of the baseline."""
    over = f"over {'the ' if reference[:1].islower() else ''}{reference}"
    if all(m["gain_low"] is None for m in methods):
        return f"No gain {over} has an interval: that takes three seeds that differ"
    best = next((m for m in methods if (m["gain_low"] or 0) > 0), None)
    if best is None:
        below = [short_name(m["label"]) for m in methods if (m["gain_high"] or 0) < 0]
        which = f"clearly below: {', '.join(below)}" if len(below) < 4 else f"{len(below)} lie clearly below"
        return f"No gain {over} has an interval above zero{f'; {which}' if below else ''}"
    ends = f"[{best['gain_low']:.1f}, {best['gain_high']:.1f}]"
    return f"Deepest exit: {short_name(best['label'])} gains {best['gain']:.1f} points {ends} {over}"


def _with_n(m: Mapping[str, Any]) -> str:
    """The label of a variant with its number of seeds, as in "CORSD (n = 3)"."""
    return f"{short_name(m['label'], 2 * LONGEST)} (n = {len(m['top1_by_seed'])})"


def _add_points(figure: go.Figure, points: Sequence[Point], unit: str, **style: Any) -> None:
    """Add a marker for each point, with a bar for its interval if it has one."""
    _, levels, means, _, highs = zip(*points, strict=True)
    bars = [None if high is None else high - mean for mean, high in zip(means, highs, strict=True)]
    error = {"array": bars, "thickness": 1.6, "width": 4} if any(bars) else None
    ends = ["" if low is None else f" [{low:.2f}, {high:.2f}]" for *_, low, high in points]
    text = [f"{hover_name(p[0])}<br>{p[2]:.2f}{end} {unit}<extra></extra>" for p, end in zip(points, ends, strict=True)]
    figure.add_scatter(x=means, y=levels, error_x=error, mode="markers", hovertemplate=text, **style)


def _with_rows(figure: go.Figure, labels: Sequence[str], title: str, dark: bool, *, legend: bool = False) -> go.Figure:
    """Give the figure one row for each of `labels`, from top to bottom, and a title; return the figure.

    With `legend` there is room for a legend between title and rows. Long labels are wrapped.
    """
    rows = {
        "tickvals": list(range(len(labels))),
        "ticktext": ["<br>".join(map(html.escape, textwrap.wrap(label, LONGEST + 8))) for label in labels],
        "zeroline": False,
    }
    below = 18 * max(0, (figure.layout.xaxis.title.text or "").count("<br>") - 1)  # room for more than two lines below the axis
    height = (130 if legend else 112) + below + 42 * len(labels)
    figure.update_layout(template=template(dark), width=860, height=height, xaxis_zeroline=False)
    figure.update_yaxes(**rows, range=[len(labels) - 0.4, -0.6])
    set_title(figure, html.escape(title, quote=False), 96, below=32 if legend else 0)
    return figure


def draw_figures(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the figures of a study into `folder` and return their paths.

    `accuracy.png` and `gain.png` show the group "methods". Every other group of variants has its own files,
    `accuracy_<group>.png` and `gain_<group>.png`. Gains are relative to the baseline. If all variants of a group inherit from
    the same variant, their gains are relative to that variant. `unseen.png` shows recall@1 of held-out classes, if there are
    any. Each figure takes seconds. Raises `CorsdError` if plotly, kaleido or Chromium is missing.
    """
    drawn = []
    for group in dict.fromkeys(m["group"] for m in summary["methods"].values()):
        part = {**summary, "methods": _with_references(summary, group)}
        pictures = {"accuracy": accuracy_by_method(part)}
        parents = {m["from"] for m in part["methods"].values() if m["group"] == group}
        if group != "methods":
            parents.discard(None)  # None: a variant without a parent
        versus = relative_to(part, *parents) if len(parents) == 1 and parents <= part["methods"].keys() else part
        if any(m["gain"] is not None for m in versus["methods"].values()):
            pictures["gain"] = gain_by_method(versus, sort=group != "methods")
        ending = ".png" if group == "methods" else f"_{group}.png"
        for name, picture in pictures.items():
            drawn.append(save_png(picture, folder / f"{name}{ending}", colors=256, within=folder))
    if summary.get("unseen"):
        drawn.append(save_png(unseen_by_exit(summary), folder / "unseen.png", colors=256, within=folder))
    return drawn


def _with_references(summary: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The variants of a group with their reference variants: the baseline, and the variants that they inherit from."""
    methods = summary["methods"]
    wanted = {summary["baseline"], *(m["from"] for m in methods.values() if m["group"] == group)}
    return {name: m for name, m in methods.items() if m["group"] == group or name in wanted}
