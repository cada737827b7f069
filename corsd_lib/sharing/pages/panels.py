"""Data of the panels about runs, as plain values and packed arrays for the script of the page.

E epochs with a snapshot, K exits (shallow -> deep), N probe images, C classes.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import torch
from torch import Tensor

from corsd_lib.analysis.embedding import StageEmbedding, own_share
from corsd_lib.analysis.exits import first_correct
from corsd_lib.analysis.relations import CLASS_ORDERS, KIND_NAMES, class_order, stored_kind
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.figures.style import LONGEST, PALETTE, exit_names, short_name, short_names, unique_labels
from corsd_lib.runs import DataInfo, Run, check_snapshots, portable_name
from corsd_lib.sharing.pages.page import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLOURS",
    "columns_panel",
    "curves_panel",
    "exits_panel",
    "figure_panel",
    "has_superclasses",
    "relation_panel",
    "run_names",
    "stages_panel",
    "table_panel",
    "text_panel",
]

PROJECTION_NAMES = {"umap": "UMAP", "pca": "PCA"}
MOST_GROUPS = 2 * len(PALETTE)  # groups in colour, with six colours and two symbols; more would look alike
COLOURS = ("class", "superclass", "correct", "first_correct")
CELLS = 4_000_000  # largest number of entries of all matrices of a panel together; each takes one byte
LEVELS = 254  # a score in [0, 1] is stored as one byte, with an error up to 0.002; 255 means no score
FINE_LEVELS = 65_534  # or as two bytes, if all scores together take at most FINE_BYTES
FINE_BYTES = 3_000_000


# --- relations --------------------------------------------------------------------------------------------------------


def relation_panel(
    run: Run,
    other: Run | Sequence[Run] | None = None,
    *,
    exit: int | None = None,
    epoch: int | None = None,
    order: str = "label",
    selection: tuple[int, int] | None = None,
    reference: str | int = "nothing",
    labels: Sequence[str] = (),
    text: str = "",
) -> Panel:
    """Panel of the class-level relations of a run (and of others, side by side) at every exit and epoch with a snapshot.

    These arguments set the initial view:

    - `exit`, from 1, and `epoch`, both of `run`: by default the deepest exit and the last epoch;
    - `order` of the classes, one of `CLASS_ORDERS`; "cluster" uses the deepest exit after the last epoch;
    - `selection`: the selected pair of class indices, by default the two most related classes;
    - `reference`: the relations that are subtracted from the shown ones: "nothing", the "deepest" exit, the "first" epoch, or
      with several runs the index of a run, 0 for `run`.

    `labels`: names of the runs. `text`: shown below the panel. Scores in [0, 1] are rounded to multiples of 1/254, or of
    1/65534 if the panel has few scores. Runs with different numbers of exits are aligned at the deepest exit. Raises
    `CorsdError` for runs without snapshots or with different classes, for an unknown exit, epoch, order, class or reference,
    and if the number of labels is wrong or two are equal.
    """
    runs = [run, *([] if other is None else [other] if isinstance(other, Run) else other)]
    _check_runs(runs)
    epoch = list(run.probes)[-1] if epoch is None else epoch
    check_choice("epoch", epoch, run.probes)
    check_choice("class order", order, CLASS_ORDERS)
    check_choice("reference", reference, ["nothing", "deepest", "first", *range(len(runs) if len(runs) > 1 else 0)])
    for c in selection or ():
        check_choice("class of the selection", c, range(run.data.num_classes))
    data = relation_data(runs, labels=labels, epoch=epoch, order=order)
    exits = len(data["runs"][0]["kinds"][data["runs"][0]["stored"]])
    exit = exits if exit is None else exit
    check_choice("exit", exit, range(1, exits + 1))
    start = relation_state(run, exit=exit, epoch=epoch, order=order, selection=selection or first_pair(run, exit, epoch))
    start["reference"] = _reference(reference, next(iter(run.probes)), len(runs))
    data |= {"start": start, "text": " ".join(filter(None, [text, data["text"]]))}
    return Panel("relation", "Class relations at every exit and epoch", data)


def _reference(reference: str | int, first: int, runs: int) -> str | int | None:
    """The reference that is subtracted, in the form that the script expects. `first`: the first epoch; `runs`: number of
    runs.
    """
    if reference == 1 and runs == 2:
        return "other run"
    named: dict[str | int, str | int | None] = {"nothing": None, "deepest": "deepest exit", "first": first}
    return named.get(reference, f"run {reference}")


def relation_state(
    run: Run, *, exit: int, epoch: int, order: str = "label", selection: Sequence[int] | None = None
) -> dict[str, Any]:
    """Initial state of a relation panel, with a value for every state field of the JavaScript explorer."""
    return {
        "exit": exit,
        "epoch": epoch,
        "kind": stored_kind(run, run.probes[list(run.probes)[-1]]),
        "level": "class",
        "order": order,
        "superclass": None,
        "reference": None,
        "colours": "fixed",
        "selection": None if selection is None else [int(c) for c in selection],
        "images": None,
        "marked": [],
    }


def first_pair(run: Run, exit: int, epoch: int) -> tuple[int, int] | None:
    """Indices of the two most related classes, the initial selection; None if no pair has a relation."""
    matrix = run.probes[epoch].relations[exit - 1].clone().fill_diagonal_(-1).nan_to_num(-1)
    row, column = divmod(int(matrix.argmax()), len(matrix))
    return (row, column) if matrix[row, column] >= 0 else None


def relation_data(
    runs: Sequence[Run],
    *,
    labels: Sequence[str] = (),
    epoch: int | None = None,
    order: str = "label",
    orders: Sequence[str] = (),
) -> dict[str, Any]:
    """Data of a relation panel for `runs`, without its state; see `relation_panel`.

    If there are too many scores, some epochs are left out, but never `epoch`. `orders`: the class orders that the user can
    choose. By default they are "label", "cluster" and `order`, or all of `CLASS_ORDERS` if there are superclasses. Raises
    `CorsdError` if the number of labels is wrong or two are equal.
    """
    run, last = runs[0], list(runs[0].probes)[-1]
    kept = [_select_epochs(r, last if epoch is None else epoch, CELLS // len(runs)) for r in runs]
    named = zip(runs, run_names(runs, labels), kept, strict=True)
    cells = sum(
        len(epochs) * len(r.probes[epochs[-1]].relations) * r.data.num_classes**2 for r, epochs in zip(runs, kept, strict=True)
    )
    levels = FINE_LEVELS if 2 * cells <= FINE_BYTES else LEVELS
    shown = [_relations(r, name, epochs, levels) for r, name, epochs in named]
    return {
        **_classes(run.data),
        "runs": shown,
        "kinds": [[shown[0]["stored"], KIND_NAMES[shown[0]["stored"]]]],
        "kind_names": KIND_NAMES,
        "orders": {name: _order(name, run) for name in orders or _orders(run.data, order)},
        "labels": run.probes.labels.numpy().astype(np.uint16),
        "key": _probe_key(run),
        "text": _left_out_note(runs, kept),
    }


def _probe_key(run: Run) -> str:
    """Key that is equal for runs with the same probe images. Panels with the same key share their marked images."""
    probes = run.probes
    which = [portable_name(run.data.name), probes.split, probes.index.tolist()]
    return hashlib.sha256(json.dumps(which).encode()).hexdigest()[:16]


def _check_runs(runs: Sequence[Run]) -> None:
    for run in runs:
        check_snapshots(run)
        if run.data.class_names != runs[0].data.class_names:
            raise CorsdError(f"{runs[0].path} and {run.path} have different classes: their relations cannot be compared")


def _select_epochs(run: Run, epoch: int, cells: int) -> list[int]:
    """Evenly spaced epochs with a snapshot, as many as fit into `cells` matrix entries, but at least the first, the last and
    `epoch`.
    """
    epochs = list(run.probes)
    fit = cells // (len(run.probes[epochs[-1]].relations) * run.data.num_classes**2)
    if fit >= len(epochs):
        return epochs
    chosen = np.linspace(0, len(epochs) - 1, max(2, fit - 1)).round().astype(int)
    return sorted({*(epochs[i] for i in chosen), *({epoch} & set(epochs))})


def _left_out_note(runs: Sequence[Run], kept: Sequence[Sequence[int]]) -> str:
    there, shown = sum(len(run.probes) for run in runs), sum(map(len, kept))
    return "" if shown == there else f"{shown} of {there} snapshots are on this page, to limit its size."


def _relations(run: Run, name: str, epochs: Sequence[int], levels: int) -> dict[str, Any]:
    found = (run.probes[epoch] for epoch in epochs)  # only one is in memory at a time
    snapshots = [(as_codes(torch.stack(s.relations), levels), len(s.logits), stored_kind(run, s)) for s in found]
    codes = np.stack([each for each, _, _ in snapshots])  # (E, K, C, C)
    _, logits, kind = snapshots[-1]
    return {
        "name": name,
        "stored": kind,
        "kinds": {kind: exit_names(codes.shape[1], "exit" if logits == codes.shape[1] else "stage")},
        "epochs": list(epochs),
        "codes": codes,
        "levels": levels,
    }


def as_codes(scores: Tensor, levels: int = LEVELS) -> npt.NDArray[Any]:
    """Scores in [0, 1] as whole numbers: `levels` for 1, `levels` + 1 for NaN; uint8, or uint16 with `FINE_LEVELS`."""
    known = ~scores.isnan()
    codes = (scores.nan_to_num(0.0).clamp(0, 1) * levels).round()
    return (
        torch.where(known, codes, torch.full_like(codes, levels + 1))
        .numpy()
        .astype(np.uint8 if levels == LEVELS else np.uint16)
    )


def _orders(data: DataInfo, asked: str) -> list[str]:
    return [name for name in CLASS_ORDERS if name in ("label", "cluster", asked) or has_superclasses(data)]


def _order(name: str, run: Run) -> list[int]:
    probes = run.probes
    deepest = probes[list(probes)[-1]].relations[-1]
    return class_order(name, deepest, torch.tensor(run.data.superclass_of_class)).tolist()


def _classes(data: DataInfo) -> dict[str, Any]:
    """Names of the classes and superclasses for display, and the superclass of each class.

    Long names are shortened, without markup; the names of classes are also made unique. The dicts "whole_names" and
    "whole_superclasses" map an index, as a string, to the full name if it was shortened. The lists of superclasses are empty if
    the data has none.
    """
    return {
        "names": short_names(data.class_names),
        "whole_names": _cut(data.class_names),
        "superclasses": [short_name(name) for name in data.superclass_names] if has_superclasses(data) else [],
        "superclass_names": list(data.superclass_names) if has_superclasses(data) else [],
        "whole_superclasses": _cut(data.superclass_names) if has_superclasses(data) else {},
        "superclass_of_class": list(data.superclass_of_class),
    }


def _cut(names: Sequence[str]) -> dict[str, str]:
    return {str(c): name for c, name in enumerate(names) if len(name) > LONGEST}


def has_superclasses(data: DataInfo) -> bool:
    """Whether a data set has superclasses that differ from its classes."""
    return len(data.superclass_names) != data.num_classes


# --- stages -----------------------------------------------------------------------------------------------------------


def stages_panel(
    run: Run, embedding: StageEmbedding, *, epoch: int | None = None, colour: str = "class", selection: Sequence[int] = ()
) -> Panel:
    """Panel of projections of the probe images at every exit, side by side, with linked selections.

    The initial view: `epoch` of `embedding` (the last by default); points coloured by `colour`, one of `COLOURS` ("superclass"
    only if the data has superclasses); and the selected images `selection`, indices in the probe set. Raises `CorsdError` for
    an unknown epoch, colour or image.
    """
    epoch = embedding.epochs[-1] if epoch is None else epoch
    check_choice("epoch", epoch, embedding.epochs)
    check_choice("colour", colour, [c for c in COLOURS if c != "superclass" or has_superclasses(run.data)])
    images = len(embedding.labels)
    for position in selection:
        check_choice("image of the selection", int(position), range(images))
    start = stages_state(run, embedding, epoch=epoch, colour=colour, selection=selection)
    return Panel("stages", "Projection of the probe images at every exit", {**stages_data(run, embedding), "start": start})


def stages_state(
    run: Run, embedding: StageEmbedding, *, epoch: int, colour: str = "class", selection: Sequence[int] = ()
) -> dict[str, Any]:
    """Initial state of a stages panel, with a value for every state field of the JavaScript explorer."""
    groups = tidy_groups(run, embedding.epochs[-1])
    return {
        "epoch": epoch,
        "colour": colour,
        "highlight": groups.get(colour, []),
        "method": embedding.method,
        "image": None,
        "selection": [int(p) for p in selection],
    }


def stages_data(run: Run, embedding: StageEmbedding) -> dict[str, Any]:
    """Data of a stages panel, without its state."""
    predictions, first = _predictions(run, embedding)
    return {
        **_classes(run.data),
        "labels": embedding.labels.numpy().astype(np.uint16),
        "epochs": list(embedding.epochs),
        "exits": [exit_names(len(run.probes[embedding.epochs[-1]].embeddings))[k - 1] for k in embedding.exits],
        "fits": [stages_fit(embedding)],
        "methods": [[embedding.method, PROJECTION_NAMES[embedding.method]]],
        "predictions": predictions,
        "first_correct": first,
        "purity_limit": _number(embedding.purity_limit),
        "tidiest": tidy_groups(run, embedding.epochs[-1]),
        "key": _probe_key(run),
    }


def stages_fit(embedding: StageEmbedding) -> dict[str, Any]:
    """Coordinates of a projection and measures of its quality, for a stages panel."""
    return {
        "method": embedding.method,
        "title": PROJECTION_NAMES[embedding.method],
        "coordinates": embedding.coordinates.numpy().astype(np.float32),
        "quality": _quality(embedding),
    }


def tidy_groups(run: Run, epoch: int) -> dict[str, list[str]]:
    """Names of the groups to colour: a dict with the key "class" and, if the data has superclasses, "superclass".

    All groups of the probe images if there are at most 12, else the six with the highest mean `own_share` (10 neighbours) at
    the deepest exit after `epoch`.
    """
    labels = run.probes.labels
    found = {"class": labels}
    if has_superclasses(run.data):
        found["superclass"] = torch.tensor(run.data.superclass_of_class)[labels]
    chosen = {}
    for name, groups in found.items():
        ids = groups.unique().tolist()
        if len(ids) > MOST_GROUPS:
            own = own_share(run.probes[epoch].embeddings[-1].float(), groups)
            ids = sorted(ids, key=lambda g: -own[groups == g].mean().item())[: len(PALETTE)]
        named = _classes(run.data)["names" if name == "class" else "superclasses"]
        chosen[name] = [named[group] for group in ids]
    return chosen


def _predictions(run: Run, embedding: StageEmbedding) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """Predicted classes (E, K, N), and the first correct exit of each image (E, N).

    The exit is given as its position from 1 in `embedding.exits`, 0 if none of these is correct.
    """
    predictions, first = [], []
    for epoch in embedding.epochs:
        logits = [run.probes[epoch].logits[k - 1].float() for k in embedding.exits]
        predictions.append(torch.stack([z.argmax(1) for z in logits]).numpy().astype(np.uint16))
        first.append(first_correct(logits, embedding.labels).numpy().astype(np.uint8))
    return np.stack(predictions), np.stack(first)


def _quality(embedding: StageEmbedding) -> dict[str, list[list[float | None]]]:
    measures = {name: getattr(embedding, name) for name in ("trustworthiness", "knn_purity", "embedding_purity")}
    return {name: [[_number(v) for v in row] for row in values.tolist()] for name, values in measures.items()}


def _number(value: float) -> float | None:
    """`value` for JSON: None if it is NaN or infinite."""
    return float(value) if np.isfinite(value) else None


# --- exits ------------------------------------------------------------------------------------------------------------


def exits_panel(
    run: Run, curve: pd.DataFrame, *, rule: str, threshold: float, macs: Sequence[float], deepest_macs: float, split: str
) -> Panel:
    """Panel of an `early_exit_curve` with a movable threshold: accuracy, saved multiply-accumulates, share that leaves at each
    exit.

    The panel starts at the threshold of the curve that is nearest to `threshold`. `macs` (K,): MACs of an image that leaves at
    exit k; `deepest_macs`: MACs of the plain network; `split`: the images of the curve, "probe" or a split of the data. Raises
    `CorsdError` for an empty curve.
    """
    if curve.empty:
        raise CorsdError(f"{run.path}: the early-exit curve has no threshold; allowed: one or more")
    whose = f"the {len(run.probes.labels):,} probe images, of {run.probes.split}" if split == "probe" else split
    shown = exits_curve(curve, rule=rule, split=split, images=whose)
    start = int(np.abs(curve["threshold"].to_numpy() - threshold).argmin())
    data = {
        **exits_data(run, macs, deepest_macs),
        "curves": [shown],
        "rules": [rule],
        "splits": [[split, whose]],
        "start": {"rule": rule, "split": split, "threshold": float(shown["threshold"][start]), "max_accuracy_drop": 1.0},
    }
    return Panel("exits", "Early exit: accuracy and cost", data)


def exits_data(run: Run, macs: Sequence[float], deepest_macs: float) -> dict[str, Any]:
    """Names and costs for an early-exit panel; `macs` (K,) as in `exits_panel`."""
    return {
        "name": run_names([run])[0],
        "exits": exit_names(len(macs)),
        "exit_macs": [float(m) for m in macs],
        "deepest_macs": float(deepest_macs),
    }


def exits_curve(curve: pd.DataFrame, *, rule: str, split: str, images: str, caution: str = "") -> dict[str, Any]:
    """An `early_exit_curve` as data for the script. `images`: text that names the images of the curve; `caution`: a warning
    about them.
    """
    shares = [c for c in curve.columns if str(c).startswith("fraction.")]
    columns = {name: curve[name].to_numpy(np.float32) for name in ("threshold", "accuracy", "accuracy_drop", "macs")}
    said = {"rule": rule, "split": split, "images": images, "caution": caution}
    return {**columns, **said, "shares": curve[shares].to_numpy(np.float32)}  # (T, K)


def curve_beside(run: Run, curve: pd.DataFrame, rule: str, deepest_macs: float) -> dict[str, Any]:
    """Data of the curve of a run on its probe images, which is drawn beside the curve of another run."""
    columns = {name: curve[name].to_numpy(np.float32) for name in ("threshold", "accuracy", "macs")}
    return {**columns, "name": run_names([run])[0], "rule": rule, "split": "probe", "deepest_macs": float(deepest_macs)}


# --- anything else ----------------------------------------------------------------------------------------------------


def figure_panel(figure: go.Figure, title: str = "", text: str = "") -> Panel:
    """Panel of a plotly figure in the colours of the page, with `text` below it. WebGL traces become vector graphics."""
    plain = json.loads(figure.to_json())
    for trace in plain["data"]:  # drawn as vectors, because WebGL is not always available, prints badly, and evaluates code
        trace["type"] = {"scattergl": "scatter"}.get(trace["type"], trace["type"])
    return Panel("figure", title, {"figure": plain, "text": text})


def curves_panel(title: str, charts: Sequence[dict[str, Any]], text: str = "", findings: Sequence[str] = ()) -> Panel:
    """Line charts side by side, with `findings` above and `text` below; the page draws them without plotly.

    A chart is {"title", "lines", "x", "y", "unit"}, where "x" and "y" are axes, {"title", "low", "high", "log"}. A line is
    {"name", "x", "y", "color", "dash"}: "x" and "y" are arrays, "color" is an index of the palette and "dash" one of the dash
    styles (0 is solid). Lines may have a "group"; a click in the legend shows only the lines of one group.
    """
    return Panel("curves", title, {"charts": list(charts), "text": text, "findings": list(findings)})


def text_panel(title: str, *paragraphs: str) -> Panel:
    """Panel of paragraphs of plain text."""
    return Panel("text", title, {"paragraphs": list(paragraphs)})


def table_panel(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: str = "") -> Panel:
    """Panel of a table of plain text with `text` below it; the first column names the rows."""
    return Panel("table", title, {"columns": list(columns), "rows": [list(row) for row in rows], "text": text})


def columns_panel(title: str, panels: Sequence[Panel]) -> Panel:
    """Panel that contains other panels, side by side if there is room."""
    return Panel("columns", title, {"panels": [panel._asdict() for panel in panels]})


def run_names(runs: Sequence[Run], labels: Sequence[str] = ()) -> list[str]:
    """Unique names of runs: `labels`, or method and seed, with the folder of the run if needed.

    Raises `CorsdError` if the number of labels is wrong or two are equal.
    """
    if labels:
        if isinstance(labels, str) or not len(set(labels)) == len(labels) == len(runs):
            raise CorsdError(f"labels = {shortened(labels)} for {len(runs)} runs; allowed: one for each run, all different")
        return list(labels)
    names = [f"{run.config.method}, seed {run.config.seed}" for run in runs]
    if len(set(names)) < len(names):
        count = Counter(names)
        names = [name if count[name] == 1 else f"{name} ({_folder(run)})" for name, run in zip(names, runs, strict=True)]
    return [html.unescape(name) for name in unique_labels(names)]


def _folder(run: Run) -> str:
    return "/".join(run.path.absolute().parts[-2:])
