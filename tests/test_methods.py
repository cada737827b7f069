"""Methods: totals and their parts, who teaches whom, the defects of the authors' code, batches with nothing to relate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corsd_lib import losses
from corsd_lib.errors import CorsdError
from corsd_lib.methods import METHODS, Batch, CorsdOptions, LogitRelation, Method, MethodOptions, build_method
from corsd_lib.methods.base import make_options
from corsd_lib.methods.classic import Baseline
from corsd_lib.methods.corsd import OF_RELATIONS
from corsd_lib.network import ExitOutputs, MultiExitNetwork, build_network
from corsd_lib.relation import RelationOutput, VectorRelation, cosine_scores, distance_scores, sample_pairs, triplet_pairs

CLASSES = 3


def make(name: str, **options: object) -> tuple[MultiExitNetwork, Method]:
    torch.manual_seed(0)
    network = build_network("resnet8", CLASSES, width=4, exits=METHODS[name].exits, image_size=8)
    return network, build_method(name, network=network, **options)


def make_batch(labels: list[int], sampling: str = "plain") -> Batch:
    g = torch.Generator().manual_seed(1)
    images = torch.randn(len(labels), 3, 8, 8, generator=g)
    y = torch.tensor(labels)
    return Batch(images, y, torch.arange(len(y)), sampling, torch.Generator().manual_seed(2))


def shown(network: MultiExitNetwork, method: Method, batch: Batch) -> tuple[ExitOutputs, Batch]:
    """Outputs of the images as the method shows them, and the batch with what it has drawn."""
    batch = batch._replace(random=method.sample(batch))
    return network(method.transform_images(batch), detach_exits=method.detach_exits), batch


def gradients(module: nn.Module, loss: Tensor) -> dict[str, float]:
    module.zero_grad()
    loss.backward()
    return {k: 0.0 if p.grad is None else p.grad.abs().sum().item() for k, p in module.named_parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_total_is_the_weighted_sum_of_the_parts(name: str) -> None:
    network, method = make(name)
    batch = make_batch([0, 1, 2, 0, 1, 2], method.sampling)
    parts = method(*shown(network, method, batch))
    total = parts.pop("total")
    weights = asdict(method.options)
    assert total.item() == pytest.approx(sum(weights[k] * v.item() for k, v in parts.items()), rel=1e-5)
    assert total.requires_grad and all(v.ndim == 0 for v in parts.values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("labels", [[0], [1, 1, 1], [0, 1, 2], [0, 0, 1]], ids=["one", "one class", "no positives", "three"])
def test_batches_with_little_to_relate_are_finite(name: str, labels: list[int]) -> None:
    network, method = make(name)
    if method.sampling == "triplet" and len(labels) == 1:
        labels = labels * 3
    batch = make_batch(labels, method.sampling)
    for _ in range(2):  # the second time the class means are known
        parts = method(*shown(network, method, batch))
        assert all(math.isfinite(v.item()) for v in parts.values())
        found = gradients(nn.ModuleList([network, method]), parts["total"])
        assert all(math.isfinite(v) for v in found.values()) and sum(found.values()) > 0


@pytest.mark.parametrize("fusion", ["vectors", "maps"])
def test_every_corsd_term_is_the_one_of_the_table(fusion: str) -> None:
    """Each part again, written out from the relation outputs as METHOD's table has it."""
    network, method = make("corsd", fusion=fusion)
    batch = make_batch([0, 0, 1, 1, 2, 0])
    out = network(batch.images)
    parts = method(out, batch)
    pairs = sample_pairs(batch.labels, torch.Generator().manual_seed(2))
    inputs = out.embeddings if fusion == "vectors" else out.features
    relations = [net(x, batch.labels, pairs) for net, x in zip(method.relation_networks(), inputs, strict=True)]
    deepest, t, y = relations[-1], 3.0, batch.labels

    def kl(p: Tensor, q: Tensor) -> Tensor:
        p, q = (p / t).softmax(1), (q / t).softmax(1)
        return t * t * (p * (p.log() - q.log())).sum(1).mean()

    def transferred(relation: RelationOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Squared differences, and which of them are of intra and of inter pairs: of all pairs where there is a matrix."""
        if relation.matrix is not None:
            same = y[:, None] == y[None, :]
            return (relation.matrix - deepest.matrix).square(), same & ~torch.eye(6, dtype=torch.bool), ~same
        square = (torch.cat([relation.intra, relation.inter]) - torch.cat([deepest.intra, deepest.inter])).square()
        return square, torch.arange(len(square)) < len(relation.intra), torch.arange(len(square)) >= len(relation.intra)

    def soft_ce(logits: Tensor, pair: Tensor) -> Tensor:
        target = (F.one_hot(y[pair[0]], CLASSES) + F.one_hot(y[pair[1]], CLASSES)) / 2
        return -(target * logits.log_softmax(1)).sum(1).mean()

    wanted = {
        "task": F.cross_entropy(out.logits[-1], y),
        "exit_ce": sum(F.cross_entropy(z, y) for z in out.logits[:-1]),
        "exit_kd": sum(kl(out.logits[-1], z) for z in out.logits[:-1]),
        "class_kd": sum(
            sum(losses.distillation(z[[j]], z[[i]], 4.0) for i, j in itertools.permutations(range(6), 2) if y[i] == y[j]) / 8
            for z in out.logits
        ),
        "auxiliary_intra": sum(F.cross_entropy(r.intra_logits, y[pairs.intra[0]]) for r in relations),
        "auxiliary_inter": sum(soft_ce(r.inter_logits, pairs.inter) for r in relations),
        "auxiliary_kd_intra": sum(kl(deepest.intra_logits, r.intra_logits) for r in relations[:-1]),
        "auxiliary_kd_inter": sum(kl(deepest.inter_logits, r.inter_logits) for r in relations[:-1]),
        "relation_transfer": sum(
            (square[intra].mean() + square[inter].mean()) / 2 for square, intra, inter in map(transferred, relations[:-1])
        ),
    }
    assert set(parts) == {*wanted, "relation_margin", "logit_relation", "total"}
    for name, value in wanted.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("fusion", ["vectors", "maps"])
@pytest.mark.parametrize("term", ["exit_kd", "auxiliary_kd_intra", "auxiliary_kd_inter", "relation_transfer"])
def test_transfer_terms_give_the_deepest_stage_no_gradient(term: str, fusion: str) -> None:
    network, method = make("corsd", fusion=fusion)
    batch = make_batch([0, 0, 1, 1, 2, 0])
    both = nn.ModuleDict({"network": network, "method": method})
    found = gradients(both, method(network(batch.images), batch)[term])
    last = len(network.exits) - 1
    deepest = [
        k
        for k in found
        if k.startswith((f"network.backbone.stages.{last}", f"network.exits.{last}", f"method.relations.{last}"))
    ]
    assert len(deepest) > 6
    assert all(found[k] == 0 for k in deepest)
    assert sum(found.values()) > 0, "the shallow stages must learn"


def test_probe_watches_without_touching_the_backbone() -> None:
    batch = make_batch([0, 1, 2, 0])
    plain_network, plain = make("baseline")
    network, method = make("probe")
    wanted = gradients(plain_network, plain(plain_network(batch.images), batch)["total"])
    found = gradients(network, method(network(batch.images, detach_exits=method.detach_exits), batch)["total"])
    for name in (k for k in wanted if k.startswith("backbone")):
        assert found[name] == pytest.approx(wanted[name])
    assert found["exits.0.classifier.weight"] > 0


def test_byot_hint_and_distillation_pull_towards_the_deepest_exit() -> None:
    network, method = make("byot")
    batch = make_batch([0, 1, 2, 0])
    out = network(batch.images)
    parts = method(out, batch)
    hint = sum((e - out.embeddings[-1]).square().sum() for e in out.embeddings[:-1])
    torch.testing.assert_close(parts["hint"], hint)
    torch.testing.assert_close(parts["exit_kd"], sum(losses.distillation(out.logits[-1], z, 3.0) for z in out.logits[:-1]))
    found = gradients(network, parts["hint"])
    assert found["exits.2.classifier.weight"] == 0 and found["exits.0.bottleneck.0.0.weight"] > 0


@pytest.mark.parametrize(
    ("options", "exits"),
    [
        ({}, 3),
        ({"exit_ce": 0.0}, 3),
        ({"exit_ce": 0.0, "exit_kd": 0.0}, 1),
        ({"exit_ce": 0.0, "exit_kd": 0.0, "synergy": 0.1}, 3),
    ],
)
def test_images_of_a_class_agree_at_the_exits_that_learn_something_else_too(options: dict[str, float], exits: int) -> None:
    """Agreement alone is had by a constant answer: shallow exits that nothing else teaches are left as they are."""
    network, method = make("corsd", **options)
    batch = make_batch([0, 0, 1, 1, 2, 2])
    out = network(batch.images)
    wanted = [losses.class_distillation(z, z, batch.labels, 4.0).item() for z in out.logits[-exits:]]
    assert method(out, batch)["class_kd"].item() == pytest.approx(sum(wanted))


def test_rkd_teaches_distances_and_angles_to_every_shallow_exit_and_none_to_the_deepest() -> None:
    network, method = make("rkd")
    batch = make_batch([0, 1, 2, 0, 1])
    out = network(batch.images)
    parts = method(out, batch)
    for name, loss in (("distance", losses.rkd_distance), ("angle", losses.rkd_angle)):
        wanted = sum(loss(out.embeddings[-1], e) for e in out.embeddings[:-1])
        torch.testing.assert_close(parts[name], wanted)
    found = gradients(network, parts["distance"] + parts["angle"])
    assert found["exits.0.bottleneck.0.0.weight"] > 0 and found["exits.1.bottleneck.0.0.weight"] > 0
    assert all(v == 0 for k, v in found.items() if k.startswith("backbone.stages.2"))


@pytest.mark.parametrize(("name", "options"), [("dks", {}), ("corsd", {"synergy": 1.0, "temperature": 4.0})])
def test_with_synergy_every_exit_teaches_every_other_one(name: str, options: dict[str, float]) -> None:
    network, method = make(name, **options)
    batch = make_batch([0, 1, 2, 0])
    out = network(batch.images)
    parts = method(out, batch)
    wanted = 0.0
    for k, student in enumerate(out.logits):
        for j, teacher in enumerate(out.logits):
            p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
            wanted += 16 * (p * (p / q).log()).sum(1).mean().item() * (j != k)
    assert parts["synergy"].item() == pytest.approx(wanted, rel=1e-4)
    assert parts["exit_ce"].item() == pytest.approx(sum(F.cross_entropy(z, batch.labels).item() for z in out.logits[:-1]))
    z = [z.detach().requires_grad_() for z in out.logits]
    found = torch.autograd.grad(method(ExitOutputs(*out[:2], z), batch)["synergy"], z)
    students = [sum(losses.distillation(t, s, 4.0) for j, t in enumerate(z) if j != k) for k, s in enumerate(z)]
    for one, gradient in zip(students, found, strict=True):  # teachers are detached: each exit learns as a student alone
        torch.testing.assert_close(sum(torch.autograd.grad(one, z, allow_unused=True, materialize_grads=True)), gradient)


def test_dist_teaches_correlations_to_every_shallow_exit_and_none_to_the_deepest() -> None:
    network, method = make("dist", inter=0.5, intra=2.0, temperature=2.0)
    batch = make_batch([0, 1, 2, 0, 1])
    out = network(batch.images)
    parts = method(out, batch)
    *shallow, deepest = (np.array((z / 2).softmax(1).tolist()) for z in out.logits)
    wanted = 0.0
    for exit in shallow:
        rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(deepest, exit, strict=True)]
        columns = [np.corrcoef(a, b)[0, 1] for a, b in zip(deepest.T, exit.T, strict=True)]
        wanted += 4 * (0.5 * (1 - np.mean(rows)) + 2.0 * (1 - np.mean(columns)))
    assert parts["correlation"].item() == pytest.approx(wanted, rel=1e-3)
    assert method.options.correlation == 2.0
    found = gradients(network, parts["correlation"])
    assert found["exits.0.classifier.weight"] > 0 and found["exits.1.classifier.weight"] > 0
    assert all(v == 0 for k, v in found.items() if k.startswith(("backbone.stages.2", "exits.2")))


def test_label_smoothing_is_the_baseline_with_soft_labels() -> None:
    network, method = make("label_smoothing")
    batch = make_batch([0, 1, 2, 0])
    logits = network(batch.images).logits[-1]
    wanted = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    assert method(network(batch.images), batch)["total"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_cs_kd_teaches_each_image_the_prediction_of_its_partner() -> None:
    network, method = make("cs_kd")
    batch = make_batch([0, 1, 0, 1, 2], "balanced")
    z = network(batch.images).logits[-1]
    rows = [(0, 2), (2, 0), (1, 3), (3, 1)]
    wanted = sum(losses.distillation(z[[j]], z[[i]], 4.0) for i, j in rows) / 4
    parts = method(network(batch.images), batch)
    assert (method.sampling, method.samples_per_class, len(network.exits)) == ("balanced", 2, 1)
    assert parts["class_kd"].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert parts["task"].item() == pytest.approx(F.cross_entropy(z, batch.labels).item(), rel=1e-5)


def test_ps_kd_learns_its_past_more_and_more() -> None:
    """First the label alone; when an image comes again, the label mixed with what the network said of it before."""
    method = build_method("ps_kd", last_share=0.8)
    labels, rows = torch.tensor([0, 2]), torch.tensor([5, 3])
    first, second = torch.randn(2, 2, CLASSES, generator=torch.Generator().manual_seed(0))

    def task(logits: Tensor, rows: Tensor, progress: float) -> float:
        out = ExitOutputs([], [], [logits])
        return method(out, Batch(torch.zeros(2, 3, 8, 8), labels, rows, progress=progress))["task"].item()

    assert task(first, rows, 0.5) == pytest.approx(F.cross_entropy(first, labels).item(), rel=1e-5)
    method.eval()
    task(torch.zeros(2, CLASSES), rows, 0.6)  # nothing is remembered of it
    method.train()
    target = 0.6 * F.one_hot(labels, CLASSES) + 0.4 * first.softmax(1)
    wanted = -(target * second.log_softmax(1)).sum(1).mean().item()
    assert task(second, rows, 0.5) == pytest.approx(wanted, rel=1e-3)  # float16 is what it remembers in
    torch.testing.assert_close(method.past[rows].float(), second.softmax(1), atol=1e-3, rtol=1e-3)
    assert method.past.shape == (6, CLASSES) and not method.past[[0, 1, 2, 4]].any()
    fresh = task(first, torch.tensor([0, 9]), 0.5)  # rows never seen, one of them beyond what there was
    assert fresh == pytest.approx(F.cross_entropy(first, labels).item(), rel=1e-5) and method.past.shape == (10, CLASSES)


def test_ps_kd_remembers_what_other_processes_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torch.tensor([[0.5, 0.25, 0.25]])

    def gather(seen: list[object], mine: object) -> None:
        seen[:] = [mine, (torch.tensor([7]), theirs)]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    method = build_method("ps_kd")
    logits = torch.zeros(1, CLASSES)
    method(ExitOutputs([], [], [logits]), Batch(torch.zeros(1, 3, 8, 8), torch.tensor([0]), torch.tensor([2])))
    assert torch.equal(method.past[7], theirs[0].half()) and torch.allclose(
        method.past[2].float(), torch.tensor(1 / 3), atol=1e-3
    )


@pytest.mark.parametrize(("kind", "scores"), [("cosine", cosine_scores), ("l2", distance_scores)])
def test_a_handcrafted_relation_is_a_formula_with_nothing_to_train(kind: str, scores: Callable[[Tensor], Tensor]) -> None:
    network, method = make("corsd", relation=kind)
    batch = make_batch([0, 0, 1, 1, 2, 0])
    out = network(batch.images)
    parts = method(out, batch)
    assert len(method.relation_networks()) == 3 and not list(method.relation_networks().parameters())
    *shallow, deepest = [scores(e) for e in out.embeddings]
    same = batch.labels[:, None] == batch.labels[None, :]
    intra = same & ~torch.eye(6, dtype=torch.bool)
    wanted = sum(((r - deepest)[intra].square().mean() + (r - deepest)[~same].square().mean()) / 2 for r in shallow)
    assert parts["relation_transfer"].item() == pytest.approx(wanted.item(), rel=1e-4)
    wanted = sum(losses.margin_over_batch(r, batch.labels) for r in (*shallow, deepest))
    assert parts["relation_margin"].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert all(parts[k].item() == 0 for k in parts if k.startswith("auxiliary"))


def test_a_shared_relation_network_is_one_network_that_every_stage_reads() -> None:
    network, method = make("corsd", shared=True)
    relations = method.relation_networks()
    assert len(relations) == 3 and len({id(r) for r in relations}) == 1
    assert sum(p.numel() for p in relations.parameters()) * 3 == sum(
        p.numel() for p in make("corsd")[1].relation_networks().parameters()
    )
    batch = make_batch([0, 0, 1, 1, 2, 0])
    assert method(network(batch.images), batch)["auxiliary_intra"].item() > 0


def test_release_uses_triplets_no_shallow_classifier_and_its_own_weights() -> None:
    network, method = make("corsd_release")
    assert len(network.exits) == 1 and len(method.relation_networks()) == 3 and method.sampling == "triplet"
    o = method.options
    assert isinstance(o, CorsdOptions) and o.fusion == "maps"
    assert (o.auxiliary_intra, o.auxiliary_inter, o.auxiliary_kd_intra, o.auxiliary_kd_inter) == (0.04, 0.01, 0.16, 0.04)
    assert (o.relation_transfer, o.relation_margin, o.logit_relation, o.exit_ce) == (0.01, 0.01, 0.01, 0.0)
    batch = make_batch([0, 1, 0, 1, 2, 2], "triplet")  # anchors 0 1, same class 0 1, other class 2 2
    out = network(batch.images)
    pairs = triplet_pairs(6)
    relation = method.relation_networks()[0](out.features[0], batch.labels, pairs)
    one = losses.margin_over_triplets(relation.intra, relation.inter)
    assert one.item() == pytest.approx((1 - relation.intra + relation.inter).mean().item())
    assert (batch.labels[pairs.intra[0]] == batch.labels[pairs.intra[1]]).all()
    assert method(out, batch)["relation_margin"].item() > 0


def test_running_class_mean_is_a_mean_and_is_read_before_it_is_updated() -> None:
    """The authors' code kept a sum. Fed the same logits again and again, a mean stays where it is."""
    module = LogitRelation(2, hidden=4, momentum=0.5)
    logits, labels = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    generator = torch.Generator().manual_seed(0)
    assert module(logits, labels, module.sample(labels, generator), 1.0).item() == 0.0  # nothing was seen before
    for _ in range(5):
        assert module(logits, labels, module.sample(labels, generator), 1.0).item() > 0.0
        mean = module.class_mean / module.seen[:, None]
        torch.testing.assert_close(mean, torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    module.eval()
    before = module.class_mean.clone()
    module(logits + 1, labels, module.sample(labels, generator), 1.0)
    assert torch.equal(module.class_mean, before)


def test_logit_relation_is_the_hinge_between_own_mean_and_anothers() -> None:
    """Against a loop; class 3 was never seen, and the last image is not to be compared with its own class."""
    torch.manual_seed(0)
    module = LogitRelation(4, hidden=5, momentum=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    module(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 1, 2, 2, 0, 0]), 1.0)
    mean = module.class_mean / module.seen.clamp_min(1e-12)[:, None]
    logits, labels, other = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 2]), torch.tensor([1, 2, 0, 3, 2])
    module.eval()
    for margin in (1.0, 0.1):
        hinges = []
        for z, own, another in list(zip(logits, labels, other, strict=True))[:3]:
            up, down = (module.relation.pair_scores(z[None], mean[c][None]).squeeze() for c in (own, another))
            hinges.append(max(0.0, (margin - up + down).item()))
        assert len(set(hinges)) == 3
        assert module(logits, labels, other, margin).item() == pytest.approx(sum(hinges) / 3)


def test_corsd_of_one_exit_wants_what_one_exit_can_give() -> None:
    network = build_network("resnet8", CLASSES, width=4, exits="deepest", image_size=8)
    for name, options in {"corsd": {}, "corsd_release": {"fusion": "vectors"}}.items():
        with pytest.raises(
            CorsdError, match=f"method '{name}': fusion 'vectors', .* on a network with one exit; allowed there"
        ):
            build_method(name, network=network, **options)
    with pytest.raises(CorsdError, match=r"exit_kd 0\.1, .* on a network with one exit"):
        build_method("corsd_release", network=network, exit_kd=0.1)
    assert len(build_method("corsd_release", network=network).relation_networks()) == 3


def test_running_class_mean_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that saw one more image of class 0, with logits (8, 0), moves the mean as if it had been in the batch."""
    others = {(2,): torch.tensor([1, 0]), (2, 2): torch.tensor([[8.0, 0.0], [0.0, 0.0]])}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine: mine.add_(others[tuple(mine.shape)]))
    module = LogitRelation(2, hidden=4, momentum=0.5)
    module(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), torch.tensor([1, 0]), 1.0)
    torch.testing.assert_close(module.class_mean / module.seen[:, None], torch.tensor([[5.0, 0.0], [0.0, 1.0]]))


def test_running_class_mean_forgets_at_its_momentum() -> None:
    module = LogitRelation(1, hidden=4, momentum=0.75)
    for value in (1.0, 2.0, 4.0):
        module(torch.tensor([[value]]), torch.tensor([0]), torch.tensor([0]), 1.0)
    weights = torch.tensor([0.75**2, 0.75, 1.0])
    wanted = (weights * torch.tensor([1.0, 2.0, 4.0])).sum() / weights.sum()
    torch.testing.assert_close((module.class_mean[0, 0] / module.seen[0]), wanted)


def test_the_relation_networks_do_not_touch_inference() -> None:
    network, method = make("corsd")
    images = make_batch([0, 1, 2, 0]).images
    before = network.eval()(images).logits
    with torch.no_grad():
        for p in method.parameters():
            p.add_(1.0)
    for a, b in zip(before, network(images).logits, strict=True):
        assert torch.equal(a, b)
    owned = {id(p) for p in network.parameters()}
    assert not any(id(p) in owned for p in method.parameters())
    assert not any("relation" in k or "auxiliary" in k for k in network.truncated(0).state_dict())


def test_golden_values_of_the_corsd_objective() -> None:
    """Values of one batch at a fixed seed, computed once in float64: a change here is a change of the method."""
    torch.manual_seed(0)
    network = build_network("resnet8", CLASSES, width=4, image_size=8).double()
    method = build_method("corsd", network=network).double()
    batch = make_batch([0, 0, 1, 1, 2, 0])
    parts = method(network(batch.images.double()), batch)
    assert {k: round(v.item(), 6) for k, v in parts.items()} == GOLDEN


GOLDEN = {
    "total": 6.936407,
    "task": 1.117178,
    "exit_ce": 2.203971,
    "exit_kd": 0.154943,
    "class_kd": 0.054538,
    "auxiliary_intra": 3.034339,
    "auxiliary_inter": 3.385801,
    "auxiliary_kd_intra": 0.139355,
    "auxiliary_kd_inter": 0.150243,
    "relation_transfer": 0.042104,
    "relation_margin": 3.019852,
    "logit_relation": 0.0,
}


def test_label_smoothing_reaches_every_hard_label() -> None:
    batch = make_batch([0, 1, 2, 0])
    network, smooth = make("deep_supervision", label_smoothing=0.2)
    out = network(batch.images)
    parts = smooth(out, batch)
    assert parts["task"].item() == pytest.approx(F.cross_entropy(out.logits[-1], batch.labels, label_smoothing=0.2).item())
    wanted = sum(F.cross_entropy(z, batch.labels, label_smoothing=0.2) for z in out.logits[:-1])
    assert parts["exit_ce"].item() == pytest.approx(wanted.item())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("crd", {}, "method 'crd' is not known; allowed: baseline"),
        ("corsd", {"kd": 1.0}, "'kd' is not known; allowed: task"),
        ("corsd", {"margin": "big"}, "margin = 'big' must be of type float"),
        ("corsd", {"exit_ce": -1.0}, "exit_ce = -1.0 must be finite and at least 0"),
        ("corsd", {"fusion": "mean"}, "fusion 'mean' is not known; allowed: vectors, maps"),
        ("corsd", {"relation": "dot"}, "relation 'dot' is not known; allowed: trained, cosine, l2"),
        (
            "corsd",
            {"fusion": "maps", "shared": True},
            "fusion 'maps' needs relation 'trained', .*; given: relation 'trained', shared True, symmetric False",
        ),
        (
            "corsd",
            {"fusion": "maps", "relation": "l2"},
            "fusion 'maps' needs relation 'trained', .*; given: relation 'l2', shared False, symmetric False",
        ),
        ("corsd", {"fusion": "maps", "relation_ce": 1.0}, "relation_ce with fusion 'maps', relation 'trained'; allowed"),
        ("corsd", {"relation": "l2", "relation_kd": 1.0}, "relation_kd of affinity 'trained' with fusion 'vectors', re"),
        ("corsd", {"relation": "l2", "transfer": "row_kl"}, "relation 'l2'; allowed: fusion 'vectors' and relation 'trained'"),
        ("ps_kd", {"last_share": 1.0}, "last_share = 1.0 must be below 1"),
        ("corsd", {"temperature": 0}, "temperature = 0 must be above 0"),
        ("corsd", {"temperature": 1e200}, r"temperature = 1e\+200 must be above -1e\+38 and below 1e\+38"),
        ("corsd", {"margin": 10**5000}, r"margin = <integer of about 5,000 digits> must be above -1e\+38 and below 1e\+38"),
        ("corsd", {"hidden": 2**31}, "hidden = 2147483648 must be above -2147483648 and below 2147483648$"),
        ("corsd", {"fusion": "x" * 9999}, "fusion '(?!x{200}).*' is not known; allowed: vectors, maps"),
        ("corsd", {"class_mean_momentum": 1.0}, "class_mean_momentum = 1.0 must be below 1"),
        ("byot", {"temperature": True}, "temperature = True must be of type float"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(CorsdError, match=words):
        build_method(name, **options)


def test_a_weight_may_be_an_integer_that_a_size_may_not_be() -> None:
    assert build_method("corsd", exit_ce=2**31).options == build_method("corsd", exit_ce=2.0**31).options


def test_an_outsiders_method_that_cannot_work_says_so_before_it_is_trained() -> None:
    @dataclass(frozen=True)
    class NoWidth(MethodOptions):
        width: int = 0

    class NoWeight(Baseline):
        name = "mine"

        def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
            return {**super().loss_terms(out, batch), "doubt": out.logits[-1].mean()}

    with pytest.raises(CorsdError, match="method 'mine': width = 0 must be above 0"):
        make_options("mine", NoWidth, {})
    network, _ = make("baseline")
    batch = make_batch([0, 1])
    with pytest.raises(
        CorsdError, match="method 'mine': the term 'doubt' has no weight: add the field `doubt: float` to MethodO"
    ):
        NoWeight()(network(batch.images), batch)
    with pytest.raises(CorsdError, match="method 'baseline': task all have weight 0; allowed: one or more above 0"):
        build_method("baseline", task=0)(network(batch.images), batch)


def test_corsd_without_a_network_says_what_to_do() -> None:
    network, _ = make("corsd")
    batch = make_batch([0, 1])
    with pytest.raises(CorsdError, match="call attach"):
        build_method("corsd")(network(batch.images), batch)


ZERO = {
    name: 0.0
    for name in (
        *("exit_ce", "exit_kd", "class_kd", "hint", "distance", "angle", "swap_kd"),
        *("ensemble_kd", "last_kd", "synergy", "correlation"),
        *(*OF_RELATIONS, "logit_relation", "relation_kd"),
    )
}


@pytest.mark.parametrize("name", [n for n in METHODS if asdict(METHODS[n]().options).keys() & ZERO.keys()])
def test_a_term_of_weight_zero_is_not_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = {k: v for k, v in ZERO.items() if k in asdict(METHODS[name]().options)}
    network, method = make(name, **zero)
    out, batch = shown(network, method, make_batch([0, 1, 2, 0, 1, 2], method.sampling))

    def called(*arguments: object, **options: object) -> None:
        raise AssertionError("a term of weight 0 was computed")

    for loss in (
        *("distillation", "class_distillation", "feature_hint", "rkd_distance", "rkd_angle", "margin_over_batch"),
        *("partner_distillation", "ensembled_distillation", "correlation_distillation"),
    ):
        monkeypatch.setattr(losses, loss, called)
    for relation in method.relation_networks():
        monkeypatch.setattr(relation, "forward", called)
    parts = method(out, batch)
    assert set(parts) == {"total", "task"} and parts["total"] == parts["task"]


@pytest.mark.parametrize("term", OF_RELATIONS)
def test_a_relation_term_alone_is_what_it_is_among_all(term: str) -> None:
    batch = make_batch([0, 1, 2, 0, 1, 2])
    values = []
    for options in ({}, {k: 0.0 for k in (*OF_RELATIONS, "logit_relation") if k != term}):
        options = {**options, term: 0.1}
        network, method = make("corsd", **options)
        values.append(method(network(batch.images), batch._replace(generator=torch.Generator().manual_seed(2)))[term])
    assert torch.equal(*values) and values[0] > 0


def log_odds(relation: VectorRelation, embeddings: Tensor) -> Tensor:
    """Log-odds of every ordered pair, one pair at a time."""
    e = F.layer_norm(embeddings, embeddings.shape[1:])
    second = relation.first.weight if relation.second is None else relation.second.weight
    rows = [torch.stack([relation.score(F.relu(relation.first(a) + second @ b))[0] for b in e.unbind()]) for a in e.unbind()]
    return torch.stack(rows)


@pytest.mark.parametrize("affinity", ["trained", "cosine", "l2", "labels"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_relation_kd_teaches_each_exit_its_own_predictions_mixed_along_the_deepest_relation(
    affinity: str, symmetric: bool
) -> None:
    network, method = make("corsd", relation_kd=0.5, affinity=affinity, relation_share=0.6, symmetric=symmetric)
    batch = make_batch([0, 0, 1, 1, 2, 0])
    out = network(batch.images)
    deepest = out.embeddings[-1]
    same = batch.labels[:, None] == batch.labels[None, :]
    unit = F.normalize(deepest, dim=1)
    related = {
        "trained": lambda: log_odds(method.relation_networks()[-1], deepest),
        "cosine": lambda: unit @ unit.T,
        "l2": lambda: -losses.normalised_distances(deepest),
        "labels": lambda: torch.where(same, 0.0, -1e9),
    }[affinity]()
    weights = related.detach().exp().fill_diagonal_(0)
    weights[4] = torch.eye(6)[4] if affinity == "labels" else weights[4]  # the only image of its class
    weights /= weights.sum(1, keepdim=True)
    wanted = torch.zeros(())
    for logits in out.logits:
        p = q = (logits.detach() / 4).softmax(1)
        for _ in range(60):  # the fixed point of Q = wAQ + (1 - w)P
            q = 0.6 * weights @ q + 0.4 * p
        wanted = wanted + 16 * (q * (q.log() - (logits / 4).log_softmax(1))).sum(1).mean()
    both = nn.ModuleDict({"network": network, "method": method})
    parts = method(out, batch)
    torch.testing.assert_close(parts["relation_kd"], wanted, rtol=1e-3, atol=1e-5)
    found = gradients(both, parts["relation_kd"])
    assert sum(v for k, v in found.items() if k.startswith("method")) == 0, "who teaches whom is not learned from the answers"
    assert all(found[f"network.exits.{k}.classifier.weight"] > 0 for k in range(len(network.exits)))


def test_relation_kd_grows_over_its_warm_up() -> None:
    network, method = make("corsd", relation_kd=1.0, relation_warmup=0.5)
    batch = make_batch([0, 0, 1, 1, 2, 0])
    out = network(batch.images)
    values = [method(out, batch._replace(progress=p))["relation_kd"].item() for p in (0.0, 0.25, 0.5, 0.9)]
    assert values[0] == 0 and values[2] == values[3] > 0
    assert values[1] == pytest.approx(values[2] / 2)


@pytest.mark.parametrize("transfer", ["row_kl", "row_correlation"])
def test_a_transfer_of_rows_teaches_the_shallow_stages_only(transfer: str) -> None:
    network, method = make("corsd", transfer=transfer, relation_ce=1.0)
    batch = make_batch([0, 0, 1, 1, 2, 0])
    out = network(batch.images)
    *shallow, deepest = (log_odds(net, e) for net, e in zip(method.relation_networks(), out.embeddings, strict=True))
    loss = {
        "row_kl": losses.relation_transfer_by_row_divergence,
        "row_correlation": losses.relation_transfer_by_row_correlation,
    }[transfer]
    parts = method(out, batch)
    torch.testing.assert_close(parts["relation_transfer"], sum(loss(deepest, s) for s in shallow), rtol=1e-4, atol=1e-5)
    wanted = sum(losses.relation_cross_entropy(s, batch.labels) for s in (*shallow, deepest))
    torch.testing.assert_close(parts["relation_ce"], wanted, rtol=1e-4, atol=1e-5)
    both = nn.ModuleDict({"network": network, "method": method})
    found = gradients(both, parts["relation_transfer"])
    last = len(network.exits) - 1
    assert all(
        v == 0 for k, v in found.items() if k.startswith((f"method.relations.{last}", f"network.backbone.stages.{last}"))
    )
    assert sum(v for k, v in found.items() if k.startswith("method.relations.0")) > 0


def test_a_symmetric_relation_does_not_change_with_the_order_of_a_pair() -> None:
    network, method = make("corsd", symmetric=True)
    out = network(make_batch([0, 0, 1, 1, 2, 0]).images)
    for net, embeddings in zip(method.relation_networks(), out.embeddings, strict=True):
        scores = net.scores(embeddings)
        torch.testing.assert_close(scores, scores.T)
