"""What stands behind a click: numbers compared with the run, pictures where the data is, sentences where it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from explorers import EPOCHS, large_run, small_run

from corsd_lib import RelationExplorer, Run, load_run
from corsd_lib.analysis import snapshot_scores
from corsd_lib.analysis.relations import relation_networks_at
from corsd_lib.files import read_json, write_json, write_tensors
from corsd_lib.relation import VectorRelation


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


def cells(table: str) -> list[list[str]]:
    return [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]


def test_two_images_have_their_score_at_every_exit_both_ways_and_the_auxiliary_prediction(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.epoch, explorer.images = 1, (3, 17)
    view = explorer._pair_view
    found = cells(view.pictures.value)
    snapshot = corsd.probes[1]
    networks = relation_networks_at(corsd, snapshot)  # of that epoch, not the newest
    labels = corsd.probes.labels.tolist()
    for k, (there, back, said) in enumerate(found):
        scores = snapshot_scores(corsd, 1, k + 1)
        assert (there, back) == (f"{scores[3, 17]:.3f}", f"{scores[17, 3]:.3f}")
        e = snapshot.embeddings[k].float()
        network = networks[k]
        assert isinstance(network, VectorRelation)
        q = network.auxiliary_logits(e[[3]], e[[17]])[0].softmax(0)
        best = q.argsort(descending=True)[:2].tolist()
        sign = "✓" if set(best) == {labels[3], labels[17]} else "✗"
        assert said == f"{sign} {best[0]} {q[best[0]]:.0%} + {best[1]} {q[best[1]]:.0%}"
    assert len(found) == 3 and "epoch 1" in view.pictures.value
    guess = snapshot.logits[2][3].float().softmax(0)
    assert f"exit 3 says {guess.argmax()}, {guess.max():.0%}" in view.pictures.value


def test_images_of_one_class_are_asked_for_one_class(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (5, 5)
    a, b = explorer.images
    assert a != b and corsd.probes.labels[[a, b]].tolist() == [5, 5]
    assert all("+" not in row[2] for row in cells(explorer._pair_view.pictures.value))


def test_a_method_without_auxiliary_classifier_says_so(tmp_path: Path) -> None:
    explorer = RelationExplorer(small_run(tmp_path / "run", "baseline"))
    explorer.images = (0, 19)
    assert [len(row) for row in cells(explorer._pair_view.pictures.value)] == [2]
    assert "no auxiliary classifier" in explorer._pair_view.pictures.value


def test_the_most_and_least_related_pairs_are_listed_and_open(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (1, 4)
    labels, scores = corsd.probes.labels, snapshot_scores(corsd, EPOCHS, 3)
    pairs = [(i, j) for i in (labels == 1).nonzero().flatten().tolist() for j in (labels == 4).nonzero().flatten().tolist()]
    ranked = sorted(pairs, key=lambda pair: -float(scores[pair]))
    choice = explorer._pair_view.ranked_choice
    values = [value for _, value in choice.options[1:]]
    assert values == [ranked[0], ranked[1], ranked[3], ranked[2]]  # of four pairs two are most, two are least related
    assert choice.value == ranked[0]
    choice.set_state({"index": 3})
    assert explorer.images == ranked[3] and explorer.selection == (1, 4)
    assert f"{scores[ranked[3]]:.3f}" in choice.options[3][0]
    explorer.images = ranked[1][::-1]  # from class 4 to class 1: another ranking
    assert explorer.selection == (4, 1) and "#" in choice.options[1][0]


def test_pictures_are_shown_where_the_data_is_and_the_sentence_where_not(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (1, 4)
    view = explorer._pair_view
    assert view.pictures.value.count("<img") == 2 and view.ranking.value.count("<img") == 8
    config = read_json(corsd.path / "config.json")
    config["train"]["data"] = "npz:/nowhere.npz"
    lost = tmp_path / "lost"
    lost.mkdir()
    write_json(lost / "config.json", config)
    (lost / "probes").symlink_to(corsd.path / "probes")
    (lost / "probe.safetensors").symlink_to(corsd.path / "probe.safetensors")
    explorer = RelationExplorer(load_run(lost))
    explorer.selection = (1, 4)
    view = explorer._pair_view
    assert "<img" not in view.pictures.value and "No images here" in view.pictures.value
    assert len(cells(view.pictures.value)) == 3 and view.ranking.value == ""


def test_a_relation_of_feature_maps_opens_images_by_their_cosine_and_says_why(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "corsd_release")
    explorer = RelationExplorer(run)
    explorer.selection = (1, 4)
    assert explorer.images is not None
    assert "feature maps" in explorer._pair_view.pictures.value and explorer._pair_view.ranking.value == ""
    explorer.kind = "cosine"
    assert len(cells(explorer._pair_view.pictures.value)) == len(run.probes[EPOCHS].embeddings) == 1


def test_classes_without_two_images_have_no_pair(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["a", "b", "c"], epochs=1, images=3)
    tensors = {"labels": torch.tensor([0, 0, 1]), "index": torch.arange(3)}
    write_tensors(run.path / "probe.safetensors", tensors, {"split": "train"})
    explorer = RelationExplorer(load_run(run.path))
    for pair in (None, (0, 2), None, (1, 1)):
        explorer.selection = pair
        assert explorer.images is None and (pair is None) is not ("no two images" in explorer._pair_view.pictures.value)
    explorer.selection = (0, 1)
    assert explorer.images is not None


def test_names_of_classes_are_escaped(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["<img src=x onerror=alert(1)>", "a&b"], epochs=1, images=4)
    tensors = {"labels": torch.tensor([0, 0, 1, 1]), "index": torch.arange(4)}
    write_tensors(run.path / "probe.safetensors", tensors, {"split": "train"})
    explorer = RelationExplorer(load_run(run.path))
    explorer.images = (0, 2)
    view = explorer._pair_view
    shown = explorer.table.value + view.pictures.value + view.ranking.value
    assert "<img src=x" not in shown and "&lt;img src=x" in shown and "a&amp;b" in shown


def test_pixels_come_on_request_and_go_with_the_pair(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.images = (3, 17)
    view = explorer._pair_view
    assert view.attribution.value == ""
    view.pixels.click()
    assert view.attribution.value.count("<img") >= 4 and "newest weights" in view.attribution.value
    explorer.images = (3, 16)
    assert view.attribution.value == ""
