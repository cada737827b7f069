"""The Python side of the relation explorer: what is chosen, what is sent and answered; tests/browser has the other side."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorers import EPOCHS, LONG, large_run, small_run

from corsd_lib import RelationExplorer, Run, load_run
from corsd_lib.analysis import class_order, class_relations, snapshot_scores
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json, write_tensors


@pytest.fixture(scope="module", params=["corsd", "baseline"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / request.param, request.param)


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "baseline", "baseline")


@pytest.fixture(scope="module")
def grouped(corsd: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run, its digits in two superclasses."""
    path = tmp_path_factory.mktemp("runs") / "grouped"
    shutil.copytree(corsd.path, path)
    config = read_json(path / "config.json")
    config["data"] |= {"superclass_names": ["even", "odd"], "superclass_of_class": [k % 2 for k in range(10)]}
    write_json(path / "config.json", config)
    return load_run(path)


def chosen(explorer: RelationExplorer, **changed: Any) -> dict[str, Any]:
    """What the browser sends along with a question."""
    return {name: getattr(explorer, name) for name in explorer.chosen} | changed


def packed(array: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(array["bytes"], array["dtype"]).reshape(array["shape"])


def test_explorer_opens_at_the_deepest_exit_and_last_epoch_on_the_most_related_pair(run: Run) -> None:
    explorer = RelationExplorer(run)
    exits = len(run.probes[EPOCHS].logits)
    assert (explorer.exit, explorer.epoch) == (exits, EPOCHS)
    relation = run.probes[EPOCHS].relations[-1]
    np.testing.assert_array_equal(explorer.matrix, relation.numpy())
    others = relation.clone().fill_diagonal_(-1)
    assert explorer.selection is not None and others[explorer.selection] == others.max()
    kind = "relation" if run.config.method == "corsd" else "cosine relation"
    within = relation.diag().mean()
    assert f"<br>{kind} {within:.2f} within a class" in explorer.picture().layout.title.text


def test_the_browser_has_every_exit_and_epoch_from_the_beginning(run: Run) -> None:
    explorer = RelationExplorer(run)
    (shown,) = explorer._data["runs"]
    codes = packed(shown["codes"])
    assert shown["epochs"] == list(run.probes) == list(range(EPOCHS + 1))
    for epoch, snapshot in run.probes.items():
        for k, relation in enumerate(snapshot.relations, 1):
            np.testing.assert_allclose(codes[epoch, k - 1] / shown["levels"], relation, atol=1e-5)
            explorer.exit, explorer.epoch = k, epoch
            np.testing.assert_array_equal(explorer.matrix, relation.numpy())
            assert f"epoch {epoch}<br>" in explorer.picture().layout.title.text


def test_what_the_browser_chooses_is_read_and_told_here(corsd: Run) -> None:
    explorer, told = RelationExplorer(corsd), []
    explorer.observe(lambda change: told.append((change.name, change.new)), ["exit", "selection"])
    explorer.set_state({"epoch": 1, "exit": 1, "selection": [7, 3], "images": None})
    assert (explorer.epoch, explorer.exit, explorer.selection) == (1, 1, (7, 3))
    assert sorted(told) == [("exit", 1), ("selection", (7, 3))]
    np.testing.assert_array_equal(explorer.matrix, corsd.probes[1].relations[0].numpy())


def test_what_cannot_be_is_refused_in_the_browser_too(corsd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer, sent = RelationExplorer(corsd), []
    monkeypatch.setattr(explorer, "send", lambda content, buffers=None: sent.append(content))
    explorer.set_state({"exit": 9, "epoch": 1})
    assert (explorer.exit, explorer.epoch) == (3, 1)  # what is valid beside it stays
    assert sent == [{"said": "exit 9 is not available; allowed: 1, 2, 3"}]


def test_a_question_gets_one_answer_with_its_number_and_an_error_says_why(corsd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer, sent = RelationExplorer(corsd), []
    monkeypatch.setattr(explorer, "send", lambda content, buffers=None: sent.append((content, buffers)))
    explorer._asked(None, {"question": "a/1", "what": "classes", "given": {"wanted": ["0/cosine/2"]}}, [])
    assert sent.pop(0)[0] == {"began": "a/1"}  # the kernel is free
    ((content, buffers),) = sent
    (found,) = content["value"]
    assert content["answer"] == "a/1" and found["codes"]["buffer"] == 0 and len(buffers) == 1
    codes = np.frombuffer(buffers[0], found["codes"]["dtype"]).reshape(found["codes"]["shape"])
    for k in range(3):
        np.testing.assert_allclose(codes[k] / found["levels"], class_relations(corsd, 2, k + 1, "cosine"), atol=1e-5)
    sent.clear()
    block = {"run": 1, "kind": "cosine", "epoch": 2, "exit": 1, "rows": [0], "columns": [0, 1]}
    explorer._asked(None, {"question": "a/2", "what": "images", "given": block}, [])
    assert sent[1][0]["answer"] == "a/2" and "no other run" in sent[1][0]["error"] and len(sent) == 2


def test_exit_and_epoch_can_be_set_and_bad_ones_are_refused(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.exit, explorer.epoch = 2, 0
    np.testing.assert_array_equal(explorer.matrix, corsd.probes[0].relations[1].numpy())
    with pytest.raises(CorsdError, match=r"exit 4.*1, 2, 3"):
        explorer.exit = 4
    with pytest.raises(CorsdError, match=r"epoch 99.*0, 1, 2, 3"):
        explorer.epoch = 99
    assert (explorer.exit, explorer.epoch) == (2, 0)


def test_selection_is_set_by_names_and_by_indices_and_told_once(corsd: Run) -> None:
    explorer, told = RelationExplorer(corsd), []
    explorer.observe(lambda change: told.append(change.new), "selection")
    explorer.selection = ("3", "8")
    explorer.selection = [4, 9]
    explorer.selection = None
    assert told == [(3, 8), (4, 9), None]
    assert not [shape for shape in explorer.picture().layout.shapes if shape.type == "rect"]


@pytest.mark.parametrize("bad", [(3,), "3", 5, (3, 10), (-1, 2), ("3", "ten"), (1, 2, 3)])
def test_a_bad_selection_is_refused_and_the_old_one_kept(corsd: Run, bad: Any) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (1, 2)
    with pytest.raises(CorsdError):
        explorer.selection = bad
    assert explorer.selection == (1, 2)


def test_a_run_without_snapshots_is_refused_by_name(corsd: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", read_json(corsd.path / "config.json"))
    with pytest.raises(CorsdError, match=f"{tmp_path} has no probe snapshots"):
        RelationExplorer(load_run(tmp_path))


def test_names_of_classes_are_escaped_in_the_picture(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(large_run(corsd, tmp_path, ["<img src=x onerror=alert(1)>", "a&b"], epochs=1, images=2))
    picture = explorer.picture()
    assert "<img" not in picture.to_json() and "&lt;img" in picture.data[0].x[0]


def test_a_long_name_is_drawn_short(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(large_run(corsd, tmp_path, [LONG, "b", LONG + "m"], epochs=1, images=6))
    picture = explorer.picture()
    assert picture.layout.width < 1000 and max(map(len, picture.data[0].x)) < 60 and len(set(picture.data[0].x)) == 3
    assert max(map(len, explorer._data["names"])) < 60 and explorer._data["whole_names"]["0"] == LONG
    explorer.selection = (LONG + "m", "b")
    assert explorer.selection == (2, 1)


def test_a_class_without_pairs_leaves_a_gap_and_the_rest_stands(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["a", "b", "c"], epochs=1, exits=1, images=3)
    relation = torch.tensor([[0.9, 0.2, torch.nan], [0.4, 0.8, torch.nan], [torch.nan] * 3])
    tensors = {"relations.0": relation, "logits.0": torch.zeros(3, 3), "embeddings.0": torch.zeros(3, 2)}
    write_tensors(run.path / "probes" / "epoch_0000.safetensors", tensors)
    explorer = RelationExplorer(run)
    np.testing.assert_array_equal(explorer.matrix, relation.numpy())
    assert explorer.selection == (1, 0)
    assert "0.85 within a class, 0.30 between classes" in explorer.picture().layout.title.text


def test_relations_of_stages_without_exits_are_called_stages(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["a", "b"], epochs=1, exits=1, images=2)
    write_tensors(
        run.path / "probes" / "epoch_0000.safetensors",
        {
            "relations.0": torch.rand(2, 2),
            "relations.1": torch.rand(2, 2),
            "logits.0": torch.zeros(2, 2),
            "embeddings.0": torch.zeros(2, 2),
        },
    )
    (shown,) = RelationExplorer(run)._data["runs"]
    assert shown["kinds"]["cosine"] == ["stage 1 (shallowest)", "stage 2 (deepest)"]


def test_a_run_of_the_size_of_cifar100_ships_little_and_once(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(large_run(corsd, tmp_path / "a", [f"class {i}" for i in range(100)], epochs=5, images=200))
    (shown,) = explorer._data["runs"]
    assert shown["codes"]["shape"] == [5, 4, 100, 100] and shown["levels"] == 65534
    assert len(shown["codes"]["bytes"]) == 2 * 5 * 4 * 100 * 100 < 3_000_000
    explorer = RelationExplorer(large_run(corsd, tmp_path / "b", [f"class {i}" for i in range(100)], epochs=40, images=200))
    assert len(explorer._data["runs"][0]["codes"]["bytes"]) == 40 * 4 * 100 * 100


def test_epochs_that_would_be_too_much_are_asked_for(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [str(c) for c in range(400)], epochs=9, exits=4, images=800)
    explorer = RelationExplorer(run)
    (shown,) = explorer._data["runs"]
    assert shown["all_epochs"] == list(range(9)) and len(shown["epochs"]) < 9
    (found,) = explorer.ask_classes([f"0/{shown['stored']}/1"])
    np.testing.assert_allclose(found["codes"][2] / found["levels"], run.probes[1].relations[2], atol=1e-5)


# --- classes and images, relations, orders, what is subtracted ---


def test_every_relation_at_either_level_is_what_the_analysis_says(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    for kind in ("trained", "cosine", "l2"):
        explorer.kind, explorer.level = kind, "class"
        np.testing.assert_allclose(explorer.matrix, class_relations(corsd, EPOCHS, 3, kind), atol=1e-6)
        explorer.level = "image"
        scores = snapshot_scores(corsd, EPOCHS, 3, kind).numpy()
        np.fill_diagonal(scores, np.nan)  # an image and itself are no pair
        assert sorted(explorer.rows) == list(range(20))
        np.testing.assert_allclose(explorer.matrix, scores[np.ix_(explorer.rows, explorer.rows)], atol=1e-6)
        answer = explorer.ask_images(0, kind, EPOCHS, 3, rows=[3, 4, 9], columns=list(range(20)))
        found = np.where(answer["codes"] > answer["levels"], np.nan, answer["codes"] / answer["levels"])
        np.testing.assert_allclose(found, scores[[3, 4, 9]], atol=1e-5)
    assert "20 of 20 probe images" in explorer.picture().layout.title.text


def test_what_can_be_set_is_observed_and_bad_values_change_nothing(grouped: Run) -> None:
    explorer, told = RelationExplorer(grouped), []
    explorer.observe(lambda change: told.append(change.name))
    for name, value, bad in [
        ("kind", "l2", "l1"),
        ("level", "image", "pixel"),
        ("order", "superclass_cluster", "size"),
        ("superclass", "odd", "prime"),
        ("reference", 0, "other run"),
        ("colours", "fitted", "loud"),
    ]:
        setattr(explorer, name, value)
        with pytest.raises(CorsdError, match=f"{name} '{bad}'|kind '{bad}'"):
            setattr(explorer, name, bad)
        assert getattr(explorer, name) == value and told.pop() == name
    explorer.superclass = explorer.reference = None
    assert (explorer.superclass, explorer.reference) == (None, None)


def test_orders_move_rows_and_part_superclasses(grouped: Run) -> None:
    explorer = RelationExplorer(grouped)
    before = explorer.matrix
    for name in ("superclass", "cluster", "superclass_cluster", "label"):
        explorer.order = name
        deepest = class_relations(grouped, EPOCHS, 3)
        order = class_order(name, deepest, torch.tensor(grouped.data.superclass_of_class)).tolist()
        assert explorer.rows == explorer._data["orders"][name] == order
        np.testing.assert_array_equal(explorer.matrix, before[np.ix_(order, order)])
        picture = explorer.picture()
        assert list(picture.data[0].x) == list(picture.data[0].y) == [str(c) for c in order]
        lines = [shape for shape in picture.layout.shapes if shape.name == "boundaries"]
        assert len(lines) == ("superclass" in name)
        row, column = (order.index(c) for c in explorer.selection)
        frame = picture.layout.shapes[-1]
        assert (frame.x0, frame.y0) == (column - 0.5, row - 0.5)
    explorer.order, explorer.exit, explorer.epoch = "cluster", 1, 0
    assert explorer.rows == class_order("cluster", class_relations(grouped, EPOCHS, 3)).tolist()  # the same at every view


def test_a_superclass_shows_its_classes(grouped: Run) -> None:
    explorer = RelationExplorer(grouped)
    explorer.superclass = "odd"
    assert explorer.rows == [1, 3, 5, 7, 9] and "odd, 5 of 10 classes" in explorer.picture().layout.title.text
    np.testing.assert_array_equal(explorer.matrix, grouped.probes[EPOCHS].relations[2].numpy()[1::2, 1::2])
    explorer.selection = (7, 3)
    frame = explorer.picture().layout.shapes[-1]
    assert (frame.x0, frame.y0) == (0.5, 2.5)
    explorer.selection = (0, 1)  # not among them: no frame
    assert not [shape for shape in explorer.picture().layout.shapes if shape.type == "rect"]


def test_differences_are_what_two_views_differ_by(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.exit = 1
    first, deepest = (corsd.probes[EPOCHS].relations[k].numpy() for k in (0, 2))
    explorer.reference = "deepest exit"
    np.testing.assert_allclose(explorer.matrix, first - deepest, atol=1e-6)
    heatmap = explorer.picture().data[0]
    assert heatmap.zmin == -heatmap.zmax < 0 and "difference" in heatmap.hovertemplate
    assert "minus exit 3 (deepest)" in explorer.picture().layout.title.text
    explorer.reference = 0
    np.testing.assert_allclose(explorer.matrix, first - corsd.probes[0].relations[0].numpy(), atol=1e-6)
    assert f"epoch {EPOCHS} minus epoch 0" in explorer.picture().layout.title.text
    explorer.reference = None
    np.testing.assert_array_equal(explorer.matrix, first)
    assert (explorer.picture().data[0].zmin, explorer.picture().data[0].zmax) == (0, 1)


def test_another_run_is_compared_from_its_deepest_exit_and_nearest_epoch(corsd: Run, baseline: Run) -> None:
    explorer = RelationExplorer(corsd, baseline)
    assert [run["stored"] for run in explorer._data["runs"]] == ["trained", "cosine"]
    explorer.reference = "other run"
    theirs = baseline.probes[EPOCHS].relations[-1].numpy()
    for exit_number in (1, 3):
        explorer.exit = exit_number
        wanted = corsd.probes[EPOCHS].relations[exit_number - 1].numpy() - theirs
        np.testing.assert_allclose(explorer.matrix, wanted, atol=1e-6)
    title = explorer.picture().layout.title.text.replace("<br>", " ")
    assert "minus baseline, seed 0" in title and "(cosine relation)" in title
    explorer.level = "image"
    scores = snapshot_scores(corsd, EPOCHS, 3) - snapshot_scores(baseline, EPOCHS, 1)
    np.testing.assert_allclose(explorer.matrix[0, 1], scores[explorer.rows[0], explorer.rows[1]], atol=1e-6)


def test_a_run_on_other_classes_or_images_is_refused(corsd: Run, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match="different classes"):
        RelationExplorer(corsd, large_run(corsd, tmp_path / "a", ["a", "b"], epochs=1, images=2))
    names = list(corsd.data.class_names)
    labels = corsd.probes.labels
    other = large_run(corsd, tmp_path / "b", names, epochs=1, exits=3, images=len(labels))
    tensors = {"labels": labels, "index": corsd.probes.index + 1}
    write_tensors(other.path / "probe.safetensors", tensors, {"split": corsd.probes.split})
    explorer = RelationExplorer(corsd, load_run(other.path))
    explorer.reference = "other run"
    with pytest.raises(CorsdError, match="different probe images"):
        explorer.level = "image"
    explorer.set_state({"level": "image"})  # from the browser: a sentence there, and the old view
    assert explorer.level == "class"
    np.testing.assert_allclose(explorer.matrix, corsd.probes[EPOCHS].relations[2] - other.probes[0].relations[2], atol=1e-6)


# --- the pair behind a click ---


def test_a_selection_opens_its_most_related_images_and_each_is_told_once(corsd: Run) -> None:
    explorer, told = RelationExplorer(corsd), []
    assert explorer.images is None  # nothing is computed of images before somebody asks
    explorer.observe(lambda change: told.append((change.name, change.new)), ["selection", "images"])
    explorer.set_state({"selection": [7, 3], "images": None})
    labels, scores = corsd.probes.labels, snapshot_scores(corsd, EPOCHS, 3)
    block = scores[labels == 7][:, labels == 3]
    pair: Any = explorer.images
    a, b = pair
    assert (labels[a], labels[b]) == (7, 3) and scores[a, b] == pytest.approx(block.max().item(), abs=1e-6)
    assert sorted(told) == [("images", (a, b)), ("selection", (7, 3))]


def test_images_can_be_set_and_select_their_classes(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.images = (4, 15)
    labels = corsd.probes.labels.tolist()
    assert explorer.selection == (labels[4], labels[15])
    for bad in [(1,), (3, 3), (0, 20), "ab", 5, (1, 2, 3)]:
        with pytest.raises(CorsdError):
            explorer.images = bad
    assert explorer.images == (4, 15)


def test_marked_images_ring_their_classes_and_are_shown_alone_as_images(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    labels = corsd.probes.labels.tolist()
    explorer.marked = [2, 9, 14]
    assert explorer.marked == (2, 9, 14)
    rings = explorer.picture().data[1]
    assert set(rings.x) == set(rings.y) == {str(labels[p]) for p in (2, 9, 14)}
    explorer.level = "image"
    assert sorted(explorer.rows) == [2, 9, 14] and "3 of 3 marked images" in explorer.picture().layout.title.text
    assert len(explorer.picture().data) == 1
    explorer.marked = ()
    assert len(explorer.rows) == 20
    with pytest.raises(CorsdError, match=r"marked.*0 to 19"):
        explorer.marked = (20,)


def test_of_many_images_as_many_of_every_class_are_shown(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [f"c{k}" for k in range(100)], epochs=1)
    labels = torch.arange(1000) % 100
    write_tensors(run.path / "probe.safetensors", {"labels": labels, "index": torch.arange(1000)}, {"split": "test"})
    explorer = RelationExplorer(load_run(run.path))
    explorer.level = "image"
    assert len(explorer.rows) == 1000
    assert "200 of 1000 probe images" in explorer.picture().layout.title.text  # a stored picture is smaller
    shown = explorer._relations.show(explorer._view(), (), 200)
    assert torch.bincount(labels[shown.ordered]).tolist() == [2] * 100


def test_a_page_begins_as_the_explorer_is(grouped: Run) -> None:
    explorer = RelationExplorer(grouped)
    explorer.exit, explorer.epoch, explorer.order, explorer.selection = 2, 1, "cluster", (1, 2)
    explorer.superclass, explorer.reference, explorer.colours, explorer.marked = "odd", 1, "fitted", (3, 4)
    (panel,) = explorer.panels()
    start = chosen(explorer, selection=[1, 2], marked=[3, 4], images=None)
    assert panel.data["start"] == start and panel.data["text"] == ""
    explorer.superclass, explorer.reference = None, "deepest exit"
    assert explorer.panels()[0].data["start"]["reference"] == "deepest exit"


def test_a_page_says_what_it_has_not(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(corsd, small_run(tmp_path / "other", "corsd"))
    explorer.reference, explorer.kind, explorer.level = "other run", "cosine", "image"
    (panel,) = explorer.panels()
    assert panel.data["text"] == "Shown in the notebook, but not on this page: cosine relation, relations of single images."
    start = panel.data["start"]
    assert (start["kind"], start["level"], start["reference"]) == ("trained", "class", "other run")


def test_runs_are_called_what_the_reader_calls_them(corsd: Run, tmp_path: Path) -> None:
    other = small_run(tmp_path / "again", "corsd")
    explorer = RelationExplorer(corsd, other, labels=("first", "<second>"))
    assert explorer.picture().layout.title.text.startswith("first: exit 3")
    explorer.reference = "other run"
    title = explorer.picture().layout.title.text.replace("<br>", " ")
    assert title.startswith("first minus &lt;second&gt;: exit 3 (deepest), epoch") and title.count("exit 3") == 1
    assert [run["name"] for run in explorer.panels()[0].data["runs"]] == ["first", "<second>"]
    for labels in (("one",), ("same", "same"), "ab"):
        with pytest.raises(CorsdError, match="labels"):
            RelationExplorer(corsd, other, labels=labels)
