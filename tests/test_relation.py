"""Structured pairs and relation networks: split pairs against concatenated ones, masks against loops, memory in bounds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from corsd_lib.errors import CorsdError
from corsd_lib.losses import margin_over_batch
from corsd_lib.relation import (
    MapRelation,
    PairScore,
    VectorRelation,
    cosine_scores,
    relation_matrix,
    sample_pairs,
    triplet_pairs,
)

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(torch.tensor)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, seed=st.integers(0, 100))
def test_sampled_pairs_are_all_intra_pairs_and_as_many_inter_with_the_same_anchors(labels: torch.Tensor, seed: int) -> None:
    intra, inter = sample_pairs(labels, torch.Generator().manual_seed(seed))
    b = range(len(labels))
    wanted = {(i, j) for i in b for j in b if i != j and labels[i] == labels[j]}
    assert {tuple(p) for p in intra.T.tolist()} == wanted and intra.shape[1] == len(wanted)
    assert all(labels[i] != labels[j] for i, j in inter.T.tolist())
    if len(labels.unique()) == 1:
        assert inter.shape[1] == 0
    elif wanted:
        assert inter[0].tolist() == intra[0].tolist()
    else:
        assert inter[0].tolist() == list(b)


def test_pairs_are_drawn_uniformly_and_from_the_generator_only() -> None:
    labels = torch.tensor([0, 0, 1, 2, 3])
    counts = torch.zeros(5)
    for seed in range(600):
        inter = sample_pairs(labels, torch.Generator().manual_seed(seed)).inter
        counts += torch.bincount(inter[1][inter[0] == 0], minlength=5)
    assert counts[:2].sum() == 0
    assert (counts[2:] / counts.sum() - 1 / 3).abs().max() < 0.07
    first, second = (sample_pairs(labels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.inter, second.inter)


def test_pair_limit_keeps_a_random_share_of_the_intra_pairs() -> None:
    intra, inter = sample_pairs(torch.zeros(20, dtype=torch.long), torch.Generator().manual_seed(0), limit=30)
    assert intra.shape == (2, 30) and inter.shape == (2, 0)
    assert len({tuple(p) for p in intra.T.tolist()}) == 30


def test_triplet_pairs_are_thirds_of_the_batch() -> None:
    intra, inter = triplet_pairs(6)
    assert intra.tolist() == [[0, 1], [2, 3]] and inter.tolist() == [[0, 1], [4, 5]]
    with pytest.raises(CorsdError, match="a triplet batch has 7 images; allowed: a multiple of 3"):
        triplet_pairs(7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 7, 65536])
def test_split_first_layer_equals_a_loop_over_concatenated_pairs(dtype: torch.dtype, block: int) -> None:
    torch.manual_seed(0)
    b, d, h = 6, 5, 4
    net = PairScore(d, h, block).to(dtype)
    fast_in, slow_in = (torch.randn(b, d, dtype=dtype, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    fast_in.requires_grad_(), slow_in.requires_grad_()
    fast = net.scores(fast_in)
    both = torch.cat([net.first.weight, net.second.weight], dim=1)  # W = [U V]
    rows = []
    for i in range(b):
        for j in range(b):
            pair = torch.cat([F.layer_norm(slow_in[i], (d,)), F.layer_norm(slow_in[j], (d,))])
            rows.append(torch.sigmoid(net.score.weight[0] @ F.relu(both @ pair + net.first.bias) + net.score.bias[0]))
    slow = torch.stack(rows).view(b, b)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn(b, b, dtype=dtype)
    parameters = list(net.parameters())
    for x, y in zip(
        torch.autograd.grad((fast * weight).sum(), [fast_in, *parameters]),
        torch.autograd.grad((slow * weight).sum(), [slow_in, *parameters]),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(net.pair_scores(fast_in, fast_in.flip(0)), fast[range(b), range(b - 1, -1, -1)])


def test_vector_relation_gives_every_pair_and_the_logits_of_the_sampled_ones() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 0, 2, 1])
    e = torch.randn(5, 8)
    net = VectorRelation(8, 3)
    pairs = sample_pairs(labels, torch.Generator().manual_seed(0))
    out = net(e, labels, pairs)
    assert out.matrix is not None and out.matrix.shape == (5, 5)
    assert ((out.matrix > 0) & (out.matrix < 1)).all()
    assert out.intra.tolist() == [out.matrix[i, j].item() for i, j in pairs.intra.T.tolist()]
    assert out.inter.tolist() == [out.matrix[i, j].item() for i, j in pairs.inter.T.tolist()]
    torch.testing.assert_close(out.intra_logits, net.auxiliary_logits(e[pairs.intra[0]], e[pairs.intra[1]]))
    torch.testing.assert_close(out.inter_logits, net.auxiliary_logits(e[pairs.inter[0]], e[pairs.inter[1]]))


@pytest.mark.parametrize("steps,channels", [(2, 4), (0, 16)])
def test_map_relation_equals_a_loop_over_pairs(steps: int, channels: int) -> None:
    torch.manual_seed(0)
    net = MapRelation(channels, steps, 16, num_classes=3, hidden=8).eval()
    maps = torch.randn(6, channels, 8, 8)
    labels = torch.tensor([0, 0, 0, 1, 2, 1])
    pairs = sample_pairs(labels, torch.Generator().manual_seed(0))
    out = net(maps, labels, pairs)
    for scores, logits, (i, j) in (
        (out.intra, out.intra_logits, pairs.intra),
        (out.inter, out.inter_logits, pairs.inter),
    ):
        for p in range(len(i)):
            pooled = net.body(torch.cat([maps[i[p]], maps[j[p]]])[None]).mean((2, 3))
            torch.testing.assert_close(scores[p], net.score(F.relu(net.embed(pooled))).sigmoid()[0, 0])
            torch.testing.assert_close(logits[p], net.auxiliary(pooled)[0])
    torch.testing.assert_close(net.scores(maps, block=5)[pairs.inter[0], pairs.inter[1]], out.inter)
    assert (steps > 0) == (sum(p.numel() for p in net.body.parameters()) > 0)  # no convolution at the deepest stage


def test_relation_matrix_is_the_mean_over_pairs_of_classes() -> None:
    g = torch.Generator().manual_seed(3)
    labels = torch.tensor([0, 2, 2, 0, 0, 4])
    scores = torch.rand(6, 6, generator=g)
    fast = relation_matrix(scores, labels, 5)
    for c in range(5):
        for d in range(5):
            cells = [scores[i, j].item() for i in range(6) for j in range(6) if i != j and labels[i] == c and labels[j] == d]
            if cells:
                assert fast[c, d].item() == pytest.approx(sum(cells) / len(cells), abs=1e-6)
            else:
                assert fast[c, d].isnan()
    with pytest.raises(CorsdError, match=r"shape \(6, 5\)"):
        relation_matrix(scores[:, :5], labels, 5)


def test_cosine_scores_are_the_cosine_moved_to_the_unit_interval() -> None:
    e = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert cosine_scores(e).tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]


@pytest.mark.slow
def test_a_batch_of_512_needs_less_than_a_gibibyte() -> None:
    """Peak memory of forward and backward of four stages' relations, over that of the imported library, in a fresh process."""
    code = """
import torch
from corsd_lib.bench import peak_memory as peak
from corsd_lib.relation import VectorRelation, sample_pairs
from corsd_lib.losses import margin_over_batch
torch.set_num_threads(1)
labels = torch.randint(100, (512,))
nets = [VectorRelation(512, 100) for _ in range(4)]
before = peak()
e = torch.randn(512, 512, requires_grad=True)
pairs = sample_pairs(labels)
sum(margin_over_batch(n(e, labels, pairs).matrix, labels) for n in nets).backward()
assert e.grad.abs().sum() > 0
print(peak() - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.001 < float(out.stdout) < 1.0


@pytest.mark.parametrize("net", [PairScore(8), MapRelation(8, 0, 8, num_classes=2)], ids=["vectors", "maps"])
def test_scores_are_float32_under_mixed_precision(net: PairScore | MapRelation) -> None:
    """The margin sums over thousands of triplets: in bfloat16 its third digit would be noise."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 8, generator=g) if isinstance(net, PairScore) else torch.randn(40, 8, 2, 2, generator=g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net.scores(x)
        loss = margin_over_batch(mixed, torch.arange(40) % 4)
    assert mixed.dtype == torch.float32
    assert loss.item() == pytest.approx(margin_over_batch(net.scores(x), torch.arange(40) % 4).item(), abs=2e-3)
