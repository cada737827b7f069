from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from corsd_lib.costs import training_macs
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json
from corsd_lib.runs import Run
from corsd_lib.studies.records import make_record
from corsd_lib.studies.study import Study
from corsd_lib.studies.tables import write_tables

Write = Callable[..., Study]
VARIANTS: dict[str, Any] = {
    "baseline": {"label": "plain network", "seeds": [0, 1, 2], "train": {"method": "baseline"}},
    "corsd": {"train": {"method": "corsd", "method_options": {"hidden": 8}}, "tuned": "tuning/corsd.json"},
    "no_margin": {"from": "corsd", "group": "ablation", "train": {"method_options": {"relation_margin": 0.0}}},
    "release": {"train": {"method": "corsd_release"}},
}
TUNED = {"best": {"options": {"hidden": 99, "exit_ce": 0.3}, "train": {"samples_per_class": 3}}}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A study in `tmp_path`/mine with changes to its fields, and the tuning record that it names."""

    def make(**changes: Any) -> Study:
        values = {"seeds": [0, 1], "train": {"epochs": 30, "lr": 0.05}, "variants": VARIANTS, **changes}
        write_json(tmp_path / "mine" / "study.json", values)
        write_json(tmp_path / "mine" / "tuning" / "corsd.json", TUNED)
        return Study.from_file(tmp_path / "mine")

    return make


def test_rows_is_an_older_name_of_variants(write: Write) -> None:
    study = write()
    older = json.loads((study.path / "study.json").read_text())
    older["rows"] = older.pop("variants")
    assert Study.from_dict(older, study.path / "study.json") == study
    with pytest.raises(CorsdError, match=r'study\.json: "rows" is the old name of "variants"; allowed: one of them'):
        Study.from_dict({**older, "variants": older["rows"]}, study.path / "study.json")


def record_of(study: Study, variant: str, seed: int, *top1: float) -> dict[str, Any]:
    """A record as a training of `variant` would leave it."""
    config = json.loads(json.dumps(asdict(study.config(variant, seed))))
    for name in ("out", "resume", "data_root", "workers", "checkpoint_seconds"):
        del config[name]
    cost = {"images": 100, "macs": 7, "seconds": 2.0, "provenance": {}}
    test = {"exits": [{"top1": v} for v in top1]}
    return {"row": variant, "seed": seed, "config": config, "test": test, "train_top1": list(top1), **cost}


# --- what is trained ---


def test_a_study_is_found_by_its_folder_and_by_its_file(write: Write, tmp_path: Path) -> None:
    study = write(title="Digits", equal="epochs")
    assert Study.from_file(tmp_path / "mine" / "study.json") == study
    assert (study.path, study.name, study.title, study.equal) == (tmp_path / "mine", "mine", "Digits", "epochs")
    assert (study.baseline, study.seeds, study.tuning) == ("baseline", (0, 1), {})
    plain, _, ablation, _ = study.variants.values()
    assert (plain.label, plain.group, plain.seeds, plain.parent) == ("plain network", "methods", (0, 1, 2), None)
    assert (ablation.label, ablation.group, ablation.seeds, ablation.parent) == ("no_margin", "ablation", (0, 1), "corsd")


def test_own_settings_lie_over_tuned_ones_and_these_over_common_ones(write: Write) -> None:
    study = write(train={"epochs": 9, "samples_per_class": 2, "method_options": {"label_smoothing": 0.1, "task": 2.0}})
    config = study.config("corsd", 1)
    assert config.method_options == {"hidden": 8, "exit_ce": 0.3, "label_smoothing": 0.1, "task": 2.0}
    assert (config.samples_per_class, config.method, config.seed, config.epochs) == (3, "corsd", 1, 9)
    assert study.config("no_margin", 0).method_options == {**config.method_options, "relation_margin": 0.0}
    own = study.without_tuning().config("corsd", 1)
    assert own.method_options == {"hidden": 8, "label_smoothing": 0.1, "task": 2.0} and own.samples_per_class == 2


def test_a_row_can_put_away_the_tuning_that_it_would_inherit(write: Write) -> None:
    study = write(variants={**VARIANTS, "untuned": {"from": "corsd", "tuned": None}})
    assert study.config("untuned", 0).method_options == {"hidden": 8}


def test_rows_inherit_over_several_steps(write: Write) -> None:
    last = {"from": "no_margin", "train": {"lr": 0.2, "method_options": {"hidden": 4}}}
    study = write(variants={**VARIANTS, "last": last})
    assert study.config("last", 0).method_options == {"hidden": 4, "exit_ce": 0.3, "relation_margin": 0.0}
    assert (study.config("last", 0).lr, study.config("no_margin", 0).lr) == (0.2, 0.05)


def test_a_row_without_its_tuning_record_is_not_trained_untuned(write: Write) -> None:
    study = write()
    shutil.rmtree(study.path / "tuning")
    assert study.config("baseline", 0).method == "baseline"
    with pytest.raises(CorsdError, match=r"tuning/corsd\.json has no best options: tune the variant first"):
        study.config("corsd", 0)
    write_json(study.path / "tuning" / "corsd.json", {"best": None})
    with pytest.raises(CorsdError, match=r"corsd\.json has no best options: tune the variant first"):
        study.config("no_margin", 0)


def test_a_row_is_not_trained_before_its_search_is_finished(write: Write) -> None:
    study = write(tuning={"corsd": {"trials": 3, "space": {"hidden": {"choices": [8, 99]}}}})
    stopped = {"state": "failed", "error": "stopped, taken up by trial 2"}
    trials = [{"state": "complete"}, stopped, {"state": "pruned"}]
    for more, done in (([], 2), ([{"state": "failed", "error": "its loss is not finite"}], 3)):
        write_json(study.path / "tuning" / "corsd.json", {**TUNED, "trials": trials + more})
        study.check_search("baseline")
        if done == 3:
            study.check_search("no_margin")
        else:
            with pytest.raises(CorsdError, match=r"variant 'no_margin': .*corsd\.json has 2 of 3 trials: finish the search"):
                study.check_search("no_margin")
    with pytest.raises(CorsdError, match=r"corsd\.json has 0 of 40 trials"):  # as many as a search does that is not told
        write(tuning={"corsd": {"space": {"hidden": {"choices": [8, 99]}}}}).check_search("corsd")
    write().check_search("corsd")  # a study that says nothing of the search


def test_a_run_lies_below_runs_and_nothing_else_is_of_this_machine(write: Write) -> None:
    config = write().config("corsd", 1)
    assert (config.out, config.data_root, config.resume) == ("runs/mine/corsd/seed1", None, False)


@pytest.mark.parametrize(
    "equal,epochs,own,expected",
    [
        ("images", 30, {}, 10),
        ("epochs", 30, {}, 30),
        ("images", 100, {}, 33),
        ("images", 1, {}, 1),
        ("images", 30, {"sampling": "plain"}, 30),
        ("images", 30, {"epochs": 60}, 20),
    ],
)
def test_a_row_of_triplets_is_given_the_same_images(
    write: Write, equal: str, epochs: int, own: dict[str, Any], expected: int
) -> None:
    variants = {
        **VARIANTS,
        "release": {"train": {"method": "corsd_release", **own}},
        "balanced": {"train": {"sampling": "balanced"}},
    }
    study = write(equal=equal, train={"epochs": epochs}, variants=variants)
    assert study.config("release", 0).epochs == expected
    assert study.config("balanced", 0).epochs == study.config("baseline", 0).epochs == epochs


def test_a_row_that_repeats_half_of_each_batch_is_given_half_of_the_epochs(write: Write) -> None:
    variants = {**VARIANTS, "dlb": {"train": {"method": "dlb"}}, "plain": {"from": "dlb", "train": {"sampling": "plain"}}}
    study = write(train={"epochs": 30}, variants=variants)
    assert [study.config(variant, 0).epochs for variant in ("dlb", "plain", "baseline")] == [15, 30, 30]


def test_rows_of_one_image_get_more_epochs_than_a_baseline_of_triplets(write: Write) -> None:
    study = write(baseline="release")
    assert (study.config("release", 0).epochs, study.config("baseline", 0).epochs) == (30, 90)


def test_a_seed_of_every_row_comes_before_the_next_seed(write: Write) -> None:
    variants = list(VARIANTS)
    assert write().jobs() == [*((variant, 0) for variant in variants), *((variant, 1) for variant in variants), ("baseline", 2)]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"rowz": {}}, r"study\.json: field 'rowz' is not known; allowed: title, "),
        ({"variants": []}, r"study\.json: variants = \[\] is of type list; allowed: dict"),
        ({"variants": {"baseline": 3}}, r"variant 'baseline' = 3; allowed: a JSON object"),
        ({"variants": {"a/b": {}}, "baseline": "a/b"}, "the name of a variant is 'a/b'; allowed: letters"),
        ({"variants": {"corsd": {}}}, "baseline 'baseline' is not known; allowed: corsd"),
        ({"variants": {"baseline": {"methods": "x"}}}, "variant 'baseline': field 'methods' is not known; allowed: label, "),
        ({"variants": {"baseline": {"from": "other"}}}, "variant 'baseline': from 'other' is not known; allowed: baseline"),
        ({"variants": {"baseline": {"from": "b"}, "b": {"from": "baseline"}}}, "variant 'baseline' inherits from itself"),
        (
            {"variants": {"baseline": {"train": {"epoch": 3}}}},
            "variant 'baseline': train: field 'epoch' is not known; allowed: data, ",
        ),
        ({"variants": {"baseline": {"train": {"epochs": 0}}}}, "variant 'baseline': train: epochs = 0 must be above 0"),
        (
            {"variants": {"baseline": {"train": {"method": "corsd", "method_options": {"a": 1}}}}},
            "'a' is not known; allowed: task",
        ),
        ({"variants": {"baseline": {"train": {"out": "here"}}}}, "train: out depends on the run or the machine"),
        ({"train": {"data_root": "/data"}}, "train: data_root depends on the run or the machine"),
        ({"equal": "time"}, "equal 'time' is not known; allowed: images, epochs"),
        ({"train": {"method_options": None}}, r"study\.json: train: method_options = None; allowed: a JSON object of options"),
        (
            {"variants": {"baseline": {"train": {"method_options": [1]}}}},
            r"variant 'baseline': train: method_options = \[1\]; allowed",
        ),
        ({"tuning": {"other": {}}}, r"study\.json: tuning of variant 'other' is not known; allowed: baseline, corsd"),
        (
            {"tuning": {"baseline": {}}},
            r"variant 'baseline' has a search but no result in use: add \"tuned\": \"tuning/baseline\.json\"",
        ),
        ({"seeds": []}, r"seeds = \[\]; allowed: one or more different whole numbers"),
        ({"seeds": [0, 0]}, r"seeds = \[0, 0\]; allowed"),
        ({"seeds": [True]}, r"seeds = \[True\]; allowed"),
        ({"seeds": [2**63]}, r"seeds = \[9223372036854775808\]; allowed: .* and below 9,223,372,036,854,775,808"),
        ({"variants": {"baseline": {"seeds": [-1]}}}, r"variant 'baseline': seeds = \[-1\]; allowed"),
    ],
)
def test_what_is_wrong_in_a_study_is_named_when_it_is_read(write: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        write(**changes)


def test_an_unknown_row_is_named(write: Write) -> None:
    with pytest.raises(CorsdError, match="variant 'kd' is not known; allowed: baseline, corsd, no_margin, release"):
        write().config("kd", 0)
    with pytest.raises(CorsdError, match=r"nowhere/study\.json does not exist"):
        Study.from_file("nowhere")


# --- records ---


def test_a_record_of_the_configuration_counts_wherever_and_however_it_was_made(write: Write) -> None:
    study = write()
    write_json(study.record_path("corsd", 1), record_of(study, "corsd", 1, 40.0, 50.0))
    assert study.record_path("corsd", 1) == study.path / "records" / "corsd-s1.json"
    assert study.record("corsd", 1) == record_of(study, "corsd", 1, 40.0, 50.0)
    assert study.record("corsd", 0) is None
    assert study.records() == {"corsd": {1: record_of(study, "corsd", 1, 40.0, 50.0)}}


def test_a_record_older_than_a_field_had_its_default(write: Write) -> None:
    study = write()
    record = record_of(study, "baseline", 0, 50.0)
    del record["config"]["cutout"]
    write_json(study.record_path("baseline", 0), record)
    assert study.record("baseline", 0) == record
    record["config"]["cutout"] = 8
    write_json(study.record_path("baseline", 0), record)
    with pytest.raises(CorsdError, match="cutout was 8, is 0"):
        study.record("baseline", 0)


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"train": {"epochs": 31, "lr": 0.05}},
            r"corsd-s0\.json is of another configuration: epochs was 30, is 31; remove or ren",
        ),
        (
            {"variants": {**VARIANTS, "corsd": {"train": {"method_options": {"margin": 2.0}}}}},
            r"method_options\.margin was 1\.0, is 2\.0",
        ),
    ],
)
def test_a_record_of_another_configuration_is_an_error(write: Write, changes: dict[str, Any], message: str) -> None:
    study = write()
    write_json(study.record_path("corsd", 0), record_of(study, "corsd", 0, 50.0))
    with pytest.raises(CorsdError, match=message):
        write(**changes).records()


def test_a_default_that_is_spelled_out_is_the_same_configuration(write: Write) -> None:
    study = write(variants={"baseline": {"train": {"method": "corsd", "method_options": {}}}})
    write_json(study.record_path("baseline", 0), record_of(study, "baseline", 0, 50.0))
    same = write(variants={"baseline": {"train": {"method": "corsd", "method_options": {"margin": 1.0, "exit_ce": 1}}}})
    assert same.record("baseline", 0) is not None


def test_what_is_no_record_is_named(write: Write) -> None:
    study = write()
    whole = record_of(study, "corsd", 0, 50.0)
    del whole["test"]
    for content, part in (([1], "config"), (whole, "test")):
        write_json(study.record_path("corsd", 0), content)
        with pytest.raises(CorsdError, match=rf"corsd-s0\.json is not a record of a training: it lacks {part}"):
            study.record("corsd", 0)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"seed": "0"}, "seed = '0'; allowed: a whole number from 0"),
        ({"seed": 1}, "seed = 1; allowed: 0, as in the file name"),
        ({"row": 3}, "row = 3; allowed: a string"),
        ({"train_top1": []}, "train_top1 has 0 entries; allowed: 1 or more"),
        ({"images": 1.5}, r"images = 1\.5; allowed: a whole number from 1"),
        ({"macs": 10**400}, "macs = 1000.*; allowed: a number from 0 to 1e.30"),
        ({"seconds": None}, "seconds = None; allowed: a number from 0"),
        ({"test": {"exits": []}}, "test: exits has 0 entries; allowed: 1 or more"),
        ({"test": {"exits": [{"top1": "50"}]}}, r"test: exits\[0\]: top1 = '50'; allowed: a number from 0 to 100"),
        ({"provenance": {"revision": 3}}, "provenance: revision = 3; allowed: a string"),
        ({"best": 3}, "field 'best' is not known; allowed: row, seed, config"),
    ],
)
def test_a_field_of_a_record_that_is_wrong_is_named(write: Write, change: dict[str, Any], message: str) -> None:
    study = write()
    write_json(study.record_path("corsd", 0), {**record_of(study, "corsd", 0, 50.0), **change})
    with pytest.raises(CorsdError, match=rf"corsd-s0\.json: {message}"):
        study.records()


def test_seeds_of_a_row_have_as_many_exits(write: Write) -> None:
    study = write()
    for seed, top1 in ((0, (40.0, 50.0)), (1, (50.0,))):
        write_json(study.record_path("corsd", seed), record_of(study, "corsd", seed, *top1))
    with pytest.raises(
        CorsdError, match=r"corsd-s1\.json: test: exits has 1 entries; allowed: 2, as in the records of other seeds"
    ):
        write_tables(study)


@pytest.mark.parametrize(
    "record,message",
    [
        ({"best": {"options": 3}}, "best: options = 3; allowed: a JSON object"),
        ({"best": []}, r"best = \[\]; allowed: a JSON object"),
        ([], r"corsd\.json = \[\]; allowed: a JSON object"),
        ({"best": {"options": {}}, "trials": [3]}, r"trials\[0\] = 3; allowed: a JSON object"),
        ({"best": {"options": {}}, "trials": [{"error": 3}]}, r"trials\[0\]: error = 3; allowed: a string"),
    ],
)
def test_a_tuning_record_that_is_wrong_is_named(write: Write, record: Any, message: str) -> None:
    study = write()
    write_json(study.path / "tuning" / "corsd.json", record)
    with pytest.raises(CorsdError, match=message):
        study.config("corsd", 0)


def test_a_record_says_what_a_run_came_to_and_nothing_of_its_place(tiny_run: Run) -> None:
    record = make_record(tiny_run, "corsd", 0)
    assert list(record) == ["row", "seed", "config", "test", "train_top1", "images", "macs", "seconds", "provenance"]
    free = {"out", "resume", "data_root", "workers", "checkpoint_seconds", "cuda_graphs", "deterministic"}
    assert record["config"] == {k: v for k, v in tiny_run.raw_config.items() if k not in free}
    assert (record["test"], record["provenance"]) == (tiny_run.test, tiny_run.provenance)
    metrics = tiny_run.metrics
    assert record["images"] == metrics["images"].sum() > 0
    assert record["seconds"] == pytest.approx(metrics["seconds"].sum(), abs=0.06)
    assert record["train_top1"] == [metrics.iloc[-1][f"train_top1.exit{k}"] for k in (1, 2, 3)]
    assert record["macs"] == round(record["images"] * training_macs(tiny_run.config, tiny_run.data))
    text = json.dumps(record)
    assert len(text) < 4000 and str(tiny_run.path) not in text and str(tiny_run.path.parent) not in text


def test_a_record_of_own_images_names_no_folder_and_counts(
    tiny_run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = "folder:/home/somebody/birds"
    study = write(train={"epochs": 30, "lr": 0.05, "data": here})
    monkeypatch.setattr(Run, "raw_config", json.loads(json.dumps(asdict(study.config("corsd", 0)))))
    monkeypatch.setattr(Run, "data", replace(tiny_run.data, name=here))
    monkeypatch.setattr(Run, "resumed", [{"revision": "other"}])
    monkeypatch.setattr("corsd_lib.studies.records.training_macs", lambda *_: 1)
    record = make_record(Run(tiny_run.path), "corsd", 0)
    assert record["config"]["data"] == record["test"]["data"] == "folder:birds" and record["resumed"] == [{"revision": "other"}]
    assert "somebody" not in json.dumps(record)
    write_json(study.record_path("corsd", 0), record)
    assert study.record("corsd", 0) == record


def test_a_row_may_say_that_it_does_not_use_its_search(write: Write) -> None:
    variants = {**VARIANTS, "baseline": {"tuned": None, "train": {"method": "baseline"}}}
    assert write(variants=variants, tuning={"baseline": {}}).variants["baseline"].tuned is None


def test_a_study_has_a_folder_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=r"other\.json must be named study\.json and have its own folder"):
        Study.from_file(tmp_path / "other.json")


# --- what is written ---


def test_tables_are_written_from_the_records(write: Write) -> None:
    study = write(title="Digits & co")
    for seed, top1 in ((0, 50.0), (1, 52.0)):
        write_json(study.record_path("baseline", seed), record_of(study, "baseline", seed, top1))
    write_json(study.record_path("corsd", 0), record_of(study, "corsd", 0, 40.0, 53.0))
    summary = write_tables(study)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (study.path / "summary.json").read_text()
    assert json.loads(text, parse_constant=refuse) == summary == read_json(study.path / "summary.json")
    assert list(summary["methods"]) == ["baseline", "corsd"] and summary["methods"]["corsd"]["gain"] == 3.0
    lines = (study.path / "table.md").read_text().splitlines()
    assert lines[0] == "# Digits & co" and lines[-1] == f"Rerun: `corsd compare {study.path.parent.name}/mine`"
    assert [line.split(" | ")[0] for line in lines if line.startswith("|")] == [
        "| method",
        "| ---",
        "| plain network",
        "| corsd",
    ]
    assert (study.path / "table.csv").read_text().count("\n") == 3
    assert all(str(study.path) not in file.read_text() for file in study.path.glob("*.*"))


@pytest.mark.parametrize("name", ["x" * 101, "x" * 10_000, "é" * 51])
def test_a_name_of_a_variant_that_is_too_long_is_one_error(name: str) -> None:
    values = {"variants": {name: {}, "baseline": {}}}
    with pytest.raises(CorsdError, match=r"variant '.*' has \d+ bytes; allowed: up to 100$") as error:
        Study.from_dict(values, Path("results/x/study.json"))
    assert len(str(error.value)) < 300
    assert "x" * 100 in Study.from_dict({"variants": {"x" * 100: {}, "baseline": {}}}, Path("results/x/study.json")).variants
