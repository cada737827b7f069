"""Relations of a run, exit by exit and epoch by epoch, down to two images."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar, overload

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
import traitlets

from corsd_lib.analysis.relations import KIND_NAMES
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.figures.style import short_name
from corsd_lib.pages import Panel, relation_panel
from corsd_lib.runs import Run
from corsd_lib.widgets.base import Explorer
from corsd_lib.widgets.pair import PairView
from corsd_lib.widgets.probe_images import ProbeImages
from corsd_lib.widgets.relation_figure import RelationFigure
from corsd_lib.widgets.relation_view import DEEPEST, LEVELS, OTHER, Relations, Scores, View

_ORDER_NAMES = {
    "label": "label",
    "superclass": "superclass",
    "cluster": "cluster",
    "superclass_cluster": "cluster within superclass",
}
T = TypeVar("T")
_NONE = ""  # in a list of choices: ipywidgets shows a choice of the value None as no choice at all
_HOW_TO = "Click a cell to open the pair; drag to zoom, double-click to zoom out."


class _Viewed(Generic[T]):
    """A field of the `View` that a `RelationExplorer` shows: read, or asked for."""

    def __init__(self, name: str, doc: str) -> None:
        self.name, self.__doc__ = name, doc

    @overload
    def __get__(self, explorer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, explorer: RelationExplorer, owner: type) -> T: ...
    def __get__(self, explorer: RelationExplorer | None, owner: type) -> Self | T:
        return self if explorer is None else getattr(explorer._shown.view, self.name)

    def __set__(self, explorer: RelationExplorer, value: T) -> None:
        explorer._ask(self.name, value)


class RelationExplorer(Explorer):
    """Relations of a run, at every exit and after every epoch that has a snapshot, down to two images and their pixels.

    Choose exit and epoch (or play them), the relation, classes or images, their order, a superclass, and what to subtract; a
    click on a cell, or the lists, opens the pair. `other`: a run on the same classes to compare with; `labels`: what the two
    are called, by default method and seed. The images are those of `data`, else of the run's own from `data_root`; without it a
    sentence stands in their place.

    All of it can be read and set: `exit` (1 = shallowest), `epoch`, `kind` ("trained", "cosine" or "l2"), `level` ("class" or
    "image"), `order` (see `class_order`; clusters are those of the deepest exit after the last epoch), `superclass` (a name or
    None), `against` ("deepest exit", an epoch, "other run" or None); the traits `selection` (two classes, by index or name, or
    None), `images` (two probe positions or None) and `marked` (probe positions). `matrix` is what is shown: (n, n) float32 in
    [0, 1], a difference in [-1, 1], rows as in `rows`. What cannot be raises `CorsdError` and leaves all as it was.
    """

    selection = traitlets.Any(allow_none=True, help="(first class, second class) as indices, or None")
    images = traitlets.Any(allow_none=True, help="(first, second) probe image, by position, or None")
    marked = traitlets.Any(
        (), help="positions of probe images: their classes are marked, and at level image only they are shown"
    )

    def __init__(
        self,
        run: Run,
        other: Run | None = None,
        *,
        labels: Sequence[str] = (),
        data: ImageData | None = None,
        data_root: str | None = None,
    ) -> None:
        self.run, self.other = run, other
        self._relations = Relations(run, other, labels)
        self._names, self._short = run.data.class_names, [short_name(name) for name in run.data.class_names]
        mine = self._relations.mine
        self._shown = self._relations.show(View(len(mine.exits(mine.stored)), mine.epochs[-1], mine.stored))
        self._following = self._opened = False  # opened: images of the selection were asked for
        self._make_controls()
        pictures = ProbeImages(run, data, data_root)
        self._pair_view = PairView(self._relations, pictures, self._open_images, self._relate_selected, self.busy)
        self.table = self._pair_view.table
        self._figure = RelationFigure(self._relations, self._shown)
        super().__init__(self._figure.widget, self._layout())
        self._connect()
        self._figure.draw(self._shown)
        with self._follow():
            self.selection = self._strongest_pair()
        self._pair_changed()

    # --- controls ---

    def _make_controls(self) -> None:
        relations, mine, view = self._relations, self._relations.mine, self._shown.view
        look = {"style": {"description_width": "80px"}, "layout": {"width": "270px"}}
        self.exit_choice = ipw.Dropdown(options=self._exit_options(), value=view.exit, description="exit", **look)
        self.epoch_slider = ipw.SelectionSlider(options=mine.epochs, value=view.epoch, description="epoch")
        last = len(mine.epochs) - 1
        self.play = ipw.Play(min=0, max=last, value=last, interval=300, show_repeat=False)
        levels = [(f"{level} x {level}", level) for level in LEVELS]
        self.level_choice = ipw.Dropdown(options=levels, description="level", **look)
        kinds = [("trained" if kind == "trained" else KIND_NAMES[kind], kind) for kind in mine.kinds]
        self.kind_choice = ipw.Dropdown(options=kinds, value=view.kind, description="relation", **look)
        orders = [(_ORDER_NAMES[order], order) for order in relations.orders]
        self.order_choice = ipw.Dropdown(options=orders, description="order by", **look)
        superclasses = [("all", _NONE), *((short_name(name), name) for name in relations.superclass_names)]
        self.superclass_choice = ipw.Dropdown(options=superclasses, description="superclass", **look)
        self.against_choice = ipw.Dropdown(options=self._references(), description="subtract", **look)
        classes = [("none", _NONE), *((name, k) for k, name in enumerate(self._short))]
        look = {"style": {"description_width": "90px"}, "layout": {"width": "340px"}}
        self.class_search = ipw.Combobox(
            options=self._short,
            placeholder="name, or part of it",
            description="find class",
            continuous_update=False,
            **look,
        )
        self.first_class = ipw.Dropdown(options=classes, description="first class", **look)
        self.second_class = ipw.Dropdown(options=classes, description="second class", **look)
        self.unmark = ipw.Button(description="Forget", icon="times", layout={"width": "max-content", "display": "none"})
        self.note = ipw.HTML(_HOW_TO)

    def _exit_options(self) -> list[tuple[str, int]]:
        return [(name, k) for k, name in enumerate(self._relations.mine.exits(self._shown.view.kind), 1)]

    def _references(self) -> list[tuple[str, str | int | None]]:
        epochs = [(f"epoch {epoch}", epoch) for epoch in self._relations.mine.epochs]
        others = [(f"other run: {self._relations.run_names[1]}", OTHER)] if self.other else []
        return [("nothing", _NONE), (DEEPEST, DEEPEST), *others, *epochs]

    def _layout(self) -> list[ipw.Widget]:
        wrap = {"flex_flow": "row wrap"}
        when = ipw.HBox([self.exit_choice, self.play, self.epoch_slider, self.against_choice], layout=wrap)
        hierarchy = [self.superclass_choice] if self._relations.superclass_names else []
        what = ipw.HBox([self.level_choice, self.kind_choice, self.order_choice, *hierarchy], layout=wrap)
        lists = [self.class_search, self.first_class, self.second_class, self.unmark]
        pair = ipw.VBox(
            [*lists, self._pair_view], layout={"padding": "20px 0 0 16px", "flex": "1 1 400px", "min_width": "400px"}
        )
        return [when, what, self.note, ipw.HBox([self._figure.widget, pair], layout=wrap)]

    def _connect(self) -> None:
        ipw.jslink((self.play, "value"), (self.epoch_slider, "index"))
        for control in self._view_controls().values():
            control.observe(self._controls_changed, "value")
        self.first_class.observe(self._classes_chosen, "value")
        self.second_class.observe(self._classes_chosen, "value")
        self.class_search.observe(self._searched, "value")
        self.unmark.on_click(lambda _: self.set_trait("marked", ()))
        self.figure.data[0].on_click(self._clicked)

    def _view_controls(self) -> dict[str, ipw.ValueWidget]:
        """The control of every field of a `View`."""
        return {
            "exit": self.exit_choice,
            "epoch": self.epoch_slider,
            "kind": self.kind_choice,
            "level": self.level_choice,
            "order": self.order_choice,
            "superclass": self.superclass_choice,
            "against": self.against_choice,
        }

    # --- what can be read and set ---

    exit = _Viewed[int]("exit", "The exit that is shown, 1 = shallowest.")
    epoch = _Viewed[int]("epoch", "The number of epochs after which the relation is shown.")
    kind = _Viewed[str]("kind", 'Which relation: "trained", "cosine" or "l2".')
    level = _Viewed[str]("level", 'What the cells are of, "class" or "image".')
    order = _Viewed[str]("order", "The order of the classes.")
    superclass = _Viewed[str | None]("superclass", "The superclass that is shown alone, by name.")
    against = _Viewed[str | int | None]("against", 'What is subtracted: "deepest exit", an epoch, "other run" or nothing.')

    @property
    def rows(self) -> list[int]:
        """What the rows, and columns, of the heatmap are, from the top: classes, or positions of probe images."""
        return self._shown.ordered

    @property
    def matrix(self) -> Scores:
        """What is shown, (n, n) float32: in [0, 1], or in [-1, 1] where something is subtracted."""
        return self._shown.values[np.ix_(self._shown.order, self._shown.order)]

    def _ask(self, name: str, value: Any) -> None:
        options = self._view_controls()[name].options
        check_choice(name, value, [_chosen(option[1] if isinstance(option, tuple) else option) for option in options])
        self._show(replace(self._shown.view, **{name: value}))

    def __repr__(self) -> str:
        return f"RelationExplorer({str(self.run.path)!r}, exit {self.exit}, epoch {self.epoch}, selection {self.selection})"

    def panels(self) -> list[Panel]:
        """The relations as a panel of a page that begins at this exit, epoch, order, pair and difference.

        A page holds the stored relation of all classes; where another is shown here, a sentence on it says so.
        """
        mine = self._relations.mine
        exit = self.exit + len(mine.exits(mine.stored)) - len(self._exit_options())
        there = {None: "nothing", DEEPEST: "deepest", mine.epochs[0]: "first", OTHER: 1}
        elsewhere = [
            *([KIND_NAMES[self.kind]] if self.kind != mine.stored else []),
            *(["relations of single images"] if self.level == "image" else []),
            *([f"the superclass {self.superclass} alone"] if self.superclass else []),
            *([f"the difference to epoch {self.against}"] if self.against not in there else []),
        ]
        text = f"Shown in the notebook, but not on this page: {', '.join(elsewhere)}." if elsewhere else ""
        start = {"exit": exit, "epoch": self.epoch, "order": self.order, "selection": self.selection}
        start |= {"against": there.get(self.against, "nothing"), "text": text}
        return [relation_panel(self.run, self.other, labels=self._relations.run_names, **start)]

    @traitlets.validate("selection")
    def _valid_selection(self, proposal: Any) -> tuple[int, int] | None:
        if proposal.value is None:
            return None
        if not isinstance(proposal.value, tuple | list) or len(proposal.value) != 2:
            raise CorsdError(f"selection {shortened(proposal.value)} must be two classes, by index or by name, or None")
        first, second = map(self._class_index, proposal.value)
        return first, second

    def _class_index(self, which: int | str) -> int:
        if isinstance(which, str):
            check_choice("class", which, self._names)
            return self._names.index(which)
        check_choice("class", which, range(len(self._names)))
        return int(which)

    @traitlets.validate("images")
    def _valid_images(self, proposal: Any) -> tuple[int, int] | None:
        if proposal.value is None:
            return None
        found = self._positions("images", proposal.value)
        if len(set(found)) != 2 or len(found) != 2:
            raise CorsdError(f"images {shortened(proposal.value)} must be the positions of two different probe images, or None")
        return found[0], found[1]

    @traitlets.validate("marked")
    def _valid_marked(self, proposal: Any) -> tuple[int, ...]:
        return self._positions("marked", proposal.value)

    def _positions(self, what: str, given: Any) -> tuple[int, ...]:
        count = len(self._relations.mine.labels)
        try:
            found = tuple(map(int, given))
        except (TypeError, ValueError):
            found = (-1,)
        if any(position not in range(count) for position in found):
            raise CorsdError(f"{what} {shortened(given)}: positions of probe images are wanted; allowed: 0 to {count - 1}")
        return found

    # --- what happens then ---

    @contextmanager
    def _follow(self) -> Iterator[None]:
        """Controls and traits are brought in line with each other: what changes meanwhile is nobody's choice."""
        before, self._following = self._following, True
        try:
            yield
        finally:
            self._following = before

    def _controls_changed(self, change: Any) -> None:
        if self._following:
            return
        try:
            self._show(View(**{name: _chosen(control.value) for name, control in self._view_controls().items()}))
        except CorsdError as error:
            self._line_up()
            self._say(str(error))

    def _say(self, text: str) -> None:
        self.note.value = f'<span role="status">{html.escape(text)}</span>'

    def _show(self, view: View) -> None:
        """Show `view`, or raise and leave all as it was."""
        slow = view.level == "image" or "cluster" in view.order
        with self.busy("relating") if slow else nullcontext():
            self._shown = self._relations.show(view, self.marked if view.level == "image" else ())
            self._line_up()
            self._figure.draw(self._shown, len(self.marked))
            self._draw_pair()

    def _line_up(self) -> None:
        """The controls say what is shown."""
        with self._follow():
            if self.exit_choice.options != tuple(self._exit_options()):
                self.exit_choice.options = self._exit_options()
            for name, control in self._view_controls().items():
                value = getattr(self._shown.view, name)
                control.value = _NONE if value is None else value
            self.note.value = _HOW_TO

    def _clicked(self, trace: go.Heatmap, points: Any, state: Any) -> None:
        if not points.point_inds:
            return
        rows = self._shown.rows
        first, second = (int(rows[k]) for k in divmod(int(points.point_inds[0]), len(rows)))  # the cell's place in the columns
        if self.level == "class":
            if self.selection == (first, second):  # no change that would be told, but perhaps other images are open
                self._open_likeliest()
            self.selection = first, second
        elif first != second:
            self.images = first, second

    def _classes_chosen(self, change: Any) -> None:
        pair = (self.first_class.value, self.second_class.value)
        if _NONE not in pair and not self._following:
            self.selection = pair

    def _searched(self, change: Any) -> None:
        """Open the class that was typed, or the only one with that in its name, beside the one most related to it."""
        text = self.class_search.value.strip()
        if not text:
            return
        same = [k for k, name in enumerate(self._names) if text in (name, self._short[k])]
        found = same or [k for k, name in enumerate(self._names) if text.casefold() in name.casefold()]
        if len(found) != 1:
            names = ", ".join(self._short[k] for k in found[:12]) + (", …" if len(found) > 12 else "")
            self._say(
                f"{len(found)} classes with {text!r} in their names: {names}" if found else f"No class is called {text!r}"
            )
            return
        mine, view = self._relations.mine, self._shown.view
        related = mine.classes(view.epoch, view.exit, view.kind)[found[0]].copy()
        related[found[0]] = np.nan
        self.note.value = _HOW_TO
        self.selection = found[0], found[0] if np.isnan(related).all() else int(np.nanargmax(related))

    @traitlets.observe("selection")
    def _selected(self, change: Any) -> None:
        if not self._following:
            self._open_likeliest()

    def _open_likeliest(self) -> None:
        """Open the most related images of the selected classes."""
        self._opened = self.selection is not None
        with self.busy("looking at the images"), self._follow():
            self.images = self._most_related_images()
            self._pair_changed()

    def _most_related_images(self) -> tuple[int, int] | None:
        """By the relation that is shown; by the cosine where that one is not of single images."""
        if self.selection is None:
            return None
        mine, view = self._relations.mine, self._shown.view
        for asked in (view, replace(view, kind="cosine", exit=len(mine.exits("cosine")))):
            with suppress(CorsdError):
                return next((pair for _, pair in mine.ranked(asked, *self.selection)), None)
        return None

    def _open_images(self, pair: tuple[int, int]) -> None:
        self.images = pair

    @traitlets.observe("images")
    def _images_chosen(self, change: Any) -> None:
        if self._following:
            return
        with self.busy("looking at the images"), self._follow():
            if self.images is not None:
                self.selection = tuple(int(self._relations.mine.labels[position]) for position in self.images)
            self._pair_changed()

    def _relate_selected(self) -> None:
        """All images of the selected classes against each other."""
        if self.selection is not None:
            self.marked = tuple(np.flatnonzero(np.isin(self._relations.mine.labels, self.selection)).tolist())
            self._show(replace(self._shown.view, level="image", superclass=None))

    @traitlets.observe("marked")
    def _marks_changed(self, change: Any) -> None:
        self.unmark.layout.display = None if self.marked else "none"
        self.unmark.description = f"Forget {len(self.marked)} marks"
        try:
            self._show(self._shown.view)
        except CorsdError as error:  # none of them is in the superclass
            self._say(str(error))

    def _pair_changed(self) -> None:
        with self._follow():
            self.first_class.value, self.second_class.value = self.selection or (_NONE, _NONE)
        self._draw_pair()

    def _draw_pair(self) -> None:
        view, by_class = self._shown.view, self.level == "class"
        labels = self._relations.mine.labels if by_class and self.marked else np.array([])
        self._figure.draw_over(
            self._shown, self.selection if by_class else self.images, {int(labels[p]) for p in self.marked if by_class}
        )
        self._pair_view.show(view, self.selection, self.images, self._opened)

    def _strongest_pair(self) -> tuple[int, int] | None:
        """The two different classes that are most related: a first thing to look at."""
        others = np.where(np.eye(len(self._names), dtype=bool), np.nan, self.matrix)
        if np.isnan(others).all():
            return None
        row, column = np.unravel_index(np.nanargmax(others), others.shape)
        return int(row), int(column)


def _chosen(value: Any) -> Any:
    """What a control's value stands for; 0, an epoch, is not nothing."""
    return None if value == _NONE else value
