"""Pictures of the methods: what the network sees, what its exits learn, and who teaches whom."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from corsd_docs.files import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
from concepts import Drawing, digit

STAGES = 3


def _exits(
    title: str,
    red: str = "",
    *,
    pairs: Sequence[tuple[int, int]] = (),
    watch: bool = False,
    mixed: str = "",
    head: str = "exit",
    learns: str = "label",
) -> Drawing:
    """A network with three heads, and what each learns; red arrows lead from teachers to students, heads by index."""
    room = 96 if red else 20  # above the heads
    d = Drawing(860, room + 150, title)
    x = [150 + 240 * k for k in range(STAGES)]
    _input(d, room + 87, mixed)
    for k in range(STAGES):
        d.box(x[k], room + 80, 140, 48, f"stage {k + 1}")
        d.arrow((x[k] - (40 if k == 0 else 100), room + 104), (x[k] - 2, room + 104))
        d.arrow((x[k] + 70, room + 80), (x[k] + 70, room + 52))
        d.box(x[k], room, 140, 50, (f"{head} {k + 1}", learns), "blue" if k == STAGES - 1 else "blue-box")
        if watch and k < STAGES - 1:
            d.line((x[k] + 60, room + 68), (x[k] + 80, room + 68), "red-line")
            d.line((x[k] + 60, room + 63), (x[k] + 80, room + 63), "red-line")
    for teacher, student in pairs:
        start, end = x[teacher] + 70 + 14 * (student - teacher), x[student] + 70 - 14 * (student - teacher)
        top = room - 2 - 38 * abs(teacher - student)
        d.path(f"M{start} {room - 2} C{start} {top} {end} {top} {end} {room - 2}", "red-line", arrow=True)
    d.text(430, 28, red, "red")
    return d


def _lanes(title: str, first: str, second: str, red: str, *, both: bool = False) -> Drawing:
    """Two inputs of one network; the prediction for the second is the target of the first, or each of the other."""
    d = Drawing(860, 250, title)
    for row, words in enumerate((first, second)):
        y = 44 + 120 * row
        _input(d, y + 8, "")
        d.text(24, y - 10, words, "soft", "start")
        d.arrow((66, y + 25), (208, y + 25))
        d.box(210, y, 150, 50, "network")
        d.arrow((360, y + 25), (428, y + 25))
        d.box(430, y, 150, 50, "prediction", "blue-box" if row == 0 or both else "box")
        if row == 0 or both:
            d.arrow((650, y + 25), (582, y + 25), "green-line")
            d.text(660, y + 30, "label", "green", "start")
    d.arrow((520 if both else 505, 162), (520 if both else 505, 96), "red-line")
    if both:
        d.arrow((490, 96), (490, 162), "red-line")
    d.text(540, 134, red, "red", "start")
    return d


def _single(title: str, green: str, *, mixed: str = "") -> Drawing:
    """One prediction, and what it learns."""
    d = Drawing(860, 130, title)
    _input(d, 48, mixed)
    d.arrow((122 if mixed else 66, 65), (208, 65))
    d.box(210, 40, 150, 50, "network")
    d.arrow((360, 65), (428, 65))
    d.box(430, 40, 150, 50, "prediction", "blue-box")
    d.arrow((650, 65), (582, 65), "green-line")
    d.text(660, 70, green, "green", "start")
    return d


def _input(d: Drawing, y: float, mixed: str) -> None:
    """An image, or two that are mixed."""
    digit(d, 28, y - (18 if mixed else 0), "3")
    if mixed:
        digit(d, 28, y + 20, "8")
        d.text(70, y + 22, mixed, "soft", "start")


DEEPEST = [(2, 1), (2, 0)]
PICTURES: dict[str, Callable[[], Drawing]] = {
    "baseline": partial(_single, "One prediction learns the label", "label"),
    "label_smoothing": partial(
        _single, "One prediction learns the label, a share of which is spread over all classes", "smoothed label"
    ),
    "mixup": partial(
        _single, "Two images are averaged, and the prediction learns both labels", "both labels, by share", mixed="mean"
    ),
    "cutmix": partial(
        _single,
        "A rectangle of one image is put into another, and the prediction learns both labels",
        "both labels, by area",
        mixed="paste",
    ),
    "ips": partial(
        _lanes,
        "Two images of a class exchange patches, and each prediction is the target of the other",
        "image with patches of the other",
        "the other, of the same class",
        "each learns from the other",
        both=True,
    ),
    "cs_kd": partial(
        _lanes,
        "The predictions for two images of a class are the targets of each other",
        "an image",
        "another image of its class",
        "each learns from the other",
        both=True,
    ),
    "ps_kd": partial(
        _lanes,
        "The prediction for an image learns the label and its prediction of the last epoch",
        "an image",
        "the same image, an epoch ago",
        "part of the target",
    ),
    "dlb": partial(
        _lanes,
        "The prediction for an image learns the label and its prediction in the last batch",
        "an image",
        "the same image, in the last batch",
        "soft target",
    ),
    "bake": partial(
        _lanes,
        "The prediction for an image learns the label and a mixture of the predictions for the batch",
        "an image",
        "the other images of the batch",
        "soft target, mixed by similarity",
    ),
    "probe": partial(
        _exits,
        "Exits learn labels; the gradients of the shallow ones stop before the network",
        "the gradient stops at the double line",
        watch=True,
    ),
    "deep_supervision": partial(_exits, "Every exit learns the label"),
    "cutmix_exits": partial(_exits, "Every exit learns both labels of a mixed image", mixed="paste", learns="both labels"),
    "byot": partial(
        _exits,
        "The deepest exit teaches predictions and embedding to the shallow exits",
        "predictions, embedding",
        pairs=DEEPEST,
    ),
    "dks": partial(
        _exits,
        "Every exit teaches its predictions to every other exit",
        "predictions",
        pairs=[(a, b) for a in range(3) for b in range(3) if a != b],
    ),
    "dist": partial(
        _exits,
        "The predictions of the deepest exit are what those of shallow exits correlate with",
        "correlation of predictions",
        pairs=DEEPEST,
    ),
    "rkd": partial(
        _exits,
        "Distances and angles between the deepest embeddings are the targets of the shallow exits",
        "distances and angles between embeddings",
        pairs=DEEPEST,
    ),
    "corsd": partial(
        _exits,
        "The deepest exit and relation network teach predictions, relations and classes of pairs to the shallow ones",
        "predictions, relations of pairs, classes of pairs",
        pairs=DEEPEST,
        head="exit, relation",
        learns="label, pairs",
    ),
    "corsd_release": partial(
        _exits,
        "The deepest relation network teaches relations and classes of pairs to the shallow ones",
        "relations of pairs, classes of pairs",
        pairs=DEEPEST,
        head="relation",
        learns="pairs",
    ),
}
