"""Matrices of a relation explorer, of one or two runs; they are read or computed on first use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from corsd_lib.analysis.relations import (
    CLASS_ORDERS,
    KIND_NAMES,
    RELATION_KINDS,
    class_order,
    class_relations,
    relation_networks_at,
    sample_order,
    snapshot_scores,
    stored_kind,
)
from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import LONGEST, as_scores, class_labels, exit_names, hover_names
from corsd_lib.relation import VectorRelation
from corsd_lib.runs import Run, check_snapshots
from corsd_lib.sharing.pages.panels import run_names

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

LEVELS = ("class", "image")
DEEPEST, OTHER = "deepest exit", "other run"
MOST_IMAGES = 1000  # largest side of a matrix of images; a screen has no more pixels
BLOCK_PAIRS = 8192  # pairs that are computed at a time: they fit into the cache of a CPU, three times as fast as 65,536
CACHE_BYTES = 2**26


@dataclass(frozen=True)
class View:
    """What is shown: the relation of a `kind` at `exit` (1 = shallowest) after `epoch`, of classes or of images (`level`).

    `superclass`: a name, to show only its classes or their images. `reference`: what is subtracted, "deepest exit", an epoch,
    "other run" or None. `order`: the order of the classes.
    """

    exit: int
    epoch: int
    kind: str
    level: str = "class"
    order: str = "label"
    superclass: str | None = None
    reference: str | int | None = None


class Cache:
    """A cache of arrays by key, with a limit on their total size.

    If the arrays together take more than `limit` bytes, the least recently used ones are removed. The newest array is kept even
    if it alone is larger than `limit`.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._arrays: OrderedDict[Hashable, Scores] = OrderedDict()

    def __call__(self, key: Hashable, make: Callable[[], Scores]) -> Scores:
        if key not in self._arrays:
            self._arrays[key] = make()
        self._arrays.move_to_end(key)
        while self.nbytes > self._limit and len(self._arrays) > 1:
            self._arrays.popitem(last=False)
        return self._arrays[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())


class RunRelations:
    """Relations of one run, of classes and of images. C classes, N probe images, K exits, shallow -> deep.

    `stored`: kind of the class-level relations on disk: "trained", or "cosine" or "l2" for a method without relation networks.
    `kinds`: all kinds that can be shown. Raises `CorsdError` for a run without snapshots.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.probes = run, run.probes
        check_snapshots(run)
        self.epochs = list(self.probes)
        self.cache = Cache()
        self.snapshot = lru_cache(4)(lambda epoch: self.probes[epoch])
        self.networks = lru_cache(4)(self._networks)
        last = self.snapshot(self.epochs[-1])
        self.stored = stored_kind(run, last)
        self.kinds = RELATION_KINDS if last.relation_state else RELATION_KINDS[1:]
        self._relations, self._embeddings, self._logits = len(last.relations), len(last.embeddings), len(last.logits)

    def exits(self, kind: str) -> list[str]:
        """Names of the exits, or stages, that have a relation of this kind."""
        count = self._relations if kind == self.stored else self._embeddings
        return exit_names(count, "exit" if count == self._logits else "stage")

    def classes(self, epoch: int, exit: int, kind: str) -> Scores:
        """Class-level relation (C, C) in [0, 1]; NaN where a pair of classes has no pair of images."""
        if kind == self.stored:
            stored = [relation.numpy() for relation in self.snapshot(epoch).relations]
            return self.cache(("classes", epoch), lambda: as_scores(np.stack(stored)))[exit - 1]
        return self.cache(
            ("classes", epoch, exit, kind), lambda: as_scores(class_relations(self.run, epoch, exit, kind).numpy())
        )

    def _networks(self, epoch: int) -> nn.ModuleList:
        networks = relation_networks_at(self.run, self.snapshot(epoch))
        for network in networks:
            if isinstance(network, VectorRelation):
                network.block_pairs = BLOCK_PAIRS
        return networks

    def images(
        self, epoch: int, exit: int, kind: str, rows: Sequence[int] | Rows, columns: Sequence[int] | Rows | None = None
    ) -> Scores:
        """Relation (n, m) in [0, 1] of the probe images `rows` (n,) with `columns` (m,), by default the same images.

        NaN for an image with itself. Raises `CorsdError` for the relation of a stage without embeddings and for a relation
        network that compares feature maps.
        """
        rows = np.asarray(rows)
        columns = rows if columns is None else np.asarray(columns)
        network = self._vector_relation(epoch, exit) if kind == "trained" else None
        if network is None:
            every = self.cache(("images", epoch, exit, kind), lambda: snapshot_scores(self.run, epoch, exit, kind).numpy())
            scores = every[np.ix_(rows, columns)]
        else:
            embeddings = self.snapshot(epoch).embeddings[exit - 1].float()
            with torch.no_grad():
                scores = network.log_odds(embeddings[rows], embeddings[columns]).sigmoid().numpy()
        scores[rows[:, None] == columns[None, :]] = np.nan
        return scores

    def auxiliary(self, epoch: int, first: int, second: int) -> list[Scores]:
        """Class probabilities of the auxiliary classifiers for one pair of probe images: an array (C,) for each exit.

        The weights are those after `epoch`.
        The list is empty without auxiliary classifiers. It is also empty if the relation networks compare feature maps, because
        snapshots have no feature maps.
        """
        found = []
        for k, embeddings in enumerate(self.snapshot(epoch).embeddings, 1):
            network = self._vector_relation(epoch, k) if self.stored == "trained" else None
            if network is None:
                return []
            a, b = embeddings[[first]].float(), embeddings[[second]].float()
            with torch.no_grad():
                found.append(network.auxiliary_logits(a, b)[0].softmax(0).numpy())
        return found

    def predictions(self, epoch: int, position: int) -> list[tuple[int, float]]:
        """Prediction of every exit for a probe image after `epoch`: class and its probability."""
        likely = [logits[position].float().softmax(0).max(0) for logits in self.snapshot(epoch).logits]
        return [(int(best.indices), float(best.values)) for best in likely]

    def ranked(self, view: View, first: int, second: int) -> list[tuple[float, tuple[int, int]]]:
        """Score and indices of every pair of two probe images, one of class `first` and another of class `second`; most related
        first.
        """
        a, b = (np.flatnonzero(self.labels == c) for c in (first, second))
        rows = np.union1d(a, b)
        scores = self.images(view.epoch, view.exit, view.kind, rows)
        i, j = (grid.ravel() for grid in np.meshgrid(a, b, indexing="ij"))
        some = i < j if first == second else np.ones(len(i), bool)  # in one class (i, j) and (j, i) are the same two images
        i, j = i[some], j[some]
        found = scores[np.searchsorted(rows, i), np.searchsorted(rows, j)]
        best_first = np.argsort(-found, kind="stable")
        return [(float(found[n]), (int(i[n]), int(j[n]))) for n in best_first]

    @property
    def labels(self) -> Rows:
        return self.probes.labels.numpy()

    def _vector_relation(self, epoch: int, exit: int) -> VectorRelation | None:
        network = self.networks(epoch)[exit - 1]
        return network if isinstance(network, VectorRelation) else None


class Shown(NamedTuple):
    """A view and its cells: `rows` (n,), sorted classes or probe images; `values` (n, n); `order` (n,), permutation for
    display.
    """

    view: View
    rows: Rows
    values: Scores
    order: Rows

    @property
    def ordered(self) -> list[int]:
        """Rows in display order."""
        return self.rows[self.order].tolist()


class Reference(NamedTuple):
    """What is subtracted in a difference: a run, with exit, epoch and kind of its relation, and the name that is shown."""

    relations: RunRelations
    exit: int
    epoch: int
    kind: str
    name: str


class Relations:
    """Computes the cells of any `View` of `run` and of `other`. Raises `CorsdError` if these have different classes."""

    def __init__(self, run: Run, other: Run | None = None, labels: Sequence[str] = ()) -> None:
        self.main, self.other = RunRelations(run), RunRelations(other) if other else None
        self.data = run.data
        if other is not None and other.data.class_names != run.data.class_names:
            raise CorsdError(f"{run.path} and {other.path} have different classes: their relations cannot be compared")
        self.run_names = run_names([run, *([other] if other else [])], labels)
        self.superclasses = np.asarray(run.data.superclass_of_class)
        hierarchy = 1 < len(run.data.superclass_names) < run.data.num_classes
        self.superclass_names = run.data.superclass_names if hierarchy else ()
        self.cut = any(len(name) > LONGEST for name in run.data.class_names)  # whether some names are drawn shortened
        self.orders = CLASS_ORDERS if hierarchy else ("label", "cluster")
        self._orders: dict[str, Rows] = {}

    def show(self, view: View, marked: Sequence[int] = (), most: int = MOST_IMAGES) -> Shown:
        """Cells of a view, with at most `most` images. Raises `CorsdError` for an invalid view."""
        view = replace(view, exit=min(view.exit, len(self.main.exits(view.kind))))
        rows = self.rows(view, marked, most)
        return Shown(view, rows, self.values(view, rows), self.places(view, rows))

    def check(self, view: View, marked: Sequence[int] = ()) -> None:
        """Raise `CorsdError` for an invalid view, without computing it."""
        self.rows(view, marked)
        self.reference(view)

    def rows(self, view: View, marked: Sequence[int] = (), most: int = MOST_IMAGES) -> Rows:
        """Indices (n,) of the classes or probe images of a view, ascending.

        At level "image" they are the probe images of the superclass of the view. If images are `marked`, only marked ones are
        included. If there are more than `most` images, only the first ones of every class are included. The JavaScript of the
        explorer follows the same rules. Raises `CorsdError` if no image is left.
        """
        wanted = self._wanted_classes(view)
        if view.level == "class":
            return np.flatnonzero(wanted)
        labels = self.main.labels
        candidates = np.asarray(marked, np.int64) if marked else np.arange(len(labels))
        candidates = candidates[wanted[labels[candidates]]]
        if not len(candidates):
            scope = "marked images" if marked else "images"
            raise CorsdError(f"the probe set has no {scope} of {view.superclass or 'any class'}")
        return _balanced(np.sort(candidates), labels, most)

    def _wanted_classes(self, view: View) -> npt.NDArray[np.bool_]:
        if view.superclass is None:
            return np.ones(self.data.num_classes, bool)
        return self.superclasses == self.data.superclass_names.index(view.superclass)

    def places(self, view: View, rows: Rows) -> Rows:
        """Permutation (n,) that brings `rows` into the order of the view."""
        order = self._class_order(view.order)
        if view.level == "image":
            return sample_order(torch.from_numpy(self.main.labels[rows]), torch.from_numpy(order)).numpy()
        return np.argsort(np.argsort(order)[rows])

    def _class_order(self, kind: str) -> Rows:
        """All classes in the order `kind` of `class_order`.

        Clusters are always those of the deepest exit after the last epoch, so that views can be compared.
        """
        if kind not in self._orders:
            main = self.main
            deepest = main.classes(main.epochs[-1], len(main.exits(main.stored)), main.stored)
            order = class_order(kind, torch.from_numpy(deepest), torch.from_numpy(self.superclasses))
            self._orders[kind] = order.numpy()
        return self._orders[kind]

    def classes_of(self, view: View, rows: Rows) -> Rows:
        return rows if view.level == "class" else self.main.labels[rows]

    def groups(self, view: View, rows: Rows) -> Rows | None:
        """Group of each of `rows`, (n,): its superclass if rows are classes, its class if they are images. Lines are drawn
        between groups.

        None if the order of the view mixes superclasses.
        """
        if view.level == "image":
            return self.main.labels[rows]
        return self.superclasses[rows] if view.order.startswith("superclass") else None

    def names(self, view: View, rows: Rows) -> list[str]:
        """Escaped names of classes, or of images: their class and their index in the probe set."""
        return self._names_with(class_labels(self.data.class_names), view, rows)

    def hovers(self, view: View, rows: Rows) -> list[str]:
        """Names in hover texts: as in `names`, but never abbreviated."""
        return self._names_with(hover_names(self.data.class_names), view, rows)

    def _names_with(self, labels: Sequence[str], view: View, rows: Rows) -> list[str]:
        if view.level == "class":
            return [labels[c] for c in rows]
        return [f"{labels[c]} #{n}" for c, n in zip(self.main.labels[rows], rows, strict=True)]

    def values(self, view: View, rows: Rows) -> Scores:
        """Cells (n, n) float32: the relation in [0, 1], or its difference from the reference in [-1, 1]; NaN if there is no
        pair.
        """
        shown = _matrix(self.main, view.epoch, view.exit, view.kind, view.level, rows)
        reference = self.reference(view)
        if reference is None:
            return shown
        return shown - _matrix(reference.relations, reference.epoch, reference.exit, reference.kind, view.level, rows)

    def reference(self, view: View) -> Reference | None:
        main, exits = self.main, self.main.exits(view.kind)
        if view.reference is None:
            return None
        if view.reference == DEEPEST:
            return Reference(main, len(exits), view.epoch, view.kind, exits[-1])
        if view.reference == OTHER:
            return self._same_of_other(view)
        return Reference(main, view.exit, int(view.reference), view.kind, f"epoch {view.reference}")

    def _same_of_other(self, view: View) -> Reference:
        """The relation of the other run that corresponds to a view, for runs with different exits and snapshots.

        Exits are counted from the deepest one; exit 1 is used if the other run has too few. The epoch is the nearest one with
        a snapshot. Raises `CorsdError` if there is no other run or, at level "image", if it has other probe images.
        """
        other = self._other()
        if view.level == "image":
            self.check_same_images()
        kind = view.kind if view.kind in other.kinds else other.stored
        exits = other.exits(kind)
        exit = max(1, view.exit + len(exits) - len(self.main.exits(view.kind)))
        epoch = min(other.epochs, key=lambda e: abs(e - view.epoch))
        formula = "" if kind == view.kind else f" ({KIND_NAMES[kind]})"
        return Reference(other, exit, epoch, kind, f"{self.run_names[1]}: {exits[exit - 1]}, epoch {epoch}{formula}")

    def _other(self) -> RunRelations:
        if self.other is None:
            raise CorsdError("there is no other run to compare with: pass one as RelationExplorer(run, other)")
        return self.other

    def check_same_images(self) -> None:
        """Raise `CorsdError` unless there is another run and it has the same probe images."""
        other = self._other()
        first, second = (
            (r.probes.split, r.run.data.name, r.probes.index.tolist(), r.labels.tolist()) for r in (self.main, other)
        )
        if first != second:
            raise CorsdError(
                f"{self.main.run.path} and {other.run.path} have different probe images, so their images cannot be compared: "
                'set level = "class"'
            )


def _matrix(relations: RunRelations, epoch: int, exit: int, kind: str, level: str, rows: Rows) -> Scores:
    if level == "image":
        return relations.images(epoch, exit, kind, rows)
    return relations.classes(epoch, exit, kind)[np.ix_(rows, rows)]


def _balanced(rows: Rows, labels: Rows, most: int) -> Rows:
    """At most `most` of the sorted indices `rows` of probe images; the result is sorted too.

    If there are more, the first max(2, `most` // number of classes) images of every class are kept. If these are still too
    many, the last classes are left out.
    """
    if len(rows) <= most:
        return rows
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    _, begins, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(by_class)) - np.repeat(begins, counts)  # position of an image among those of its class
    each = max(2, most // len(counts))
    return np.sort(by_class[rank < each][:most])
