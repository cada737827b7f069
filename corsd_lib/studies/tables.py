"""The tables of a study, for readers and for programs, as text and as files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from corsd_lib.files import write_atomic, write_json
from corsd_lib.studies.intervals import with_interval
from corsd_lib.studies.summary import gain_cell, summarise, trained_exits
from corsd_lib.studies.unseen_tables import unseen_lines, unseen_markdown

if TYPE_CHECKING:
    import pandas as pd

    from corsd_lib.studies.study import Study

__all__ = ["markdown", "short_markdown", "table", "write_tables"]


def write_tables(study: Study) -> dict[str, Any]:
    """Write `summary.json`, `table.csv` and `table.md` from the records; the summary.

    Where classes were held out of the trainings, `unseen.csv` and `unseen.md` say what the rows make of these. Raises
    `CorsdError` where the folder of the study is not there.
    """
    import pandas as pd

    records = study.records()
    summary = summarise(study, records)
    write_json(study.path / "summary.json", summary, within=study.path)
    write_atomic(study.path / "table.csv", table(summary).to_csv(index=False).encode(), within=study.path)
    _write_markdown(study, "table.md", study.title, markdown(summary))
    if lines := unseen_lines(study, records):
        write_atomic(study.path / "unseen.csv", pd.DataFrame(lines).to_csv(index=False).encode(), within=study.path)
        _write_markdown(study, "unseen.md", f"{study.title}: classes never seen", f"{unseen_markdown(study, lines)}\n")
    return summary


def _write_markdown(study: Study, name: str, title: str, text: str) -> None:
    folder = study.path.resolve()
    rerun = f"corsd compare {folder.parent.name}/{folder.name}"  # no path of this machine
    write_atomic(study.path / name, f"# {title}\n\n{text}\nRerun: `{rerun}`\n".encode(), within=study.path)


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
