"""Whatever is in the files of a run or a study, opening them works or ends in one `CorsdError`.

$CORSD_FUZZ mutations (300 when it is not set; `make fuzz` makes 10,000), from number $CORSD_FUZZ_FIRST (0) on. A failure prints
the number of its mutation: `CORSD_FUZZ=1 CORSD_FUZZ_FIRST=<number> pytest tests/test_fuzz.py` repeats it.
"""

from __future__ import annotations

import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ipywidgets import Widget
from mutations import mutate, without_checksum

from corsd_lib import cli
from corsd_lib.analysis import (
    class_order,
    class_relations,
    class_structure,
    early_exit_curve,
    exit_accuracy,
    relation_quality,
    snapshot_scores,
    stage_embedding,
)
from corsd_lib.analysis.exits import first_correct, overthinking
from corsd_lib.analysis.relations import snapshot_at
from corsd_lib.errors import CorsdError
from corsd_lib.figures import accuracy_by_method, gain_by_method, training_curves
from corsd_lib.files import write_json
from corsd_lib.runs import Run, TrainConfig, load_run
from corsd_lib.sharing.export import committed_run, committed_summary
from corsd_lib.sharing.report import report_panels, write_report
from corsd_lib.studies.records import make_record
from corsd_lib.studies.search import Search
from corsd_lib.studies.study import Study
from corsd_lib.studies.summary import relative_to
from corsd_lib.studies.tables import markdown, short_markdown, table, write_tables
from corsd_lib.studies.tuner import _open_study
from corsd_lib.widgets import ExitExplorer, RelationExplorer, StageExplorer, TrainingMonitor

COUNT = int(os.environ.get("CORSD_FUZZ", "300"))
FIRST = int(os.environ.get("CORSD_FUZZ_FIRST", "0"))
EACH = 100  # mutations a test, so that several processes share them
RUN, STUDY = "results/mine/runs/corsd", "results/mine"
FILES = (
    *(f"{RUN}/{name}" for name in ("config.json", "config.json", "metrics.jsonl", "test.json", "probe.safetensors")),
    *(f"{RUN}/{name}.safetensors" for name in ("probes/epoch_0000", "probes/epoch_0001", "probes/epoch_0002", "weights")),
    *(f"{RUN}/checkpoint.safetensors", f"{RUN}/embeddings/pca.safetensors"),
    *(f"{STUDY}/{name}.json" for name in ("study", "records/corsd-s0", "records/baseline-s1", "tuning/corsd", "summary")),
    *(f"{STUDY}/tuning/corsd.journal", "training.json"),
)
Action = Callable[[], object]


@pytest.fixture(scope="module")
def whole(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a study of four records with a tuning record and tables, and a configuration; all of them good."""
    base = tmp_path_factory.mktemp("whole")
    run = load_run(shutil.copytree(tiny_run.path, base / RUN))
    stage_embedding(run, method="pca")
    write_json(base / "training.json", {"data": "digits", "per_class": 5, "milestones": [0.5], "method_options": {"hidden": 8}})
    _write_study(base / STUDY, run)
    return base


def _write_study(folder: Path, run: Run) -> None:
    fixed = {k: v for k, v in run.raw_config.items() if k not in ("out", "resume", "data_root", "seed", "method_options")}
    options, seeds = run.raw_config["method_options"], [0, 1]
    variants = {"baseline": {"train": {"method": "baseline"}}, "corsd": {"tuned": "tuning/corsd.json", "label": "CORSD"}}
    search = {"corsd": {"trials": 2, "seeds": [0], "space": {"hidden": {"choices": [8, options["hidden"]]}}}}
    write_json(
        folder / "study.json", {"train": {**fixed, "method": "corsd"}, "seeds": seeds, "variants": variants, "tuning": search}
    )
    searched = Search.of(Study.from_file(folder), "corsd")
    searched.journal.parent.mkdir()
    journal = _open_study(searched)
    for _ in range(2):
        journal.tell(journal.ask(dict(searched.distributions())), 50.0)
    trials = [{"number": k, "state": "complete", "value": 50.0, "params": {"hidden": 8}} for k in range(2)]
    best = {"number": 0, "value": 50.0, "options": options, "train": {"lr": 0.05}}
    write_json(folder / "tuning" / "corsd.json", {"row": "corsd", "trials": trials, "best": best})
    study = Study.from_file(folder)
    for row, seed in study.jobs():
        record = make_record(run, row, seed)
        decided = study.config(row, seed)
        config = {**record["config"], "seed": seed, "method": decided.method, "method_options": decided.method_options}
        write_json(study.record_path(row, seed), {**record, "config": config})
    write_tables(study)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Chromium, which would draw the figures of a study for seconds."""
    monkeypatch.setattr("corsd_lib.figures.studies.draw_figures", lambda summary, folder: [])


# --- what a user does with them ---------------------------------------------------------------------------------------


def of_a_run(path: Path) -> dict[str, Action]:
    """What a run says of itself, read for every mutation: milliseconds."""
    run = load_run(path)
    properties = ("config", "data", "raw_config", "provenance", "resumed", "metrics", "epochs_done", "finished", "test")
    return {
        **{name: lambda name=name: getattr(run, name) for name in properties},  # type: ignore[misc]
        "repr": lambda: repr(run),
        "probes": lambda: [list(run.probes.values()), run.probes.labels, run.probes.index, run.probes.split],
        "weights": lambda: [run.network(), run.method()],
    }


def made_of_a_run(path: Path) -> dict[str, Action]:
    """What takes tens of milliseconds: some of these for each mutation."""
    run = load_run(path)
    return {
        "relations": lambda: [class_order("cluster", class_relations(run, 2, 3)), class_relations(run, 1, 1, "cosine")],
        "scores": lambda: snapshot_scores(run, 2, 1),
        "quality": lambda: relation_quality(run, 1),
        "structure": lambda: class_structure(run),
        "embedding": lambda: stage_embedding(run, method="pca"),
        "accuracy": lambda: exit_accuracy(*_answers(run)),
        "exits": lambda: [first_correct(*_answers(run)), overthinking(*_answers(run))],
        "early exits": lambda: early_exit_curve(*_answers(run), [1, 2, 3]),
        "curves": lambda: training_curves({"run": run.metrics}),
        "relation explorer": lambda: repr(RelationExplorer(run)),
        "monitor": lambda: TrainingMonitor()(run),
    }


def _answers(run: Run) -> tuple[list[torch.Tensor], torch.Tensor]:
    return [z.float() for z in snapshot_at(run, 1).logits], run.probes.labels


def slow_of_a_run(path: Path) -> dict[str, Action]:
    """What takes a tenth of a second or more: one of these for some mutations."""
    copy = path.parents[1] / "copy"
    resume = ["train", "--config", str(path / "config.json"), "--out", str(path), "--resume", "--quiet"]
    return {
        "panels": lambda: report_panels([load_run(path), committed_run("mine/corsd")]),
        "report": lambda: write_report([load_run(path)], path.parent / "report.html", embedding="none"),
        "corsd report": lambda: command("report", str(path), "--out", str(path.parent / "report.html")),
        "corsd export": lambda: command("export", str(path), str(copy), "--probe-images", "20"),
        "corsd evaluate": lambda: command("evaluate", str(path)),
        "corsd train --resume": lambda: command(*resume) if (path / "test.json").is_file() else None,
        "record": lambda: make_record(load_run(path), "corsd", 0),
        "stage explorer": lambda: repr(StageExplorer(load_run(path), method="pca")),
        "exit explorer": lambda: repr(ExitExplorer(load_run(path))),
    }


def of_a_study(path: Path) -> dict[str, Action]:
    def summary(use: Callable[[dict[str, Any]], object]) -> Action:
        return lambda: use(committed_summary("mine"))

    return {
        "study": lambda: Study.from_file(path),
        "jobs": lambda: [Study.from_file(path).config(*job) for job in Study.from_file(path).jobs()],
        "records": lambda: Study.from_file(path).records(),
        "journal": lambda: _open_study(Search.of(Study.from_file(path), "corsd")),
        "search": lambda: Search.of(Study.from_file(path), "corsd").distributions(),
        "trials": lambda: Study.from_file(path).check_search("corsd"),
        "summary": summary(lambda s: [table(s), markdown(s), short_markdown(s), relative_to(s, "corsd")]),
        "accuracy figure": summary(accuracy_by_method),
        "gain figure": summary(gain_by_method),
        "tables": lambda: write_tables(Study.from_file(path)),
        "corsd compare --tables": lambda: command("compare", str(path), "--tables", "--quiet"),
    }


def of_a_configuration(path: Path) -> dict[str, Action]:
    return {
        "configuration": lambda: [TrainConfig.from_file(path).training_settings(), TrainConfig.from_file(path).path],
        "corsd train": lambda: command("train", "--config", str(path), "--method", "none of ours"),
    }


def command(*words: str) -> None:
    """A command of `corsd` in this process; its errors are one line and end with status 2."""
    try:
        cli.main(words)
    except SystemExit as end:
        assert end.code in (None, 0, 2), f"status {end.code}"


# --- the test ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, EACH))
def test_whatever_is_in_a_file_opening_it_works_or_ends_in_one_error(
    first: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = []
    for number in range(first, min(first + EACH, FIRST + COUNT)):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder, copy_function=_linked)
        monkeypatch.chdir(folder)
        failures += _tried(folder, number)
        err = capsys.readouterr().err
        if "Traceback" in err or any(not line.startswith("corsd: error: ") for line in err.splitlines()):
            failures.append(f"mutation {number} wrote more than a line of error: {err[:500]}")
        shutil.rmtree(folder)
        Widget.close_all()  # which ipywidgets would keep for as long as the process lives
    assert not failures, f"{len(failures)} failures\n" + "\n\n".join(failures[:20])


def _linked(source: str, target: str) -> None:
    """A file is replaced when it is written anew, so that a link to it will do; a journal is written on."""
    (shutil.copy if source.endswith(".journal") else os.link)(source, target)


def _tried(folder: Path, number: int) -> Iterator[str]:
    """What went wrong when a user did all that there is to do with the files of `folder`, mutation `number` among them."""
    rng = random.Random(number)
    name = rng.choice(FILES)
    file = next((folder / name).parent.glob("pca*")) if "pca" in name else folder / name
    what = _damaged(file, rng)
    if name.endswith("checkpoint.safetensors"):
        (file.parent / "weights.safetensors").unlink()
        (file.parent / "test.json").unlink()
    for action, do in _actions(folder, name, rng):
        try:
            do()
        except CorsdError:
            pass
        except Exception:
            yield f"mutation {number} of {name}: {what}; {action}\n{traceback.format_exc()[-1500:]}"


def _damaged(file: Path, rng: random.Random) -> str:
    whole = file.read_bytes()
    if file.suffix != ".journal" and rng.random() < 0.8:
        whole = without_checksum(file.name, whole)
    what, content = mutate(file.name, whole, rng)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    elif rng.random() < 0.5:
        file.mkdir()
    return what


def _actions(folder: Path, name: str, rng: random.Random) -> list[tuple[str, Action]]:
    if name.startswith(RUN):
        try:
            first, then, last = (actions(folder / RUN) for actions in (of_a_run, made_of_a_run, slow_of_a_run))
        except CorsdError:  # no run any more
            return []
        return [*first.items(), *rng.sample([*then.items()], 2), *rng.sample([*last.items()], rng.random() < 0.2)]
    if "training" in name:
        return [*of_a_configuration(folder / name).items()]
    actions = of_a_study(folder / STUDY)
    chosen = rng.sample([*actions], 3)
    return [(action, actions[action]) for action in dict.fromkeys([*(["journal"] if "journal" in name else []), *chosen])]
