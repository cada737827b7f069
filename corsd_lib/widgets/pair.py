"""Facts about two classes and two of their images: their relation, the images, and the pixels that the relation depends on.

Results are plain values, arrays and PNGs for the script, without markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from corsd_lib.analysis.relations import KIND_NAMES
from corsd_lib.errors import CorsdError
from corsd_lib.figures.style import short_name
from corsd_lib.runs import Run
from corsd_lib.widgets.probe_images import ProbeImages, png_of
from corsd_lib.widgets.relation_view import Relations, RunRelations, Scores, View
from corsd_lib.widgets.thumbnails import Thumbnails

Pair = tuple[int, int]
RANKED = 3  # number of pairs shown at each end of the ranking


def most_related_images(main: RunRelations, view: View, classes: Pair | None) -> Pair | None:
    """The most related pair of images of two `classes`, by the displayed relation.

    If that relation has no scores of images, the cosine at the deepest exit is used. None if `classes` is None or there are
    no two images.
    """
    if classes is None:
        return None
    for asked in (view, replace(view, kind="cosine", exit=len(main.exits("cosine")))):
        with suppress(CorsdError):
            return next((pair for _, pair in main.ranked(asked, *classes)), None)
    return None


def pair_facts(relations: Relations, thumbnails: Thumbnails, view: View, classes: Pair, pair: Pair | None) -> dict[str, Any]:
    """What is shown about the two probe images of `pair`: pictures, predictions, their relation, and other pairs of images.

    The other pairs are of the same two `classes`. If `pair` is None, the only content is a note: the probe set has no two
    images of these classes.
    """
    if pair is None:
        said = "There are no two images of these classes in the probe set."
        return {"images": [], "missing": "", "table": None, "ranked": {"most": [], "least": []}, "note": said}
    pngs = thumbnails.of(pair)
    table, note = _pair_table(relations, view, pair)
    return {
        "images": [_image(relations, view, position, pngs.get(position)) for position in pair],
        "missing": thumbnails.images.missing,
        "table": table,
        "ranked": _ranked(relations.main, thumbnails, view, classes),
        "note": note,
    }


def _titled(main: RunRelations, position: int) -> str:
    return f"{short_name(main.run.data.class_names[int(main.labels[position])])} #{position}"


def _image(relations: Relations, view: View, position: int, png: bytes | None) -> dict[str, Any]:
    """An image with its class, its PNG, and a caption with the prediction of the exit."""
    main = relations.main
    label, said = int(main.labels[position]), main.predictions(view.epoch, position)
    exit = max(1, view.exit + len(said) - len(main.exits(view.kind)))
    prediction, probability = said[exit - 1]
    name = short_name(relations.data.class_names[prediction])
    caption = f"{'✓' if prediction == label else '✗'} exit {exit} predicts {name}, {probability:.0%}"
    return {"title": _titled(main, position), "png": png, "caption": caption, "correct": prediction == label}


def _pair_table(relations: Relations, view: View, pair: Pair) -> tuple[dict[str, Any] | None, str]:
    """Table of the relation of two images at every exit, in both directions, with the auxiliary predictions; and a note.

    If there are no scores of single images, the table is None and the note is the reason.
    """
    (a, b), main = pair, relations.main
    exits = main.exits(view.kind)
    try:
        scores = [main.images(view.epoch, k, view.kind, pair) for k in range(1, len(exits) + 1)]
    except CorsdError as error:
        return None, f"No relation of single images here: {error}"
    said = main.auxiliary(view.epoch, a, b)
    said = said if len(said) == len(exits) else []
    rows = [
        [name, f"{score[0, 1]:.3f}", f"{score[1, 0]:.3f}", *([_auxiliary(relations, said[k], pair)] if said else [])]
        for k, (name, score) in enumerate(zip(exits, scores, strict=True))
    ]
    head = ["", f"#{a} → #{b}", f"#{b} → #{a}", *(["auxiliary prediction"] if said else [])]
    note = "the auxiliary classifier of that epoch" if said else "its method has no auxiliary classifier on embeddings"
    caption = f"{KIND_NAMES[view.kind]} of these two images, epoch {view.epoch}; {note}"
    return {"head": head, "rows": rows, "caption": caption}, ""


def _auxiliary(relations: Relations, probabilities: Scores, pair: Pair) -> str:
    """Text about the auxiliary classifier for a pair: its most probable class, and whether it is correct.

    For two images of different classes, the text has the two most probable classes. `probabilities` (C,).
    """
    wanted = {int(relations.main.labels[position]) for position in pair}
    best = np.argsort(-probabilities, kind="stable")[: len(wanted)].tolist()
    said = " + ".join(f"{short_name(relations.data.class_names[c])} {probabilities[c]:.0%}" for c in best)
    return f"{'✓' if set(best) == wanted else '✗'} {said}"


def _ranked(main: RunRelations, thumbnails: Thumbnails, view: View, classes: Pair) -> dict[str, list[dict[str, Any]]]:
    """Most and least related pairs of images of the two classes, at most `RANKED` each."""
    try:
        ranked = main.ranked(view, *classes)
    except CorsdError:  # the note of the table has the reason
        ranked = []
    most = ranked[: min(RANKED, (len(ranked) + 1) // 2)]
    least = ranked[::-1][: min(RANKED, len(ranked) // 2)]
    return {
        "most": [_ranked_pair(main, thumbnails, *each) for each in most],
        "least": [_ranked_pair(main, thumbnails, *each) for each in least],
    }


def _ranked_pair(main: RunRelations, thumbnails: Thumbnails, score: float, pair: Pair) -> dict[str, Any]:
    pngs = thumbnails.of(pair)
    titles = [_titled(main, position) for position in pair]
    return {"pair": list(pair), "score": score, "titles": titles, "pngs": [pngs[p] for p in pair] if pngs else []}


def pixel_facts(run: Run, pair: Pair, exit: int, images: ProbeImages) -> dict[str, Any]:
    """Attribute the relation of two probe images at `exit` (1 = shallowest) to their pixels. Returns rows of PNGs and a text.

    The method is integrated gradients from the mean colour. It explains the trained relation, or the cosine if the run has no
    relation networks. The text has the score of the images, the score of the baselines and the completeness gap. If data or
    weights are missing, no error is raised; `rows` is empty and the text gives the reason.
    """
    from corsd_lib.attribution import attribute_run_pair
    from corsd_lib.widgets.attribution_pictures import completeness, limit_of, map_png, pair_finding

    if images.missing:
        return {"rows": [], "text": images.missing}
    try:
        of_both = attribute_run_pair(run, *pair, exit, images.data)
        pixels = images.pixels(list(pair))
    except CorsdError as error:
        return {"rows": [], "text": f"No attribution here: {error}"}
    limit = limit_of([a.map for a in of_both])
    names = [short_name(run.data.class_names[int(run.probes.labels[i])]) for i in pair]
    rows: list[dict[str, Any]] = []
    for which, name, position, image, found in zip(("first", "second"), names, pair, pixels, of_both, strict=True):
        title = f"{which} image, {name} (probe {position})"
        pngs: Sequence[tuple[bytes, str]] = (
            (png_of(image, max(1, 128 // image.shape[1])), title),
            (map_png(found.map, limit), f"signed map of the {title}"),
            (map_png(found.map, limit, image), f"signed map over the {title}"),
        )
        rows.append({"title": title, "pngs": [list(each) for each in pngs]})
    short = [short_name(name) for name in run.data.class_names]
    said = f"{pair_finding(of_both[0])}. {completeness(of_both[0], short)}"
    how = "With the final weights of the run, for any epoch shown"
    colours = "orange increases the score, blue decreases it; one scale for both maps"
    return {"rows": rows, "text": f"{how}: {colours}. {said}"}
