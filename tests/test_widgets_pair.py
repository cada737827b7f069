"""What stands behind a click: numbers compared with the run, pictures where the data is, sentences where it is not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorers import EPOCHS, large_run, small_run
from PIL import Image

from corsd_lib import RelationExplorer, Run, load_run
from corsd_lib.analysis import snapshot_scores
from corsd_lib.analysis.images import run_pixels
from corsd_lib.analysis.relations import relation_networks_at
from corsd_lib.attribution import attribute_run_pair
from corsd_lib.files import read_json, write_json, write_tensors
from corsd_lib.relation import VectorRelation
from corsd_lib.widgets.pair import pixel_facts
from corsd_lib.widgets.probe_images import ProbeImages


@pytest.fixture(scope="module")
def corsd(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs") / "corsd", "corsd")


def pair_of(explorer: RelationExplorer, **changed: Any) -> dict[str, Any]:
    """What the browser is told of the pair that is open."""
    return explorer.ask_pair(**{name: getattr(explorer, name) for name in explorer.chosen} | changed)


def test_two_images_have_their_score_at_every_exit_both_ways_and_the_auxiliary_prediction(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.epoch, explorer.images = 1, (3, 17)
    facts = pair_of(explorer)
    snapshot = corsd.probes[1]
    networks = relation_networks_at(corsd, snapshot)  # of that epoch, not the newest
    labels = corsd.probes.labels.tolist()
    for k, (_, there, back, said) in enumerate(facts["table"]["rows"]):
        scores = snapshot_scores(corsd, 1, k + 1)
        assert (there, back) == (f"{scores[3, 17]:.3f}", f"{scores[17, 3]:.3f}")
        e = snapshot.embeddings[k].float()
        network = networks[k]
        assert isinstance(network, VectorRelation)
        q = network.auxiliary_logits(e[[3]], e[[17]])[0].softmax(0)
        best = q.argsort(descending=True)[:2].tolist()
        sign = "✓" if set(best) == {labels[3], labels[17]} else "✗"
        assert said == f"{sign} {best[0]} {q[best[0]]:.0%} + {best[1]} {q[best[1]]:.0%}"
    assert len(facts["table"]["rows"]) == 3 and "epoch 1" in facts["table"]["caption"]
    guess = snapshot.logits[2][3].float().softmax(0)
    assert f"exit 3 predicts {guess.argmax()}, {guess.max():.0%}" in facts["images"][0]["caption"]


def test_images_of_one_class_are_asked_for_one_class(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (5, 5)
    a, b = explorer.images
    assert a != b and corsd.probes.labels[[a, b]].tolist() == [5, 5]
    assert all("+" not in row[3] for row in pair_of(explorer)["table"]["rows"])


def test_a_method_without_auxiliary_classifier_says_so(tmp_path: Path) -> None:
    explorer = RelationExplorer(small_run(tmp_path / "run", "baseline"))
    explorer.images = (0, 19)
    table = pair_of(explorer)["table"]
    assert [len(row) for row in table["rows"]] == [3] and "no auxiliary classifier" in table["caption"]


def test_the_most_and_least_related_pairs_are_listed(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (1, 4)
    labels, scores = corsd.probes.labels, snapshot_scores(corsd, EPOCHS, 3)
    pairs = [(i, j) for i in (labels == 1).nonzero().flatten().tolist() for j in (labels == 4).nonzero().flatten().tolist()]
    ranked = [list(pair) for pair in sorted(pairs, key=lambda pair: -float(scores[pair]))]
    listed = pair_of(explorer)["ranked"]
    assert [found["pair"] for found in listed["most"]] == ranked[:2]  # of four pairs two are most, two are least related
    assert [found["pair"] for found in listed["least"]] == ranked[:1:-1]
    assert listed["most"][0]["score"] == pytest.approx(scores[tuple(ranked[0])].item(), abs=1e-6)
    assert explorer.images == tuple(ranked[0])


def test_a_question_of_an_older_choice_changes_nothing(corsd: Run) -> None:
    """The kernel may come to it when the browser has chosen another pair long since."""
    explorer = RelationExplorer(corsd)
    explorer.selection = (1, 4)
    opened = explorer.images
    assert [image["title"][0] for image in pair_of(explorer, selection=[2, 7], images=None)["images"]] == ["2", "7"]
    assert (explorer.selection, explorer.images) == ((1, 4), opened)


def test_pictures_are_there_where_the_data_is_and_a_sentence_where_not(corsd: Run, tmp_path: Path) -> None:
    explorer = RelationExplorer(corsd)
    explorer.selection = (1, 4)
    facts = pair_of(explorer)
    assert all(image["png"].startswith(b"\x89PNG") for image in facts["images"])
    assert sum(len(found["pngs"]) for found in facts["ranked"]["most"] + facts["ranked"]["least"]) == 8
    assert set(explorer.ask_faces([0, 3])) == {0, 3}
    config = read_json(corsd.path / "config.json")
    config["train"]["data"] = "npz:/nowhere.npz"
    lost = tmp_path / "lost"
    lost.mkdir()
    write_json(lost / "config.json", config)
    (lost / "probes").symlink_to(corsd.path / "probes")
    (lost / "probe.safetensors").symlink_to(corsd.path / "probe.safetensors")
    explorer = RelationExplorer(load_run(lost))
    explorer.selection = (1, 4)
    facts = pair_of(explorer)
    assert [image["png"] for image in facts["images"]] == [None, None] and "No images here" in facts["missing"]
    assert len(facts["table"]["rows"]) == 3 and explorer.ask_faces([0]) == {}


def test_a_relation_of_feature_maps_opens_images_by_their_cosine_and_says_why(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "corsd_release")
    explorer = RelationExplorer(run)
    explorer.selection = (1, 4)
    assert explorer.images is not None
    facts = pair_of(explorer)
    assert "feature maps" in facts["note"] and facts["table"] is None and facts["ranked"] == {"most": [], "least": []}
    explorer.kind = "cosine"
    assert len(pair_of(explorer)["table"]["rows"]) == len(run.probes[EPOCHS].embeddings) == 1


def test_classes_without_two_images_have_no_pair(corsd: Run, tmp_path: Path) -> None:
    run = large_run(corsd, tmp_path, ["a", "b", "c"], epochs=1, images=3)
    tensors = {"labels": torch.tensor([0, 0, 1]), "index": torch.arange(3)}
    write_tensors(run.path / "probe.safetensors", tensors, {"split": "train"})
    explorer = RelationExplorer(load_run(run.path))
    for pair in ((0, 2), (1, 1)):
        explorer.selection = pair
        assert explorer.images is None and "no two images" in pair_of(explorer)["note"]
    explorer.selection = (0, 1)
    assert explorer.images is not None


def test_pixels_come_on_request(corsd: Run) -> None:
    explorer = RelationExplorer(corsd)
    explorer.images = (3, 17)
    facts = explorer.ask_pixels(**{name: getattr(explorer, name) for name in explorer.chosen})
    found, _ = attribute_run_pair(corsd, 3, 17, 3)
    assert f"relation logit {found.score:.2f}" in facts["text"] and f"f(baseline) = {found.baseline_score:.2f}" in facts["text"]
    assert f"Completeness gap {100 * (found.completeness_gap or 0):.2g} %" in facts["text"] and "final weights" in facts["text"]
    assert [len(row["pngs"]) for row in facts["rows"]] == [3, 3]
    for row, pixels in zip(facts["rows"], run_pixels(corsd, [3, 17]), strict=True):
        picture = np.asarray(Image.open(io.BytesIO(row["pngs"][0][0])))
        np.testing.assert_array_equal(picture[::16, ::16, 0], pixels[0].numpy())


def test_pixels_without_data_or_for_no_exit_are_a_sentence(corsd: Run) -> None:
    images = ProbeImages(corsd)
    assert pixel_facts(corsd, (0, 1), 9, images)["text"].startswith(
        "No attribution here: exit = 9; allowed: 1 (shallowest) to 3"
    )
    images.wanted = False
    assert pixel_facts(corsd, (0, 1), 1, images) == {"rows": [], "text": "The images are not loaded yet."}
