"""What the records of a study say: means with intervals, gains paired by seed; as plain values, a frame and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from corsd_lib.errors import check_choice

if TYPE_CHECKING:
    import pandas as pd

    from corsd_lib.study import Row, Study

__all__ = [
    "against",
    "gain_cell",
    "markdown",
    "mean_interval",
    "short_markdown",
    "summarise",
    "table",
    "trained_exits",
    "with_interval",
]

FEWEST = 3  # values that an interval is made of
Record = dict[str, Any]  # of one training, see `corsd_lib.study.make_record`
Interval = tuple[float | None, float | None, float | None]  # mean, low, high


def mean_interval(values: Iterable[float]) -> Interval:
    """Mean of `values` and the ends of its 95 % Student-t interval: (mean, low, high).

    (mean, None, None) for fewer than `FEWEST` values and for values that are all the same: two values, or a tie, may agree by
    luck, and their interval would say that the mean is known exactly. No value has no mean either.
    """
    from scipy.stats import t

    x = list(values)
    if not x:
        return None, None, None
    mean = sum(x) / len(x)
    rounding = 1e-9 * max(1.0, abs(mean))  # differences of equal accuracies are not equal to the last digit
    if len(x) < FEWEST or max(x) - min(x) <= rounding:
        return mean, None, None
    variance = sum((v - mean) ** 2 for v in x) / (len(x) - 1)
    half = float(t.ppf(0.975, len(x) - 1)) * (variance / len(x)) ** 0.5
    return mean, mean - half, mean + half


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


# --- tables -----------------------------------------------------------------------------------------------------------


def table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One line a row of the study, every figure in a column of its own; the columns of exits end with the deepest."""
    import pandas as pd

    names = _exit_names(summary)
    lines = []
    for name, m in summary["methods"].items():
        line = {"row": name, **{k: m[k] for k in ("label", "group", "n")}}
        for i, exit_name in enumerate(names, len(m["top1"]) - len(names)):  # a row without shallow exits leaves theirs empty
            for part in ("top1", "top1_low", "top1_high"):
                line[f"{exit_name} {part}"] = m[part][i] if i >= 0 else None
        keys = (
            "gain",
            "gain_low",
            "gain_high",
            "gain_n",
            "epochs",
            "images",
            "macs",
            "seconds",
            "macs_ratio",
            "time_ratio",
            "train_top1",
        )
        lines.append({**line, **{k: m[k] for k in keys}})
    return pd.DataFrame(lines)


def markdown(summary: Mapping[str, Any]) -> str:
    """The table for readers, numbers as "47.2 ± 0.4" with half the interval behind the sign, and a note on what they are."""
    methods, exits = summary["methods"].values(), _exit_names(summary)
    head = ["method", "group", "seeds", *(f"{n}, %" for n in exits), "gain", "epochs", "images", "MACs", "time", "train, %"]
    lines = [head, ["---", "---"] + ["---:"] * (len(head) - 2), *(_cells(m, len(exits)) for m in methods)]
    if len({m["group"] for m in methods}) < 2:
        lines = [[line[0], *line[2:]] for line in lines]
    rows = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return f"{rows}\n\n{_note(summary)}\n"


def short_markdown(summary: Mapping[str, Any]) -> str:
    """The group "methods" of the table without its costs, for a README."""
    rows = [m for m in summary["methods"].values() if m["group"] == "methods"]
    exits = _exit_names(summary)
    keep = [0, 2, *range(3, 4 + len(exits)), -1]  # method, seeds, exits, gain, train
    lines = [["method", "seeds", *(f"{name}, %" for name in exits), "gain, points", "train, %"]]
    lines += [["---", *["---:"] * (len(keep) - 1)], *([_cells(m, len(exits))[i] for i in keep] for m in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _cells(m: Mapping[str, Any], exits: int) -> list[str]:
    ends = zip(m["top1"], m["top1_low"], m["top1_high"], strict=True)
    top1 = [with_interval(*e) if trained else "not trained" for e, trained in zip(ends, trained_exits(m), strict=True)]
    return [
        m["label"],
        m["group"],
        str(m["n"]),
        *([""] * (exits - len(top1))),
        *top1,
        gain_cell(m),
        str(m["epochs"]),
        f"{m['images']:,.0f}",
        *("–" if ratio is None else f"x{ratio:.2f}" for ratio in (m["macs_ratio"], m["time_ratio"])),
        f"{m['train_top1']:.1f}",
    ]


def with_interval(mean: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """A mean and half its interval, as in "47.2 ± 0.4"; "47.2 ± –" without an interval, "–" without a value."""
    if mean is None:
        return "–"
    if low is None or high is None:
        return f"{mean:{sign}.1f} ± –"
    half = f"{(high - low) / 2:.1f}"
    return f"{mean:{sign}.1f} ± {'<0.1' if half == '0.0' else half}"  # an interval is never of no width


def gain_cell(m: Mapping[str, Any]) -> str:
    """The gain of a row of `summarise`, and the number of its pairs where that is not the number of its seeds."""
    pairs = "" if m["gain"] is None or m["gain_n"] == m["n"] else f" (n = {m['gain_n']})"
    return with_interval(m["gain"], m["gain_low"], m["gain_high"], sign="+") + pairs


def _exit_names(summary: Mapping[str, Any]) -> list[str]:
    """Columns of the exits, as many as the row with most of them has; all rows have the last."""
    most = max((len(m["top1"]) for m in summary["methods"].values()), default=1)
    return [*(f"exit {k}" for k in range(1, most)), "deepest exit"]


def _note(summary: Mapping[str, Any]) -> str:
    """What was given alike, and what the numbers are."""
    methods, equal = summary["methods"], summary["equal"]
    reference = methods.get(summary["baseline"])
    others = [m["label"] for m in methods.values() if reference and abs(m[equal] / reference[equal] - 1) > 0.05]
    return (
        f"Equal {equal} for all rows{' but ' if others else ''}{', '.join(others)}. Top-1 on test after the last epoch: mean "
        "over seeds ± half of its 95 % Student-t interval. There is none (–) with fewer than three seeds or where all seeds "
        "agree: they may agree by luck, so nothing is decided. Gain: points over "
        f"{reference['label'] if reference else summary['baseline']} at the deepest exit, paired by seed, over the seeds that "
        "both rows have (n of them where the row has more). Intervals are of seeds, that is of initialisation, order and what "
        "else they draw; the test images are the same. MACs (forward and backward) of the training are relative to that row's, "
        "time is of the fastest training relative to that row's fastest: trainings run side by side and beside other work, so "
        "times are rough (– where none ran on as many threads). Train: top-1 of the deepest exit on the augmented images of "
        f"the last epoch. Trained by revisions {_all_of(methods, 'revisions')} of the source, with PyTorch "
        f"{_all_of(methods, 'torch')}."
    )


def _all_of(methods: Mapping[str, Any], key: str) -> str:
    return ", ".join(sorted({value for m in methods.values() for value in m[key]})) or "unknown"
