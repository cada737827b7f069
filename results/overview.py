"""Write the table of all studies in results/README.md from their summaries: `python results/overview.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corsd_lib.files import write_atomic
from corsd_lib.readers import read_summary
from corsd_lib.studies.intervals import with_interval

RESULTS = Path(__file__).resolve().parent
MARKS = ("<!-- summary -->\n", "<!-- /summary -->")
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


def overview() -> str:
    """A Markdown table: the plain network's accuracy in every study, and the gain of some methods over it."""
    lines = [["study", "plain network, %", *VARIANTS.values()], ["---"] + ["---:"] * (1 + len(VARIANTS))]
    for name, title in STUDIES.items():
        methods = read_summary(RESULTS / name / "summary.json")["methods"]
        top1 = f"{methods['baseline']['top1'][-1]:.1f}"
        lines.append([f"[{title}]({name}/table.md)", top1, *(_gain(methods.get(variant)) for variant in VARIANTS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _gain(method: dict[str, Any] | None) -> str:
    if method is None:
        return "–"
    gain = with_interval(method["gain"], method["gain_low"], method["gain_high"], sign="+").removesuffix(" ± –")
    return f"{gain} (n = {method['gain_n']})"


def written(text: str) -> str:
    """`text` with the table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}{overview()}{MARKS[1]}{rest.partition(MARKS[1])[2]}"


if __name__ == "__main__":
    readme = RESULTS / "README.md"
    write_atomic(readme, written(readme.read_text(encoding="utf-8")).encode())
