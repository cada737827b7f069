"""StageExplorer: projections of the probe images at every exit, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import traitlets
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.analysis.embedding import PROJECTIONS, StageEmbedding, is_kept, nearest_images, stage_embedding
from corsd_lib.analysis.exits import first_correct
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.figures.style import exit_names, short_name
from corsd_lib.runs import Run, check_run, check_snapshots
from corsd_lib.sharing.pages import Panel, has_superclasses, stages_panel
from corsd_lib.sharing.pages.panels import COLOURS, MOST_GROUPS, PROJECTION_NAMES, stages_data, stages_fit, stages_state
from corsd_lib.widgets.host import Chosen, Explorer, checked
from corsd_lib.widgets.probe_images import ProbeImages
from corsd_lib.widgets.relation import RelationExplorer
from corsd_lib.widgets.stage_facts import finding, late_image, quality, why_no_umap
from corsd_lib.widgets.stage_picture import Codes, stage_picture
from corsd_lib.widgets.thumbnails import Thumbnails

NEAR = 8  # number of neighbours of an image that are shown


class StageExplorer(Explorer):
    """Shows the probe images of a run in two dimensions, with one panel for each exit.

    All exits and epochs are projected together, so that an image can be followed from panel to panel. A lasso selects the same
    images in every panel, and marks them in `relations`, a `RelationExplorer`, if that is given. A click on a point shows the
    image, the predictions of all exits, and the nearest images in the embedding of each exit. The nearest images have rings in
    the projection. Measures of quality are below every panel.

    These attributes can be read, set and observed:

    - `selection`: tuple of indices in the probe set; `image`: one index;
    - `colour`: "superclass", "class", "correct" or "first_correct";
    - `highlight`: names of the groups in colour, up to 12; the others are grey;
    - `epoch`: one of `epochs`; `method`: "umap" or "pca".

    `epochs`: epochs that are projected together, by default only the last one. `method` "umap" is shown at once if the run has
    stored it. Otherwise PCA is shown until UMAP is requested, because the first fit of UMAP may take minutes. Raises
    `CorsdError` for a run without snapshots, for an epoch without a snapshot, and if the run of `relations` has other probe
    images.
    """

    script = "stages"
    chosen = ("epoch", "colour", "highlight", "method", "image", "selection")
    coupled = ("colour", "highlight")

    epoch = Chosen(help="the number of epochs after which the images are shown")
    colour = Chosen(
        "class", help='what the colours show: "superclass" (if the data has superclasses), "class", "correct", "first_correct"'
    )
    highlight = Chosen((), help="names of the classes (or superclasses) in colour, up to 12")
    method = Chosen("pca", help='the projection: "umap" or "pca"')
    image = Chosen(0, help="index of the selected image")
    selection = Chosen((), help="indices of the marked images in the probe set, ascending")

    def __init__(
        self,
        run: Run,
        relations: RelationExplorer | None = None,
        *,
        epochs: Sequence[int] | None = None,
        method: str = "umap",
        data: ImageData | None = None,
        data_root: str | None = None,
    ) -> None:
        check_run(run)
        self.run, self._probes, self._relations = run, run.probes, relations
        check_snapshots(run)
        check_choice("method", method, PROJECTIONS)
        self._check_relations()
        self._epochs = None if epochs is None else tuple(epochs)
        self._snapshot = lru_cache(maxsize=4)(lambda epoch: self._probes[epoch])
        self._thumbnails = Thumbnails(run, ProbeImages(run, data, data_root))
        self._fits: dict[str, StageEmbedding] = {}
        said = ""
        if method == "umap" and not is_kept(run, self._epochs):
            method, said = "pca", why_no_umap()
        opening = self._fit(method)
        colour = "superclass" if has_superclasses(run.data) else "class"
        state = stages_state(run, opening, epoch=opening.epochs[-1], colour=colour)
        logits = [z.float() for z in self._snapshot(opening.epochs[-1]).logits]
        state |= {"image": late_image(logits, opening.labels), "selection": (), "highlight": tuple(state["highlight"])}
        self._shown = stages_data(run, opening)
        methods = [[name, PROJECTION_NAMES[name]] for name in PROJECTIONS]
        key = relations._data["key"] if relations else f"{id(self)}"
        super().__init__({**self._shown, "methods": methods, "message": said, "key": key}, **state)

    def _check_relations(self) -> None:
        if self._relations is None:
            return
        first, second = (
            (p.split, r.data.name, p.index.tolist(), p.labels.tolist())
            for r, p in ((self.run, self._probes), (self._relations.run, self._relations.run.probes))
        )
        if first != second:
            raise CorsdError(
                f"{self.run.path} and {self._relations.run.path}, the run of `relations`, have different probe images"
            )

    def _fit(self, method: str) -> StageEmbedding:
        if method not in self._fits:
            self._fits[method] = stage_embedding(self.run, self._epochs, method=method)
        return self._fits[method]

    # --- what can be read and set ---

    _valid = checked(*chosen)

    @property
    def embedding(self) -> StageEmbedding:
        """The `StageEmbedding` that is shown."""
        return self._fit(self.method)

    def check(self, name: str, value: Any) -> Any:
        if name == "epoch":
            check_choice("epoch", value, self._shown["epochs"])
        elif name == "colour":
            check_choice("colour", value, [c for c in COLOURS if c != "superclass" or has_superclasses(self.run.data)])
        elif name == "method":
            check_choice("method", value, PROJECTIONS)
            self._fit(value)  # first, so that an error is raised before anything changes
        elif name == "highlight":
            return self._groups_of(value)
        elif name == "image":
            return self._position(value)
        elif isinstance(value, str) or not isinstance(value, Iterable):
            raise CorsdError(f"selection = {shortened(value)}; allowed: indices in the probe set, () for none")
        else:
            return tuple(sorted({self._position(p) for p in value}))
        return value

    def _groups_of(self, names: Any) -> tuple[str, ...]:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise CorsdError(f"highlight = {shortened(names)}; allowed: up to {MOST_GROUPS} names, each once")
        names = tuple(names)
        if len(names) > MOST_GROUPS or len(set(names)) < len(names):
            raise CorsdError(f"highlight = {shortened(names)}; allowed: up to {MOST_GROUPS} names, each once")
        colour = self.proposed("colour")
        for name in names:
            check_choice(colour, name, self._group_names(colour))
        return names

    def _group_names(self, colour: str) -> list[str]:
        return {"class": self._shown["names"], "superclass": self._shown["superclasses"]}.get(colour, [])

    def _position(self, value: Any) -> int:
        count = len(self._probes.labels)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < count:
            raise CorsdError(
                f"there is no image {shortened(value)} among the {count} probe images; "
                f"allowed: a whole number from 0 to {count - 1}"
            )
        return int(value)

    @traitlets.observe("colour")
    def _coloured(self, change: Any) -> None:
        """Set `highlight` to the default groups of the new `colour`, unless the browser has sent a `highlight` too."""
        if "highlight" not in self._wanted:
            self.highlight = tuple(self._shown["tidiest"].get(self.colour, ()))

    @traitlets.observe("selection")
    def _selected(self, change: Any) -> None:
        if self._relations is not None:
            self._relations.marked = self.selection

    def __repr__(self) -> str:
        return (
            f"StageExplorer({str(self.run.path)!r}, {PROJECTION_NAMES[self.method]}, epoch {self.epoch}, colour {self.colour}, "
            f"image {self.image}, {len(self.selection)} selected)"
        )

    # --- answers to requests of the browser ---

    def ask_fit(self, method: str) -> dict[str, Any]:
        """Answer to a request of the browser: coordinates of a projection. The first UMAP may take some minutes."""
        return stages_fit(self._fit(method))

    def ask_faces(self, positions: Sequence[int]) -> dict[int, bytes]:
        """Answer to a request of the browser: a dict index -> PNG of probe images; empty if the data is missing."""
        return dict(self._thumbnails.of(positions))

    def ask_image(self, image: int, epoch: int, **others: Any) -> dict[str, Any]:
        """Answer to a request of the browser: an image, the predictions of all exits, and its neighbours at each exit."""
        near = self._neighbours(image, epoch)
        pngs = self._thumbnails.of([image, *(p for some in near for p in some)])
        names, label = self.run.data.class_names, int(self._probes.labels[image])
        rows = []
        for exit, z, some in zip(self._exits, self._snapshot(epoch).logits, near, strict=True):
            sure, prediction = (t.item() for t in F.softmax(z[image].float(), dim=0).max(0))
            told = f"{'✓' if prediction == label else '✗'} {short_name(names[int(prediction)])}, {100 * sure:.0f} % sure"
            rows.append({"exit": exit, "prediction": told, "near": some, "pngs": {p: pngs[p] for p in some if p in pngs}})
        title = f"{short_name(names[label])}, image {image} of the probe set"
        return {"title": title, "png": pngs.get(image), "missing": self._thumbnails.images.missing, "rows": rows}

    @property
    def _exits(self) -> list[str]:
        return exit_names(len(self._snapshot(self.epoch).embeddings))

    def _neighbours(self, image: int, epoch: int) -> list[list[int]]:
        """For each exit, the indices of the images nearest to `image` in the embedding of this exit, nearest first."""
        return [nearest_images(e, NEAR, [image])[0].tolist() for e in self._snapshot(epoch).embeddings]

    # --- files ---

    def faces(self, images: bool | None) -> dict[str, Any]:
        return self._thumbnails.packed(range(len(self._probes.labels)), images)

    def panels(self) -> list[Panel]:
        how: dict[str, Any] = {"epoch": self.epoch, "colour": self.colour, "selection": self.selection}
        panel = stages_panel(self.run, self.embedding, **how)
        panel.data["start"] |= {"highlight": list(self.highlight), "image": self.image}
        return [panel]

    def picture(self) -> go.Figure:
        embedding, e = self.embedding, self.embedding.epochs.index(self.epoch)
        codes, groups = self._codes()
        names = self.run.data.class_names
        return stage_picture(
            embedding.coordinates[e].numpy(),
            codes,
            groups,
            exits=self._exits,
            captions=[f"{short_name(names[c])}\nimage {i}" for i, c in enumerate(embedding.labels.tolist())],
            quality=quality(embedding, e),
            what=self.colour.replace("_", " "),
            rest="correct at no exit" if self.colour == "first_correct" else "others",
            selection=self.selection,
            near=self._neighbours(self.image, self.epoch),
            image=self.image,
            title=f"{finding(embedding, e)}\nEpoch {self.epoch}, drawn by {PROJECTION_NAMES[self.method]}",
        )

    def _codes(self) -> tuple[Codes, list[str]]:
        """Colour groups of the points: indices (K, N) into a list of group names, and this list.

        There is one index for each exit and image. An index past the end of the list is drawn grey.
        """
        exits, labels = len(self._exits), self._probes.labels
        logits: list[Tensor] = [z.float() for z in self._snapshot(self.epoch).logits]
        if self.colour == "correct":
            return torch.stack([z.argmax(1) != labels for z in logits]).long().numpy(), ["correct", "wrong"]
        if self.colour == "first_correct":
            first = first_correct(logits, labels)
            codes = torch.where(first == 0, exits, first - 1).repeat(exits, 1).numpy()
            return codes, [f"{name} first" for name in self._exits]
        of_class = np.arange(self.run.data.num_classes)
        groups = of_class if self.colour == "class" else np.asarray(self.run.data.superclass_of_class)
        place = {name: i for i, name in enumerate(self.highlight)}
        of_group = np.array([place.get(name, len(place)) for name in self._group_names(self.colour)])
        return np.tile(of_group[groups[labels.numpy()]], (exits, 1)), list(self.highlight)
