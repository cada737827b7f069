"""Write the table of all studies in results/README.md and that of findings in README.md: `python results/overview.py`.

Both are made from the summaries of the studies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corsd_lib.course import with_ends
from corsd_lib.files import write_atomic
from corsd_lib.readers import read_summary
from corsd_lib.studies.intervals import mean_interval, with_interval

RESULTS = Path(__file__).resolve().parent
STUDIES = {
    "cifar100": "CIFAR-100, 100 images a class",
    "cub200": "CUB-200-2011",
    "digits": "digits, 10 images a class",
    "cifar100_small": "CIFAR-100, small network",
    "cub200_small": "CUB-200-2011, small network",
}
VARIANTS = {
    "deep_supervision": "deep supervision",
    "corsd_paper": "CORSD, the paper's terms",
    "no_class_kd": "CORSD without class KD",
    "corsd": "CORSD with class KD",
}

# Question, what is compared, study, variant, the variant that is subtracted, exit (-1: the deepest).
FINDINGS = (
    (
        "Do exits that learn from the labels help?",
        "deep supervision − plain network, CIFAR-100",
        "cifar100",
        "deep_supervision",
        "baseline",
        -1,
    ),
    ("", "the same on birds", "cub200", "deep_supervision", "baseline", -1),
    ("Does CORSD with class KD help?", "− plain network, CIFAR-100", "cifar100", "corsd", "baseline", -1),
    ("", "the same on birds", "cub200", "corsd", "baseline", -1),
    ("", "the same on handwritten digits", "digits", "corsd", "baseline", -1),
    ("", "− deep supervision, CIFAR-100", "cifar100", "corsd", "deep_supervision", -1),
    ("", "− DKS, birds", "cub200", "corsd", "dks", -1),
    (
        "Are the paper's terms enough, without class KD?",
        "− deep supervision, CIFAR-100",
        "cifar100",
        "corsd_paper",
        "deep_supervision",
        -1,
    ),
    ("Does class KD help?", "CORSD with − without it, CIFAR-100", "cifar100", "corsd", "no_class_kd", -1),
    ("", "the same on birds", "cub200", "corsd", "no_class_kd", -1),
    ("", "the same on birds, exit 1", "cub200", "corsd", "no_class_kd", 0),
    ("Do the relation terms help?", "with − without them, CIFAR-100, with class KD", "cifar100", "corsd", "no_relations", -1),
    ("", "the same on birds", "cub200", "corsd", "no_relations", -1),
    ("", "the same on birds, with CORSD trained again on a CPU", "cub200", "corsd_cpu", "no_relations", -1),
    ("", "the same on birds, without class KD", "cub200", "no_class_kd", "exits_alone", -1),
    ("", "auxiliary classifiers alone, birds, without class KD", "cub200", "auxiliary_alone", "exits_alone", -1),
    (
        "Is it more than a larger weight of the labels?",
        "auxiliary classifiers − control, birds",
        "cub200",
        "auxiliary_alone",
        "matched_ce",
        -1,
    ),
    ("", "auxiliary classifiers − control, drawn shapes, exit 1", "unseen_shapes", "auxiliary_alone", "double_ce", 0),
)


def findings() -> str:
    """A Markdown table: differences of accuracy in points, paired by seed, with 95 % intervals."""
    lines = [["question", "difference", "points", "n"], ["---", "---", "---:", "---:"]]
    for question, what, study, variant, other, exit in FINDINGS:
        methods = read_summary(RESULTS / study / "summary.json")["methods"]
        ours, theirs = methods[variant]["top1_by_seed"], methods[other]["top1_by_seed"]
        gains = [ours[seed][exit] - theirs[seed][exit] for seed in ours if seed in theirs]
        lines.append([question, what, with_ends(*mean_interval(gains)), str(len(gains))])
    return _table(lines)


def overview() -> str:
    """A Markdown table: the plain network's accuracy in every study, and the gain of some methods over it."""
    lines = [["study", "plain network, %", "best peer", *VARIANTS.values()], ["---"] + ["---:"] * (2 + len(VARIANTS))]
    for name, title in STUDIES.items():
        methods = read_summary(RESULTS / name / "summary.json")["methods"]
        top1 = f"{methods['baseline']['top1'][-1]:.1f}"
        gains = (_gain(methods.get(variant)) for variant in VARIANTS)
        lines.append([f"[{title}]({name}/table.md)", top1, _best_peer(methods), *gains])
    return _table(lines)


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _best_peer(methods: dict[str, Any]) -> str:
    """The method with the highest gain, CORSD and the plain network aside."""
    peers = [m for name, m in methods.items() if m["group"] == "methods" and not name.startswith(("corsd", "baseline"))]
    peers = [m for m in peers if m["gain"] is not None]
    best = max(peers, key=lambda m: m["gain"], default=None)
    return f"{best['label']}: {_gain(best)}" if best else "–"


def _gain(method: dict[str, Any] | None) -> str:
    if method is None:
        return "–"
    gain = with_interval(method["gain"], method["gain_low"], method["gain_high"], sign="+").removesuffix(" ± –")
    return f"{gain} (n = {method['gain_n']})"


def written(text: str, mark: str, table: str) -> str:
    """`text` with the table between the comments `mark` and `/mark`."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}{table}{end}{rest.partition(end)[2]}"


TABLES = {RESULTS / "README.md": ("summary", overview), RESULTS.parent / "README.md": ("finding", findings)}

if __name__ == "__main__":
    for path, (mark, table) in TABLES.items():
        write_atomic(path, written(path.read_text(encoding="utf-8"), mark, table()).encode())
