"""What the records of a study say: means with intervals, and gains paired by seed, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from corsd_lib.errors import check_choice
from corsd_lib.studies.intervals import mean_interval, with_interval

if TYPE_CHECKING:
    from corsd_lib.studies.records import Record
    from corsd_lib.studies.study import Row, Study

__all__ = ["against", "gain_cell", "summarise", "trained_exits"]


def summarise(study: Study, records: Mapping[str, Mapping[int, Record]]) -> dict[str, Any]:
    """What `records` (row -> seed -> record) say, as plain values for `summary.json`; None where there is nothing to say.

    `methods` has an entry a row: top-1 (%) on test by exit, shallow -> deep, after the last epoch, mean over seeds and ends of
    its 95 % Student-t interval (see `mean_interval`); `gain`, the difference to the baseline row at the deepest exit, points,
    paired by the `gain_n` seeds that both have; images passed and multiply-accumulates of a training, these relative to the
    baseline row's of the same seeds; wall time of the fastest training relative to the baseline row's fastest, where both had
    the same kind of device and as many threads.
    """
    reference = records.get(study.baseline, {})
    methods = {name: _summarise_row(row, records[name], reference) for name, row in study.rows.items() if records.get(name)}
    if study.baseline in methods:
        methods[study.baseline] |= _gain([])
    return {
        "title": study.title,
        "data": study.train.get("data", "digits"),
        "train": study.train,
        "equal": study.equal,
        "baseline": study.baseline,
        "seeds": list(study.seeds),
        "methods": methods,
    }


def _summarise_row(row: Row, records: Mapping[int, Record], reference: Mapping[int, Record]) -> dict[str, Any]:
    top1 = {seed: [e["top1"] for e in record["test"]["exits"]] for seed, record in records.items()}
    mean, low, high = zip(*map(mean_interval, zip(*top1.values(), strict=True)), strict=True)
    both = [seed for seed in records if seed in reference]
    config = next(iter(records.values()))["config"]
    return {
        "label": row.label,
        "group": row.group,
        "from": row.parent,
        "n": len(records),
        "seeds": list(records),
        "top1": list(mean),
        "top1_low": list(low),
        "top1_high": list(high),
        "top1_by_seed": {str(seed): values for seed, values in top1.items()},
        **_gain([top1[s][-1] - reference[s]["test"]["exits"][-1]["top1"] for s in both]),
        "epochs": config["epochs"],
        **{key: sum(r[key] for r in records.values()) / len(records) for key in ("images", "macs", "seconds")},
        "macs_ratio": _ratio("macs", records, reference, both),
        "time_ratio": _time_ratio(records.values(), reference.values()),
        **_sources(r.get("provenance", {}) for r in records.values()),
        "train_top1": sum(r["train_top1"][-1] for r in records.values()) / len(records),
        "options": config["method_options"],
    }


def _gain(differences: Sequence[float]) -> dict[str, Any]:
    """What a row's differences to another row come to, paired by seed."""
    gain, low, high = mean_interval(differences)
    return {"gain": gain, "gain_low": low, "gain_high": high, "gain_n": len(differences)}


def against(summary: Mapping[str, Any], reference: str) -> dict[str, Any]:
    """`summary` with the gains of all rows over the row `reference`, paired by seed, in place of those over its baseline.

    Raises `CorsdError` when it has no such row.
    """
    methods = summary["methods"]
    check_choice("reference", reference, methods)
    gained = {}
    for name, m in methods.items():
        theirs, ours = methods[reference]["top1_by_seed"], m["top1_by_seed"]
        gained[name] = {**m, **_gain([ours[s][-1] - theirs[s][-1] for s in ours if s in theirs and name != reference])}
    return {**summary, "baseline": reference, "methods": gained}


def gain_cell(m: Mapping[str, Any]) -> str:
    """The gain of a row of `summarise`, and the number of its pairs where that is not the number of its seeds."""
    pairs = "" if m["gain"] is None or m["gain_n"] == m["n"] else f" (n = {m['gain_n']})"
    return with_interval(m["gain"], m["gain_low"], m["gain_high"], sign="+") + pairs


def _sources(provenances: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Which revisions of the source and which PyTorch made the records of a row: more than one may be of two kinds."""
    found = list(provenances)
    revisions = dict.fromkeys(p.get("revision", "unknown")[:12] for p in found)
    return {
        "revisions": list(revisions),
        "torch": list(dict.fromkeys(p.get("versions", {}).get("torch", "unknown") for p in found)),
    }


def _ratio(key: str, ours: Mapping[int, Record], theirs: Mapping[int, Record], seeds: Sequence[int]) -> float | None:
    """Total of `key` over `seeds`, relative to the same of `theirs`."""
    total = sum(theirs[seed][key] for seed in seeds)
    return sum(ours[seed][key] for seed in seeds) / total if total else None


def _time_ratio(ours: Iterable[Record], theirs: Iterable[Record]) -> float | None:
    """Wall time of the fastest training, which other work has disturbed least, relative to the fastest of `theirs`."""
    fastest = min(theirs, key=lambda record: record["seconds"], default=None)
    if fastest is None or not fastest["seconds"]:
        return None
    alike = [r["seconds"] for r in ours if _place(r) == _place(fastest)]
    return min(alike) / fastest["seconds"] if alike else None


def _place(record: Record) -> tuple[Any, Any]:
    provenance = record.get("provenance", {})
    return provenance.get("device"), provenance.get("threads")


def trained_exits(row: Mapping[str, Any]) -> list[bool]:
    """Which exits of a row of `summarise` were trained: not those with less than a quarter of the deepest one's accuracy."""
    return [top1 > row["top1"][-1] / 4 for top1 in row["top1"]]
