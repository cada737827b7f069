"""Records of held-out classes, and the tables that are made from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from corsd_lib.errors import CorsdError
from corsd_lib.files import write_json
from corsd_lib.readers import read_summary
from corsd_lib.studies.records import make_record
from corsd_lib.studies.study import Study
from corsd_lib.studies.tables import write_tables
from corsd_lib.studies.unseen_tables import METRICS, unseen_lines, unseen_markdown
from corsd_lib.training import train

T2 = 4.302653  # Student's t at 97.5 %, 2 degrees of freedom
VARIANTS: dict[str, Any] = {
    "baseline": {"label": "plain network", "train": {"method": "baseline"}},
    "corsd": {"label": "CORSD", "train": {"method": "corsd"}},
    "bare": {"label": "without | relations", "group": "ablation", "from": "corsd"},
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    values = {"title": "By hand", "seeds": [0, 1, 2], "train": {"hold_out_classes": 3, "epochs": 2}, "variants": VARIANTS}
    write_json(tmp_path / "mine" / "study.json", values)
    return Study.from_file(tmp_path / "mine")


def unseen(*figures: tuple[int, str, float | None]) -> dict[str, Any]:
    """The field of a record: (exit, score, recall@1), the other figures 1, 2, ... below it."""
    names = ("recall_at_1", "r_precision", "map_at_r", "one_shot", "one_shot_half", "five_shot", "five_shot_half")
    figures = [
        {"exit": k, "score": score, **{name: None if v is None else v - i for i, name in enumerate(names)}}
        for k, score, v in figures
    ]
    return {"classes": 3, "images": 60, "ways": 3, "queries": 15, "episodes": 600, "figures": figures}


RECORDS: dict[str, dict[int, dict[str, Any]]] = {
    "baseline": {s: {"unseen": unseen((1, "cosine", 40.0 + s))} for s in range(3)},
    "corsd": {
        s: {"unseen": unseen((1, "cosine", 30.0 + s), (1, "relation", 35.0), (2, "cosine", 42.0 + 2 * s))} for s in (0, 1, 2)
    },
    "bare": {s: {"unseen": unseen((1, "cosine", 29.0 + s), (2, "cosine", 44.0 + s))} for s in (1, 2)},
}


def _line(lines: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (line,) = [line for line in lines if all(line[k] == v for k, v in wanted.items())]
    return line


def test_the_lines_are_those_of_a_calculation_by_hand(study: Study) -> None:
    lines = unseen_lines(study, RECORDS)
    assert len(lines) == len(METRICS) * (1 + 3 + 2 * 2)  # the last variant is compared with the baseline and with its own
    deepest = _line(lines, variant="corsd", exit="deepest exit", score="cosine", figure="recall_at_1")
    half, gain_half = T2 * 2 / math.sqrt(3), T2 * 1 / math.sqrt(3)  # of 42, 44, 46 and of 2, 3, 4
    assert (deepest["label"], deepest["group"], deepest["over"], deepest["n"], deepest["gain_n"]) == (
        "CORSD",
        "methods",
        "baseline",
        3,
        3,
    )
    assert deepest["by_seed"] == {"0": 42.0, "1": 44.0, "2": 46.0}
    assert [deepest[k] for k in ("mean", "low", "high")] == pytest.approx([44, 44 - half, 44 + half], rel=1e-6)
    assert [deepest[k] for k in ("gain", "gain_low", "gain_high")] == pytest.approx([3, 3 - gain_half, 3 + gain_half], rel=1e-6)
    five = _line(lines, variant="corsd", exit="deepest exit", score="cosine", figure="five_shot")
    assert (five["mean"], five["gain"]) == (39, 3)


def test_exits_are_compared_from_the_deepest_and_only_where_both_rows_have_them(study: Study) -> None:
    lines = unseen_lines(study, RECORDS)
    for exit_name, score in (("exit 1", "cosine"), ("exit 1", "relation")):  # the plain network has one exit
        line = _line(lines, variant="corsd", exit=exit_name, score=score, figure="map_at_r")
        assert (line["gain"], line["gain_low"], line["gain_n"]) == (None, None, 0)
    shallow = _line(lines, variant="bare", over="corsd", exit="exit 1", figure="recall_at_1")
    assert (shallow["gain"], shallow["gain_low"], shallow["gain_n"], shallow["n"]) == (-1, None, 2, 2)
    assert _line(lines, variant="bare", over="baseline", exit="deepest exit", figure="recall_at_1")["gain"] == 4
    assert {line["over"] for line in lines if line["variant"] == "baseline"} == {None}


def test_rows_and_figures_that_are_not_there_are_left_out(study: Study) -> None:
    records = {
        "corsd": {0: RECORDS["corsd"][0], 1: {}},
        "bare": {0: {"unseen": unseen((1, "cosine", None))}},
        "baseline": {0: {}},
    }
    lines = unseen_lines(study, records)
    assert {(line["variant"], line["n"], line["over"]) for line in lines} == {("corsd", 1, None), ("bare", 0, "corsd")}
    assert _line(lines, variant="bare", figure="one_shot")["mean"] is None
    assert unseen_lines(study, {"baseline": {0: {}}}) == []
    assert "| without / relations | deepest exit | cosine | 0 | – | – | – | – | – |" in unseen_markdown(study, lines)


TABLE = """\
| method | exit | score | seeds | recall@1 | MAP@R | R-precision | 1 shot | 5 shots |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| plain network | deepest exit | cosine | 3 | 41.0 ± 2.5 | 39.0 ± 2.5 | 40.0 ± 2.5 | 38.0 ± 2.5 | 36.0 ± 2.5 |
| CORSD | exit 1 | cosine | 3 | 31.0 ± 2.5 | 29.0 ± 2.5 | 30.0 ± 2.5 | 28.0 ± 2.5 | 26.0 ± 2.5 |
| CORSD | exit 1 | relation | 3 | 35.0 ± – | 33.0 ± – | 34.0 ± – | 32.0 ± – | 30.0 ± – |
| CORSD | deepest exit | cosine | 3 | 44.0 ± 5.0 | 42.0 ± 5.0 | 43.0 ± 5.0 | 41.0 ± 5.0 | 39.0 ± 5.0 |
| without / relations | exit 1 | cosine | 2 | 30.5 ± – | 28.5 ± – | 29.5 ± – | 27.5 ± – | 25.5 ± – |
| without / relations | deepest exit | cosine | 2 | 45.5 ± – | 43.5 ± – | 44.5 ± – | 42.5 ± – | 40.5 ± – |

Differences, points:

| method | over | exit | score | pairs | recall@1 | MAP@R | R-precision | 1 shot | 5 shots |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| CORSD | plain network | deepest exit | cosine | 3 | +3.0 ± 2.5 | +3.0 ± 2.5 | +3.0 ± 2.5 | +3.0 ± 2.5 | +3.0 ± 2.5 |
| without / relations | plain network | deepest exit | cosine | 2 | +4.0 ± – | +4.0 ± – | +4.0 ± – | +4.0 ± – | +4.0 ± – |
| without / relations | CORSD | exit 1 | cosine | 2 | -1.0 ± – | -1.0 ± – | -1.0 ± – | -1.0 ± – | -1.0 ± – |
| without / relations | CORSD | deepest exit | cosine | 2 | +0.5 ± – | +0.5 ± – | +0.5 ± – | +0.5 ± – | +0.5 ± – |
"""


def test_the_table_for_readers(study: Study) -> None:
    tables, _, note = unseen_markdown(study, unseen_lines(study, RECORDS)).rpartition("\n\n")
    assert tables + "\n" == TABLE
    assert note.startswith("Test images of classes that were held out") and "paired by seed" in note


def test_a_training_is_recorded_and_tabulated_with_its_held_out_classes(study: Study, tmp_path: Path) -> None:
    tiny = {"per_class": 5, "width": 4, "epochs": 1, "batch_size": 16, "accelerator": "cpu", "probe_size": 20}
    variants = {name: {**variant, "seeds": [0]} for name, variant in VARIANTS.items() if name != "bare"}
    write_json(study.path / "study.json", {"train": {**tiny, "hold_out_classes": 3}, "variants": variants})
    study = Study.from_file(study.path)
    for variant, seed in study.jobs():
        config = replace(study.config(variant, seed), out=str(tmp_path / variant))
        write_json(study.record_path(variant, seed), make_record(train(config, progress=False), variant, seed))
    record = study.record("corsd", 0)
    assert record is not None and (record["unseen"]["classes"], len(record["unseen"]["figures"])) == (3, 9)
    assert len(json.dumps(record)) < 7000
    write_tables(study)
    frame = pd.read_csv(study.path / "unseen.csv")
    recall = frame.query("variant == 'corsd' and exit == 'deepest exit' and score == 'relation' and figure == 'recall_at_1'")
    assert recall["mean"].tolist() == [record["unseen"]["figures"][-1]["recall_at_1"]]
    text = (study.path / "unseen.md").read_text()
    assert text.startswith("# mine: classes never seen\n\n| method |") and text.endswith("/mine`\n")
    assert "| CORSD | plain network | deepest exit | cosine | 1 |" in text
    summary = read_summary(study.path / "summary.json")
    kept = pd.DataFrame(summary["unseen"]).drop(columns="by_seed").fillna(float("nan"))
    pd.testing.assert_frame_equal(kept, frame, check_dtype=False, check_exact=False)
    summary["unseen"][0]["mean"] = 120.0
    write_json(study.path / "summary.json", summary)
    with pytest.raises(CorsdError, match=r"unseen\[0\]: mean = 120\.0; allowed: a number from 0 to 100"):
        read_summary(study.path / "summary.json")


def test_a_study_without_held_out_classes_has_no_such_table(study: Study) -> None:
    write_tables(study)
    assert sorted(file.name for file in study.path.iterdir()) == ["study.json", "summary.json", "table.csv", "table.md"]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"figures": []}, "unseen: figures has 0 entries; allowed: 1 or more"),
        ({"classes": 1}, "unseen: classes = 1; allowed: a whole number from 2"),
        ({"names": ["a"]}, "unseen: field 'names' is not known; allowed: classes, images"),
        (unseen((0, "cosine", 1.0)), r"unseen: figures\[0\]: exit = 0; allowed: a whole number from 1"),
        (unseen((1, "cosine", 120.0)), r"unseen: figures\[0\]: recall_at_1 = 120\.0; allowed: a number from 0 to 100"),
    ],
)
def test_a_field_that_is_wrong_is_named(study: Study, change: dict[str, Any], message: str) -> None:
    config = {"method": "baseline", "method_options": {}, "hold_out_classes": 3, "epochs": 2}
    record = {
        **{"row": "baseline", "seed": 0, "config": config, "test": {"exits": [{"top1": 5.0}]}, "train_top1": [5.0]},
        **{"images": 1, "macs": 1, "seconds": 1.0, "unseen": unseen((1, "cosine", 50.0))},
    }
    write_json(study.record_path("baseline", 0), record)
    assert study.record("baseline", 0) == record
    write_json(study.record_path("baseline", 0), {**record, "unseen": {**unseen((1, "cosine", 50.0)), **change}})
    with pytest.raises(CorsdError, match=rf"baseline-s0\.json: {message}"):
        study.records()
