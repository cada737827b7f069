"""Where the probe images lie at every exit, side by side."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
import torch
import traitlets
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.analysis.embedding import (
    NEIGHBOURS,
    PROJECTIONS,
    StageEmbedding,
    is_kept,
    nearest_images,
    stage_embedding,
)
from corsd_lib.analysis.exits import first_right
from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.figures.style import LONGEST, PALETTE, exit_names, name_html, short_names
from corsd_lib.pages import Panel, stages_panel
from corsd_lib.runs import Run
from corsd_lib.widgets.base import Explorer
from corsd_lib.widgets.probe_images import ProbeImages, image_html
from corsd_lib.widgets.relation import RelationExplorer
from corsd_lib.widgets.stage_facts import late_image, marked_html, percent, quality, tidiest, why_no_umap
from corsd_lib.widgets.stage_panels import MOST, Codes, Points, StagePanels
from corsd_lib.widgets.thumbnails import Thumbnails, html_table, thumbnail

COLOURS = {
    "superclass": "superclass",
    "class": "class",
    "right": "right or wrong at that exit",
    "first_right": "first exit that is right",
}
METHODS = {"umap": "UMAP", "pca": "PCA"}


class StageExplorer(Explorer):
    """The probe images of a run in two dimensions, a panel an exit, all of one joint fit.

    Draw around points with the lasso or a box: the same images are marked in every panel, and in the `RelationExplorer`
    `relations`, when given. A click on a point shows the image, what each exit takes it for, and the images nearest to it at
    each exit: in the embedding, of which the picture is only a shadow; rings say where they lie. Under every panel stands how
    far to trust it. `explorer.selection` (tuple of probe positions) and `.image` (one position) are traits; `.colour`
    ("superclass", "class", "right", "first_right"), `.highlight` (names of the groups in colour, the others are grey), `.epoch`
    (one of `epochs`, which are embedded together; the last one alone by default) and `.method` can be read and set.

    `method` "umap" is shown at once when the run has kept it; its first fit takes up to some minutes, so that PCA is shown
    until it is asked for. Raises `CorsdError` for a run without snapshots, an epoch without one, and `relations` of other
    probe images.
    """

    # not `Any`, which lets None past the validators
    selection: traitlets.TraitType[Any, Any] = traitlets.TraitType(
        (), help="positions of the marked images in the probe set, ascending"
    )
    image: traitlets.TraitType[Any, Any] = traitlets.TraitType(0, help="position of the image that is looked at")

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
        self.run, self._probes, self._relations = run, run.probes, relations
        if not self._probes:
            raise CorsdError(f"{run.path} has no probe snapshots to explore: train with probe_every above 0")
        check_choice("method", method, PROJECTIONS)
        self._check_relations()
        self._epochs = None if epochs is None else tuple(epochs)
        self._snapshot = lru_cache(maxsize=4)(lambda epoch: self._probes[epoch])
        self.note = ipw.HTML()
        self.embedding = self._opening(method)
        self._names = short_names(run.data.class_names)
        self._told = _whole(run.data.class_names, self._names)
        self._superclasses = short_names(run.data.superclass_names)
        self._labels = self.embedding.labels.numpy()
        self._exits = exit_names(len(self.embedding.exits))
        self._thumbnails = Thumbnails(run, ProbeImages(run, data, data_root))
        self._thumbnails.images.wanted = data is not None  # the first view waits for none
        self._moving, self._caught = False, set[int]()
        self._build_controls()
        self._panels = StagePanels(self.embedding.coordinates.numpy(), self._exits, self._captions())
        super().__init__(self._panels.figure, self._arranged())
        self._connect()
        self.image = late_image(self._logits(), self.embedding.labels)
        self._recolour()
        if data is None:
            self._leave("reading the images", self._read_images)
        elif not self.table.value:  # image 0 was no change
            self._tell()

    def _check_relations(self) -> None:
        if self._relations is None:
            return
        mine, theirs = (
            (p.split, r.data.name, p.index.tolist(), p.labels.tolist())
            for r, p in ((self.run, self._probes), (self._relations.run, self._relations.run.probes))
        )
        if mine != theirs:
            raise CorsdError(f"relations of {self._relations.run.path} are of other probe images than {self.run.path} has")

    def _opening(self, method: str) -> StageEmbedding:
        """What is there at once: UMAP where it was kept, else PCA and a sentence."""
        if method == "umap" and not is_kept(self.run, self._epochs):
            method, self.note.value = "pca", f"<p>{why_no_umap()}</p>"
        return stage_embedding(self.run, self._epochs, method=method)

    def _build_controls(self) -> None:
        e, look = self.embedding, {"style": {"description_width": "70px"}}
        colours = [(text, name) for name, text in COLOURS.items() if self._grouped or name != "superclass"]
        self.colour_choice = ipw.Dropdown(options=colours, description="colour by", layout={"width": "280px"}, **look)
        self.highlight_tags = ipw.TagsInput(allow_duplicates=False, layout={"min_width": "180px"})
        self.highlight_box = ipw.HBox([ipw.Label("in colour"), self.highlight_tags])
        self.epoch_slider = ipw.SelectionSlider(options=e.epochs, value=e.epochs[-1], description="epoch", **look)
        self.play = ipw.Play(min=0, max=len(e.epochs) - 1, value=len(e.epochs) - 1, interval=700, show_repeat=False)
        self.method_choice = ipw.Dropdown(
            options=[(text, name) for name, text in METHODS.items()],
            value=e.method,
            description="projection",
            layout={"width": "170px"},
            **look,
        )
        self.image_field = ipw.BoundedIntText(
            min=0, max=len(e.labels) - 1, description="image", layout={"width": "150px"}, **look
        )
        self.table, self.marked = ipw.HTML(), ipw.HTML()

    def _arranged(self) -> list[ipw.Widget]:
        wrap = {"flex_flow": "row wrap", "align_items": "center"}
        controls = [self.colour_choice, self.method_choice, self.image_field]
        if len(self.embedding.epochs) > 1:
            controls += [self.play, self.epoch_slider]
        return [ipw.HBox(controls, layout=wrap), self.highlight_box, self.note, self._panels.figure, self.marked, self.table]

    def _connect(self) -> None:
        ipw.jslink((self.play, "value"), (self.epoch_slider, "index"))
        self.colour_choice.observe(lambda _: self._recolour(), "value")
        self.highlight_tags.observe(self._tagged, "value")
        self.epoch_slider.observe(lambda _: self._draw_and_tell(), "value")
        self.method_choice.observe(self._method_chosen, "value")
        self.image_field.observe(self._image_typed, "value")
        for trace in self._panels.points:
            trace.on_click(self._clicked)
            trace.on_selection(self._brushed)
        self._panels.points[0].on_deselect(self._unbrushed)

    # --- what can be read and set ---

    @property
    def colour(self) -> str:
        """What the colours say: "superclass" (where there are some), "class", "right" or "first_right"."""
        return self.colour_choice.value

    @colour.setter
    def colour(self, name: str) -> None:
        check_choice("colour", name, [value for _, value in self.colour_choice.options])
        self.colour_choice.value = name

    @property
    def highlight(self) -> tuple[str, ...]:
        """Names of the classes (or superclasses) in colour, up to 12; the others are grey."""
        return tuple(self.highlight_tags.value)

    @highlight.setter
    def highlight(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or len(names) > MOST or len(set(names)) < len(names):
            raise CorsdError(f"highlight {shortened(names)}; allowed: up to {MOST} names, each once")
        for name in names:
            check_choice(self.colour, name, self.highlight_tags.allowed_tags)
        self.highlight_tags.value = list(names)

    @property
    def epoch(self) -> int:
        """The number of epochs after which the images are shown."""
        return self.epoch_slider.value

    @epoch.setter
    def epoch(self, number: int) -> None:
        check_choice("epoch", number, self.embedding.epochs)
        self.epoch_slider.value = number

    @property
    def method(self) -> str:
        """The projection: "umap" or "pca"."""
        return self.embedding.method

    @method.setter
    def method(self, name: str) -> None:
        check_choice("method", name, PROJECTIONS)
        if name == self.method:
            return
        points = self.embedding.coordinates[..., 0].numel()
        with self.busy(f"{METHODS[name]} of {points:,} points" + (", some minutes the first time" if name == "umap" else "")):
            self.embedding = stage_embedding(self.run, self._epochs, method=name)
        self.note.value = ""
        self._moving, self.method_choice.value, self._moving = True, name, False
        self._panels.frame(self.embedding.coordinates.numpy())
        self._draw()

    def __repr__(self) -> str:
        return (
            f"StageExplorer({str(self.run.path)!r}, {METHODS[self.method]}, epoch {self.epoch}, colour {self.colour}, "
            f"image {self.image}, {len(self.selection)} selected)"
        )

    @traitlets.validate("selection")
    def _valid_selection(self, proposal: Any) -> tuple[int, ...]:
        if isinstance(proposal.value, str) or not isinstance(proposal.value, Iterable):
            raise CorsdError(f"selection {shortened(proposal.value)}; allowed: positions in the probe set, () for none")
        return tuple(sorted({self._position(p) for p in proposal.value}))

    @traitlets.validate("image")
    def _valid_image(self, proposal: Any) -> int:
        return self._position(proposal.value)

    def _position(self, value: Any) -> int:
        count = len(self.embedding.labels)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < count:
            raise CorsdError(f"image {shortened(value)} of {count} probe images; allowed: 0 to {count - 1}")
        return int(value)

    def panels(self) -> list[Panel]:
        return [stages_panel(self.run, self.embedding, epoch=self.epoch, colour=self.colour, selection=self.selection)]

    # --- what happens then ---

    def _clicked(self, trace: go.Scattergl, points: Any, state: Any) -> None:
        if points.point_inds:
            self.image = int(points.point_inds[0])

    def _brushed(self, trace: go.Scattergl, points: Any, selector: Any) -> None:
        """Told once for every panel, in their order, with that panel's points; only one of them has any."""
        self._caught |= set(map(int, points.point_inds))
        if trace is self._panels.points[-1]:
            caught, self._caught = self._caught, set()
            self.selection = tuple(caught)
            self._mark()  # also when it is the same as before: each panel has by now marked only its own points

    def _unbrushed(self, trace: go.Scattergl, points: Any) -> None:
        self.selection = ()
        self._mark()

    def _tagged(self, change: Any) -> None:
        if self._moving:
            return
        if len(change.new) > MOST:
            self.note.value = f"<p>Up to {MOST} groups are told apart by colour and symbol.</p>"
            self.highlight_tags.value = change.new[:MOST]  # which is told again
        else:
            self._draw()

    def _image_typed(self, change: Any) -> None:
        self.image = change.new

    def _method_chosen(self, change: Any) -> None:
        if self._moving:
            return
        try:
            self.method = change.new
        except CorsdError as error:  # a list in a browser cannot raise: say it, and stay where we were
            self._moving, self.method_choice.value, self._moving = True, self.method, False
            self.note.value = f"<p>{html.escape(str(error))}</p>"

    @traitlets.observe("selection")
    def _selected(self, change: Any) -> None:
        if self._relations is not None:
            self._relations.marked = self.selection
        self._mark()

    @traitlets.observe("image")
    def _image_chosen(self, change: Any) -> None:
        self.image_field.value = self.image
        with self.figure.batch_update():
            self._panels.ring(self._coordinates, self.image, self._neighbours())
        self._tell()

    # --- what is drawn ---

    def _captions(self) -> list[str]:
        """What hover says of an image; the same at all exits and epochs, so that it travels once."""
        data, names = self.run.data, self._told
        above = _whole(data.superclass_names, self._superclasses)
        groups = [f"\n{above[data.superclass_of_class[c]]}" if self._grouped else "" for c in self._labels]
        return [f"{names[c]}{group}\nimage {i}" for i, (c, group) in enumerate(zip(self._labels, groups, strict=True))]

    @property
    def _grouped(self) -> bool:
        return len(self._superclasses) != len(self._names)

    def _draw_and_tell(self) -> None:
        self._draw()
        self._tell()

    def _draw(self) -> None:
        coordinates, kinds = self._coordinates, self._kinds()
        rest = "right at no exit" if self.colour == "first_right" else "others"
        with self.figure.batch_update():
            self._panels.move(coordinates)
            self._panels.paint(self._codes(), kinds, rest, COLOURS[self.colour])
            self._panels.ring(coordinates, self.image, self._neighbours())
            self._panels.tell(self._finding(), quality(self.embedding, self._e))
        self._mark()

    def _recolour(self) -> None:
        """Another meaning of the colours: the groups that there are, and those of them in colour."""
        names = {"class": self._names, "superclass": self._superclasses}.get(self.colour, [])
        self._moving = True  # the tags are told before the picture is drawn
        self.highlight_tags.value = []
        self.highlight_tags.allowed_tags = names
        self.highlight_tags.value = self._tidiest(names) if names else []
        self._moving = False
        self.highlight_box.layout.display = None if len(names) > MOST else "none"
        self._draw()

    def _tidiest(self, names: list[str]) -> list[str]:
        """All groups where colours do for them; else those of which most neighbours are their own, at the deepest exit."""
        if len(names) <= MOST:
            return names
        embedding = self._snapshot(self.epoch).embeddings[-1].float()
        return [names[g] for g in tidiest(embedding, torch.from_numpy(self._groups()), len(PALETTE))]

    def _groups(self) -> Codes:
        """(N,) class or superclass of the images, whichever the colours say."""
        return np.asarray(self.run.data.superclass_of_class)[self._labels] if self.colour == "superclass" else self._labels

    def _kinds(self) -> list[str]:
        """What the legend explains, but for the grey."""
        if self.colour == "right":
            return ["right", "wrong"]
        if self.colour == "first_right":
            return [f"{name} first" for name in self._exits]
        return list(self.highlight)

    def _codes(self) -> Codes:
        """(K, N) place of every image in `_kinds` at every exit; behind the last: grey."""
        exits, logits = len(self.embedding.exits), self._logits()
        labels = self.embedding.labels
        if self.colour == "right":
            return torch.stack([z.argmax(1) != labels for z in logits]).long().numpy()
        if self.colour == "first_right":
            first = first_right(logits, labels)
            return torch.where(first == 0, exits, first - 1).repeat(exits, 1).numpy()
        place = {name: i for i, name in enumerate(self.highlight)}
        of_group = np.array([place.get(name, len(place)) for name in self.highlight_tags.allowed_tags])
        return np.tile(of_group[self._groups()], (exits, 1))

    def _mark(self) -> None:
        with self.figure.batch_update():
            self._panels.mark(self.selection)
        self.marked.value = marked_html(self.selection, self.embedding.labels, self._logits(), self._told)

    @property
    def _e(self) -> int:
        return self.embedding.epochs.index(self.epoch)

    @property
    def _coordinates(self) -> Points:
        """(K, N, 2) of the epoch."""
        return self.embedding.coordinates[self._e].numpy()

    def _logits(self) -> list[Tensor]:
        return [z.float() for z in self._snapshot(self.epoch).logits]

    def _finding(self) -> str:
        e, purity = self.embedding, self.embedding.embedding_purity[self._e].tolist()
        near, deepest = min(NEIGHBOURS, len(e.labels) - 1), len(purity)
        last = f" and {percent(purity[-1])} at exit {deepest}" if deepest > 1 else ""
        return (
            f"Of an image's {near} nearest in the embedding {percent(purity[0])} are of its class at exit 1{last} "
            f"({percent(e.purity_limit)} at most)\nEpoch {self.epoch}, drawn by {METHODS[self.method]}"
        )

    # --- what is told ---

    def _neighbours(self) -> list[list[int]]:
        """Positions of the images nearest to the image at every exit, nearest first: in the embedding, not in the picture."""
        return [nearest_images(e, 8, [self.image])[0].tolist() for e in self._snapshot(self.epoch).embeddings]

    def _read_images(self) -> None:
        self._thumbnails.images.wanted = True
        self._tell()

    def _tell(self) -> None:
        """The image, what each exit takes it for, and its neighbours at each."""
        self.complete()
        logits, rows = self._snapshot(self.epoch).logits, []
        near = self._neighbours()
        pngs = self._thumbnails.of([self.image, *(p for some in near for p in some)])
        label, names = self._labels[self.image], self._told
        for name, z, some in zip(self._exits, logits, near, strict=True):
            sure, guess = (t.item() for t in F.softmax(z[self.image].float(), dim=0).max(0))
            sign = "✓" if guess == label else "✗"
            same = sum(self._labels[p] == label for p in some)
            strip = "".join(self._thumbnail(p, pngs.get(p)) for p in some)
            told = f"{sign} {name_html(names[int(guess)])}<br>{100 * sure:.0f} % sure"
            rows.append((name, told, f"{same} of {len(some)}", strip))
        head = ("", "taken for", "of its class", f"nearest in the embedding (not in the picture), epoch {self.epoch}")
        picture = (
            image_html(pngs[self.image], names[label]) if pngs else f"<p>{html.escape(self._thumbnails.images.missing)}</p>"
        )
        caption = f"<b>{name_html(names[label])}</b>, image {self.image} of the probe set"
        self.table.value = f"{picture}{html_table(head, rows, caption)}"

    def _thumbnail(self, position: int, png: bytes | None) -> str:
        same = self._labels[position] == self._labels[self.image]
        return thumbnail(png, [f"{'✓' if same else '✗'} {self._told[self._labels[position]]}"], bool(same))


def _whole(names: Sequence[str], drawn: Sequence[str]) -> list[str]:
    """Names for texts that are read one at a time: whole where the `drawn` ones are cut, else those."""
    return [name if len(name) > LONGEST else short for name, short in zip(names, drawn, strict=True)]
