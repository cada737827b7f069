"""Reports: their figures are those of the run, they open without a network, and they stay small."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from explorers import large_run, small_run
from test_pages import Scripts, read_page

from corsd_lib import CorsdError, Run, export_run, load_run
from corsd_lib.analysis import class_relations, class_structure, relation_quality
from corsd_lib.cli import main
from corsd_lib.figures import relation_difference
from corsd_lib.files import read_json, write_json, write_tensors
from corsd_lib.sharing import report
from corsd_lib.sharing.pages import run_names
from corsd_lib.sharing.report import report_panels, write_report

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "baseline", "baseline")


def panel_of(panels: list[Any], title: str) -> Any:
    (panel,) = [panel for panel in panels if panel["title"] == title]
    return panel


def test_a_report_of_one_run_says_what_the_run_says(corsd: Run, tmp_path: Path) -> None:
    said: list[str] = []
    path = write_report([corsd], tmp_path / "report.html", report=said.append)
    page = read_page(path)
    assert page["title"] == "corsd on digits: resnet8"
    kinds = [panel["kind"] for panel in page["panels"]]
    assert kinds == ["text", "table", "curves", "relation", "curves", "figure", "stages", "exits", "columns"]
    test = corsd.test
    assert test is not None
    first, last = test["exits"][0], test["exits"][-1]
    (finding,) = page["panels"][0]["data"]["paragraphs"]
    assert f"classifies {last['top1']:.1f} % of the {test['images']:,} test images correctly" in finding
    assert finding.endswith(
        f"for {100 * first['macs'] / last['macs']:.0f} % of its multiply-accumulates, about {first['top1']:.1f} %."
    )
    rows = panel_of(page["panels"], "Test results of each exit")["data"]["rows"]
    assert [row[1] for row in rows] == [f"{row['top1']:.2f}" for row in [*test["exits"], test["ensemble"]]]
    assert rows[0][0] == "exit 1 (shallowest)" and rows[0][5] == f"{first['macs']:,}"
    assert "relation quality of corsd, seed 0" in said and said[-1] == "writing"


def test_a_report_says_what_was_asked_for_and_where_it_ran_but_no_path(corsd: Run, tmp_path: Path) -> None:
    page = read_page(write_report([corsd], tmp_path / "report.html", embedding="none"))
    settings, options, origin = (
        dict(panel["data"]["rows"]) for panel in panel_of(page["panels"], "Configuration and provenance")["data"]["panels"]
    )
    assert settings["batch_size"] == "20" and settings["milestones"] == "0.5, 0.75" and "width" not in settings
    assert options == {k: str(v) for k, v in corsd.raw_config["method_options"].items()}
    assert origin["torch"] == torch.__version__.split("+")[0] and origin["epochs trained"] == "3"
    assert str(corsd.path) not in json.dumps(page) and "out" not in settings
    assert "stages" not in [panel["kind"] for panel in page["panels"]]


def test_several_runs_share_one_chart_and_scale(corsd: Run, tmp_path: Path) -> None:
    other = small_run(tmp_path / "other", "baseline")
    panels = [panel._asdict() for panel in report_panels([corsd, other], embedding="none")]
    accuracy, *losses = panel_of(panels, "Training curves")["data"]["charts"]
    assert len(accuracy["lines"]) == 4 and (accuracy["y"]["low"], accuracy["y"]["high"]) == (0, 100)
    assert {line["group"] for line in accuracy["lines"]} == {"corsd, seed 0", "baseline, seed 0"}
    for k, line in enumerate(accuracy["lines"][:3], 1):
        np.testing.assert_allclose(line["y"], corsd.metrics[f"train_top1.exit{k}"], rtol=1e-5)
    assert len(losses) == 2
    (chart,) = panel_of(panels, "Separation of classes by the relation")["data"]["charts"]
    assert len(chart["lines"]) == 4 and len({line["color"] for line in chart["lines"]}) == 2


def test_relation_quality_is_that_of_the_analysis(corsd: Run) -> None:
    panels = [panel._asdict() for panel in report_panels([corsd], embedding="none")]
    data = panel_of(panels, "Separation of classes by the relation")["data"]
    (chart,), (finding,) = data["charts"], data["findings"]
    expected = relation_quality(corsd, 3)
    assert [line["name"] for line in chart["lines"]] == ["exit 1 (shallowest)", "exit 2", "exit 3 (deepest)"]
    np.testing.assert_allclose([line["y"][-1] for line in chart["lines"]], expected["auc"], rtol=1e-5)
    last = f"{expected['auc'].iloc[0]:.2f} at exit 1, {expected['auc'].iloc[2]:.2f} at the deepest"
    assert last in finding
    structure = panel_of(panels, "Class structure of the embeddings")["data"]["figure"]
    assert f"{class_structure(corsd, [3])['between_fraction'].iloc[-1]:.3g}" in structure["layout"]["title"]["text"]


def test_runs_stand_side_by_side(corsd: Run, baseline: Run, tmp_path: Path) -> None:
    path = write_report([corsd, baseline], tmp_path / "report.html")
    page = read_page(path)
    assert page["title"] == "2 runs on digits"
    relation = panel_of(page["panels"], "Class relations at every exit and epoch")
    assert [run["name"] for run in relation["data"]["runs"]] == ["corsd, seed 0", "baseline, seed 0"]
    top = sorted([(run.test["exits"][-1]["top1"], run.config.method) for run in (corsd, baseline) if run.test], reverse=True)
    finding = page["panels"][0]["data"]["paragraphs"][0]
    assert f"of {top[0][1]}, seed 0 is the most accurate: {top[0][0]:.1f} % of the test images are correct, " in finding
    assert "With one seed, differences" in finding
    settings = panel_of(page["panels"], "Configuration")["data"]
    assert settings["columns"] == ["", "corsd, seed 0", "baseline, seed 0"]
    assert settings["rows"][0] == ["method", "corsd", "baseline"] and settings["text"].endswith(f"of {len(settings['rows'])}.")
    early = panel_of(page["panels"], "Early exit: accuracy and cost")
    assert early["kind"] == "exits"  # one exit leaves nothing to choose: the baseline has no such panel


def test_a_report_of_several_runs_has_the_differences_of_their_relations(corsd: Run, baseline: Run, tmp_path: Path) -> None:
    def differences(*runs: Run) -> list[dict[str, Any]]:
        page = read_page(write_report(runs, tmp_path / "report.html", embedding="none"))
        return [p for p in page["panels"] if p["title"] == "Differences between the relations of the runs"]

    assert differences(corsd) == []
    (columns,) = differences(corsd, baseline, corsd)
    first, second = columns["data"]["panels"]
    name_of_corsd = run_names([corsd, baseline, corsd])[0]
    assert first["title"] == f"baseline, seed 0 minus {name_of_corsd}" and "Cosines" in first["data"]["text"]
    assert "Trained relations" in second["data"]["text"]
    epoch = max(corsd.probes)
    exits = len(corsd.probes[epoch].embeddings)
    ours, theirs = (class_relations(run, max(run.probes), k, "cosine") for run, k in ((baseline, 1), (corsd, exits)))
    drawn = json.loads(relation_difference(ours, theirs, corsd.data.class_names).to_json())
    assert first["data"]["figure"]["data"] == drawn["data"]
    finding = drawn["layout"]["title"]["text"].replace("<br>", " ")
    assert first["data"]["text"].startswith(f"{finding}. ") and "text" not in first["data"]["figure"]["layout"].get("title", {})


def test_an_unfinished_run_has_a_report(corsd: Run, tmp_path: Path) -> None:
    shutil.copytree(corsd.path, tmp_path / "run")
    for name in ("test.json", "weights.safetensors", "metrics.jsonl", "checkpoint.safetensors"):
        (tmp_path / "run" / name).unlink()
    for epoch in (0, 1, 3):  # only one snapshot is there
        (tmp_path / "run" / "probes" / f"epoch_{epoch:04d}.safetensors").unlink()
    run = load_run(tmp_path / "run")
    page = read_page(write_report([run], tmp_path / "report.html"))
    finding = page["panels"][0]["data"]["paragraphs"][0]
    assert finding.startswith("0 of 3 epochs are trained: after 2, the deepest exit classifies ")
    assert panel_of(page["panels"], "Test results of each exit")["data"]["text"] == "Not evaluated yet: corsd, seed 0."
    shutil.rmtree(run.path / "probes")
    page = read_page(write_report([load_run(run.path)], tmp_path / "report.html"))
    assert [panel["kind"] for panel in page["panels"]] == ["text", "table", "columns"]


def test_an_export_has_a_report_and_paths_of_data_stay_at_home(corsd: Run, tmp_path: Path) -> None:
    run = export_run(corsd, tmp_path / "export", snapshots=2, probe_images=20)
    assert read_page(write_report([run], tmp_path / "report.html"))["title"] == "corsd on digits: resnet8"
    config = read_json(run.path / "config.json")
    config["data"]["name"] = config["train"]["data"] = "npz:/home/somebody/secret.npz"
    write_json(run.path / "config.json", config)
    page = read_page(write_report([load_run(run.path)], tmp_path / "report.html"))
    assert page["title"] == "corsd on npz:secret.npz: resnet8" and "somebody" not in json.dumps(page)


def test_maps_fall_back_to_the_cosine_and_say_so(corsd: Run, tmp_path: Path) -> None:
    run = small_run(tmp_path / "maps", "corsd")
    config = read_json(run.path / "config.json")
    config["train"]["method_options"]["fusion"] = "maps"
    write_json(run.path / "config.json", config)
    panels = [panel._asdict() for panel in report_panels([load_run(run.path)], embedding="none")]
    assert (
        "ROC-AUC of the cosine of the embeddings" in panel_of(panels, "Separation of classes by the relation")["data"]["text"]
    )


def test_the_command_line_writes_the_file_and_says_how_large(corsd: Run, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.html"
    main(["report", str(corsd.path), "--out", str(out), "--embedding", "none"])
    assert capsys.readouterr().out == f"{out}: {out.stat().st_size / 1e6:.2f} MB\n"
    assert len(Scripts(out).scripts) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "corsd: error: nowhere is not a run: it has no config.json"),
        (["RUN", "--embedding", "tsne"], "corsd report: error: argument --embedding: invalid choice: 'tsne'"),
        (["RUN", "--embedding", "none", "--out", "RUN"], "corsd: error: cannot write "),
        ([], "corsd report: error: the following arguments are required: RUN"),
    ],
)
def test_an_error_is_one_clear_line(corsd: Run, capsys: Captured, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["report", *(str(corsd.path) if word == "RUN" else word for word in words)])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(message) and error.count("\n") == 1


def test_a_report_wants_runs_and_a_known_embedding(corsd: Run, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match=r"runs = \[\]; allowed: a sequence of one or more runs"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(CorsdError, match="embedding of a report 'tsne' is not known; allowed: umap, pca, none"):
        write_report([corsd], tmp_path / "report.html", embedding="tsne")


@pytest.mark.slow
def test_a_run_of_cifar100s_size_stays_below_10_mb(corsd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"class {c}" for c in range(100)]
    run = large_run(corsd, tmp_path / "run", names)
    config = read_json(run.path / "config.json")
    config["train"] |= {"network": "resnet10", "width": 8}  # of four stages, 64 channels in the last
    config["data"] |= {"superclass_names": names[:20], "superclass_of_class": [c % 20 for c in range(100)]}
    write_json(run.path / "config.json", config)
    labels = torch.arange(100).repeat_interleave(10)
    write_tensors(run.path / "probe.safetensors", {"labels": labels, "index": torch.arange(1000)}, {"split": "test"})
    shutil.copy(corsd.path / "metrics.jsonl", run.path)
    monkeypatch.setattr("corsd_lib.sharing.report._QUALITY_EPOCHS", 2)  # seconds each, and a hundred bytes
    monkeypatch.setattr("corsd_lib.sharing.report._STRUCTURE_EPOCHS", 2)
    started = time.process_time()
    path = write_report([load_run(run.path)], tmp_path / "report.html")
    assert path.stat().st_size < 10e6
    assert time.process_time() - started < 60
    (relation,) = [panel for panel in read_page(path)["panels"] if panel["kind"] == "relation"]
    assert relation["data"]["runs"][0]["codes"]["shape"] == [30, 4, 100, 100]


def test_early_exits_of_several_runs_are_drawn_in_one_scale(corsd: Run) -> None:
    (columns,) = report._early_exits({"first": corsd, "second": corsd})
    drawn = {panel["title"]: panel["data"] for panel in columns.data["panels"]}
    for name, other in (("first", "second"), ("second", "first")):
        (beside,) = drawn[name]["others"]
        assert drawn[name]["name"] == name and beside["name"] == other
        np.testing.assert_array_equal(beside["accuracy"], drawn[other]["curves"][0]["accuracy"])
        assert beside["deepest_macs"] == drawn[other]["deepest_macs"]
    (alone,) = report._early_exits({"first": corsd})
    assert alone.data["others"] == []


def test_curves_of_runs_with_and_without_validation_images_share_a_figure() -> None:
    with_validation = pd.DataFrame({"epoch": [1, 2], "val_top1.exit1": [10.0, 20.0], "val_top1.exit2": [15.0, 30.0]})
    chart: Any = report._accuracy_chart({"a": with_validation, "b": pd.DataFrame({"epoch": [1, 2]})}, "val_top1.", "validation")
    assert [line["name"] for line in chart["lines"]] == ["a, exit 1 (shallowest)", "a, exit 2 (deepest)"]
