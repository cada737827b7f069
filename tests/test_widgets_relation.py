"""Explorers without a browser: each control is moved as a browser would, and what the figure holds is compared with the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorers import EPOCHS, click, large_run, shown, small_run

from corsd_lib import RelationExplorer, Run, load_run
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json, write_tensors


@pytest.fixture(scope="module", params=["corsd", "baseline"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / request.param, request.param)


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


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
    assert (explorer.first_class.value, explorer.second_class.value) == (None, None)


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
    begin = time.process_time()
    explorer = RelationExplorer(run)
    opened = time.process_time() - begin
    begin = time.process_time()
    for exit_number in (1, 2, 3, 4):
        explorer.exit = exit_number
    changed = (time.process_time() - begin) / 4
    assert opened < 1.0 and changed < 0.05
    assert explorer.figure.data[0].z.nbytes < 100_000
    assert list(explorer._cache) == [29]  # only what was looked at is read
