"""Tables of the results on classes that were held out of the trainings of a study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from corsd_lib.studies.intervals import mean_interval, with_interval

if TYPE_CHECKING:
    from corsd_lib.studies.records import Record
    from corsd_lib.studies.study import Study

__all__ = ["unseen_lines", "unseen_markdown"]

METRICS = {
    "recall_at_1": "recall@1",
    "map_at_r": "MAP@R",
    "r_precision": "R-precision",
    "one_shot": "1 shot",
    "five_shot": "5 shots",
}
ExitAndScore = tuple[int, str]  # number of exits deeper than this one (0 for the deepest), and name of the score


def unseen_lines(study: Study, records: Mapping[str, Mapping[int, Record]]) -> list[dict[str, Any]]:
    """One dict for each variant, exit, score, metric and reference variant; [] if no record has results on held-out classes.

    Keys:

    - `variant`, `label`, `group`, `exit`, `score`; `figure`: name of the metric (see `unseen_class_report`);
    - `n`: number of seeds; `by_seed`: value (%) of each seed; `mean`: mean of these values; `low`, `high`: ends of its 95 %
      Student-t interval;
    - `over`: the reference variant, which is the baseline or the variant that this one inherits from; None without a reference;
    - `gain`: difference from the reference at the same exit, in points, paired by seed; `gain_low`, `gain_high`: ends of its
      interval; `gain_n`: number of pairs.

    Exits of two variants are matched by their distance from the deepest exit. Undefined values are None.
    """
    found = {variant: _by_seed(of_variant) for variant, of_variant in records.items()}
    found = {variant: by_seed for variant, by_seed in found.items() if by_seed}
    pairs = [(variant, over) for variant in found for over in _references(study, variant, found)]
    return [line for variant, over in pairs for line in _of_variant(study, found, variant, over)]


def _by_seed(records: Mapping[int, Record]) -> dict[int, dict[ExitAndScore, dict[str, Any]]]:
    """Metrics on held-out classes, by seed and then by exit (0 = deepest) and score, see `ExitAndScore`."""
    found = {seed: record["unseen"]["figures"] for seed, record in records.items() if "unseen" in record}
    return {seed: {(max(f["exit"] for f in rows) - f["exit"], f["score"]): f for f in rows} for seed, rows in found.items()}


def _references(study: Study, variant: str, found: Mapping[str, Any]) -> Sequence[str | None]:
    """Reference variants of `variant`: the baseline and the variant that it inherits from, if they have results.

    A variant is not its own reference. The result is [None] if there is no reference.
    """
    names = dict.fromkeys([study.baseline, study.variants[variant].parent])
    return [name for name in names if name in found and name != variant] or [None]


def _of_variant(study: Study, found: Mapping[str, Any], variant: str, over: str | None) -> Iterator[dict[str, Any]]:
    of_variant, of_reference = found[variant], found[over] if over else {}
    deepest = max(from_deepest for by_exit in of_variant.values() for from_deepest, _ in by_exit) + 1
    about = {"variant": variant, "label": study.variants[variant].label, "group": study.variants[variant].group}
    for at in dict.fromkeys(at for by_exit in of_variant.values() for at in by_exit):
        exit_name = f"exit {deepest - at[0]}" if at[0] else "deepest exit"
        for metric in METRICS:
            values, others = (_values(by_seed, at, metric) for by_seed in (of_variant, of_reference))
            gains = [values[seed] - others[seed] for seed in values if seed in others]
            yield {
                **about,
                **{"exit": exit_name, "score": at[1], "figure": metric, "n": len(values)},
                **dict(zip(("mean", "low", "high"), mean_interval(values.values()), strict=True)),
                "by_seed": {str(seed): value for seed, value in values.items()},
                "over": over,
                **dict(zip(("gain", "gain_low", "gain_high"), mean_interval(gains), strict=True)),
                "gain_n": len(gains),
            }


def _values(by_seed: Mapping[int, Any], at: ExitAndScore, metric: str) -> dict[int, float]:
    """Values of one metric, seed -> value, at one exit and for one kind of score, without the seeds that lack it."""
    found = {seed: by_exit.get(at, {}).get(metric) for seed, by_exit in by_seed.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def unseen_markdown(study: Study, lines: Sequence[Mapping[str, Any]]) -> str:
    """`lines` (from `unseen_lines`) as Markdown: a table of the metrics, a table of the differences between variants, and
    a note.
    """
    labels = {name: variant.label for name, variant in study.variants.items()}
    metrics, gains = dict[Any, list[str]](), dict[Any, list[str]]()
    for line in lines:
        at, over = [line["exit"], line["score"]], line["over"]
        cells = metrics.setdefault((line["variant"], *at), [line["label"], *at, str(line["n"])])
        if len(cells) < 4 + len(METRICS):  # not complete yet: a variant appears again for each further reference variant
            cells.append(with_interval(line["mean"], line["low"], line["high"]))
        if over is not None:
            first = [line["label"], labels[over], *at, str(line["gain_n"])]
            cells = gains.setdefault((line["variant"], over, *at), first)
            cells.append(with_interval(line["gain"], line["gain_low"], line["gain_high"], sign="+"))
    compared = [cells for cells in gains.values() if {*cells[5:]} != {"–"}]
    shown = [_grid(["method", "exit", "score", "seeds"], metrics.values())]
    if compared:
        shown += ["Differences, points:", _grid(["method", "over", "exit", "score", "pairs"], compared)]
    return "\n\n".join([*shown, NOTE])


def _grid(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table: text columns, the number of seeds, and the metrics."""
    texts = len(head) - 1
    lines = [[*head, *METRICS.values()], ["---"] * texts + ["---:"] * (1 + len(METRICS)), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


NOTE = (
    "Test images of classes that were held out of the training, %: mean over seeds ± half of its 95 % Student-t interval. "
    "There is none (–) with fewer than three seeds or where all agree. Retrieval: every image against all others. 1 and 5 "
    "shots: naming an image among five classes (all, where fewer are held out) from so many examples of each. Score: cosine "
    "or negative distance of the embeddings of an exit, or its trained relation score. Differences are paired by seed, to "
    "the same exit of the other variant, counted from the deepest. The held-out classes are the same for all variants and "
    "seeds: intervals say nothing of others."
)
