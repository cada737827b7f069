"""Explorers without a browser: each control is moved as a browser would, and what the figure holds is compared with the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corsd_lib import RelationExplorer, Run, TrainConfig, TrainingMonitor, load_run, train
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, write_json, write_tensors

EPOCHS = 3


@pytest.fixture(scope="module", params=["corsd", "baseline"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / request.param, request.param)


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


def small_run(path: Path, method: str, **options: Any) -> Run:
    config = TrainConfig(method=method, per_class=2, epochs=EPOCHS, batch_size=20, probe_size=30, out=str(path))
    return train(config, progress=False, **options)


def large_run(small: Run, path: Path, names: list[str], epochs: int = 30, exits: int = 4, images: int = 1000) -> Run:
    """A run like `small` with other classes and random snapshots, as large as CIFAR-100's by default."""
    config = read_json(small.path / "config.json")
    config["data"] |= {"class_names": names, "superclass_names": names, "superclass_of_class": list(range(len(names)))}
    write_json(path / "config.json", config)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        snapshot = {f"relations.{k}": torch.rand(len(names), len(names), generator=generator) for k in range(exits)}
        snapshot |= {f"embeddings.{k}": torch.zeros(images, 64).half() for k in range(exits)}
        snapshot |= {f"logits.{k}": torch.zeros(images, len(names)).half() for k in range(exits)}
        write_tensors(path / "probes" / f"epoch_{epoch:04d}.safetensors", snapshot)
    return load_run(path)


def shown(explorer: Any) -> np.ndarray:
    """The matrix that the heatmap of an explorer draws, cell by cell from its columns."""
    heatmap = explorer.figure.data[0]
    assert heatmap.z.dtype == np.float32 and heatmap.z.ndim == 1  # what FigureWidget sends in binary
    columns, rows = list(dict.fromkeys(heatmap.x)), list(dict.fromkeys(heatmap.y))
    matrix = np.full((len(rows), len(columns)), -1, np.float32)
    for x, y, z in zip(heatmap.x, heatmap.y, heatmap.z, strict=True):
        matrix[rows.index(y), columns.index(x)] = z
    return matrix


def click(explorer: RelationExplorer, row: int, column: int) -> None:
    """A click on a cell by FigureWidget's own way from the browser, which is private: here and nowhere else."""
    heatmap = explorer.figure.data[0]
    cell = next(i for i, names in enumerate(zip(heatmap.x, heatmap.y, strict=True)) if names == (str(column), str(row)))
    points = {"trace_indexes": [0], "point_indexes": [cell], "xs": [str(column)], "ys": [str(row)], "zs": [0.0]}
    modifiers = {"alt": False, "ctrl": False, "meta": False, "shift": False, "button": 0, "buttons": 1}
    state = {"event_type": "plotly_click", "points": points, "device_state": modifiers, "selector": None}
    explorer.figure._handler_js2py_pointsCallback({"new": state})


# --- RelationExplorer ---


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


# --- TrainingMonitor ---


def test_monitor_grows_while_a_training_runs(tmp_path: Path) -> None:
    monitor, seen = TrainingMonitor(), []

    def watch(run: Run) -> None:
        monitor(run)
        seen.append((len(monitor.figure.data[1].x), shown(monitor).copy()))

    run = small_run(tmp_path / "run", "corsd", on_epoch=watch)
    assert [points for points, _ in seen] == [1, 2, 3]
    for epoch, (_, matrix) in enumerate(seen, 1):
        np.testing.assert_array_equal(matrix, run.probes[epoch].relations[-1].numpy())
    for k, line in enumerate(monitor.figure.data[1:], 1):
        np.testing.assert_allclose(line.y, run.metrics[f"train_top1.exit{k}"], rtol=1e-6)
        assert line.y.dtype == np.float32
    assert "epoch 3 of 3" in monitor.figure.layout.title.text


def test_monitor_shows_a_finished_run_and_then_another_kind(run: Run, corsd: Run) -> None:
    monitor = TrainingMonitor()
    monitor(corsd)
    monitor(run)
    assert [line.name for line in monitor.figure.data[1:]] == (
        ["exit 1 (the only one)"] if run.config.method == "baseline" else ["exit 1 (shallowest)", "exit 2", "exit 3 (deepest)"]
    )
    np.testing.assert_array_equal(shown(monitor), run.probes[EPOCHS].relations[-1].numpy())
    assert len(monitor.figure.data[1].x) == EPOCHS


def test_monitor_before_the_first_epoch_is_empty_but_stands() -> None:
    monitor = TrainingMonitor()
    assert monitor.figure.data == () and "no epoch yet" in monitor.figure.layout.title.text


# --- both ---


def test_a_widget_also_offers_its_figure_where_no_kernel_answers(corsd: Run) -> None:
    monitor = TrainingMonitor()
    monitor(corsd)
    for widget in (monitor, RelationExplorer(corsd)):
        bundle = widget._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        figure = json.loads(json.dumps(bundle["application/vnd.plotly.v1+json"]))
        assert figure["data"][0]["z"]["dtype"] == "f4"
        assert bundle["text/plain"].startswith(f"{type(widget).__name__}(")
