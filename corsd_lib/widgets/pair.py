"""Two classes and two of their images: how related every exit finds them, what they look like, and which pixels do it."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import ipywidgets as ipw
import numpy as np

from corsd_lib.analysis.relations import KIND_NAMES
from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import name_html
from corsd_lib.widgets.probe_images import ProbeImages, image_html
from corsd_lib.widgets.relation_view import Relations, RunRelations, Scores, View
from corsd_lib.widgets.thumbnails import Thumbnails, html_table

Pair = tuple[int, int]
RANKED = 3  # pairs shown at either end of the ranking
_MUTED = "opacity:0.8;font-size:12px;max-width:440px;line-height:1.4"


class PairView(ipw.VBox):
    """What is known of two classes (`table`) and of two of their probe images (`pictures`, `ranking`, `attribution`).

    `choose` is told a pair of probe positions that the reader picks from the ranking, `relate_all` that all images of the two
    classes are wanted; `busy(what)` shows that something takes its time.
    """

    def __init__(
        self,
        relations: Relations,
        images: ProbeImages,
        choose: Callable[[Pair], None],
        relate_all: Callable[[], None],
        busy: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._relations, self._images, self._choose, self._busy = relations, images, choose, busy
        self._thumbnails = Thumbnails(relations.mine.run, images)
        self._names = relations.data.class_names
        self._pair: Pair | None = None
        self._view: View | None = None
        self._following = False
        self.table, self.pictures, self.ranking, self.attribution = ipw.HTML(), ipw.HTML(), ipw.HTML(), ipw.HTML()
        wide = {"style": {"description_width": "90px"}, "layout": {"width": "420px"}}
        self.ranked_choice = ipw.Dropdown(description="image pair", **wide)
        self.pixels = ipw.Button(description="Which pixels relate them?", icon="search", layout={"width": "auto"})
        self.all_images = ipw.Button(description="All images of these classes", icon="th", layout={"width": "auto"})
        buttons = ipw.HBox([self.pixels, self.all_images])
        super().__init__([self.table, self.pictures, self.ranked_choice, self.ranking, buttons, self.attribution])
        self.ranked_choice.observe(self._ranked_chosen, "value")
        self.pixels.on_click(lambda _: self._attribute())
        self.all_images.on_click(lambda _: relate_all())

    def show(self, view: View, classes: Pair | None, pair: Pair | None, opened: bool = True) -> None:
        """Show two classes and two probe images of them as `view` has them; images wanted or not yet (`opened`)."""
        if pair != self._pair or view != self._view:
            self.attribution.value = ""
        self._pair, self._view = pair, view
        self.table.value = "Click a cell, or choose two classes." if classes is None else self._class_tables(view, classes)
        self.all_images.layout.display = None if classes else "none"
        for part in (self.pixels, self.ranked_choice, self.ranking):
            part.layout.display = None if pair else "none"
        self.pictures.value = ""
        if classes is not None and pair is not None:
            self.pictures.value = self._images_html(view, pair) + self._pair_table(view, pair)
            self._rank(view, classes, pair)
        elif opened:
            self.pictures.value = f'<p style="{_MUTED}">There are no two images of these classes in the probe set.</p>'

    # --- two classes ---

    def _class_tables(self, view: View, classes: Pair) -> str:
        """The two classes at every exit, both ways round (a trained relation need not be symmetric), a table a run."""
        relations = self._relations
        names = relations.run_names if relations.other else [""]
        runs = [relations.mine, relations.other]
        return "".join(_class_table(run, name, view, classes) for run, name in zip(runs, names, strict=False) if run)

    # --- two images ---

    def _images_html(self, view: View, pair: Pair) -> str:
        pngs = self._thumbnails.of(pair)
        figures = "".join(self._figure(view, position, pngs.get(position)) for position in pair)
        missing = f'<p style="{_MUTED}">{html.escape(self._images.missing)}</p>' if not pngs else ""
        return f'<div style="display:flex;gap:16px;margin-top:10px">{figures}</div>{missing}'

    def _figure(self, view: View, position: int, png: bytes | None) -> str:
        """An image over what it is and what the exit takes it for."""
        mine = self._relations.mine
        label = int(mine.labels[position])
        said = mine.predictions(view.epoch, position)
        exit = max(1, view.exit + len(said) - len(mine.exits(view.kind)))
        guess, probability = said[exit - 1]
        sign = "✓" if guess == label else "✗"
        image = image_html(png, f"{self._names[label]}, probe image {position}", 128) if png else ""
        return (
            f'<figure style="margin:0;max-width:200px;font-size:12px;line-height:1.4">{image}<figcaption>'
            f"<b>{self._name(label)}</b> #{position}<br>{sign} exit {exit} says {self._name(guess)}, {probability:.0%}"
            "</figcaption></figure>"
        )

    def _pair_table(self, view: View, pair: Pair) -> str:
        """The two images at every exit, both ways round, and what the auxiliary classifiers say their classes are."""
        a, b = pair
        exits = self._relations.mine.exits(view.kind)
        try:
            scores = [self._relations.mine.images(view.epoch, k, view.kind, pair) for k in range(1, len(exits) + 1)]
        except CorsdError as error:
            return f'<p style="{_MUTED}">No relation of single images here: {html.escape(str(error))}</p>'
        said = self._relations.mine.auxiliary(view.epoch, a, b) if len(exits) == len(scores) else []
        rows = [
            [name, f"{score[0, 1]:.3f}", f"{score[1, 0]:.3f}", *([self._auxiliary(said[k], pair)] if said else [])]
            for k, (name, score) in enumerate(zip(exits, scores, strict=True))
        ]
        head = ["", f"#{a} → #{b}", f"#{b} → #{a}", *(["auxiliary prediction"] if said else [])]
        note = "the auxiliary classifier as it was then" if said else "its method has no auxiliary classifier on embeddings"
        return html_table(head, rows, f"{KIND_NAMES[view.kind]} of these two images, epoch {view.epoch}; {note}")

    def _auxiliary(self, probabilities: Scores, pair: Pair) -> str:
        """The likeliest class, or two for images of two classes, and whether they are the right ones."""
        wanted = {int(self._relations.mine.labels[position]) for position in pair}
        best = np.argsort(-probabilities, kind="stable")[: len(wanted)].tolist()
        said = " + ".join(f"{self._name(c)} {probabilities[c]:.0%}" for c in best)
        return f"{'✓' if set(best) == wanted else '✗'} {said}"

    # --- all pairs of images of the two classes ---

    def _rank(self, view: View, classes: Pair, pair: Pair) -> None:
        try:
            ranked = self._relations.mine.ranked(view, *classes)
        except CorsdError:  # the table above says why
            ranked = []
        most = ranked[: min(RANKED, (len(ranked) + 1) // 2)]
        least = ranked[::-1][: min(RANKED, len(ranked) // 2)]
        options = [
            (f"{what} {i}: #{a} with #{b}, {score:.3f}", (a, b))
            for what, part in (("most related", most), ("least related", least))
            for i, (score, (a, b)) in enumerate(part, 1)
        ]
        self._following = True
        self.ranked_choice.options = [("another pair", ()), *options]
        self.ranked_choice.value = pair if pair in [value for _, value in options] else ()
        self._following = False
        self.ranked_choice.layout.display = None if options else "none"
        exit = self._relations.mine.exits(view.kind)[view.exit - 1]
        strips = [
            self._strip(f"{what} of {len(ranked)} pairs at {exit}", part) for what, part in (("Most", most), ("Least", least))
        ]
        self.ranking.value = "".join(strips)

    def _strip(self, title: str, part: Sequence[tuple[float, Pair]]) -> str:
        """Pairs of small images, the score under each."""
        pngs = self._thumbnails.of([position for _, pair in part for position in pair])
        if not pngs:
            return ""
        pairs = "".join(
            f'<figure style="margin:0;font-size:12px;text-align:center">'
            f"{''.join(image_html(pngs[position], self._titled(position), 48) for position in pair)}"
            f"<figcaption>#{pair[0]}, #{pair[1]}: {score:.3f}</figcaption></figure>"
            for score, pair in part
        )
        return f'<div style="font-size:12px;margin-top:4px">{title}</div><div style="display:flex;gap:14px">{pairs}</div>'

    def _ranked_chosen(self, change: object) -> None:
        if self.ranked_choice.value and not self._following:
            self._choose(self.ranked_choice.value)

    def _attribute(self) -> None:
        from corsd_lib.widgets.attribution import pair_attribution_html

        if self._pair is None or self._view is None:
            return
        mine = self._relations.mine
        exit = self._view.exit + len(mine.exits(mine.stored)) - len(mine.exits(self._view.kind))
        with self._busy("asking which pixels relate the two images"):
            found = pair_attribution_html(mine.run, *self._pair, exit, self._images)
        self.attribution.value = f"<p style='{_MUTED}'>With the newest weights of the run, whatever epoch is shown:</p>{found}"

    def _titled(self, position: int) -> str:
        return f"{self._names[int(self._relations.mine.labels[position])]} #{position}"

    def _name(self, label: int) -> str:
        return name_html(self._names[label])


def _class_table(relations: RunRelations, name: str, view: View, classes: Pair) -> str:
    """Means over the images of two classes at every exit, in the kind and after the snapshot nearest to those of the view."""
    kind = view.kind if view.kind in relations.kinds else relations.stored
    epoch = min(relations.epochs, key=lambda e: abs(e - view.epoch))
    c, d = classes
    ways = [(c, d), (d, c)] if c != d else [(c, d)]
    first, second = (name_html(relations.run.data.class_names[k]) for k in classes)
    rows = [
        [exit, *(f"{relations.classes(epoch, k, kind)[way]:.3f}" for way in ways)]
        for k, exit in enumerate(relations.exits(kind), 1)
    ]
    head = ["", f"{first} → {second}", f"{second} → {first}"][: len(ways) + 1]
    run = f"{html.escape(name)}: " if name else ""
    caption = (
        f"{run}{KIND_NAMES[kind]} of <b>{first}</b> and <b>{second}</b>, epoch {epoch}: mean of their pairs of images, 0 to 1"
    )
    return html_table(head, rows, caption)
