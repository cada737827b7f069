"""RelationExplorer: relations of a run at every exit and epoch, of classes and of single images."""

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

_VIEW = ("exit", "epoch", "kind", "level", "order", "superclass", "reference")
COLOURS = ("fixed", "fitted")
PICTURE_IMAGES = 200  # largest number of images in a static picture, which plotly draws


class RelationExplorer(Explorer):
    """Heatmaps of the relations of a run, between classes or between images, at every exit and every epoch with a snapshot.

    Controls choose exit and epoch (or play through them), the kind of relation, classes or images, their order, a superclass,
    and what to subtract. A click on a cell, the arrow keys or the two lists of names select a pair and show its images, its
    relation at every exit, and the pixels that the relation depends on. Further lists contain the most notable pairs. `other`:
    a run on the same classes to compare with. `labels`: names of the two runs, by default method and seed. Images come from
    `data`, by default the data of the run in `data_root`; if it is missing, a message is shown instead.

    These traits can be read, set and observed:

    - `exit` (1 = shallowest), `epoch`, `kind` ("trained", "cosine" or "l2") and `level` ("class" or "image");
    - `order`: see `class_order`; clusters are those of the deepest exit after the last epoch;
    - `superclass`: name of the only superclass that is shown, or None for all;
    - `reference`: the relation that is subtracted: "deepest exit", an epoch (its number), "other run", or None for nothing;
    - `colours`: "fixed", or "fitted" to the data;
    - `selection`: two classes, by index or name, or None; `images`: two indices in the probe set, or None;
    - `marked`: indices in the probe set. At level "class" the classes of these images are marked; at level "image" only these
      images are shown.

    These can be read: `matrix`, the cells that are shown, (n, n) float32 in [0, 1], or in [-1, 1] for a difference; and `rows`,
    the classes or probe images of its rows.

    Raises `CorsdError` for a run without snapshots, and if `other` has other classes. Setting an invalid value raises
    `CorsdError` and changes nothing.
    """

    script = "relation"
    chosen = (*_VIEW, "colours", "selection", "images", "marked")
    coupled = ("selection", "images")

    exit = Chosen(help="the exit that is shown, 1 = shallowest")
    epoch = Chosen(help="the number of epochs after which the relation is shown")
    kind = Chosen(help='which relation: "trained", "cosine" or "l2"')
    level = Chosen("class", help='what each row and column is, "class" or "image"')
    order = Chosen("label", help="the order of the classes")
    superclass = Chosen(help="the superclass that is shown alone, by name")
    reference = Chosen(help='what is subtracted: "deepest exit", an epoch, "other run" or None')
    colours = Chosen("fixed", help='the colour range: "fixed" or "fitted" to what is shown')
    selection = Chosen(help="(first class, second class) as indices, or None")
    images = Chosen(help="(first image, second image) as indices in the probe set, or None")
    marked = Chosen(
        (), help='indices in the probe set: the classes of these images are marked, and with level "image" only they are shown'
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
        for given in (run, *([] if other is None else [other])):
            check_run(given)
        self.run, self.other = run, other
        self._open = False  # True after __init__, so that the initial selection does not load images
        self._relations = relations = Relations(run, other, labels)
        self._images = ProbeImages(run, data, data_root)
        self._thumbnails = Thumbnails(run, self._images)
        main = relations.main
        epoch, exit = main.epochs[-1], len(main.exits(main.stored))
        first = first_pair(run, exit, epoch)
        state = relation_state(run, exit=exit, epoch=epoch, selection=first) | {"selection": first, "marked": ()}
        super().__init__(self._what_is_shown(), **state)
        self._open = True

    def _what_is_shown(self) -> dict[str, Any]:
        relations = self._relations
        runs = [r for r in (relations.main, relations.other) if r]
        data = relation_data([r.run for r in runs], labels=relations.run_names, orders=relations.orders)
        for shown, run in zip(data["runs"], runs, strict=True):
            shown |= {"kinds": {kind: run.exits(kind) for kind in run.kinds}, "all_epochs": run.epochs}
        kinds = [[kind, "trained" if kind == "trained" else KIND_NAMES[kind]] for kind in relations.main.kinds]
        if not relations.superclass_names:
            data |= {"superclasses": [], "superclass_names": []}
        # The browser requests epochs that are not in this data. An explorer with the same key marks images in this one.
        return data | {"kinds": kinds, "text": "", "most_images": MOST_IMAGES, "key": f"{id(self)}"}

    # --- what can be read and set ---

    @property
    def rows(self) -> list[int]:
        """Rows (and columns) of the heatmap from the top: class indices, or indices of probe images."""
        return self._shown().ordered

    @property
    def matrix(self) -> Scores:
        """Cells that are shown, (n, n) float32: in [0, 1], or in [-1, 1] if a reference is subtracted."""
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
            if name in ("level", "superclass", "reference"):
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
        main, kind = self._relations.main, self.proposed("kind")
        allowed: dict[str, Sequence[Any]] = {
            "exit": range(1, len(main.exits(kind if kind in main.kinds else main.stored)) + 1),
            "epoch": main.epochs,
            "kind": main.kinds,
            "level": LEVELS,
            "order": self._relations.orders,
            "superclass": [None, *self._relations.superclass_names],
            "reference": [None, DEEPEST, *([OTHER] if self.other else []), *main.epochs],
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
            raise CorsdError(f"images {shortened(value)} must be the indices of two different probe images, or None")
        return found[0], found[1]

    def _positions(self, what: str, given: Any) -> tuple[int, ...]:
        count = len(self._relations.main.labels)
        try:
            found = tuple(map(int, given))
        except (TypeError, ValueError):
            found = (-1,)
        if any(position not in range(count) for position in found):
            raise CorsdError(f"{what} {shortened(given)} must be indices in the probe set; allowed: 0 to {count - 1}")
        return found

    # --- consequences of a choice ---

    @traitlets.observe("kind")
    def _kind_chosen(self, change: Any) -> None:
        self.exit = min(self.exit, len(self._relations.main.exits(self.kind)))

    @traitlets.observe("selection")
    def _selected(self, change: Any) -> None:
        """Set `images` to the most related images of the selected classes."""
        if self._open and (self.selection is None or self._classes_of_images() != self.selection):
            self.images = most_related_images(self._relations.main, self._view(), self.selection)

    @traitlets.observe("images")
    def _images_chosen(self, change: Any) -> None:
        if self.images is not None:
            self.selection = self._classes_of_images()

    def _classes_of_images(self) -> tuple[int, ...] | None:
        labels = self._relations.main.labels
        return None if self.images is None else tuple(int(labels[position]) for position in self.images)

    # --- answers to requests of the browser ---

    def ask_classes(self, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Answer to a request of the browser: class-level relations for each "run/kind/epoch" in `wanted`."""
        found = []
        for place, kind, epoch in (each.split("/") for each in wanted):
            run = self._relations.main if place == "0" or self._relations.other is None else self._relations.other
            matrices = [run.classes(int(epoch), k, kind) for k in range(1, len(run.exits(kind)) + 1)]
            codes = as_codes(torch.from_numpy(np.stack(matrices)), FINE_LEVELS)
            found.append({"run": int(place), "kind": kind, "epoch": int(epoch), "codes": codes, "levels": FINE_LEVELS})
        return found

    def ask_images(
        self, run: int, kind: str, epoch: int, exit: int, rows: Sequence[int], columns: Sequence[int]
    ) -> dict[str, Any]:
        """Answer to a request of the browser: scores of the probe images `rows` with `columns` at `exit` (1 = shallowest).

        `run`: 0 for the run of this explorer, 1 for the other run.
        """
        if run:
            self._relations.check_same_images()
        of = self._relations.main if run == 0 or self._relations.other is None else self._relations.other
        scores = of.images(epoch, exit, kind, self._positions("images", rows), self._positions("images", columns))
        return {"codes": as_codes(torch.from_numpy(scores), FINE_LEVELS), "levels": FINE_LEVELS}

    def ask_pair(self, **state: Any) -> dict[str, Any]:
        """Answer to a request of the browser: facts about two images of the selected classes.

        The two images are the selected ones (`images`) if they belong to the selected classes, else the most related ones.
        """
        view, main = _view_of(state), self._relations.main
        classes, images = tuple(state["selection"]), state["images"]
        if images is None or tuple(int(main.labels[p]) for p in images) != classes:
            images = most_related_images(main, view, classes)
            if classes == self.selection:  # else the selection has changed since, and the browser sends the new one next
                self.images = images
        return pair_facts(self._relations, self._thumbnails, view, classes, images and tuple(images))

    def ask_pixels(self, **state: Any) -> dict[str, Any]:
        """Answer to a request of the browser: pixel maps of the relation of the two selected images (newest weights)."""
        view, main = _view_of(state), self._relations.main
        exit = view.exit + len(main.exits(main.stored)) - len(main.exits(view.kind))
        return pixel_facts(main.run, tuple(state["images"]), exit, self._images)

    def ask_faces(self, positions: Sequence[int]) -> dict[int, bytes]:
        """Answer to a request of the browser: a dict index -> PNG of probe images; empty if the data is missing."""
        return dict(self._thumbnails.of(positions))

    # --- files ---

    def faces(self, images: bool | None) -> dict[str, Any]:
        return self._thumbnails.packed(np.unique(self._relations.main.labels, return_index=True)[1].tolist(), images)

    def picture(self) -> go.Figure:
        return relation_picture(self._relations, self._shown(PICTURE_IMAGES), self.selection, self.images, self.marked)

    def panels(self) -> list[Panel]:
        """The relations as a panel of a page, which opens with the current exit, epoch, order, pair and difference.

        The page has the stored class-level relation; if the explorer shows another relation, a note says so.
        """
        main = self._relations.main
        exit = self.exit + len(main.exits(main.stored)) - len(main.exits(self.kind))
        elsewhere = [
            *([KIND_NAMES[self.kind]] if self.kind != main.stored else []),
            *(["relations of single images"] if self.level == "image" else []),
        ]
        text = f"Shown in the notebook, but not on this page: {', '.join(elsewhere)}." if elsewhere else ""
        names = self._relations.run_names
        panel = relation_panel(self.run, self.other, labels=names, exit=exit, epoch=self.epoch, order=self.order, text=text)
        kept = {"superclass", "reference", "colours", "selection", "marked"}
        panel.data["start"] |= {name: _plain(getattr(self, name)) for name in kept}
        return [panel]


def _view_of(state: dict[str, Any]) -> View:
    """The view that the browser showed when it sent a request; `state`: the arguments of the request."""
    return View(**{name: state[name] for name in _VIEW})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
