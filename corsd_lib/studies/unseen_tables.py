"""What the records of a study say of classes that were held out of its trainings, beside the tables of `tables`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from corsd_lib.studies.intervals import mean_interval, with_interval

if TYPE_CHECKING:
    from corsd_lib.studies.records import Record
    from corsd_lib.studies.study import Study

__all__ = ["unseen_lines", "unseen_markdown"]

FIGURES = {
    "recall_at_1": "recall@1",
    "map_at_r": "MAP@R",
    "r_precision": "R-precision",
    "one_shot": "1 shot",
    "five_shot": "5 shots",
}
Place = tuple[int, str]  # an exit, counted from the deepest, which is 0, and a score


def unseen_lines(study: Study, records: Mapping[str, Mapping[int, Record]]) -> list[dict[str, Any]]:
    """A dict for each row, exit, score, figure, and row that it is compared with; [] where no record has such figures.

    Keys: row, label, group, exit, score, figure (see `unseen_class_report`), n seeds, mean over these (%) and the ends of its
    95 % Student-t interval, `low` and `high`; `over`, the baseline row, or the row that this one is made from, and the
    difference to it at the same exit, `gain`, in points and paired by seed, with its interval and `gain_n` pairs. Exits of two
    rows are the same where they are as far from the deepest one. None where there is nothing to say.
    """
    found = {row: _by_seed(of_row) for row, of_row in records.items()}
    found = {row: by_seed for row, by_seed in found.items() if by_seed}
    return [line for row in found for over in _references(study, row, found) for line in _of_row(study, found, row, over)]


def _by_seed(records: Mapping[int, Record]) -> dict[int, dict[Place, dict[str, Any]]]:
    """The figures of every seed by exit and score."""
    found = {seed: record["unseen"]["figures"] for seed, record in records.items() if "unseen" in record}
    return {seed: {(max(f["exit"] for f in rows) - f["exit"], f["score"]): f for f in rows} for seed, rows in found.items()}


def _references(study: Study, row: str, found: Mapping[str, Any]) -> Sequence[str | None]:
    """What a row is compared with: the baseline, and the row that it is made from."""
    names = dict.fromkeys([study.baseline, study.rows[row].parent])
    return [name for name in names if name in found and name != row] or [None]


def _of_row(study: Study, found: Mapping[str, Any], row: str, over: str | None) -> Iterator[dict[str, Any]]:
    mine, theirs = found[row], found[over] if over else {}
    deepest = max(behind for by_place in mine.values() for behind, _ in by_place) + 1
    about = {"row": row, "label": study.rows[row].label, "group": study.rows[row].group}
    for place in dict.fromkeys(place for by_place in mine.values() for place in by_place):
        exit_name = f"exit {deepest - place[0]}" if place[0] else "deepest exit"
        for figure in FIGURES:
            ours, other = (_values(by_seed, place, figure) for by_seed in (mine, theirs))
            gains = [ours[seed] - other[seed] for seed in ours if seed in other]
            yield {
                **about,
                **{"exit": exit_name, "score": place[1], "figure": figure, "n": len(ours)},
                **dict(zip(("mean", "low", "high"), mean_interval(ours.values()), strict=True)),
                "over": over,
                **dict(zip(("gain", "gain_low", "gain_high"), mean_interval(gains), strict=True)),
                "gain_n": len(gains),
            }


def _values(by_seed: Mapping[int, Any], place: Place, figure: str) -> dict[int, float]:
    """A figure of every seed that has it."""
    found = {seed: by_place.get(place, {}).get(figure) for seed, by_place in by_seed.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def unseen_markdown(study: Study, lines: Sequence[Mapping[str, Any]]) -> str:
    """The figures of `unseen_lines`, the differences of rows, and a note on what they are, for readers."""
    labels = {name: row.label for name, row in study.rows.items()}
    figures, gains = dict[Any, list[str]](), dict[Any, list[str]]()
    for line in lines:
        place, over = [line["exit"], line["score"]], line["over"]
        cells = figures.setdefault((line["row"], *place), [line["label"], *place, str(line["n"])])
        if len(cells) < 4 + len(FIGURES):  # else they are there, from the first row that this one is compared with
            cells.append(with_interval(line["mean"], line["low"], line["high"]))
        if over is not None:
            first = [line["label"], labels[over], *place, str(line["gain_n"])]
            cells = gains.setdefault((line["row"], over, *place), first)
            cells.append(with_interval(line["gain"], line["gain_low"], line["gain_high"], sign="+"))
    compared = [cells for cells in gains.values() if {*cells[5:]} != {"–"}]
    shown = [_grid(["method", "exit", "score", "seeds"], figures.values())]
    if compared:
        shown += ["Differences, points:", _grid(["method", "over", "exit", "score", "pairs"], compared)]
    return "\n\n".join([*shown, NOTE])


def _grid(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table of texts, a number of seeds, and figures."""
    texts = len(head) - 1
    lines = [[*head, *FIGURES.values()], ["---"] * texts + ["---:"] * (1 + len(FIGURES)), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


NOTE = (
    "Test images of classes that were held out of the training, %: mean over seeds ± half of its 95 % Student-t interval. "
    "There is none (–) with fewer than three seeds or where all agree. Retrieval: every image against all others. 1 and 5 "
    "shots: naming an image among five classes (all, where fewer are held out) from so many examples of each. Score: cosine "
    "or negative distance of the embeddings of an exit, or its trained relation score. Differences are paired by seed, to "
    "the same exit of the other row, counted from the deepest. The held-out classes are the same for all rows and seeds: "
    "intervals say nothing of others."
)
