"""Relations of a run, exit by exit and epoch by epoch."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
import traitlets

from corsd_lib.errors import CorsdError, check_choice
from corsd_lib.figures.relations import relation_heatmap
from corsd_lib.figures.style import PALETTE, as_scores, exit_names, set_title
from corsd_lib.runs import Run
from corsd_lib.widgets.base import Explorer, Scores, cell_by_cell


class RelationExplorer(Explorer):
    """Class x class relation of a run, at every exit and after every epoch that has a snapshot.

    Choose exit and epoch (or play them); a click on a cell, or the two class lists, selects a pair of classes and shows its
    relation at every exit. `explorer.exit` (1 = shallowest), `.epoch` and `.selection` (two class indices or names; None for
    none) can be read and set; `.matrix` is what is shown, (C, C) float32. Raises `CorsdError` for a run without snapshots.
    """

    selection = traitlets.Any(allow_none=True, help="(first class, second class) as indices, or None")

    def __init__(self, run: Run) -> None:
        self.run, self._probes = run, run.probes
        self._cache: dict[int, list[Scores]] = {}
        self._following = False
        if not self._probes:
            raise CorsdError(f"{run.path} has no probe snapshots to explore: train with probe_every above 0")
        self._names = run.data.class_names
        epochs = list(self._probes)
        last = self._probes[epochs[-1]]
        self._exits = exit_names(len(last.relations), "exit" if len(last.logits) == len(last.relations) else "stage")
        self._score = "relation" if last.relation_state else "cosine relation"
        self.exit_choice = ipw.Dropdown(
            options=[(name, k) for k, name in enumerate(self._exits, 1)], value=len(self._exits), description="exit"
        )
        self.epoch_slider = ipw.SelectionSlider(options=epochs, value=epochs[-1], description="epoch", continuous_update=True)
        self.play = ipw.Play(min=0, max=len(epochs) - 1, value=len(epochs) - 1, interval=300, show_repeat=False)
        classes = [("none", None), *((name, k) for k, name in enumerate(self._names))]
        look = {"style": {"description_width": "90px"}, "layout": {"width": "260px"}}
        self.first_class = ipw.Dropdown(options=classes, description="first class", **look)
        self.second_class = ipw.Dropdown(options=classes, description="second class", **look)
        self.table = ipw.HTML()
        matrix = self.relations(epochs[-1])[-1]
        figure = go.FigureWidget(relation_heatmap(matrix, self._names).for_each_trace(cell_by_cell))
        side = 480 if len(self._names) <= 20 else 680
        figure.update_layout(width=side + 10, height=side)
        super().__init__(figure, self._layout(figure))
        self._connect()
        self._draw()
        self.selection = self._strongest_pair()

    def _layout(self, figure: go.FigureWidget) -> list[ipw.Widget]:
        controls = ipw.HBox([self.exit_choice, self.play, self.epoch_slider], layout={"flex_flow": "row wrap"})
        pair = ipw.VBox([self.first_class, self.second_class, self.table], layout={"padding": "40px 0 0 16px"})
        return [controls, ipw.HBox([figure, pair], layout={"flex_flow": "row wrap"})]

    def _connect(self) -> None:
        ipw.jslink((self.play, "value"), (self.epoch_slider, "index"))
        for control in (self.exit_choice, self.epoch_slider):
            control.observe(lambda _: self._draw(), "value")
        for control in (self.first_class, self.second_class):
            control.observe(self._classes_chosen, "value")
        self.figure.data[0].on_click(self._clicked)

    # --- what can be read and set ---

    @property
    def exit(self) -> int:
        """The exit that is shown, 1 = shallowest."""
        return self.exit_choice.value

    @exit.setter
    def exit(self, number: int) -> None:
        check_choice("exit", number, range(1, len(self._exits) + 1))
        self.exit_choice.value = number

    @property
    def epoch(self) -> int:
        """The number of epochs after which the relation is shown."""
        return self.epoch_slider.value

    @epoch.setter
    def epoch(self, number: int) -> None:
        check_choice("epoch", number, self._probes)
        self.epoch_slider.value = number

    @property
    def matrix(self) -> Scores:
        """What is shown, (C, C) float32 in [0, 1]."""
        return self.relations(self.epoch)[self.exit - 1]

    def relations(self, epoch: int) -> list[Scores]:
        """Matrices (C, C) of all exits after `epoch`, read from disk the first time."""
        if epoch not in self._cache:
            self._cache[epoch] = [as_scores(matrix.numpy()) for matrix in self._probes[epoch].relations]
        return self._cache[epoch]

    def __repr__(self) -> str:
        return f"RelationExplorer({str(self.run.path)!r}, exit {self.exit}, epoch {self.epoch}, selection {self.selection})"

    @traitlets.validate("selection")
    def _valid_selection(self, proposal: Any) -> tuple[int, int] | None:
        if proposal.value is None:
            return None
        if not isinstance(proposal.value, tuple | list) or len(proposal.value) != 2:
            raise CorsdError(f"selection {proposal.value!r} must be two classes, by index or by name, or None")
        first, second = map(self._class_index, proposal.value)
        return first, second

    def _class_index(self, which: int | str) -> int:
        if isinstance(which, str):
            check_choice("class", which, self._names)
            return self._names.index(which)
        check_choice("class", which, range(len(self._names)))
        return int(which)

    # --- what happens then ---

    def _clicked(self, trace: go.Heatmap, points: Any, state: Any) -> None:
        if points.point_inds:  # the cell's place in the columns
            self.selection = divmod(int(points.point_inds[0]), len(self._names))

    def _classes_chosen(self, change: Any) -> None:
        pair = (self.first_class.value, self.second_class.value)
        if None not in pair and not self._following:
            self.selection = pair

    @traitlets.observe("selection")
    def _selected(self, change: Any) -> None:
        self._following = True  # the lists change one by one: the pair in between is nobody's choice
        self.first_class.value, self.second_class.value = self.selection or (None, None)
        self._following = False
        self.figure.layout.shapes = () if self.selection is None else (_frame(*self.selection),)
        self._tabulate()

    def _draw(self) -> None:
        matrix = self.matrix
        within, between = np.nanmean(np.diag(matrix)), np.nanmean(matrix[~np.eye(len(matrix), dtype=bool)])
        finding = f"{self._score} {within:.2f} within a class, {between:.2f} between classes"
        with self.figure.batch_update():
            self.figure.data[0].z = matrix.ravel()
            set_title(self.figure, f"{self._exits[self.exit - 1]}, epoch {self.epoch}\n{finding}", 64)
        self._tabulate()

    def _tabulate(self) -> None:
        """The selected pair at every exit, both ways round: a trained relation need not be symmetric."""
        if self.selection is None:
            self.table.value = "Click a cell, or choose two classes."
            return
        c, d = self.selection
        first, second = (html.escape(self._names[k]) for k in (c, d))
        ways = [(c, d), (d, c)] if c != d else [(c, d)]
        head = "".join(f"<th>{html.escape(self._names[i])} → {html.escape(self._names[j])}</th>" for i, j in ways)
        rows = (
            f"<tr><th>{name}</th>{''.join(f'<td>{matrix[i, j]:.3f}</td>' for i, j in ways)}</tr>"
            for name, matrix in zip(self._exits, self.relations(self.epoch), strict=True)
        )
        caption = f"<caption>{self._score} of <b>{first}</b> and <b>{second}</b>, epoch {self.epoch}</caption>"
        self.table.value = f"<table>{caption}<tr><th></th>{head}</tr>{''.join(rows)}</table>"

    def _strongest_pair(self) -> tuple[int, int] | None:
        """The two different classes that are most related: a first thing to look at."""
        others = np.where(np.eye(len(self._names), dtype=bool), np.nan, self.matrix)
        if np.isnan(others).all():
            return None
        row, column = np.unravel_index(np.nanargmax(others), others.shape)
        return int(row), int(column)


def _frame(row: int, column: int) -> dict[str, Any]:
    """A frame around one cell of the heatmap."""
    line = {"color": PALETTE[1], "width": 3}
    return {"type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5, "line": line}
