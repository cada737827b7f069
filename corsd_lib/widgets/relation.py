"""Relations of a run, exit by exit and epoch by epoch, down to two images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import traitlets

from corsd_lib.analysis.relations import KIND_NAMES
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.runs import Run, check_run
from corsd_lib.sharing.pages import Panel, relation_panel
from corsd_lib.sharing.pages.panels import FINE_LEVELS, as_codes, first_pair, relation_data, relation_state
from corsd_lib.widgets.host import Chosen, Explorer, checked
from corsd_lib.widgets.pair import most_related_images, pair_facts, pixel_facts
from corsd_lib.widgets.probe_images import ProbeImages
from corsd_lib.widgets.relation_picture import relation_picture
from corsd_lib.widgets.relation_view import DEEPEST, LEVELS, MOST_IMAGES, OTHER, Relations, Scores, Shown, View
from corsd_lib.widgets.thumbnails import Thumbnails

_VIEW = ("exit", "epoch", "kind", "level", "order", "superclass", "against")
COLOURS = ("fixed", "fitted")
PICTURE_IMAGES = 200  # side of a stored picture of images, which plotly draws


class RelationExplorer(Explorer):
    """Relations of a run, at every exit and after every epoch that has a snapshot, down to two images and their pixels.

    Choose exit and epoch (or play them), the relation, classes or images, their order, a superclass, and what to subtract; a
    click on a cell, the arrow keys, or the lists open a pair, and lists name pairs worth a look. `other`: a run on the same
    classes to compare with; `labels`: what the two are called, by default method and seed. The images are those of `data`, else
    of the run's own from `data_root`; without it a sentence stands in their place.

    All of it can be read, set and observed: `exit` (1 = shallowest), `epoch`, `kind` ("trained", "cosine" or "l2"), `level`
    ("class" or "image"), `order` (see `class_order`; clusters are those of the deepest exit after the last epoch), `superclass`
    (a name or None), `against` ("deepest exit", an epoch, "other run" or None), `colours` ("fixed" or "fitted" to the data),
    `selection` (two classes, by index or name, or None), `images` (two probe positions or None) and `marked` (probe positions).
    `matrix` is what is shown: (n, n) float32 in [0, 1], a difference in [-1, 1], rows as in `rows`. What cannot be raises
    `CorsdError` and leaves all as it was.
    """

    script = "relation"
    chosen = (*_VIEW, "colours", "selection", "images", "marked")

    exit = Chosen(help="the exit that is shown, 1 = shallowest")
    epoch = Chosen(help="the number of epochs after which the relation is shown")
    kind = Chosen(help='which relation: "trained", "cosine" or "l2"')
    level = Chosen("class", help='what the cells are of, "class" or "image"')
    order = Chosen("label", help="the order of the classes")
    superclass = Chosen(help="the superclass that is shown alone, by name")
    against = Chosen(help='what is subtracted: "deepest exit", an epoch, "other run" or None')
    colours = Chosen("fixed", help='the colour range: "fixed" or "fitted" to what is shown')
    selection = Chosen(help="(first class, second class) as indices, or None")
    images = Chosen(help="(first, second) probe image, by position, or None")
    marked = Chosen((), help="positions of probe images: their classes are marked, and at level image only they are shown")

    def __init__(
        self,
        run: Run,
        other: Run | None = None,
        *,
        labels: Sequence[str] = (),
        data: ImageData | None = None,
        data_root: str | None = None,
    ) -> None:
        for given in (run, *([] if other is None else [other])):
            check_run(given)
        self.run, self.other = run, other
        self._open = False  # what is chosen at first has no consequences
        self._relations = relations = Relations(run, other, labels)
        self._images = ProbeImages(run, data, data_root)
        self._thumbnails = Thumbnails(run, self._images)
        mine = relations.mine
        epoch, exit = mine.epochs[-1], len(mine.exits(mine.stored))
        first = first_pair(run, exit, epoch)
        state = relation_state(run, exit=exit, epoch=epoch, selection=first) | {"selection": first, "marked": ()}
        super().__init__(self._what_is_shown(), **state)
        self._open = True

    def _what_is_shown(self) -> dict[str, Any]:
        relations = self._relations
        runs = [r for r in (relations.mine, relations.other) if r]
        data = relation_data([r.run for r in runs], labels=relations.run_names, orders=relations.orders)
        for shown, run in zip(data["runs"], runs, strict=True):
            shown |= {"kinds": {kind: run.exits(kind) for kind in run.kinds}, "all_epochs": run.epochs}
        kinds = [[kind, "trained" if kind == "trained" else KIND_NAMES[kind]] for kind in relations.mine.kinds]
        if not relations.superclass_names:
            data |= {"superclasses": [], "superclass_names": []}
        # Epochs that are left out are asked for; what is marked in one explorer is marked in those that are given it.
        return data | {"kinds": kinds, "text": "", "most_images": MOST_IMAGES, "key": f"{id(self)}"}

    # --- what can be read and set ---

    @property
    def rows(self) -> list[int]:
        """What the rows, and columns, of the heatmap are, from the top: classes, or positions of probe images."""
        return self._shown().ordered

    @property
    def matrix(self) -> Scores:
        """What is shown, (n, n) float32: in [0, 1], or in [-1, 1] where something is subtracted."""
        shown = self._shown()
        return shown.values[np.ix_(shown.order, shown.order)]

    def _view(self, **other: Any) -> View:
        return View(**{name: self.proposed(name) for name in _VIEW} | other)

    def _shown(self, most: int = MOST_IMAGES) -> Shown:
        return self._relations.show(self._view(), self.marked if self.level == "image" else (), most)

    def __repr__(self) -> str:
        return f"RelationExplorer({str(self.run.path)!r}, exit {self.exit}, epoch {self.epoch}, selection {self.selection})"

    _valid = checked(*chosen)

    def check(self, name: str, value: Any) -> Any:
        if name in _VIEW:
            self._check_field(name, value)
            if name in ("level", "superclass", "against"):
                view = self._view(**{name: value})
                self._relations.check(view, self.proposed("marked") if view.level == "image" else ())
            return value
        if name == "colours":
            check_choice("colours", value, COLOURS)
            return value
        if name == "marked":
            return self._positions("marked", value)
        if value is None:
            return None
        return self._pair_of_classes(value) if name == "selection" else self._pair_of_images(value)

    def _check_field(self, name: str, value: Any) -> None:
        mine, kind = self._relations.mine, self.proposed("kind")
        allowed: dict[str, Sequence[Any]] = {
            "exit": range(1, len(mine.exits(kind if kind in mine.kinds else mine.stored)) + 1),
            "epoch": mine.epochs,
            "kind": mine.kinds,
            "level": LEVELS,
            "order": self._relations.orders,
            "superclass": [None, *self._relations.superclass_names],
            "against": [None, DEEPEST, *([OTHER] if self.other else []), *mine.epochs],
        }
        check_choice(name, value, allowed[name])

    def _pair_of_classes(self, value: Any) -> tuple[int, int]:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise CorsdError(f"selection {shortened(value)} must be two classes, by index or by name, or None")
        first, second = map(self._class_index, value)
        return first, second

    def _class_index(self, which: int | str) -> int:
        names = self.run.data.class_names
        if isinstance(which, str):
            check_choice("class", which, names)
            return names.index(which)
        check_choice("class", which, range(len(names)))
        return int(which)

    def _pair_of_images(self, value: Any) -> tuple[int, int]:
        found = self._positions("images", value)
        if len(set(found)) != 2 or len(found) != 2:
            raise CorsdError(f"images {shortened(value)} must be the positions of two different probe images, or None")
        return found[0], found[1]

    def _positions(self, what: str, given: Any) -> tuple[int, ...]:
        count = len(self._relations.mine.labels)
        try:
            found = tuple(map(int, given))
        except (TypeError, ValueError):
            found = (-1,)
        if any(position not in range(count) for position in found):
            raise CorsdError(f"{what} {shortened(given)}: positions of probe images are wanted; allowed: 0 to {count - 1}")
        return found

    # --- what follows from a choice ---

    @traitlets.observe("kind")
    def _kind_chosen(self, change: Any) -> None:
        self.exit = min(self.exit, len(self._relations.mine.exits(self.kind)))

    @traitlets.observe("selection")
    def _selected(self, change: Any) -> None:
        """The most related images of the selected classes are opened with them."""
        if self._open and (self.selection is None or self._classes_of_images() != self.selection):
            self.images = most_related_images(self._relations.mine, self._view(), self.selection)

    @traitlets.observe("images")
    def _images_chosen(self, change: Any) -> None:
        if self.images is not None:
            self.selection = self._classes_of_images()

    def _classes_of_images(self) -> tuple[int, ...] | None:
        labels = self._relations.mine.labels
        return None if self.images is None else tuple(int(labels[position]) for position in self.images)

    # --- what the browser asks for ---

    def ask_classes(self, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Relations of classes by "run/kind/epoch": of what is not stored, or was left out."""
        found = []
        for place, kind, epoch in (each.split("/") for each in wanted):
            run = self._relations.mine if place == "0" or self._relations.other is None else self._relations.other
            matrices = [run.classes(int(epoch), k, kind) for k in range(1, len(run.exits(kind)) + 1)]
            codes = as_codes(torch.from_numpy(np.stack(matrices)), FINE_LEVELS)
            found.append({"run": int(place), "kind": kind, "epoch": int(epoch), "codes": codes, "levels": FINE_LEVELS})
        return found

    def ask_images(
        self, run: int, kind: str, epoch: int, exit: int, rows: Sequence[int], columns: Sequence[int]
    ) -> dict[str, Any]:
        """A block of the relation of probe images at the `exit` (1 = shallowest) of a run: `rows` with `columns`."""
        if run:
            self._relations.check_same_images()
        of = self._relations.mine if run == 0 or self._relations.other is None else self._relations.other
        scores = of.images(epoch, exit, kind, self._positions("images", rows), self._positions("images", columns))
        return {"codes": as_codes(torch.from_numpy(scores), FINE_LEVELS), "levels": FINE_LEVELS}

    def ask_pair(self, **state: Any) -> dict[str, Any]:
        """Two images of the selected classes: those that are open, else the most related."""
        view, mine = _view_of(state), self._relations.mine
        classes, images = tuple(state["selection"]), state["images"]
        if images is None or tuple(int(mine.labels[p]) for p in images) != classes:
            images = most_related_images(mine, view, classes)
            if classes == self.selection:  # else the selection has changed since, and the browser sends the new one next
                self.images = images
        return pair_facts(self._relations, self._thumbnails, view, classes, images and tuple(images))

    def ask_pixels(self, **state: Any) -> dict[str, Any]:
        """Which pixels relate the two images that are open, by the newest weights."""
        view, mine = _view_of(state), self._relations.mine
        exit = view.exit + len(mine.exits(mine.stored)) - len(mine.exits(view.kind))
        return pixel_facts(mine.run, tuple(state["images"]), exit, self._images)

    def ask_faces(self, positions: Sequence[int]) -> dict[int, bytes]:
        """PNGs of probe images; none where the data is not."""
        return dict(self._thumbnails.of(positions))

    # --- files ---

    def faces(self, images: bool | None) -> dict[str, Any]:
        return self._thumbnails.packed(np.unique(self._relations.mine.labels, return_index=True)[1].tolist(), images)

    def picture(self) -> go.Figure:
        return relation_picture(self._relations, self._shown(PICTURE_IMAGES), self.selection, self.images, self.marked)

    def panels(self) -> list[Panel]:
        """The relations as a panel of a page that begins at this exit, epoch, order, pair and difference.

        A page holds the stored relation of all classes; a note says if another relation is shown here.
        """
        mine = self._relations.mine
        exit = self.exit + len(mine.exits(mine.stored)) - len(mine.exits(self.kind))
        elsewhere = [
            *([KIND_NAMES[self.kind]] if self.kind != mine.stored else []),
            *(["relations of single images"] if self.level == "image" else []),
        ]
        text = f"Shown in the notebook, but not on this page: {', '.join(elsewhere)}." if elsewhere else ""
        names = self._relations.run_names
        panel = relation_panel(self.run, self.other, labels=names, exit=exit, epoch=self.epoch, order=self.order, text=text)
        kept = {"superclass", "against", "colours", "selection", "marked"}
        panel.data["start"] |= {name: _plain(getattr(self, name)) for name in kept}
        return [panel]


def _view_of(state: dict[str, Any]) -> View:
    """What a question is about: the state as the browser had it."""
    return View(**{name: state[name] for name in _VIEW})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
