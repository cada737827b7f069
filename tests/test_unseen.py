"""The report on classes that a run has never seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from corsd_lib import unseen_class_report
from corsd_lib.analysis.retrieval import Episodes, embedding_few_shot, few_shot_accuracy, retrieval_metrics
from corsd_lib.analysis.unseen import unseen_class_record
from corsd_lib.batches import Normalise
from corsd_lib.datasets import ImageArrays, ImageData, load_dataset
from corsd_lib.errors import CorsdError
from corsd_lib.runs import Run, TrainConfig, load_data
from corsd_lib.training import train

Tiny = Callable[..., TrainConfig]
FIGURES = ["recall_at_1", "r_precision", "map_at_r", "one_shot", "one_shot_half", "five_shot", "five_shot_half"]


@pytest.fixture(scope="module")
def held_out_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from tiny import TINY

    out = str(tmp_path_factory.mktemp("unseen") / "run")
    config = TrainConfig(**{**TINY, "hold_out_classes": 3, "hold_out": "last", "epochs": 1}, out=out)
    return train(config, progress=False)


def _unseen(run: Run) -> ImageData:
    unseen = load_data(run.config).unseen
    assert unseen is not None
    return unseen


def _embeddings(run: Run, images: ImageArrays) -> list[torch.Tensor]:
    with torch.no_grad():
        return run.network()(Normalise(load_data(run.config))(images.images)).embeddings


def test_every_exit_and_score_has_its_figures(held_out_run: Run) -> None:
    table = unseen_class_report(held_out_run)
    assert list(table) == ["exit", "score", *FIGURES]
    scores = ["cosine", "euclidean", "relation"]
    assert list(zip(table["exit"], table["score"], strict=True)) == [(k, score) for k in (1, 2, 3) for score in scores]
    unseen, networks = _unseen(held_out_run), held_out_run.method().relation_networks()
    assert unseen.class_names == ("7", "8", "9") and isinstance(unseen.test, ImageArrays)
    labels = unseen.test.labels
    for k, e in enumerate(_embeddings(held_out_run, unseen.test)):
        directions = F.normalize(e.double(), dim=1)
        with torch.no_grad():
            of_pairs = [directions @ directions.T, -torch.cdist(e.double(), e.double()), networks[k].scores(e)]
        for score, matrix in zip(scores, of_pairs, strict=True):
            (row,) = table[(table["exit"] == k + 1) & (table["score"] == score)].to_dict("records")
            assert {name: row[name] for name in FIGURES[:3]} == pytest.approx(retrieval_metrics(matrix, labels), abs=0.01)
            for name, shots in (("one_shot", 1), ("five_shot", 5)):
                episodes = Episodes(ways=3, shots=shots)  # three classes are held out
                if score == "relation":
                    expected = few_shot_accuracy(matrix, labels, episodes)
                else:
                    expected = embedding_few_shot(e, labels, episodes, score)
                assert (row[name], row[f"{name}_half"]) == pytest.approx(expected, abs=0.01)


def test_it_is_of_test_images_or_of_all(held_out_run: Run) -> None:
    unseen = _unseen(held_out_run)
    assert isinstance(unseen.train, ImageArrays) and isinstance(unseen.test, ImageArrays)
    parts = [_embeddings(held_out_run, split)[-1].double() for split in (unseen.train, unseen.test)]
    e, labels = torch.cat(parts), torch.cat([unseen.train.labels, unseen.test.labels])
    assert len(labels) == 300 + 233
    row = unseen_class_report(held_out_run, images="all").query("exit == 3 and score == 'euclidean'").iloc[0]
    assert row["map_at_r"] == pytest.approx(retrieval_metrics(-torch.cdist(e, e), labels)["map_at_r"], abs=0.01)
    with pytest.raises(CorsdError, match="images 'train' is not known; allowed: test, all"):
        unseen_class_report(held_out_run, images="train")


@pytest.mark.parametrize(
    "changes,exits,scores",
    [
        ({"method": "baseline"}, 1, ["cosine", "euclidean"]),
        ({"method": "deep_supervision"}, 3, ["cosine", "euclidean"]),
        ({"method_options": {"relation_margin": 0.0}}, 3, ["cosine", "euclidean"]),  # nothing trains the score
        ({"method_options": {"relation_margin": 0.0, "relation_ce": 0.5}}, 3, ["cosine", "euclidean", "relation"]),
        ({"method_options": {"relation": "cosine"}}, 3, ["cosine", "euclidean"]),
        ({"method_options": {"fusion": "maps"}}, 3, ["cosine", "euclidean"]),
        ({"method_options": {"shared": True}}, 3, ["cosine", "euclidean", "relation"]),
    ],
)
def test_a_relation_score_is_reported_where_one_is_trained(
    tiny: Tiny, changes: dict[str, Any], exits: int, scores: list[str]
) -> None:
    table = unseen_class_report(train(tiny(hold_out_classes=3, epochs=1, **changes), progress=False))
    assert list(table["exit"]) == [k for k in range(1, exits + 1) for _ in scores]
    assert list(table["score"]) == scores * exits and table[FIGURES].notna().all(axis=None)


def test_data_may_be_given_and_its_images_are_normalised_as_in_the_training(held_out_run: Run) -> None:
    data = load_dataset("digits", hold_out_classes=3, hold_out="last", per_class=2)
    assert unseen_class_report(held_out_run, data).equals(unseen_class_report(held_out_run))


def test_a_run_without_held_out_classes_is_named(tiny_run: Run) -> None:
    with pytest.raises(CorsdError, match="run has no held-out classes: train with hold_out_classes, or pass data that has"):
        unseen_class_report(tiny_run)


def test_few_shots_that_images_do_not_suffice_for_are_left_out(held_out_run: Run) -> None:
    data = load_data(held_out_run.config)
    assert data.unseen is not None
    some = data.unseen.test.subset(torch.cat([(data.unseen.test.labels == y).nonzero().flatten()[:17] for y in range(3)]))
    table = unseen_class_report(held_out_run, replace(data, unseen=replace(data.unseen, test=some)))
    assert table["one_shot"].notna().all() and table["five_shot"].isna().all() and table["five_shot_half"].isna().all()


def test_the_record_is_plain_and_small(held_out_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    record = unseen_class_record(held_out_run)
    figures = record.pop("figures")
    assert record == {"classes": 3, "images": 233, "ways": 3, "queries": 15, "episodes": 600}
    table = unseen_class_report(held_out_run)
    assert [list(row) for row in figures] == [list(table)] * 9
    assert [row["map_at_r"] for row in figures] == pytest.approx(table["map_at_r"].tolist(), abs=1e-4)
    assert len(json.dumps(figures)) < 2500
    monkeypatch.setattr("corsd_lib.analysis.unseen.QUERIES", 1000)
    few = unseen_class_record(held_out_run)["figures"][0]
    assert few["one_shot"] is None and few["five_shot_half"] is None and not math.isnan(few["map_at_r"])
