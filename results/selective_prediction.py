"""How well confidence selects the right predictions, by exit, for runs of a study whose weights are on this machine.

    python results/selective_prediction.py results/cub200 runs/cub200    writes results/cub200/selective_prediction.json

The records of a study hold no predictions, so this needs the run directories. Each network is evaluated on the test images
again; its accuracy must be that of the record.
"""

from __future__ import annotations

import sys
from pathlib import Path

from corsd_lib import Run, load_run
from corsd_lib.errors import CorsdError
from corsd_lib.evaluation import exit_logits, risk_coverage_area, top_k_accuracy
from corsd_lib.files import write_json
from corsd_lib.runs import run_data
from corsd_lib.studies.study import Study

TOLERANCE = 0.2  # points: training may have evaluated in bfloat16


def main() -> None:
    """Evaluate the finished runs, write the JSON file and print its path."""
    if len(sys.argv) != 3:
        sys.exit("usage: python results/selective_prediction.py STUDY RUNS")
    study, runs = Study.from_file(sys.argv[1]), Path(sys.argv[2])
    found: dict[str, dict[str, list[float]]] = {}
    for variant, seed in sorted(study.jobs()):
        folder, record = runs / variant / f"seed{seed}", study.record(variant, seed)
        if record is not None and (folder / "test.json").is_file():
            found.setdefault(variant, {})[str(seed)] = areas(load_run(folder), [e["top1"] for e in record["test"]["exits"]])
            print(folder, flush=True)
    write_json(study.path / "selective_prediction.json", {"aurc": found})
    print(study.path / "selective_prediction.json")


def areas(run: Run, recorded: list[float]) -> list[float]:
    """Area under the risk-coverage curve on test (%, four digits) of every exit. `recorded`: the accuracies of the record, %.

    Raises `CorsdError` if an accuracy differs from the recorded one by more than `TOLERANCE`.
    """
    data = run_data(run)
    logits, labels = exit_logits(run.network(), data, data.test)
    for k, (z, before) in enumerate(zip(logits, recorded, strict=True), 1):
        if abs(top_k_accuracy(z, labels) - before) > TOLERANCE:
            raise CorsdError(
                f"{run.path}, exit {k}: accuracy {top_k_accuracy(z, labels):.2f} %, but its record has {before:.2f} %"
            )
    return [round(risk_coverage_area(z, labels), 4) for z in logits]


if __name__ == "__main__":
    main()
