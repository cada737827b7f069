"""Retrieval and few-shot figures against loops that are written out, and against pytorch-metric-learning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from corsd_lib.analysis import retrieval
from corsd_lib.analysis.retrieval import (
    Episodes,
    embedding_few_shot,
    embedding_retrieval,
    few_shot_accuracy,
    map_at_r,
    r_precision,
    recall_at_1,
    retrieval_metrics,
)
from corsd_lib.errors import CorsdError

FIGURES = ("recall_at_1", "r_precision", "map_at_r")
CASES = [(30, 3, 0), (41, 7, 1), (25, 25, 2), (8, 1, 3), (60, 20, 4)]  # images, classes, seed


def _labels(images: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (images,), generator=torch.Generator().manual_seed(seed))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _by_loop(ranked: list[bool], r: int) -> tuple[float, float, float]:
    """Figures of one query from the sequence of other images, True where they are of its class."""
    precisions = [sum(ranked[:k]) / k for k in range(1, r + 1) if ranked[k - 1]]
    return float(ranked[0]), sum(ranked[:r]) / r, sum(precisions) / r


def _metrics_by_loop(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Every order of equal scores is tried."""
    found = []
    for i, label in enumerate(labels.tolist()):
        others = sorted((j for j in range(len(labels)) if j != i), key=lambda j: -scores[i, j].item())
        r = sum(labels[j].item() == label for j in others)
        if not r:
            continue
        groups = [list(g) for _, g in itertools.groupby(others, key=lambda j: scores[i, j].item())]
        orders = itertools.product(*(itertools.permutations(group) for group in groups))
        tried = [_by_loop([labels[j].item() == label for group in order for j in group], r) for order in orders]
        found.append([sum(values) / len(tried) for values in zip(*tried, strict=True)])
    means = [100 * sum(values) / len(found) for values in zip(*found, strict=True)] or [math.nan] * 3
    return dict(zip(FIGURES, means, strict=True))


@pytest.mark.parametrize("images,classes,seed", CASES)
@pytest.mark.parametrize("block", [512, 7])
def test_retrieval_is_that_of_a_loop(monkeypatch: pytest.MonkeyPatch, images: int, classes: int, seed: int, block: int) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    scores, labels = _random(images, images, seed=seed), _labels(images, classes, seed)
    expected = _metrics_by_loop(scores, labels)
    assert retrieval_metrics(scores, labels) == pytest.approx(expected, nan_ok=True)
    assert recall_at_1(scores, labels) == pytest.approx(expected["recall_at_1"], nan_ok=True)
    assert r_precision(scores, labels) == pytest.approx(expected["r_precision"], nan_ok=True)
    assert map_at_r(scores, labels) == pytest.approx(expected["map_at_r"], nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_of_equal_scores_every_order_counts_alike(levels: int, seed: int) -> None:
    labels = _labels(7, 3, seed)
    scores = torch.randint(levels, (7, 7), generator=torch.Generator().manual_seed(seed)).float()
    assert retrieval_metrics(scores, labels) == pytest.approx(_metrics_by_loop(scores, labels), nan_ok=True)


def test_a_collapsed_network_gets_what_chance_gives_wherever_its_classes_lie() -> None:
    labels = torch.arange(4).repeat_interleave(5)  # sorted by class, as test sets are
    found = embedding_retrieval(torch.ones(20, 3), labels)
    assert found["recall_at_1"] == found["r_precision"] == pytest.approx(100 * 4 / 19)
    assert found == pytest.approx(embedding_retrieval(torch.ones(20, 3), labels[torch.randperm(20)]))


def test_the_query_itself_is_not_retrieved_and_scores_are_left_as_they_are() -> None:
    scores = torch.eye(4)
    before = scores.clone()
    assert recall_at_1(scores, torch.tensor([0, 0, 1, 1])) == pytest.approx(100 / 3)
    assert torch.equal(scores, before)


def test_infinite_scores_of_others_are_not_the_query_itself() -> None:
    scores = torch.full((3, 3), -torch.inf)
    scores[:, 0] = 0.0
    with_loop = _metrics_by_loop(scores, torch.tensor([0, 0, 1]))
    assert retrieval_metrics(scores, torch.tensor([0, 0, 1])) == pytest.approx(with_loop)


def test_images_alone_in_their_class_are_no_queries() -> None:
    scores = _random(5, 5)
    labels = torch.tensor([0, 0, 1, 2, 0])
    assert retrieval_metrics(scores, labels) == pytest.approx(_metrics_by_loop(scores, labels))
    for alone in (torch.arange(5), torch.empty(0, dtype=torch.long)):
        found = retrieval_metrics(scores[: len(alone), : len(alone)], alone)
        assert all(math.isnan(value) for value in found.values())


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def _negative_distance(a: Tensor, b: Tensor) -> float:
    return -float((a - b).norm())


BY_HAND = {"cosine": _cosine, "euclidean": _negative_distance}


@pytest.mark.parametrize("similarity", BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embeddings_are_compared_in_blocks_to_the_same_figures(
    monkeypatch: pytest.MonkeyPatch, similarity: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 7)
    embeddings, labels = _random(40, 5).to(dtype), _labels(40, 6, 1)
    compare = BY_HAND[similarity]
    scores = torch.tensor([[compare(a.double(), b.double()) for b in embeddings] for a in embeddings])
    assert embedding_retrieval(embeddings, labels, similarity) == pytest.approx(_metrics_by_loop(scores, labels))


@pytest.mark.parametrize("similarity", BY_HAND)
@pytest.mark.parametrize("images,classes,seed", [(200, 10, 0), (120, 40, 1), (50, 2, 2)])
def test_retrieval_agrees_with_pytorch_metric_learning(similarity: str, images: int, classes: int, seed: int) -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    distance = CosineSimilarity() if similarity == "cosine" else LpDistance(normalize_embeddings=False)
    theirs = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(
        include=theirs, k="max_bin_count", device=torch.device("cpu"), knn_func=CustomKNN(distance), kmeans_func=lambda *_: None
    )
    labels = _labels(images, classes, seed)
    embeddings = _random(images, 8, seed=seed) + _random(classes, 8, seed=seed + 9)[labels]
    there = calculator.get_accuracy(embeddings, labels)
    here = embedding_retrieval(embeddings, labels, similarity)
    assert [here[name] for name in FIGURES] == pytest.approx([100 * there[name] for name in theirs])


# --- few shots --------------------------------------------------------------------------------------------------------

SETTINGS = [Episodes(3, 1, 4, 20), Episodes(2, 3, 2, 15, seed=5), Episodes(4, 2, 1, 10)]


def _named_by_loop(labels: Tensor, episodes: Episodes, score: Callable[[int, list[int]], float]) -> tuple[float, float]:
    """Accuracy and half of its interval where `score(query, examples)` is how much a query belongs to a class."""
    accuracies = []
    for examples, queries in zip(*(rows.tolist() for rows in episodes.sample(labels)), strict=True):
        right = []
        for way, of_class in enumerate(queries):
            for query in of_class:
                values = [score(query, shots) for shots in examples]
                best = [k for k, value in enumerate(values) if value == max(values)]
                right.append((way in best) / len(best))
        accuracies.append(100 * sum(right) / len(right))
    mean = sum(accuracies) / len(accuracies)
    variance = sum((a - mean) ** 2 for a in accuracies) / (len(accuracies) - 1)
    return mean, 1.96 * math.sqrt(variance / len(accuracies))


@pytest.mark.parametrize("similarity", BY_HAND)
@pytest.mark.parametrize("episodes", SETTINGS)
def test_few_shots_of_embeddings_are_those_of_a_loop(similarity: str, episodes: Episodes) -> None:
    labels = _labels(60, 5, 3)
    e = _random(60, 4, seed=1) + _random(5, 4, seed=2)[labels]
    directions = e / e.norm(dim=1, keepdim=True) if similarity == "cosine" else e

    def score(query: int, shots: list[int]) -> float:
        return BY_HAND[similarity](directions[query], sum(directions[row] for row in shots) / len(shots))  # type: ignore[arg-type]

    assert embedding_few_shot(e, labels, episodes, similarity) == pytest.approx(_named_by_loop(labels, episodes, score))


@pytest.mark.parametrize("episodes", SETTINGS)
@pytest.mark.parametrize("levels", [None, 2])
def test_few_shots_of_scores_are_those_of_a_loop_also_with_ties(episodes: Episodes, levels: int | None) -> None:
    labels, scores = _labels(60, 5, 3), _random(60, 60)
    if levels:
        scores = (scores > 0).double()

    def score(query: int, shots: list[int]) -> float:
        return sum(scores[query, row].item() for row in shots) / len(shots)

    assert few_shot_accuracy(scores, labels, episodes) == pytest.approx(_named_by_loop(labels, episodes, score))


def test_a_collapsed_network_names_a_fifth_of_the_queries() -> None:
    labels = torch.arange(6).repeat(20)
    for found in (embedding_few_shot(torch.ones(120, 3), labels), few_shot_accuracy(torch.ones(120, 120), labels)):
        assert found == pytest.approx((20, 0))


@pytest.mark.parametrize("episodes", [*SETTINGS, Episodes()])
def test_an_episode_repeats_no_image_and_no_class(episodes: Episodes) -> None:
    labels = torch.arange(7).repeat(25)
    examples, queries = episodes.sample(labels)
    assert examples.shape == (episodes.count, episodes.ways, episodes.shots)
    assert queries.shape == (episodes.count, episodes.ways, episodes.queries)
    both = torch.cat([examples, queries], dim=2)
    assert torch.equal(labels[both], labels[examples[..., :1]].expand_as(both))
    for episode in both:
        assert len(episode.unique()) == episode.numel() and len(labels[episode[:, 0]].unique()) == episodes.ways
    again, _ = episodes.sample(labels)
    assert torch.equal(again, examples)


def test_every_image_of_a_class_that_is_large_enough_has_the_same_chance() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 5 + [3] * 4)  # class 1 is too small
    examples, queries = Episodes(2, 1, 3, 6000).sample(labels)
    assert 1 not in labels[examples].unique()
    for class_, size in ((0, 6), (2, 5), (3, 4)):
        drawn = torch.bincount(queries.flatten(), minlength=18)[labels == class_] / (6000 * 2 / 3)
        assert drawn.tolist() == pytest.approx([3 / size] * size, abs=0.05)


@pytest.mark.parametrize(
    "call,message",
    [
        (
            lambda: retrieval_metrics(torch.ones(3, 2), torch.ones(3)),
            r"scores of shape \(3, 2\) do not fit 3 labels; allowed: \(3, 3\)",
        ),
        (lambda: retrieval_metrics(torch.full((2, 2), torch.nan), torch.zeros(2)), "scores have NaN; allowed: numbers, higher"),
        (
            lambda: embedding_retrieval(torch.ones(3), torch.ones(3)),
            r"embeddings of shape \(3,\) do not fit 3 labels; allowed: \(3, D\)",
        ),
        (
            lambda: embedding_retrieval(torch.ones(3, 2), torch.ones(3), "l1"),
            "similarity 'l1' is not known; allowed: cosine, eu",
        ),
        (lambda: embedding_few_shot(torch.ones(3, 2), torch.ones(3), similarity="l1"), "similarity 'l1' is not known"),
        (lambda: few_shot_accuracy(torch.ones(3, 2), torch.ones(3)), r"scores of shape \(3, 2\) do not fit 3 labels"),
        (lambda: Episodes(ways=1), "ways of episodes is 1; allowed: a whole number of at least 2"),
        (lambda: Episodes(shots=0), "shots of episodes is 0; allowed: a whole number of at least 1"),
        (lambda: Episodes(queries=1.5), r"queries of episodes is 1\.5"),  # type: ignore[arg-type]
        (
            lambda: Episodes().sample(torch.arange(9).repeat(15)),
            "5 ways need as many classes with 16 images each, for 1 shots and 15 queries; 0 classes have so many",
        ),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(CorsdError, match=message):
        call()
