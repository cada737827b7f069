"""Tables of a study: a pandas frame, Markdown, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from corsd_lib.files import write_atomic, write_json
from corsd_lib.studies.intervals import with_interval
from corsd_lib.studies.summary import gain_cell, summarise, trained_exits
from corsd_lib.studies.unseen_tables import unseen_markdown

if TYPE_CHECKING:
    import pandas as pd

    from corsd_lib.studies.study import Study

__all__ = ["markdown", "short_markdown", "table", "write_tables"]

NUMBERS = (  # columns of `table` besides those of the exits
    *("gain", "gain_low", "gain_high", "gain_n", "epochs", "images", "macs", "seconds", "macs_ratio", "time_ratio"),
    "train_top1",
)
TEXT_COLUMNS = ("method", "group")  # columns of the Markdown tables that are aligned to the left


def write_tables(study: Study) -> dict[str, Any]:
    """Write `summary.json`, `table.csv` and `table.md` from the records of a study; return the summary.

    If classes were held out of the trainings, `unseen.csv` and `unseen.md` with the results on these classes are written too.
    Raises `CorsdError` for an invalid record, and if the folder of the study does not exist or cannot be written.
    """
    import pandas as pd

    records = study.records()
    summary = summarise(study, records)
    write_json(study.path / "summary.json", summary, within=study.path)
    write_atomic(study.path / "table.csv", table(summary).to_csv(index=False).encode(), within=study.path)
    _write_markdown(study, "table.md", study.title, markdown(summary))
    if lines := summary.get("unseen"):
        flat = pd.DataFrame(lines).drop(columns="by_seed")
        write_atomic(study.path / "unseen.csv", flat.to_csv(index=False).encode(), within=study.path)
        _write_markdown(study, "unseen.md", f"{study.title}: classes never seen", f"{unseen_markdown(study, lines)}\n")
    return summary


def _write_markdown(study: Study, name: str, title: str, text: str) -> None:
    folder = study.path.resolve()
    rerun = f"corsd compare {folder.parent.name}/{folder.name}"  # the whole path would name folders of this machine
    write_atomic(study.path / name, f"# {title}\n\n{text}\nRerun: `{rerun}`\n".encode(), within=study.path)


def table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each variant, one column for each value. The columns of exits are aligned at the deepest exit."""
    import pandas as pd

    names = _exit_names(summary)
    lines = []
    for name, m in summary["methods"].items():
        line = {"variant": name, **{k: m[k] for k in ("label", "group", "n")}}
        for i, exit_name in enumerate(names, len(m["top1"]) - len(names)):  # i < 0: this variant lacks the exit
            for part in ("top1", "top1_low", "top1_high"):
                line[f"{exit_name} {part}"] = m[part][i] if i >= 0 else None
        lines.append({**line, **{k: m[k] for k in NUMBERS}})
    return pd.DataFrame(lines)


def markdown(summary: Mapping[str, Any]) -> str:
    """The table as Markdown, with "47.2 ± 0.4" for a mean and half the width of its interval, and a note that explains the
    columns.
    """
    methods = summary["methods"].values()
    columns = ["method", *(["group"] if len({m["group"] for m in methods}) > 1 else []), "seeds", *_exit_columns(summary)]
    columns += ["gain", "epochs", "images", "MACs", "time", "train, %"]
    return f"{_grid(columns, [_cells(m, summary) for m in methods])}\n\n{_note(summary)}\n"


def short_markdown(summary: Mapping[str, Any]) -> str:
    """Markdown table of the variants of the group "methods", without their costs, for a README."""
    columns = ["method", "seeds", *_exit_columns(summary), "gain, points", "train, %"]
    methods = [m for m in summary["methods"].values() if m["group"] == "methods"]
    return _grid(columns, [_cells(m, summary) for m in methods])


def _cells(m: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, str]:
    """One row of the table: a dict name of the column -> text of the cell."""
    ends = zip(m["top1"], m["top1_low"], m["top1_high"], strict=True)
    top1 = [with_interval(*e) if trained else "not trained" for e, trained in zip(ends, trained_exits(m), strict=True)]
    exits = _exit_columns(summary)
    gain = gain_cell(m)
    return {
        "method": m["label"],
        "group": m["group"],
        "seeds": str(m["n"]),
        **dict(zip(exits, [""] * (len(exits) - len(top1)) + top1, strict=True)),
        "gain": gain,
        "gain, points": gain,
        "epochs": str(m["epochs"]),
        "images": f"{m['images']:,.0f}",
        "MACs": _times(m["macs_ratio"]),
        "time": _times(m["time_ratio"]),
        "train, %": f"{m['train_top1']:.1f}",
    }


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"x{ratio:.2f}"


def _grid(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """A Markdown table of `rows` with these `columns`."""
    lines = [list(columns), ["---" if name in TEXT_COLUMNS else "---:" for name in columns]]
    lines += [[row[name] for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines)


def _exit_names(summary: Mapping[str, Any]) -> list[str]:
    """Names of the exits of the variant with the most exits: "exit 1" and so on, at the end "deepest exit"."""
    most = max((len(m["top1"]) for m in summary["methods"].values()), default=1)
    return [*(f"exit {k}" for k in range(1, most)), "deepest exit"]


def _exit_columns(summary: Mapping[str, Any]) -> list[str]:
    return [f"{name}, %" for name in _exit_names(summary)]


def _note(summary: Mapping[str, Any]) -> str:
    """Note below the table: what all variants have in common, and the meaning of the columns."""
    methods, equal = summary["methods"], summary["equal"]
    reference = methods.get(summary["baseline"])
    others = [m["label"] for m in methods.values() if reference and abs(m[equal] / reference[equal] - 1) > 0.05]
    text = (resources.files("corsd_lib.studies") / "table_note.md").read_text(encoding="utf-8")
    return " ".join(text.split()).format(
        equal=equal,
        exceptions=f" but {', '.join(others)}" if others else "",
        baseline=reference["label"] if reference else summary["baseline"],
        commits=_all_of(methods, "revisions"),
        torch=_all_of(methods, "torch"),
    )


def _all_of(methods: Mapping[str, Any], key: str) -> str:
    return ", ".join(sorted({value for m in methods.values() for value in m[key]})) or "unknown"
