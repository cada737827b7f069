"""Relation scores as probabilities, and relations to class prototypes at inference."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from corsd_lib.analysis.relation_use import (
    class_prototypes,
    prototype_accuracy,
    relation_calibration,
    relation_calibration_error,
)
from corsd_lib.errors import CorsdError
from corsd_lib.relation import PairScore
from corsd_lib.runs import Run, load_data


def _scores(n: int, seed: int) -> Tensor:
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed))


def test_relation_calibration_is_that_of_a_loop() -> None:
    scores, labels = _scores(9, 1), torch.tensor([0, 0, 1, 1, 1, 2, 0, 2, 2])
    scores[0, 1], scores[0, 2] = 1.0, 0.0  # the ends belong to the outer bins
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    counts = {same: sum((labels[i] == labels[j]).item() == same for i, j in pairs) for same in (True, False)}
    table = relation_calibration(scores, labels, bins=4)
    error = 0.0
    for b in range(4):
        weight = score = same = 0.0
        for i, j in pairs:
            if min(int(scores[i, j] * 4), 3) == b:
                is_same = bool(labels[i] == labels[j])
                w = 0.5 / counts[is_same]
                weight, score, same = weight + w, score + w * scores[i, j].item(), same + w * is_same
        assert table["share"][b] == pytest.approx(100 * weight)
        assert table["score"][b] == pytest.approx(100 * score / weight) and table["same"][b] == pytest.approx(
            100 * same / weight
        )
        error += 100 * abs(score - same)
    assert relation_calibration_error(scores, labels, bins=4) == pytest.approx(error)
    assert table["low"].tolist() == [0, 25, 50, 75] and table["high"].tolist() == [25, 50, 75, 100]


def test_scores_that_are_the_share_of_intra_pairs_are_calibrated() -> None:
    labels = torch.arange(40) // 4
    half = torch.full((40, 40), 0.5)
    assert relation_calibration_error(half, labels) == pytest.approx(0, abs=1e-9)
    right = (labels[:, None] == labels[None, :]).float()
    assert relation_calibration_error(right, labels) == pytest.approx(0, abs=1e-9)
    assert relation_calibration_error(1 - right, labels) == pytest.approx(100)
    assert math.isnan(relation_calibration(half, labels)["same"][0]), "an empty bin has no share"


@pytest.mark.parametrize(
    ("scores", "labels", "bins", "words"),
    [
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), 10, r"scores of shape \(3, 4\) do not fit 3 labels"),
        (torch.zeros(3, 3), torch.zeros(3, dtype=torch.long), 10, "6 intra pairs and 0 inter pairs"),
        (torch.zeros(3, 3), torch.arange(3), 10, "0 intra pairs and 6 inter pairs"),
        (torch.zeros(3, 3), torch.arange(3), 0, "bins = 0; allowed: 1 or more"),
    ],
)
def test_what_cannot_be_calibrated_is_named(scores: Tensor, labels: Tensor, bins: int, words: str) -> None:
    with pytest.raises(CorsdError, match=words):
        relation_calibration(scores, labels, bins)


def test_prototypes_are_the_means_of_classes() -> None:
    embeddings = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    assert class_prototypes(embeddings, torch.tensor([1, 1, 0]), 2).tolist() == [[10, 0], [2, 3]]
    with pytest.raises(CorsdError, match=r"no image of the classes \[2\]"):
        class_prototypes(embeddings, torch.tensor([1, 1, 0]), 3)


def test_relations_to_others_are_the_rows_of_relations_to_all() -> None:
    torch.manual_seed(0)
    net = PairScore(5, 7)
    vectors = torch.randn(6, 5)
    torch.testing.assert_close(net.log_odds(vectors, vectors[:2]), net.log_odds(vectors)[:, :2])


def test_prototype_accuracy_is_that_of_pairs_one_at_a_time(tiny_run: Run) -> None:
    data = load_data(tiny_run.config)
    table = prototype_accuracy(tiny_run)
    assert table["exit"].tolist() == [1, 2, 3]
    network = tiny_run.network()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (tiny_run.data.mean, tiny_run.data.std))
    with torch.no_grad():
        train, test = (network((split.images / 255 - mean) / std) for split in (data.train, data.test))
        for k, relation in enumerate(tiny_run.method().relation_networks()):
            prototypes = torch.stack([train.embeddings[k][data.train.labels == c].mean(0) for c in range(data.num_classes)])
            related = torch.stack([relation.pair_scores(e.expand(len(prototypes), -1), prototypes) for e in test.embeddings[k]])
            cosines = F.cosine_similarity(test.embeddings[k][:, None], prototypes[None], dim=2)
            for name, guess in (("classifier", test.logits[k]), ("relation", related), ("cosine", cosines)):
                wanted = 100 * (guess.argmax(1) == data.test.labels).double().mean().item()
                assert table[name][k] == pytest.approx(wanted, abs=0.6), name
            width = test.embeddings[k].shape[1]
            assert table["macs"][k] == (width + data.num_classes) * relation.first.out_features
    without = table[table["weight_relation"] == 0]
    assert without["with_relation"].tolist() == without["classifier"].tolist()


def test_prototype_accuracy_says_what_it_needs(tiny_run: Run) -> None:
    data = load_data(tiny_run.config)
    with pytest.raises(CorsdError, match="has no validation split to choose the weight of the relation on"):
        prototype_accuracy(tiny_run, replace(data, validation=None))
