"""Reports: an HTML file about one or several runs, with settings, results, and relations to explore.

A report contains no images of a data set and no paths of this machine. It needs no internet connection.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corsd_lib.errors import CorsdError, check_choice, missing_package, shortened

try:
    import plotly.graph_objects  # noqa: F401
except ImportError as error:
    raise missing_package("a report", "plotly", error) from error

from corsd_lib.analysis.embedding import PROJECTIONS, stage_embedding
from corsd_lib.analysis.exits import choose_threshold, early_exit_curve, exit_accuracy
from corsd_lib.analysis.relations import class_order, class_relations, relation_quality, stored_kind
from corsd_lib.analysis.structure import class_structure
from corsd_lib.costs import run_macs
from corsd_lib.figures import exit_accuracy_bars, relation_difference, structure_over_epochs
from corsd_lib.figures.style import exit_names
from corsd_lib.runs import PLACE_FIELDS, PROBE_FIELDS, Run, Snapshot, check_run, portable_name
from corsd_lib.sharing.pages import (
    Panel,
    columns_panel,
    curves_panel,
    exits_panel,
    figure_panel,
    has_superclasses,
    relation_panel,
    run_names,
    stages_panel,
    table_panel,
    text_panel,
    write_page,
)
from corsd_lib.sharing.pages.panels import curve_beside

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EMBEDDINGS", "report_panels", "write_report"]

EMBEDDINGS = (*PROJECTIONS, "none")
Named = dict[str, Run]  # runs by their names in the report
Report = Callable[[str], object]

_NOT_SHOWN = (*PLACE_FIELDS, *PROBE_FIELDS, "method_options")
_DASHES = "The solid line of each run is its deepest exit; the other lines are shallower exits."
_DIFFERENCES = 200  # largest number of classes; the matrix of more takes megabytes
_QUALITY_EPOCHS, _STRUCTURE_EPOCHS, _PICTURES = 4, 8, 4  # numbers of evenly spaced epochs, because each takes seconds


def write_report(runs: Sequence[Run], path: str | Path, *, embedding: str = "pca", report: Report = lambda line: None) -> Path:
    """Write the report of `runs` to `path`, atomically, and return `path`.

    `embedding`: "pca" (fast, the same on all machines), "umap" or "none". `report` is called with progress messages. The file
    of one run on CIFAR-100 (100 classes, 1,000 probe images, 4 exits, 30 snapshots) takes less than 10 MB. Raises `CorsdError`
    if there are no runs, for an unknown embedding, and if the file cannot be written.
    """
    panels = report_panels(runs, embedding=embedding, report=report)
    report("writing")
    return write_page(path, panels, _title(runs))


def report_panels(runs: Sequence[Run], *, embedding: str = "pca", report: Report = lambda line: None) -> list[Panel]:
    """Panels of a report, for other pages. Arguments and errors as in `write_report`."""
    check_choice("embedding of a report", embedding, EMBEDDINGS)
    if not isinstance(runs, Sequence) or not runs:
        raise CorsdError(f"runs = {shortened(runs)}; allowed: a sequence of one or more runs")
    for run in runs:
        check_run(run)
    named = dict(zip(run_names(runs), runs, strict=True))
    with_probes = {name: run for name, run in named.items() if run.probes}
    panels = [text_panel("", *_findings(named)), _exit_table(named), *_accuracy(named), *_curves(named)]
    report("relations")
    panels += [*_relations(with_probes), *_quality(with_probes, report), *_structure(with_probes, report)]
    if embedding != "none":
        panels += _pictures(with_probes, embedding, report)
    panels += _early_exits(with_probes)
    return [*panels, *_records(named)]


# --- in words ---------------------------------------------------------------------------------------------------------


def _title(runs: Sequence[Run]) -> str:
    data = ", ".join(dict.fromkeys(portable_name(run.data.name) for run in runs))
    if len(runs) > 1:
        return f"{len(runs)} runs on {data}"
    config = runs[0].config
    width = f" of width {config.width}" if config.width else ""
    return f"{config.method} on {data}: {config.network}{width}"


def _findings(named: Named) -> list[str]:
    """Main results as sentences: one about the most accurate run, or one for each run if the runs cannot be compared."""
    if len(named) == 1:
        return [_finding(run) for run in named.values()]
    tested = {name: run.test["exits"][-1]["top1"] for name, run in named.items() if run.test}
    if len(tested) < 2 or len({run.data for run in named.values()}) > 1:
        return [f"{name}: {_finding(run)}" for name, run in named.items()]
    (best, top), (second, next_top), *_ = sorted(tested.items(), key=lambda item: -item[1])
    ahead = f"{top - next_top:.1f} points more than {second}" if top - next_top >= 0.05 else f"level with {second}"
    finding = f"The deepest exit of {best} is the most accurate: {top:.1f} % of the test images are correct, {ahead}."
    if len({run.config.method for run in named.values()}) == len(named):
        finding += " With one seed, differences of about one point may be chance."
    return [finding]


def _finding(run: Run) -> str:
    if run.test:
        exits = run.test["exits"]
        first, last = exits[0], exits[-1]
        whole = f"classifies {last['top1']:.1f} % of the {run.test['images']:,} {run.test['split']} images correctly"
        if len(exits) == 1:
            return f"The network {whole}."
        cost = 100 * first["macs"] / last["macs"]
        return f"The deepest exit {whole}; exit 1, for {cost:.0f} % of its multiply-accumulates, about {first['top1']:.1f} %."
    done = f"{run.epochs_done} of {run.config.epochs} epochs are trained"
    if not run.probes:
        return f"{done}; there are no measurements yet."
    last = _last(run)
    top1 = exit_accuracy([z.float() for z in last.logits], run.probes.labels)[-1]
    return f"{done}: after {last.epoch}, the deepest exit classifies {top1:.1f} % of {_probe_images(run)} correctly."


def _last(run: Run) -> Snapshot:
    probes = run.probes
    return probes[list(probes)[-1]]


def _probe_images(run: Run) -> str:
    return f"the {len(run.probes.labels):,} probe images, of {run.probes.split}"


# --- tables -----------------------------------------------------------------------------------------------------------


def _exit_table(named: Named) -> Panel:
    """Table of the test results of every exit of every run."""
    columns = ["", "top-1 (%)", "top-5 (%)", "cross-entropy (nats)", "calibration error (%)", "MACs per image", "parameters"]
    rows, waiting = [], []
    for name, run in named.items():
        if not run.test:
            waiting.append(name)
            continue
        exits = exit_names(len(run.test["exits"]))
        for place, row in [*zip(exits, run.test["exits"], strict=True), ("ensemble of the exits", run.test["ensemble"])]:
            rows.append([place if len(named) == 1 else f"{name}, {place}", *_metric_cells(row)])
    images = dict.fromkeys(f"{run.test['images']:,} images of {run.test['split']}" for run in named.values() if run.test)
    said = [f"Measured once, on {' or '.join(images)}, after the last epoch."] if images else []
    said += [f"Not evaluated yet: {', '.join(waiting)}."] if waiting else []
    said += ["MACs (multiply-accumulates) and parameters are of the network cut after the exit."] if images else []
    return table_panel("Test results of each exit", columns if rows else [""], rows, " ".join(said))


def _metric_cells(row: dict[str, float]) -> list[str]:
    quality = [f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['cross_entropy']:.3f}", f"{row['calibration_error']:.2f}"]
    return [*quality, *(f"{row[key]:,}" if key in row else "" for key in ("macs", "parameters"))]


def _records(named: Named) -> list[Panel]:
    """Tables of the configuration and the provenance of the runs."""
    runs = list(named.values())
    parts = {
        "Configuration": [_settings(run) for run in runs],
        "Options of the method": [_plain(run.raw_config["method_options"]) for run in runs],
        "Provenance": [_facts(run) for run in runs],
    }
    panels = [_comparison(title, list(named), values) for title, values in parts.items() if any(values)]
    return [columns_panel("Configuration and provenance", panels)] if len(runs) == 1 else panels


def _comparison(title: str, names: list[str], values: list[dict[str, str]]) -> Panel:
    """Table with one column for each run; the rows that differ between runs come first.

    `values`: for each run a dict from the name of a row to its text.
    """
    keys = list(dict.fromkeys(key for of_run in values for key in of_run))
    differ = [key for key in keys if len({of_run.get(key, "–") for of_run in values}) > 1]
    rows = [[key, *(of_run.get(key, "–") for of_run in values)] for key in [*differ, *(k for k in keys if k not in differ)]]
    text = f"Rows that differ between runs come first: {len(differ)} of {len(keys)}." if len(values) > 1 else ""
    return table_panel(title, ["", *(names if len(values) > 1 else ["value"])], rows, text)


def _settings(run: Run) -> dict[str, str]:
    return _plain({k: v for k, v in run.raw_config.items() if k not in _NOT_SHOWN} | {"data": portable_name(run.data.name)})


def _facts(run: Run) -> dict[str, str]:
    known = {k: v for k, v in run.provenance.items() if k != "versions"}
    return _plain({**known, **run.provenance.get("versions", {}), "epochs trained": run.epochs_done})


def _plain(values: Mapping[str, object]) -> dict[str, str]:
    """Values that are not None, as text."""
    return {k: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in values.items() if v is not None}


# --- figures ----------------------------------------------------------------------------------------------------------


def _accuracy(named: Named) -> list[Panel]:
    top1 = {name: [row["top1"] for row in run.test["exits"]] for name, run in named.items() if run.test}
    exits = {len(values) for values in top1.values()}
    if len(named) == 1 or len(exits) != 1:  # the table of `_exit_table` is enough
        return []
    return [figure_panel(exit_accuracy_bars(top1), "Accuracy of every exit")]


def _curves(named: Named) -> list[Panel]:
    """Panel of training curves: accuracy of all runs by exit, and for each run the terms of the loss.

    Accuracy has one chart for training images and, if there are any, one for validation images. The result is [] if no epoch is
    finished.
    """
    metrics = {name: run.metrics for name, run in named.items()}
    trained = {name: table for name, table in metrics.items() if not table.empty}
    if not trained:
        return []
    charts = [
        _accuracy_chart(trained, prefix, f"images correct, {what} (%)")
        for prefix, what in (("train_top1.", "train"), ("val_top1.", "validation"))
        if any(str(column).startswith(prefix) for table in trained.values() for column in table)
    ]
    charts += [_loss_chart(table, name if len(named) > 1 else "") for name, table in trained.items()]
    return [curves_panel("Training curves", charts, _DASHES if len(trained) > 1 else "")]


def _accuracy_chart(tables: Mapping[str, pd.DataFrame], prefix: str, title: str) -> dict[str, object]:
    lines = []
    for r, (name, table) in enumerate(tables.items()):
        columns = [str(column) for column in table if str(column).startswith(prefix)]
        if not columns:  # a run without validation images beside one that has some
            continue
        for k, (exit, column) in enumerate(zip(exit_names(len(columns)), columns, strict=True)):
            lines.append(_line(name, exit, r, k, len(columns), len(tables)) | _points(table, "epoch", column))
    return {
        "title": title,
        "lines": lines,
        "x": {"title": "epoch", "low": 0},
        "y": {"title": title, "low": 0, "high": 100},
        "unit": " %",
    }


def _line(run: str, exit: str, r: int, k: int, exits: int, runs: int) -> dict[str, object]:
    """Name and style of a line for exit `k` (from 0) of run `r`. For one run the colour shows the exit; for several it shows
    the run, and the line of the deepest exit is solid.
    """
    if runs == 1:
        return {"name": exit, "color": k, "dash": 0}
    return {"name": f"{run}, {exit}", "group": run, "color": r, "dash": (exits - 1 - k) % 4}


def _points(table: pd.DataFrame, x: str, y: str) -> dict[str, object]:
    return {"x": table[x].to_numpy(np.float32), "y": table[y].to_numpy(np.float32)}


def _loss_chart(table: pd.DataFrame, name: str) -> dict[str, object]:
    parts = [str(column) for column in table if str(column).startswith("loss.")]
    lines = [
        {"name": part.removeprefix("loss."), "color": i, "dash": i // 6 % 4} | _points(table, "epoch", part)
        for i, part in enumerate(parts)
    ]
    title = f"{name}: terms of the loss" if name else "terms of the loss"
    y = {"title": "value (total: weighted)", "log": True}
    return {"title": title, "lines": lines, "x": {"title": "epoch", "low": 0}, "y": y}


def _quality(named: Named, report: Report) -> list[Panel]:
    """Chart of the quality of the relations at some epochs; it uses the cosine if trained scores cannot be computed from
    snapshots.
    """
    lines, found, kinds = [], [], {}
    for r, (name, run) in enumerate(named.items()):
        report(f"relation quality of {name}")
        table, kind = _quality_table(run)
        kinds[name] = kind
        exits = exit_names(int(table["exit"].max()))
        for k, exit in enumerate(exits):
            of_exit = table[table["exit"] == k + 1]
            lines.append(_line(name, exit, r, k, len(exits), len(named)) | _points(of_exit, "epoch", "auc") | {"points": True})
        last = table[table["epoch"] == table["epoch"].max()]["auc"]
        found.append(f"{f'{name}: ' if len(named) > 1 else ''}{_from_to(last.iloc[0], last.iloc[-1])}.")
    if not found:
        return []
    y = {"title": "ROC-AUC of “same class” (0.5 to 1)"}
    chart = {"title": "", "lines": lines, "x": {"title": "epoch", "low": 0}, "y": y, "unit": ""}
    said = [_quality_text(named[name], kind) for name, kind in kinds.items()]
    if len(named) > 1:
        said = [f"{name}: {one}" for name, one in zip(named, said, strict=True)]
    said += [_DASHES] if len(named) > 1 else []
    return [curves_panel("Separation of classes by the relation", [chart], " ".join(said), found)]


def _quality_table(run: Run) -> tuple[pd.DataFrame, str]:
    import pandas as pd

    def at_all(kind: str) -> pd.DataFrame:
        return pd.concat([relation_quality(run, epoch, kind) for epoch in _evenly_spaced(list(run.probes), _QUALITY_EPOCHS)])

    try:
        return at_all("trained"), "trained"
    except CorsdError:
        return at_all("cosine"), "cosine"


def _quality_text(run: Run, kind: str) -> str:
    stored = stored_kind(run, _last(run)) if kind == "trained" else kind
    what = {"trained": "trained relation", "cosine": "cosine of the embeddings", "l2": "distance of the embeddings"}[stored]
    return (
        f"ROC-AUC of the {what} as a detector of “same class”, over all pairs of {_probe_images(run)}: 0.5 is chance, 1 is "
        "perfect."
    )


def _from_to(shallow: float, deep: float) -> str:
    ends = f"{shallow:.2f} at exit 1, {deep:.2f} at the deepest"
    return f"Of same-class and other pairs in the end {ends} are in the correct order"


def _structure(named: Named, report: Report) -> list[Panel]:
    tables = {}
    for name, run in named.items():
        report(f"class structure of {name}")
        tables[name] = class_structure(run, _evenly_spaced(list(run.probes), _STRUCTURE_EPOCHS))
    if not tables:
        return []
    figure = structure_over_epochs(tables if len(tables) > 1 else next(iter(tables.values())))
    return [figure_panel(figure, "Class structure of the embeddings")]


# --- what is explored -------------------------------------------------------------------------------------------------


def _relations(named: Named) -> list[Panel]:
    """For each group of runs with the same classes: an explorer of their relations, and the differences from the first run.

    The differences are left out if there are more than `_DIFFERENCES` classes.
    """
    groups: dict[tuple[str, ...], Named] = {}
    for name, run in named.items():
        groups.setdefault(run.data.class_names, {})[name] = run
    return [panel for group in groups.values() for panel in _relations_of_group(group)]


def _relations_of_group(group: Named) -> list[Panel]:
    first, *others = group
    runs = list(group.values())
    panels = [_difference(group, name, first) for name in others if runs[0].data.num_classes <= _DIFFERENCES]
    title = "Differences between the relations of the runs"
    explored = relation_panel(runs[0], runs[1:], order=_order(runs[0]))
    return [explored, *([columns_panel(title, panels)] if panels else [])]


def _difference(group: Named, name: str, reference: str) -> Panel:
    """Figure of the relations of a run at its deepest exit after the last epoch, minus those of the run `reference`."""
    run, other = group[name], group[reference]
    kinds = {stored_kind(each, _last(each)) for each in (run, other)}
    kind = "cosine" if kinds != {"trained"} else "trained"
    of_run, of_other = (class_relations(each, _last(each).epoch, _deepest(each, kind), kind) for each in (run, other))
    by_superclass: dict[str, Any] = {}
    if has_superclasses(run.data):
        superclasses = torch.tensor(run.data.superclass_of_class)
        order = class_order("superclass", superclass_of_class=superclasses)
        by_superclass = {"order": order, "groups": superclasses[order], "group_names": run.data.superclass_names}
    figure = relation_difference(of_run, of_other, run.data.class_names, **by_superclass)
    finding = figure.layout.title.text.replace("<br>", " ")
    figure.update_layout(title=None, margin_t=12)  # the title is text below the figure, where a narrow page wraps it
    what = {"trained": "Trained relations", "cosine": "Cosines of the embeddings"}[kind]
    text = f"{html.unescape(finding)}. {what} of the deepest exit after the last epoch."
    return figure_panel(figure, f"{name} minus {reference}", text)


def _deepest(run: Run, kind: str) -> int:
    """Number of the deepest exit or, for "trained", of the deepest relation network; from 1."""
    snapshot = _last(run)
    return len(snapshot.relations if kind == "trained" else snapshot.embeddings)


def _order(run: Run) -> str:
    return "superclass" if has_superclasses(run.data) else "label"


def _pictures(named: Named, method: str, report: Report) -> list[Panel]:
    panels = []
    for name, run in named.items():
        report(f"{method} of {name}")
        embedding = stage_embedding(run, _evenly_spaced(list(run.probes), _PICTURES), method=method)
        panel = stages_panel(run, embedding, colour=_order(run).replace("label", "class"))
        panels.append(panel if len(named) == 1 else panel._replace(title=f"{panel.title}: {name}"))
    return panels


def _early_exits(named: Named) -> list[Panel]:
    """An early-exit panel for every run with several exits.

    Each panel also draws the curves of the other runs on the same data, so that all these panels have the same axis ranges.
    """
    runs = {name: run for name, run in named.items() if len(_last(run).logits) > 1}
    curves = {name: _early_exit_curve(run) for name, run in runs.items()}
    panels = []
    for name, run in runs.items():
        others = [
            curve_beside(runs[other], curve, "confidence", run_macs(runs[other])[1]) | {"name": other}
            for other, curve in curves.items()
            if other != name and runs[other].data == run.data
        ]
        panel = _early_exit(run, curves[name])
        panels.append(panel._replace(title=name, data=panel.data | {"name": name, "others": others}))
    title = "Early exit: accuracy and cost"
    return panels and ([panels[0]._replace(title=title)] if len(panels) == 1 else [columns_panel(title, panels)])


def _early_exit_curve(run: Run) -> pd.DataFrame:
    """Early-exit curve on the probe images of the last snapshot, because a run stores no other logits."""
    return early_exit_curve([z.float() for z in _last(run).logits], run.probes.labels, run_macs(run)[0])


def _early_exit(run: Run, curve: pd.DataFrame) -> Panel:
    macs, deepest = run_macs(run)
    return exits_panel(
        run, curve, rule="confidence", threshold=choose_threshold(curve), macs=macs, deepest_macs=deepest, split="probe"
    )


def _evenly_spaced(epochs: list[int], count: int) -> list[int]:
    """`count` evenly spaced epochs of the sorted `epochs`, including the first and the last; all if there are fewer."""
    last = len(epochs) - 1
    return epochs if last < count else [epochs[round(last * i / (count - 1))] for i in range(count)]
