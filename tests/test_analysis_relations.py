from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from corsd_lib.analysis.relations import (
    CLASS_ORDERS,
    RELATION_KINDS,
    attribute_agreement,
    average_ranks,
    class_order,
    class_relations,
    confusion_agreement,
    linkage_of,
    relation_agreement,
    relation_contrast,
    relation_networks_at,
    relation_quality,
    same_class_auc,
    sample_order,
    snapshot_scores,
    spearman,
    superclass_lift,
)
from corsd_lib.errors import CorsdError
from corsd_lib.files import read_tensors, write_tensors
from corsd_lib.relation import VectorRelation, cosine_scores, distance_scores, relation_matrix
from corsd_lib.runs import Run, TrainConfig, load_run
from corsd_lib.training import train

Tiny = Callable[..., TrainConfig]
NAN = math.nan


def _scores(images: int, classes: int, levels: int | None = None) -> tuple[Tensor, Tensor]:
    """Random scores (N, N), of a few `levels` for ties, somewhat higher within classes; labels (N,)."""
    generator = torch.Generator().manual_seed(images + classes)
    labels = torch.randint(0, classes, (images,), generator=generator)
    scores = (torch.rand(images, images, generator=generator) + 0.2 * (labels[:, None] == labels[None, :])) / 1.2
    return (scores * levels).round() / levels if levels else scores, labels


def _relation(classes: int, seed: int = 0) -> Tensor:
    return torch.rand(classes, classes, generator=torch.Generator().manual_seed(classes + seed))


# --- scores of a run ---


def test_trained_scores_are_those_of_the_relation_network_of_that_epoch(tiny_run: Run) -> None:
    weights = tiny_run.method().relation_networks()
    for epoch, exit in itertools.product((0, 2), (1, 2, 3)):
        snapshot = tiny_run.probes[epoch]
        network = VectorRelation(16, 10)
        prefix = f"relations.{exit - 1}."
        state = {k.removeprefix(prefix): v.float() for k, v in snapshot.relation_state.items() if k.startswith(prefix)}
        network.load_state_dict(state)
        e = snapshot.embeddings[exit - 1].float()
        found = snapshot_scores(tiny_run, epoch, exit)
        assert found.shape == (50, 50) and found.dtype == torch.float32 and not found.requires_grad
        with torch.no_grad():
            for i, j in [(0, 1), (1, 0), (17, 49), (3, 3)]:
                assert found[i, j].item() == pytest.approx(network.pair_scores(e[[i]], e[[j]]).item(), abs=1e-6)
            if epoch == 2:  # the newest weights, to the digits of float16
                torch.testing.assert_close(found, weights[exit - 1].scores(e), atol=2e-3, rtol=0)  # type: ignore[operator]
    assert (snapshot_scores(tiny_run, 0, 3) - snapshot_scores(tiny_run, 2, 3)).abs().max() > 1e-3


@pytest.mark.parametrize("kind,score", [("cosine", cosine_scores), ("l2", distance_scores)])
def test_handcrafted_scores_are_of_the_embeddings(tiny_run: Run, kind: str, score: Callable[[Tensor], Tensor]) -> None:
    for exit in (1, 3):
        expected = score(tiny_run.probes[2].embeddings[exit - 1].float())
        torch.testing.assert_close(snapshot_scores(tiny_run, 2, exit, kind), expected, atol=0, rtol=0)
        expected = relation_matrix(expected, tiny_run.probes.labels, 10)
        torch.testing.assert_close(class_relations(tiny_run, 2, exit, kind), expected, atol=0, rtol=0)


def test_class_relations_are_the_stored_ones_and_agree_with_the_scores(tiny_run: Run) -> None:
    for exit in (1, 2, 3):
        stored = class_relations(tiny_run, 2, exit)
        assert torch.equal(stored, tiny_run.probes[2].relations[exit - 1])
        computed = relation_matrix(snapshot_scores(tiny_run, 2, exit), tiny_run.probes.labels, 10)
        torch.testing.assert_close(computed, stored, atol=2e-3, rtol=0)


def test_what_is_not_there_is_named(tiny_run: Run) -> None:
    for function in (snapshot_scores, class_relations):
        with pytest.raises(CorsdError, match="snapshot after epoch 7 is not available; allowed: 0, 1, 2"):
            function(tiny_run, 7, 1)
        for exit in (0, 4, -1):
            with pytest.raises(CorsdError, match=f"exit {exit} is not available; allowed: 1, 2, 3"):
                function(tiny_run, 0, exit)
        with pytest.raises(CorsdError, match="relation kind 'dot' is not known; allowed: trained, cosine, l2"):
            function(tiny_run, 0, 1, "dot")


def test_relation_networks_need_no_weights_and_no_random_numbers(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run")
    for file in ("weights.safetensors", "checkpoint.safetensors"):
        (tmp_path / "run" / file).unlink(missing_ok=True)
    run, random = load_run(tmp_path / "run"), torch.get_rng_state()
    networks = relation_networks_at(run, run.probes[1])
    assert torch.equal(random, torch.get_rng_state())
    assert len(networks) == 3 and not any(m.training for m in networks.modules())
    state = run.probes[1].relation_state
    assert {f"relations.{k}" for k in networks.state_dict()} == set(state)
    assert all(torch.equal(v, state[f"relations.{k}"].float()) for k, v in networks.state_dict().items())


def test_a_snapshot_without_its_relation_networks_has_only_relations(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run")
    file = tmp_path / "run" / "probes" / "epoch_0002.safetensors"
    write_tensors(file, {k: v for k, v in read_tensors(file)[0].items() if not k.startswith("method.")})
    run = load_run(tmp_path / "run")
    with pytest.raises(CorsdError, match="the snapshot after epoch 2 has no relation networks, only relations"):
        snapshot_scores(run, 2, 1)
    assert torch.equal(class_relations(run, 2, 1), class_relations(tiny_run, 2, 1))
    assert torch.equal(snapshot_scores(run, 2, 1, "cosine"), snapshot_scores(tiny_run, 2, 1, "cosine"))


@pytest.mark.parametrize("kind,score", [("cosine", cosine_scores), ("l2", distance_scores)])
def test_the_trained_relation_of_an_ablation_is_its_formula(tiny: Tiny, kind: str, score: Callable[[Tensor], Tensor]) -> None:
    run = train(tiny(epochs=1, method_options={"relation": kind}), progress=False)
    torch.testing.assert_close(snapshot_scores(run, 1, 2), score(run.probes[1].embeddings[1].float()), atol=0, rtol=0)


def test_a_shared_relation_network_is_that_of_every_exit(tiny: Tiny) -> None:
    run = train(tiny(epochs=1, method_options={"shared": True}), progress=False)
    networks = relation_networks_at(run, run.probes[1])
    assert len(networks) == 3 and networks[0] is networks[2]
    computed = relation_matrix(snapshot_scores(run, 1, 1), run.probes.labels, 10)
    torch.testing.assert_close(computed, class_relations(run, 1, 1), atol=2e-3, rtol=0)


def test_a_method_without_relation_networks_has_the_cosine(tiny: Tiny) -> None:
    run = train(tiny(method="baseline", epochs=1), progress=False)  # one exit
    assert torch.equal(snapshot_scores(run, 1, 1), snapshot_scores(run, 1, 1, "cosine"))
    torch.testing.assert_close(class_relations(run, 1, 1), class_relations(run, 1, 1, "cosine"), atol=1e-3, rtol=0)
    with pytest.raises(CorsdError, match="exit 2 is not available; allowed: 1"):
        snapshot_scores(run, 1, 2)
    assert relation_quality(run, 1)["exit"].tolist() == relation_agreement(run, 1)["exit"].tolist() == [1]


def test_relations_of_feature_maps_are_stored_for_classes_only(tiny: Tiny) -> None:
    run = train(tiny(method="corsd_release", epochs=1, batch_size=15), progress=False)  # one exit, three relations
    for function in (lambda: snapshot_scores(run, 1, 1), lambda: relation_quality(run, 1)):
        with pytest.raises(CorsdError, match="uses feature maps, which snapshots do not have; allowed kinds: cosine, l2"):
            function()
    assert [torch.equal(class_relations(run, 1, k + 1), r) for k, r in enumerate(run.probes[1].relations)] == [True] * 3
    assert class_relations(run, 1, 1, "cosine").shape == (10, 10)
    table = relation_agreement(run, 1)
    assert table["exit"].tolist() == [1, 2, 3]
    logits, labels = run.probes[1].logits[0].float(), run.probes.labels  # of the deepest exit, the only one
    expected = [confusion_agreement(r, logits, labels) for r in run.probes[1].relations]
    assert table["confusion_agreement"].tolist() == pytest.approx(expected, nan_ok=True)


# --- orders ---


def test_orders_of_classes_are_permutations() -> None:
    matrix, superclasses = _relation(9), torch.tensor([2, 0, 1, 2, 0, 1, 2, 2, 0])
    for kind in CLASS_ORDERS:
        order = class_order(kind, matrix, superclasses)
        assert order.dtype == torch.long and sorted(order.tolist()) == list(range(9))
    assert class_order("label", matrix).tolist() == class_order("label", None, superclasses).tolist() == list(range(9))
    assert class_order("superclass", None, superclasses).tolist() == [1, 4, 8, 2, 5, 0, 3, 6, 7]
    assert superclasses[class_order("superclass_cluster", matrix, superclasses)].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def _path(matrix: Tensor, order: list[int]) -> float:
    """Distance along neighbours."""
    symmetric = (matrix + matrix.T) / 2
    return sum(1 - symmetric[a, b].item() for a, b in itertools.pairwise(order))


def test_clustering_finds_classes_in_a_line() -> None:
    place = torch.tensor([5.0, 0.0, 3.0, 1.0, 4.0, 2.0])  # relation falls with the distance along a line
    place = place + 0.01 * place**2
    matrix = 1 - (place[:, None] - place[None, :]).abs() / 10
    order = class_order("cluster", matrix).tolist()
    assert order in ([1, 3, 5, 2, 4, 0], [0, 4, 2, 5, 3, 1])


@pytest.mark.parametrize("classes", [2, 3, 5, 12])
def test_linkage_is_scipys_on_the_symmetrised_distance(classes: int) -> None:
    matrix = _relation(classes)
    pairs = [1 - (matrix[i, j].item() + matrix[j, i].item()) / 2 for i in range(classes) for j in range(i + 1, classes)]
    expected = linkage(np.array(pairs), method="average", optimal_ordering=True)
    np.testing.assert_allclose(linkage_of(matrix).numpy(), expected, rtol=1e-6)
    assert linkage_of(matrix).shape == (classes - 1, 4)
    order = class_order("cluster", matrix).tolist()
    assert order == leaves_list(expected).tolist()
    assert _path(matrix, order) <= _path(matrix, leaves_list(linkage(np.array(pairs), method="average")).tolist()) + 1e-6


def test_clusters_stay_inside_their_superclass() -> None:
    matrix, superclasses = _relation(10), torch.tensor([1, 0] * 4 + [7, 1])
    order = class_order("superclass_cluster", matrix, superclasses).tolist()
    evens, odds = [0, 2, 4, 6, 9], [1, 3, 5, 7]
    expected = [odds[i] for i in class_order("cluster", matrix[odds][:, odds])]
    expected += [evens[i] for i in class_order("cluster", matrix[evens][:, evens])] + [8]
    assert order == expected


def test_classes_without_a_relation_are_ordered_too() -> None:
    matrix = _relation(6)
    matrix[2], matrix[:, 2] = NAN, NAN
    assert sorted(class_order("cluster", matrix).tolist()) == list(range(6))
    filled = matrix.clone()
    known = [(matrix[i, j] + matrix[j, i]).item() / 2 for i in range(6) for j in range(i) if 2 not in (i, j)]
    filled[2], filled[:, 2] = sum(known) / len(known), sum(known) / len(known)
    torch.testing.assert_close(linkage_of(matrix), linkage_of(filled), atol=1e-6, rtol=0)
    half = _relation(4)
    half[0, 1] = NAN  # one direction is missing: the pair is
    assert linkage_of(half).isfinite().all()
    assert sorted(class_order("cluster", torch.full((4, 4), NAN)).tolist()) == list(range(4))
    diagonal = _relation(5)
    assert torch.equal(linkage_of(diagonal), linkage_of(diagonal.clone().fill_diagonal_(NAN)))  # one image of each class


def test_a_single_class_has_an_order_and_no_tree() -> None:
    one = torch.tensor([[0.5]])
    assert all(class_order(kind, one, torch.tensor([3])).tolist() == [0] for kind in CLASS_ORDERS)
    with pytest.raises(CorsdError, match="a matrix of 1 classes cannot be clustered; allowed: 2 or more"):
        linkage_of(one)


def test_orders_name_what_they_lack() -> None:
    matrix, superclasses = _relation(4), torch.zeros(4, dtype=torch.long)
    with pytest.raises(
        CorsdError, match="class order 'name' is not known; allowed: label, superclass, cluster, superclass_cluster"
    ):
        class_order("name", matrix)
    for kind in ("cluster", "superclass_cluster"):
        with pytest.raises(CorsdError, match=f"class order '{kind}' needs a matrix"):
            class_order(kind, None, superclasses)
    for kind in ("superclass", "superclass_cluster"):
        with pytest.raises(CorsdError, match=f"class order '{kind}' needs superclass_of_class"):
            class_order(kind, matrix)
    with pytest.raises(CorsdError, match="give a matrix or superclass_of_class"):
        class_order("label")
    with pytest.raises(CorsdError, match="the relation has 4 classes, superclass_of_class has 3; allowed: the same number"):
        class_order("label", matrix, superclasses[:3])
    with pytest.raises(CorsdError, match=r"the class-level relation has shape \(4, 3\); allowed: \(C, C\)"):
        class_order("cluster", matrix[:, :3])
    with pytest.raises(CorsdError, match=r"relations from .* to 3 cannot be clustered; allowed: 0 to 1"):
        linkage_of(torch.tensor([[0.0, 3.0], [3.0, 0.0]]))


def test_images_follow_the_order_of_their_classes() -> None:
    labels, order = torch.tensor([0, 2, 1, 2, 0, 1]), torch.tensor([2, 0, 1])
    assert sample_order(labels, order).tolist() == [1, 3, 0, 4, 2, 5]
    assert sample_order(labels[:0], order).tolist() == []
    with pytest.raises(CorsdError, match="labels are from 0 to 2, but class_order has 2 classes; allowed: 0 to 1"):
        sample_order(labels, torch.tensor([1, 0]))


# --- quality ---


@pytest.mark.parametrize("images,classes,levels", [(2, 1, None), (20, 3, None), (20, 3, 4), (60, 10, 2), (45, 2, 1)])
def test_ranks_and_auc_are_exact_with_ties(images: int, classes: int, levels: int | None) -> None:
    scores, labels = _scores(images, classes, levels)
    np.testing.assert_array_equal(average_ranks(scores.flatten()).numpy(), rankdata(scores.flatten().numpy()))
    pairs = [(i, j) for i in range(images) for j in range(images) if i != j]
    same = [bool(labels[i] == labels[j]) for i, j in pairs]
    if all(same):
        assert math.isnan(same_class_auc(scores, labels))
        return
    values = [scores[i, j].item() for i, j in pairs]
    intra, inter = ([v for v, s in zip(values, same, strict=True) if s is kind] for kind in (True, False))
    wins = sum((a > b) + 0.5 * (a == b) for a in intra for b in inter)
    assert same_class_auc(scores, labels) == pytest.approx(wins / len(intra) / len(inter), abs=1e-12)
    assert same_class_auc(scores, labels) == pytest.approx(roc_auc_score(same, values))


def _contrast_of_a_loop(scores: Tensor, labels: Tensor) -> dict[str, float]:
    n, y, r = len(labels), labels.tolist(), scores.tolist()
    kinds: dict[bool, list[float]] = {True: [], False: []}
    right, triplets = 0.0, 0
    for i, j in itertools.permutations(range(n), 2):
        if not math.isnan(r[i][j]):
            kinds[y[i] == y[j]].append(r[i][j])
        for k in range(n):
            if y[i] == y[j] != y[k] and not math.isnan(r[i][j] + r[i][k]):
                right += (r[i][j] > r[i][k]) + 0.5 * (r[i][j] == r[i][k])
                triplets += 1
    intra, inter = (sum(kinds[k]) / len(kinds[k]) if kinds[k] else NAN for k in (True, False))
    return {"intra": intra, "inter": inter, "contrast": intra - inter, "triplets": right / triplets if triplets else NAN}


@pytest.mark.parametrize("images,classes,levels", [(2, 1, None), (1, 1, None), (20, 3, None), (25, 4, 3), (30, 29, None)])
def test_contrast_is_that_of_a_loop_over_triplets(images: int, classes: int, levels: int | None) -> None:
    scores, labels = _scores(images, classes, levels)
    assert relation_contrast(scores, labels) == pytest.approx(_contrast_of_a_loop(scores, labels), nan_ok=True, abs=1e-9)


def test_perfect_and_reversed_relations() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    same = (labels[:, None] == labels[None, :]).float()
    assert same_class_auc(same, labels) == 1 and same_class_auc(1 - same, labels) == 0
    assert relation_contrast(same, labels) == {"intra": 1, "inter": 0, "contrast": 1, "triplets": 1}
    assert relation_contrast(1 - same, labels) == {"intra": 0, "inter": 1, "contrast": -1, "triplets": 0}
    assert same_class_auc(torch.full((5, 5), 0.3), labels) == relation_contrast(same * 0, labels)["triplets"] == 0.5
    # Within each row in order, over all pairs not: triplets see only the anchor's own row.
    shifted = 0.1 * same + torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8])[:, None]
    assert relation_contrast(shifted, labels)["triplets"] == 1 and same_class_auc(shifted, labels) < 0.7


def test_the_diagonal_and_nan_are_left_out() -> None:
    scores, labels = _scores(20, 3)
    other = scores.clone().fill_diagonal_(1e6)
    assert same_class_auc(other, labels) == same_class_auc(scores, labels)
    assert relation_contrast(other, labels) == relation_contrast(scores, labels)
    scores[torch.rand(20, 20, generator=torch.Generator().manual_seed(1)) < 0.2] = NAN
    assert relation_contrast(scores, labels) == pytest.approx(_contrast_of_a_loop(scores, labels))
    pairs = [(i, j) for i, j in itertools.permutations(range(20), 2) if not math.isnan(scores[i, j])]
    values = [scores[i, j].item() for i, j in pairs]
    assert same_class_auc(scores, labels) == pytest.approx(
        roc_auc_score([bool(labels[i] == labels[j]) for i, j in pairs], values)
    )
    nothing = torch.full((20, 20), NAN)
    assert math.isnan(same_class_auc(nothing, labels)) and all(map(math.isnan, relation_contrast(nothing, labels).values()))


def test_one_image_a_class_has_no_intra_pair() -> None:
    scores, labels = _scores(6, 1)[0], torch.arange(6)
    assert math.isnan(same_class_auc(scores, labels))
    found = relation_contrast(scores, labels)
    assert math.isnan(found["intra"]) and math.isnan(found["triplets"]) and 0 < found["inter"] < 1
    with pytest.raises(CorsdError, match=r"scores of shape \(6, 6\) do not fit 5 labels; allowed: \(5, 5\)"):
        same_class_auc(scores, labels[:5])


def test_the_quality_of_a_run_has_a_row_an_exit(tiny_run: Run) -> None:
    labels = tiny_run.probes.labels
    for kind in RELATION_KINDS:
        table = relation_quality(tiny_run, 2, kind)
        assert list(table.columns) == ["epoch", "exit", "kind", "auc", "intra", "inter", "contrast", "triplets"]
        assert table["exit"].tolist() == [1, 2, 3] and set(table["epoch"]) == {2} and set(table["kind"]) == {kind}
        for exit, auc, triplets in zip(table["exit"], table["auc"], table["triplets"], strict=True):
            scores = snapshot_scores(tiny_run, 2, exit, kind)
            assert auc == same_class_auc(scores, labels) and triplets == relation_contrast(scores, labels)["triplets"]


# --- agreement ---


def test_superclass_lift_is_that_of_a_loop() -> None:
    matrix, superclasses = _relation(9), torch.tensor([2, 0, 1, 2, 0, 1, 2, 2, 5])
    matrix[0, 3], matrix[1, 2] = NAN, NAN
    within: list[float] = []
    across: list[float] = []
    for c, d in itertools.permutations(range(9), 2):
        if not math.isnan(matrix[c, d]):
            (within if superclasses[c] == superclasses[d] else across).append(matrix[c, d].item())
    expected = sum(within) / len(within) / (sum(across) / len(across))
    assert superclass_lift(matrix, superclasses) == pytest.approx(expected)
    assert superclass_lift(matrix.clone().fill_diagonal_(1e3), superclasses) == pytest.approx(expected)


def test_superclass_lift_wants_both_kinds_of_pairs() -> None:
    matrix = _relation(4)
    assert superclass_lift(torch.full((4, 4), 0.4), torch.tensor([0, 0, 1, 1])) == pytest.approx(1)
    assert math.isnan(superclass_lift(matrix, torch.zeros(4, dtype=torch.long)))
    assert math.isnan(superclass_lift(matrix, torch.arange(4)))
    with pytest.raises(CorsdError, match="the relation has 4 classes, superclass_of_class has 5; allowed: the same number"):
        superclass_lift(matrix, torch.arange(5))


@pytest.mark.parametrize("size,levels", [(2, None), (30, None), (50, 3), (200, 10)])
def test_spearman_is_scipys(size: int, levels: int | None) -> None:
    generator = torch.Generator().manual_seed(size)
    a = torch.rand(size, generator=generator)
    b = a + torch.rand(size, generator=generator)
    if levels:
        a, b = (a * levels).round(), (b * levels).round()
    assert spearman(a, b) == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic)
    assert spearman(a, -a) == pytest.approx(-1)
    a[0] = NAN
    expected = spearmanr(a[1:].numpy(), b[1:].numpy()).statistic if size > 2 else NAN
    assert spearman(a, b) == pytest.approx(expected, nan_ok=True)


def test_what_does_not_vary_has_no_correlation() -> None:
    varying, constant = torch.arange(300).float(), torch.full((300,), 0.1)
    assert math.isnan(spearman(varying, constant)) and math.isnan(spearman(constant, varying))
    assert math.isnan(spearman(varying[:0], varying[:0])) and math.isnan(spearman(varying[:1], varying[:1]))


def _upper(matrix: Tensor) -> list[float]:
    n = len(matrix)
    return [(matrix[i, j].item() + matrix[j, i].item()) / 2 for i in range(n) for j in range(i + 1, n)]


def test_attributes_agree_as_a_loop_says() -> None:
    matrix, attributes = _relation(8), _relation(40)[:8]
    attributes[3], attributes[5] = attributes[1], 2 * attributes[1]  # their cosines with the others tie
    cosine = torch.tensor([[torch.cosine_similarity(a, b, dim=0).item() for b in attributes] for a in attributes])
    expected = spearmanr(_upper(matrix), np.round(_upper(cosine), 5)).statistic
    assert attribute_agreement(matrix, attributes) == pytest.approx(expected)
    assert attribute_agreement(matrix, 5 * attributes) == pytest.approx(expected)
    assert attribute_agreement(cosine.clone().fill_diagonal_(-9), attributes) == pytest.approx(1)


def test_classes_without_attributes_or_relation_are_left_out_of_the_agreement() -> None:
    matrix, attributes = _relation(8), _relation(40)[:8]
    expected = attribute_agreement(matrix[:6, :6], attributes[:6])
    attributes[6], attributes[7] = 0, 0.5
    matrix[7] = NAN
    assert attribute_agreement(matrix, attributes) == pytest.approx(expected)
    assert math.isnan(attribute_agreement(matrix[:1, :1], attributes[:1]))
    with pytest.raises(CorsdError, match="attributes has 7 classes, the relation has 8; allowed: the same number"):
        attribute_agreement(matrix, attributes[:7])


def _confusion_of_a_loop(logits: Tensor, labels: Tensor, classes: int) -> list[float]:
    """By pair of classes c < d, in fractions, so that equal shares are equal."""
    guesses = [(label, row.index(max(row))) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    size = [labels.tolist().count(c) for c in range(classes)]
    share = lambda c, d: Fraction(guesses.count((c, d)), size[c])  # noqa: E731
    return [float(share(c, d) + share(d, c)) for c in range(classes) for d in range(c + 1, classes)]


def test_confusion_agrees_as_a_loop_says() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.cat([torch.arange(5), torch.randint(0, 5, (80,), generator=generator)])  # classes of different sizes
    logits, matrix = torch.randn(85, 5, generator=generator), _relation(5)
    shares = _confusion_of_a_loop(logits, labels, 5)
    expected = spearmanr(_upper(matrix), shares).statistic
    assert confusion_agreement(matrix, logits, labels) == pytest.approx(expected)
    confusion = torch.zeros(5, 5, dtype=torch.float64)
    confusion[tuple(torch.triu_indices(5, 5, 1))] = torch.tensor(shares, dtype=torch.float64)
    assert confusion_agreement(confusion, logits, labels) == pytest.approx(1)


def test_confusion_without_mistakes_or_images_says_nothing() -> None:
    labels = torch.arange(4)
    assert math.isnan(confusion_agreement(_relation(4), torch.eye(4), labels))
    # Class 4 has no image: as if it were not there, although some are taken for it.
    generator = torch.Generator().manual_seed(0)
    labels, logits = torch.arange(40) % 4, torch.randn(40, 5, generator=generator)
    matrix = _relation(5)
    expected = spearmanr(_upper(matrix[:4, :4]), _confusion_of_a_loop(logits, labels, 4)).statistic
    assert confusion_agreement(matrix, logits, labels) == pytest.approx(expected)
    with pytest.raises(CorsdError, match=r"logits of shape \(40, 5\) do not fit 40 labels and a relation of 4 classes"):
        confusion_agreement(_relation(4), logits, labels)


def test_the_agreement_of_a_run_has_a_row_an_exit(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run, superclasses = load_run(tmp_path / "run"), tuple(k % 2 for k in range(10))
    run.data = replace(run.data, superclass_names=("even", "odd"), superclass_of_class=superclasses)
    attributes, labels = _relation(12)[:10], run.probes.labels
    for kind in RELATION_KINDS:
        table = relation_agreement(run, 2, kind, attributes)
        agreements = ["superclass_lift", "superclass_auc", "confusion_agreement", "attribute_agreement"]
        assert list(table.columns) == ["epoch", "exit", "kind", *agreements]
        assert table["exit"].tolist() == [1, 2, 3] and set(table["epoch"]) == {2} and set(table["kind"]) == {kind}
        for k, row in enumerate(table[agreements].itertuples(index=False)):
            matrix = class_relations(run, 2, k + 1, kind)
            expected = (
                superclass_lift(matrix, torch.tensor(superclasses)),
                same_class_auc(matrix, torch.tensor(superclasses)),
                confusion_agreement(matrix, run.probes[2].logits[k].float(), labels),
                attribute_agreement(matrix, attributes),
            )
            assert tuple(row) == pytest.approx(expected, nan_ok=True)
            assert math.isfinite(expected[0] + expected[1] + expected[3])
    assert "attribute_agreement" not in relation_agreement(run, 2).columns
    with pytest.raises(CorsdError, match="relation kind 'dot' is not known"):
        relation_agreement(run, 2, "dot")
