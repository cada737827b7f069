"""Summary of the records of a study: means with intervals, and gains paired by seed, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from corsd_lib.errors import check_choice
from corsd_lib.studies.intervals import mean_interval, with_interval
from corsd_lib.studies.unseen_tables import unseen_lines

if TYPE_CHECKING:
    from corsd_lib.studies.records import Record
    from corsd_lib.studies.study import Study, Variant

__all__ = ["gain_cell", "relative_to", "summarise", "trained_exits"]


def summarise(study: Study, records: Mapping[str, Mapping[int, Record]]) -> dict[str, Any]:
    """Summarise `records` (variant -> seed -> record) as plain values for `summary.json`. Undefined values are None.

    "methods" has an entry for each variant with records:

    - `top1`, `top1_low`, `top1_high`: top-1 (%) on the test images by exit, shallow -> deep, after the last epoch: mean over
      seeds and the ends of its 95 % Student-t interval (see `mean_interval`);
    - `gain`, `gain_low`, `gain_high`: difference from the baseline variant at the deepest exit, in points, paired by seed
      over the `gain_n` seeds that both variants have;
    - `images`, `macs`, `seconds`: images, multiply-accumulates and wall time of a training, means over seeds;
    - `macs_ratio`: MACs relative to the baseline variant, over the same seeds;
    - `time_ratio`: time of the fastest training divided by that of the fastest training of the baseline variant. Only
      trainings with the same kind of device and number of threads as this baseline training count.

    "unseen" is the result of `unseen_lines`, if classes were held out of the trainings.
    """
    reference = records.get(study.baseline, {})
    trained = {name: variant for name, variant in study.variants.items() if records.get(name)}
    methods = {name: _summarise_variant(variant, records[name], reference) for name, variant in trained.items()}
    if study.baseline in methods:
        methods[study.baseline] |= _gain([])
    unseen = unseen_lines(study, records)
    return {
        "title": study.title,
        "data": study.train.get("data", "digits"),
        "train": study.train,
        "equal": study.equal,
        "baseline": study.baseline,
        "seeds": list(study.seeds),
        "methods": methods,
        **({"unseen": unseen} if unseen else {}),
    }


def _summarise_variant(variant: Variant, records: Mapping[int, Record], reference: Mapping[int, Record]) -> dict[str, Any]:
    top1 = {seed: [e["top1"] for e in record["test"]["exits"]] for seed, record in records.items()}
    mean, low, high = zip(*map(mean_interval, zip(*top1.values(), strict=True)), strict=True)
    both = [seed for seed in records if seed in reference]
    config = next(iter(records.values()))["config"]
    return {
        "label": variant.label,
        "group": variant.group,
        "from": variant.parent,
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
    """Mean and interval of `differences` from another variant, paired by seed."""
    gain, low, high = mean_interval(differences)
    return {"gain": gain, "gain_low": low, "gain_high": high, "gain_n": len(differences)}


def relative_to(summary: Mapping[str, Any], reference: str) -> dict[str, Any]:
    """A copy of `summary` in which the gains are relative to the variant `reference` instead of the baseline.

    Raises `CorsdError` for an unknown variant.
    """
    methods = summary["methods"]
    check_choice("reference", reference, methods)
    gained = {}
    for name, m in methods.items():
        before, now = methods[reference]["top1_by_seed"], m["top1_by_seed"]
        gained[name] = {**m, **_gain([now[s][-1] - before[s][-1] for s in now if s in before and name != reference])}
    return {**summary, "baseline": reference, "methods": gained}


def gain_cell(m: Mapping[str, Any]) -> str:
    """Gain of a variant and its interval as text.

    If the gain was measured with fewer seeds than the variant has, the number of these seeds is added, such as " (n = 3)".
    """
    pairs = "" if m["gain"] is None or m["gain_n"] == m["n"] else f" (n = {m['gain_n']})"
    return with_interval(m["gain"], m["gain_low"], m["gain_high"], sign="+") + pairs


def _sources(provenances: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Commits of the source code and versions of PyTorch that the trainings of a variant used, without repetitions.

    The result has two lists: "revisions" (the first 12 characters of each commit) and "torch".
    """
    found = list(provenances)
    commits = dict.fromkeys(p.get("revision", "unknown")[:12] for p in found)
    return {
        "revisions": list(commits),
        "torch": list(dict.fromkeys(p.get("versions", {}).get("torch", "unknown") for p in found)),
    }


def _ratio(key: str, records: Mapping[int, Record], reference: Mapping[int, Record], seeds: Sequence[int]) -> float | None:
    """Sum of `key` over `seeds` in `records`, divided by the same sum in `reference`; None if the divisor is 0."""
    total = sum(reference[seed][key] for seed in seeds)
    return sum(records[seed][key] for seed in seeds) / total if total else None


def _time_ratio(records: Iterable[Record], reference: Iterable[Record]) -> float | None:
    """Time of the fastest training of a variant, divided by the time of the fastest training of `reference`.

    `records`: trainings of the variant. A training counts only if it ran on the same kind of device and with the same number of
    threads as the fastest training of `reference`. The result is None if no training counts, if `reference` is empty, and if
    its fastest time is 0. The fastest trainings are compared because other work on the machine affects them
    least.
    """
    fastest = min(reference, key=lambda record: record["seconds"], default=None)
    if fastest is None or not fastest["seconds"]:
        return None
    alike = [r["seconds"] for r in records if _machine(r) == _machine(fastest)]
    return min(alike) / fastest["seconds"] if alike else None


def _machine(record: Record) -> tuple[Any, Any]:
    provenance = record.get("provenance", {})
    return provenance.get("device"), provenance.get("threads")


def trained_exits(variant: Mapping[str, Any]) -> list[bool]:
    """For each exit of a variant, whether it was trained: its accuracy is above a quarter of that of the deepest exit."""
    return [top1 > variant["top1"][-1] / 4 for top1 in variant["top1"]]
