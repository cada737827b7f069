"""Pages of the methods: formula and text from docs/methods, then what the code and the records say."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import corsd_lib.methods
from corsd_docs.docstrings import as_markdown
from corsd_docs.files import DOCS, ROOT, Writer
from corsd_docs.pictures import PICTURES
from corsd_docs.staging import page_text
from corsd_lib import committed_run, committed_summary
from corsd_lib.costs import training_macs
from corsd_lib.methods import METHODS, Method, MethodOptions, allowed_values, option_info
from corsd_lib.studies.intervals import with_interval
from corsd_lib.studies.study import Study
from corsd_lib.studies.summary import gain_cell

STUDIES = {  # the studies whose results the pages show, and their pages
    "cifar100": "CIFAR-100, 100 images a class",
    "cub200": "CUB-200-2011",
    "digits": "Digits, 10 images a class",
    "cifar100_small": "CIFAR-100, small network",
    "cub200_small": "CUB-200-2011, small network",
}
COST_STUDY = "cifar100"  # the setting in which costs are counted
COST_NOTE = """\
A training image takes **{ratio:.2f} times** the multiply-accumulates (MACs) of the plain network: forward and backward pass
with default options, in the setting of the [CIFAR-100 study](../results/{study}.md). At inference the deepest exit costs what
the plain network costs. In training {exits}, on {batches}."""
RESULT_NOTE = """\
Mean ± half of the 95 % interval over seeds, on test images after the last epoch. The gain is over the plain network, paired by
seed; n is the number of pairs where it is not the number of seeds. Options are shown where they are not the defaults.
[What weakens these comparisons](../results/index.md#limits)."""
INDEX_NOTE = """\
MACs are those of a training image relative to the plain network. Gains are points at the deepest exit ± half of the 95 %
interval, paired by seed; a dash means that the method is the reference or is not trained there yet. Of several variants of a
method, this table has the last one of the study, and the page of the method has all."""
Lines = list[dict[str, str]]  # of a table, by column


def write_methods(write: Writer) -> None:
    summaries = {name: committed_summary(name) for name in STUDIES}
    costs = _costs()
    found = {name: {study: list(_results(name, study, summaries[study])) for study in STUDIES} for name in METHODS}
    for name, kind in METHODS.items():
        text = page_text(f"docs/methods/{name}.md", f"methods/{name}.md", write)
        drawing = PICTURES[name]()
        write(f"methods/{name}.svg", drawing.svg())
        lines = [line for study in STUDIES for line in found[name][study]]
        parts = [text, f"![{drawing.title}.]({name}.svg)", *_cost(kind, costs), *_found(lines), *_options(kind), *_code(kind)]
        write(f"methods/{name}.md", "\n\n".join(parts) + "\n")
    index = page_text("docs/methods/index.md", "methods/index.md", write)
    write("methods/index.md", "\n\n".join([index, *_index(costs, found)]) + "\n")


def _costs() -> dict[str, float]:
    """MACs of a training image with each method, relative to the plain network, in the setting of `COST_STUDY`."""
    study = Study.from_file(ROOT / "results" / COST_STUDY).without_tuning()
    plain, data = study.config(study.baseline, 0), committed_run(f"{COST_STUDY}_small/corsd").data
    macs = {name: training_macs(replace(plain, method=name, method_options={}), data) for name in METHODS}
    return {name: value / macs["baseline"] for name, value in macs.items()}


def _results(method: str, study: str, summary: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """A line for each variant of a study that trains the method as its main objective."""
    for name, m in summary["methods"].items():
        record = next((ROOT / "results" / study / "records").glob(f"{name}-s*.json"))
        if m["group"] != "methods" or json.loads(record.read_text(encoding="utf-8"))["config"]["method"] != method:
            continue
        yield {
            "study": f"[{STUDIES[study]}](../results/{study}.md)",
            "variant": m["label"],
            "seeds": str(m["n"]),
            "deepest exit, %": _in_one_line(with_interval(m["top1"][-1], m["top1_low"][-1], m["top1_high"][-1])),
            "gain, points": _in_one_line(gain_cell(m)),
            "MACs": "–" if m["macs_ratio"] is None else f"x{m['macs_ratio']:.2f}",
            "options": _changed(METHODS[method].Options, m["options"]),
        }


def _in_one_line(text: str) -> str:
    """A number with its interval, whose parts stay together in a narrow cell."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace("n = ", "n\u00a0=\u00a0")


def _changed(kind: type[MethodOptions], options: Mapping[str, Any]) -> str:
    """The options of a training that are not the defaults of today."""
    changed = {f.name: options[f.name] for f in fields(kind) if f.name in options and options[f.name] != f.default}
    return ", ".join(
        f"`{name}={value:.3g}`" if isinstance(value, float) else f"`{name}={value}`" for name, value in changed.items()
    )


def _cost(kind: type[Method], costs: Mapping[str, float]) -> list[str]:
    batches = {
        "plain": "plain batches",
        "balanced": f"batches with {kind.samples_per_class} images of each class",
        "triplet": "batches of triplets: each anchor brings two more images",
        "overlapping": "batches half of which repeat the batch before",
    }[kind.sampling]
    exits = "every stage has an exit" if kind.exits == "all" else "only the deepest stage has an exit"
    return ["## Cost", COST_NOTE.format(ratio=costs[kind.name], study=COST_STUDY, exits=exits, batches=batches)]


def _found(lines: Lines) -> list[str]:
    if not lines:
        return ["## Result", "Our studies have not trained this method yet."]
    return ["## Result", table(lines), RESULT_NOTE]


def _options(kind: type[Method]) -> list[str]:
    lines = [
        {
            "option": f"`{field.name}`",
            "default": f"`{field.default}`",
            "meaning": as_markdown(option_info(kind.Options, field.name).get("help", "")),
            "allowed": allowed_values(kind.Options, field.name),
        }
        for field in fields(kind.Options)
    ]
    return ["## Options", table(lines)]


def class_path(kind: type) -> str:
    """The shortest path of a class below `corsd_lib.methods`."""
    public = getattr(corsd_lib.methods, kind.__name__, None) is kind
    return f"corsd_lib.methods.{kind.__name__}" if public else f"{kind.__module__}.{kind.__name__}"


def _code(kind: type[Method]) -> list[str]:
    used = dict.fromkeys(re.findall(r"\blosses\.(\w+)\(", inspect.getsource(kind)))
    terms = ", ".join(f"{{py:func}}`~corsd_lib.losses.{name}`" for name in used)
    lines = [f"Its terms are computed by {terms}."] if terms else []
    return ["## In code", f"```{{eval-rst}}\n.. autoclass:: {class_path(kind)}()\n```", *lines]


def _index(costs: Mapping[str, float], found: Mapping[str, Mapping[str, Lines]]) -> list[str]:
    lines = []
    for name, kind in METHODS.items():
        title = (DOCS / f"methods/{name}.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        line = {
            "method": f"[{title}]({name}.md)",
            "`--method`": f"`{name}`",
            "exits": kind.exits,
            "MACs": f"x{costs[name]:.2f}",
        }
        for study in ("cifar100", "cub200"):
            results = found[name][study]
            line[f"gain on {STUDIES[study].partition(',')[0]}"] = results[-1]["gain, points"] if results else "–"
        lines.append(line)
    tree = "\n".join(["```{toctree}", ":hidden:", "", *METHODS, "```"])
    return [table(lines), INDEX_NOTE, tree]


def table(lines: Lines) -> str:
    """A Markdown table of lines that have the same columns."""
    rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in ([cell.replace("|", "\\|") for cell in row] for row in rows))
