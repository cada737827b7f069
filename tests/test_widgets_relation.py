"""Explorers without a browser: each control is moved as a browser would, and what the figure holds is compared with the run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorers import EPOCHS, LONG, click, large_run, longest_word, shown, small_run

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


def test_explorer_opens_at_the_deepest_exit_and_last_epoch_on_the_most_related_pair(run: Run) -> None:
    explorer = RelationExplorer(run)
    exits = len(run.probes[EPOCHS].logits)
    assert (explorer.exit, explorer.epoch) == (exits, EPOCHS)
    relation = run.probes[EPOCHS].relations[-1]
    np.testing.assert_array_equal(shown(explorer), relation.numpy())
    others = relation.clone().fill_diagonal_(-1)
    assert explorer.selection is not None and others[explorer.selection] == others.max()
    kind = "relation" if run.config.method == "corsd" else "cosine relation"
    within = relation.diag().mean()
    assert f"<br>{kind} {within:.2f} within a class" in explorer.figure.layout.title.text


def test_every_exit_and_epoch_shows_its_own_matrix(run: Run) -> None:
    explorer = RelationExplorer(run)
    assert list(explorer.epoch_slider.options) == list(run.probes) == list(range(EPOCHS + 1))
    for epoch, snapshot in run.probes.items():
        for k, relation in enumerate(snapshot.relations, 1):
            explorer.epoch_slider.value, explorer.exit_choice.value = epoch, k
            np.testing.assert_array_equal(shown(explorer), relation.numpy())
            np.testing.assert_array_equal(explorer.matrix, relation.numpy())
            assert f"epoch {epoch}<br>" in explorer.figure.layout.title.text


def test_the_browser_moves_slider_and_list(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.epoch_slider.set_state({"index": 1})
    explorer.exit_choice.set_state({"index": 0})
    assert (explorer.epoch, explorer.exit) == (1, 1)
    np.testing.assert_array_equal(shown(explorer), corsd.probes[1].relations[0].numpy())
    assert explorer.play.max == EPOCHS  # it drives the slider's index in the browser


def test_exit_and_epoch_can_be_set_and_bad_ones_are_refused(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.exit, explorer.epoch = 2, 0
    np.testing.assert_array_equal(shown(explorer), corsd.probes[0].relations[1].numpy())
    with pytest.raises(CorsdError, match=r"exit 4.*1, 2, 3"):
        explorer.exit = 4
    with pytest.raises(CorsdError, match=r"epoch 99.*0, 1, 2, 3"):
        explorer.epoch = 99
    assert (explorer.exit, explorer.epoch) == (2, 0)


def test_a_click_selects_a_pair_and_lists_its_relation_at_every_exit(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    click(explorer, 7, 3)
    assert explorer.selection == (7, 3)
    assert (explorer.first_class.value, explorer.second_class.value) == (7, 3)
    assert table(explorer) == [[f"{m[7, 3]:.3f}", f"{m[3, 7]:.3f}"] for m in corsd.probes[EPOCHS].relations]
    explorer.epoch = 1
    assert table(explorer) == [[f"{m[7, 3]:.3f}", f"{m[3, 7]:.3f}"] for m in corsd.probes[1].relations]
    (frame,) = explorer.figure.layout.shapes
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (2.5, 3.5, 6.5, 7.5)  # x is the second image's class
    click(explorer, 5, 5)
    assert table(explorer) == [[f"{m[5, 5]:.3f}"] for m in corsd.probes[1].relations]


def table(explorer: RelationExplorer) -> list[list[str]]:
    rows = explorer.table.value.split("<tr>")[2:]
    return [[cell.split("</td>")[0] for cell in row.split("<td>")[1:]] for row in rows]


def test_selection_is_set_by_names_by_indices_and_by_the_class_lists_and_told_once(corsd: Run) -> None:
    explorer, told = RelationExplorer(corsd), []
    explorer.observe(lambda change: told.append(change.new), "selection")
    explorer.selection = ("3", "8")
    explorer.selection = [4, 9]
    explorer.first_class.value = 6
    explorer.selection = None
    assert told == [(3, 8), (4, 9), (6, 9), None]
    assert explorer.figure.layout.shapes == () and "Click a cell" in explorer.table.value
    assert (explorer.first_class.value, explorer.second_class.value) == ("", "")
    assert explorer.first_class.index == explorer.first_class.options.index(("none", ""))  # and not an empty list


@pytest.mark.parametrize("bad", [(3,), "3", 5, (3, 10), (-1, 2), ("3", "ten"), (1, 2, 3)])
def test_a_bad_selection_is_refused_and_the_old_one_kept(corsd: Run, bad: Any) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (1, 2)
    with pytest.raises(CorsdError):
        explorer.selection = bad
    assert explorer.selection == (1, 2)


def test_a_run_without_snapshots_is_refused_by_name(corsd: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", read_json(corsd.path / "config.json"))
    with pytest.raises(CorsdError, match=f"{tmp_path}.*probe_every"):
        RelationExplorer(load_run(tmp_path))


def test_names_of_classes_are_escaped_everywhere(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(large_run(corsd, tmp_path, ["<img src=x onerror=alert(1)>", "a&b"], epochs=1, images=2))
    explorer.selection = (0, 1)
    assert "<img" not in explorer.table.value and "&lt;img" in explorer.table.value
    assert "<img" not in explorer.figure.to_json() and "&lt;img" in explorer.figure.data[0].x[0]


def test_a_long_name_is_drawn_short_and_whole_on_hover(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(large_run(corsd, tmp_path, [LONG, "b", LONG + "m"], epochs=1, images=6))
    explorer.selection = (0, 1)
    assert longest_word(explorer.table.value) < 60 and f'title="{LONG}"' in explorer.table.value
    assert explorer.figure.layout.width < 1000 and max(map(len, explorer.figure.data[0].x)) < 60
    assert len(set(explorer.figure.data[0].x)) == 3
    for level in ("class", "image"):
        explorer.level = level
        assert explorer.figure.data[0].hovertext[0].replace("<br>", "").startswith(LONG)
    explorer.against = "deepest exit"
    assert "%{hovertext}" in explorer.figure.data[0].hovertemplate
    for control in (explorer.first_class, explorer.second_class):
        assert max(len(text) for text, _ in control.options) < 60
    explorer.class_search.value = explorer.class_search.options[1]
    assert explorer.selection is not None and explorer.selection[0] == 1
    explorer.class_search.value = LONG + "m"
    assert explorer.selection[0] == 2


def test_a_class_without_pairs_leaves_a_gap_and_the_rest_stands(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["a", "b", "c"], epochs=1, exits=1, images=3)
    relation = torch.tensor([[0.9, 0.2, torch.nan], [0.4, 0.8, torch.nan], [torch.nan] * 3])
    tensors = {"relations.0": relation, "logits.0": torch.zeros(3, 3), "embeddings.0": torch.zeros(3, 2)}
    write_tensors(run.path / "probes" / "epoch_0000.safetensors", tensors)
    explorer = RelationExplorer(run)
    np.testing.assert_array_equal(shown(explorer), relation.numpy())
    assert explorer.selection == (1, 0)
    assert "0.85 within a class, 0.30 between classes" in explorer.figure.layout.title.text


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
    assert [name for name, _ in RelationExplorer(run).exit_choice.options] == ["stage 1 (shallowest)", "stage 2 (deepest)"]


def test_a_run_of_the_size_of_cifar100_opens_in_a_second_and_ships_little(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [f"class {i}" for i in range(100)])
    RelationExplorer(corsd)  # what the first widget of a process loads is not this run's cost
    opened, changed = [], []
    for _ in range(3):  # the best of three: a garbage collection of what other tests left is not its cost
        begin = time.process_time()
        explorer = RelationExplorer(load_run(run.path))
        opened.append(time.process_time() - begin)
        begin = time.process_time()
        for exit_number in (1, 2, 3, 4):
            explorer.exit = exit_number
        changed.append((time.process_time() - begin) / 4)
    assert min(opened) < 1.0 and min(changed) < 0.05
    assert explorer.figure.data[0].z.nbytes < 100_000
    kept = explorer._relations.mine.kept
    assert [epoch for epoch in run.probes if ("classes", epoch) in kept] == [29]  # only what was looked at is read


# --- classes and images, relations, orders, what is subtracted ---


def test_every_relation_at_either_level_is_what_the_analysis_says(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    rows = list(range(20))
    for kind in ("trained", "cosine", "l2"):
        explorer.kind_choice.value, explorer.level_choice.value = kind, "class"
        np.testing.assert_allclose(shown(explorer), class_relations(corsd, EPOCHS, 3, kind), atol=1e-6)
        explorer.level_choice.value = "image"
        scores = snapshot_scores(corsd, EPOCHS, 3, kind).numpy()
        np.fill_diagonal(scores, np.nan)  # an image and itself are no pair
        assert sorted(explorer.rows) == rows
        np.testing.assert_allclose(explorer.matrix, scores[np.ix_(explorer.rows, explorer.rows)], atol=1e-6)
    assert "20 of 20 probe images" in explorer.figure.layout.title.text


def test_what_can_be_set_is_followed_by_the_controls_and_bad_values_change_nothing(grouped: Run) -> None:
    explorer = RelationExplorer(grouped)
    for name, control, value, bad in [
        ("kind", explorer.kind_choice, "l2", "l1"),
        ("level", explorer.level_choice, "image", "pixel"),
        ("order", explorer.order_choice, "superclass_cluster", "size"),
        ("superclass", explorer.superclass_choice, "odd", "prime"),
        ("against", explorer.against_choice, 0, "other run"),
    ]:
        setattr(explorer, name, value)
        assert control.value == value
        with pytest.raises(CorsdError, match=f"{name} '{bad}'|kind '{bad}'"):
            setattr(explorer, name, bad)
        assert getattr(explorer, name) == value
    explorer.superclass = explorer.against = None
    assert (explorer.superclass_choice.index, explorer.against_choice.index) == (0, 0)


def test_orders_move_names_and_not_cells_and_part_superclasses(grouped: Run) -> None:
    explorer = RelationExplorer(grouped)
    before = shown(explorer)
    for name in ("superclass", "cluster", "superclass_cluster", "label"):
        explorer.order_choice.value = name
        deepest = class_relations(grouped, EPOCHS, 3)
        order = class_order(name, deepest, torch.tensor(grouped.data.superclass_of_class)).tolist()
        assert explorer.rows == order
        np.testing.assert_array_equal(shown(explorer), before)
        np.testing.assert_array_equal(explorer.matrix, before[np.ix_(order, order)])
        for axis in (explorer.figure.layout.xaxis, explorer.figure.layout.yaxis):
            assert list(axis.categoryarray) == [str(c) for c in order]
        lines = [shape for shape in explorer.figure.layout.shapes if shape.name == "boundaries"]
        assert len(lines) == ("superclass" in name)
        row, column = (order.index(c) for c in explorer.selection)
        frame = explorer.figure.layout.shapes[-1]
        assert (frame.x0, frame.y0) == (column - 0.5, row - 0.5)
    explorer.order, explorer.exit, explorer.epoch = "cluster", 1, 0
    assert explorer.rows == class_order("cluster", class_relations(grouped, EPOCHS, 3)).tolist()  # the same at every view


def test_a_superclass_shows_its_classes_and_clicks_still_mean_classes(grouped: Run) -> None:
    explorer = RelationExplorer(grouped)
    explorer.superclass_choice.value = "odd"
    assert explorer.rows == [1, 3, 5, 7, 9] and "odd, 5 of 10 classes" in explorer.figure.layout.title.text
    np.testing.assert_array_equal(shown(explorer), grouped.probes[EPOCHS].relations[2].numpy()[1::2, 1::2])
    click(explorer, 7, 3)
    assert explorer.selection == (7, 3)
    frame = explorer.figure.layout.shapes[-1]
    assert (frame.x0, frame.y0) == (0.5, 2.5)
    explorer.selection = (0, 1)  # not among them: no frame
    assert not [shape for shape in explorer.figure.layout.shapes if shape.type == "rect"]


def test_differences_are_what_two_views_differ_by(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.exit = 1
    first, deepest = (corsd.probes[EPOCHS].relations[k].numpy() for k in (0, 2))
    explorer.against_choice.value = "deepest exit"
    np.testing.assert_allclose(shown(explorer), first - deepest, atol=1e-6)
    heatmap = explorer.figure.data[0]
    assert heatmap.zmin == -heatmap.zmax < 0 and "difference" in heatmap.hovertemplate
    assert "minus exit 3 (deepest)" in explorer.figure.layout.title.text
    explorer.against = 0
    np.testing.assert_allclose(shown(explorer), first - corsd.probes[0].relations[0].numpy(), atol=1e-6)
    assert f"epoch {EPOCHS} minus epoch 0" in explorer.figure.layout.title.text
    explorer.against = None
    np.testing.assert_array_equal(shown(explorer), first)
    assert (explorer.figure.data[0].zmin, explorer.figure.data[0].zmax) == (0, 1)


def test_another_run_is_matched_from_the_deepest_exit(corsd: Run, baseline: Run) -> None:
    explorer = RelationExplorer(corsd, baseline)
    explorer.against_choice.value = "other run"
    theirs = baseline.probes[EPOCHS].relations[-1].numpy()
    for exit_number in (1, 3):
        explorer.exit = exit_number
        wanted = corsd.probes[EPOCHS].relations[exit_number - 1].numpy() - theirs
        np.testing.assert_allclose(shown(explorer), wanted, atol=1e-6)
    assert "minus baseline, seed 0" in explorer.figure.layout.title.text.replace("<br>", " ")
    assert "(cosine relation)" in explorer.figure.layout.title.text
    assert explorer.table.value.count("<table>") == 2  # a table a run
    explorer.level = "image"
    scores = snapshot_scores(corsd, EPOCHS, 3) - snapshot_scores(baseline, EPOCHS, 1)
    np.testing.assert_allclose(explorer.matrix[0, 1], scores[explorer.rows[0], explorer.rows[1]], atol=1e-6)


def test_a_run_on_other_classes_or_images_is_refused(corsd: Run, tmp_path: Path) -> None:
    with pytest.raises(CorsdError, match="other classes"):
        RelationExplorer(corsd, large_run(corsd, tmp_path / "a", ["a", "b"], epochs=1, images=2))
    names = list(corsd.data.class_names)
    labels = corsd.probes.labels
    other = large_run(corsd, tmp_path / "b", names, epochs=1, exits=3, images=len(labels))
    tensors = {"labels": labels, "index": corsd.probes.index + 1}
    write_tensors(other.path / "probe.safetensors", tensors, {"split": corsd.probes.split})
    explorer = RelationExplorer(corsd, load_run(other.path))
    explorer.against = "other run"
    with pytest.raises(CorsdError, match="other images"):
        explorer.level = "image"
    assert (explorer.level, explorer.level_choice.value) == ("class", "class")
    explorer.level_choice.value = "image"  # from the browser: a sentence, and the old view
    assert "other images" in explorer.note.value and explorer.level_choice.value == "class"
    np.testing.assert_allclose(shown(explorer), corsd.probes[EPOCHS].relations[2] - other.probes[0].relations[2], atol=1e-6)


# --- the pair behind a click ---


def test_a_click_opens_the_most_related_images_of_the_classes_and_is_told_once(corsd: Run) -> None:
    explorer, told = RelationExplorer(corsd), []
    assert explorer.images is None  # nothing is computed of images before somebody asks
    explorer.observe(lambda change: told.append((change.name, change.new)), ["selection", "images"])
    click(explorer, 7, 3)
    labels, scores = corsd.probes.labels, snapshot_scores(corsd, EPOCHS, 3)
    block = scores[labels == 7][:, labels == 3]
    pair: Any = explorer.images
    a, b = pair
    assert (labels[a], labels[b]) == (7, 3) and scores[a, b] == pytest.approx(block.max().item(), abs=1e-6)
    assert told == [("images", (a, b)), ("selection", (7, 3))] or told == [("selection", (7, 3)), ("images", (a, b))]
    click(explorer, *explorer.selection)
    assert explorer.images == (a, b) and len(told) == 2


def test_a_click_on_the_pair_of_the_first_view_opens_it(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    click(explorer, *explorer.selection)
    assert explorer.images is not None


def test_images_can_be_set_and_select_their_classes(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.images = (4, 15)
    labels = corsd.probes.labels.tolist()
    assert explorer.selection == (labels[4], labels[15])
    for bad in [(1,), (3, 3), (0, 20), "ab", 5, (1, 2, 3)]:
        with pytest.raises(CorsdError):
            explorer.images = bad
    assert explorer.images == (4, 15)


def test_a_click_on_two_images_opens_them(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.level = "image"
    first, second = explorer.rows[2], explorer.rows[17]
    labels = corsd.probes.labels.tolist()
    names: list[Any] = [f"{labels[n]} #{n}" for n in (first, second)]  # cells are found by what their axes say
    one, two = names
    click(explorer, one, two)
    assert explorer.images == (first, second) and explorer.selection == (labels[first], labels[second])
    frame = explorer.figure.layout.shapes[-1]
    assert (frame.x0, frame.y0) == (16.5, 1.5)
    click(explorer, one, one)  # an image and itself: no pair
    assert explorer.images == (first, second)


def test_a_class_is_found_by_a_part_of_its_name(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(corsd)
    explorer.class_search.set_state({"value": "7"})
    related = corsd.probes[EPOCHS].relations[2][7].clone()
    related[7] = -1
    assert explorer.selection == (7, related.argmax().item())
    run = large_run(corsd, tmp_path, ["oak tree", "pine tree", "<b>at"], epochs=1, images=3)
    explorer = RelationExplorer(run)
    before = explorer.selection
    explorer.class_search.value = "TREE"
    assert "2 classes" in explorer.note.value and "pine tree" in explorer.note.value and explorer.selection == before
    explorer.class_search.value = "<b>x"
    assert "No class" in explorer.note.value and "<b>" not in explorer.note.value
    explorer.class_search.value = "at"
    assert explorer.selection[0] == 2


def test_marked_images_ring_their_classes_and_are_shown_alone_as_images(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    labels = corsd.probes.labels.tolist()
    explorer.marked = [2, 9, 14]
    assert explorer.marked == (2, 9, 14)
    rings = explorer.figure.data[1]
    assert set(rings.x) == set(rings.y) == {str(labels[p]) for p in (2, 9, 14)}
    explorer.level = "image"
    assert sorted(explorer.rows) == [2, 9, 14] and "3 of 3 marked images" in explorer.figure.layout.title.text
    assert explorer.figure.data[1].x == ()
    explorer.unmark.click()
    assert explorer.marked == () and len(explorer.rows) == 20
    with pytest.raises(CorsdError, match=r"marked.*0 to 19"):
        explorer.marked = (20,)


def test_all_images_of_the_selected_classes_are_one_button_away(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (2, 6)
    explorer._pair_view.all_images.click()
    assert explorer.level == "image"
    assert sorted(explorer.rows) == [n for n, c in enumerate(corsd.probes.labels.tolist()) if c in (2, 6)]


def test_of_many_images_as_many_of_every_class_are_shown(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, [f"c{k}" for k in range(100)], epochs=1)
    labels = torch.arange(1000) % 100
    write_tensors(run.path / "probe.safetensors", {"labels": labels, "index": torch.arange(1000)}, {"split": "test"})
    explorer = RelationExplorer(load_run(run.path))
    explorer.level = "image"
    assert torch.bincount(labels[explorer.rows]).tolist() == [2] * 100
    assert "200 of 1000 probe images" in explorer.figure.layout.title.text
    begin = time.process_time()
    explorer.exit = 1
    assert time.process_time() - begin < 0.1


def test_a_page_begins_as_the_explorer_is(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.exit, explorer.epoch, explorer.order, explorer.selection = 2, 1, "cluster", (1, 2)
    (panel,) = explorer.panels()
    start = {"exit": 2, "epoch": 1, "order": "cluster", "selection": [1, 2], "against": "nothing"}
    assert panel.data["start"] == start and panel.data["text"] == ""


def test_a_page_subtracts_what_the_explorer_does_and_says_what_it_has_not(corsd: Run, grouped: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(corsd, small_run(tmp_path / "other", "corsd"))
    for against, there in (("deepest exit", "deepest"), (0, "first"), ("other run", "1"), (None, "nothing")):
        explorer.against = against
        (panel,) = explorer.panels()
        assert panel.data["start"]["against"] == there and panel.data["text"] == ""
    explorer.against = 1
    explorer.kind = "cosine"
    (panel,) = explorer.panels()
    said = "Shown in the notebook, but not on this page: cosine relation, the difference to epoch 1."
    assert panel.data["start"]["against"] == "nothing" and panel.data["text"] == said
    explorer = RelationExplorer(grouped)
    explorer.level, explorer.superclass = "image", "odd"
    assert "relations of single images, the superclass odd alone." in explorer.panels()[0].data["text"]


def test_runs_are_called_what_the_reader_calls_them(corsd: Run, tmp_path: Path) -> None:
    other = small_run(tmp_path / "again", "corsd")
    explorer = RelationExplorer(corsd, other, labels=("first", "<second>"))
    assert explorer.figure.layout.title.text.startswith("first: exit 3")
    explorer.against = "other run"
    assert "minus &lt;second&gt;: exit 3 (deepest), epoch" in explorer.figure.layout.title.text.replace("<br>", " ")
    assert [run["name"] for run in explorer.panels()[0].data["runs"]] == ["first", "<second>"]
    for labels in (("one",), ("same", "same"), "ab"):
        with pytest.raises(CorsdError, match="labels"):
            RelationExplorer(corsd, other, labels=labels)


def test_cells_keep_their_place_whatever_stands_above_and_beside_them(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    for level, against in (("class", None), ("image", None), ("image", "deepest exit"), ("class", 0)):
        explorer.level, explorer.against = level, against
        layout = explorer.figure.layout
        sides = layout.width - layout.margin.l - layout.margin.r, layout.height - layout.margin.t - layout.margin.b
        assert sides == (360, 360) and layout.margin.autoexpand is False
        explorer.marked = (0, 5)
        assert layout.xaxis.autorange is layout.yaxis.autorange is False and layout.yaxis.range[1] == -0.5
