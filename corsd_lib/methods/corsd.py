"""Class-Oriented Relational Self Distillation (CORSD), arXiv 2305.00918, and the variant that its authors released as code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from corsd_lib import losses
from corsd_lib.errors import CorsdError
from corsd_lib.layers import stride2_steps
from corsd_lib.methods.base import Batch, Method, MethodOptions, option, sum_of
from corsd_lib.network import ExitOutputs, MultiExitNetwork
from corsd_lib.relation import (
    HANDCRAFTED,
    HandcraftedRelation,
    MapRelation,
    PairScore,
    RelationOutput,
    StructuredPairs,
    VectorRelation,
    sample_pairs,
    triplet_pairs,
)

__all__ = ["Corsd", "CorsdOptions", "CorsdRelease", "CorsdReleaseOptions", "LogitRelation"]


OF_RELATIONS = (  # terms that need the relation networks
    "auxiliary_intra",
    "auxiliary_inter",
    "auxiliary_kd_intra",
    "auxiliary_kd_inter",
    "relation_transfer",
    "relation_margin",
    "relation_ce",
)
TRANSFERS = ("squared", "row_kl", "row_correlation")
AFFINITIES = ("trained", "cosine", "l2", "labels")


@dataclass(frozen=True)
class CorsdOptions(MethodOptions):
    """Options of CORSD: the weights of its terms, then settings. The defaults are ours.

    `class_kd` is our addition: at every trained exit the prediction for another image of the same class is a soft target, as in
    CS-KD, with the temperature `class_temperature`. With `class_kd` 0 and the other defaults the terms are those of the paper,
    computed from embeddings instead of feature maps (see `fusion`).
    """

    exit_ce: float = option(1.0, "weight of the cross-entropy of each shallow exit")
    exit_kd: float = option(0.1, "weight of the KL divergence of each shallow exit from the deepest one")
    class_kd: float = option(1.0, "weight of the KL divergence from the prediction of another image of the class")
    auxiliary_intra: float = option(0.5, "weight of the auxiliary cross-entropy of intra pairs, at every stage")
    auxiliary_inter: float = option(0.5, "weight of the auxiliary cross-entropy of inter pairs, at every stage")
    auxiliary_kd_intra: float = option(0.1, "weight of the KL divergence from the deepest auxiliary classifier, intra pairs")
    auxiliary_kd_inter: float = option(0.1, "weight of the KL divergence from the deepest auxiliary classifier, inter pairs")
    relation_transfer: float = option(0.1, "weight of the squared difference of scores from the deepest stage's")
    relation_margin: float = option(0.1, "weight of the hinge between intra and inter scores, at every stage")
    logit_relation: float = option(
        0.01,
        "weight of the hinge loss for a larger score of the deepest logits with the mean of their class than of another class",
    )
    synergy: float = option(0.0, "weight of the KL divergence of each exit from every other one, as in DKS (ours)")
    relation_ce: float = option(0.0, "weight of the balanced cross-entropy of 'same class?', at every stage (ours)")
    relation_kd: float = option(
        0.0, "weight of the KL divergence from predictions of the batch, mixed by `affinity`, at every exit (ours)"
    )

    temperature: float = option(3.0, "temperature of both softmaxes of a KL divergence between stages", above=0)
    class_temperature: float = option(4.0, "temperature of both softmaxes of class_kd", above=0)
    margin: float = option(1.0, "margin m of relation_margin and logit_relation")
    fusion: str = option(
        "vectors",
        "input of relation networks: vectors, all pairs of embeddings (ours), or maps, feature maps of some pairs "
        "(authors' code)",
        choices=("vectors", "maps"),
    )
    relation: str = option(
        "trained",
        "how scores are computed: trained, or for ablations a formula on embeddings, without auxiliary classifier",
        choices=("trained", *HANDCRAFTED),
    )
    transfer: str = option(
        "squared",
        "loss of relation_transfer: squared differences of scores, or between rows of log-odds a KL divergence (row_kl) or "
        "correlation (row_correlation)",
        choices=TRANSFERS,
    )
    affinity: str = option(
        "trained",
        "weights with which relation_kd mixes predictions: the deepest trained relation, or for ablations a formula on the "
        "deepest embeddings, or the labels",
        choices=AFFINITIES,
    )
    relation_share: float = option(0.5, "share of the other images in the targets of relation_kd", below=1)
    relation_warmup: float = option(0.0, "share of the training over which the weight of relation_kd grows from 0", below=1)
    symmetric: bool = option(
        False, "one weight matrix for both images of a pair, so that r_ij = r_ji, with fusion vectors only"
    )
    shared: bool = option(False, "one relation network for all stages, with fusion vectors only")
    hidden: int = option(128, "width of the relation embedding")
    pair_limit: int = option(4096, "largest number of intra pairs in a batch for auxiliary logits (and map relations)")
    block_pairs: int = option(65536, "pairs held in memory at once by the vectors fusion")
    class_mean_momentum: float = option(0.9, "momentum of the running class mean logits", below=1)


class Corsd(Method):
    """Class-Oriented Relational Self Distillation, arXiv 2305.00918, with all published terms and some terms of ours.

    Every stage has a relation network that scores structured pairs: intra pairs (images of the same class) and inter pairs
    (images of different classes). The scores and auxiliary logits of the deepest relation network are targets of the others.
    Inference needs no relation network. Terms of several stages are summed over the stages. Batches have two images of each
    class, or more if there are too few classes to fill a batch (ours). So each image has a partner, and there are nearly as
    many inter pairs as with plain sampling.
    """

    name = "corsd"
    Options = CorsdOptions
    sampling = "balanced"
    samples_per_class = 2
    taught_by_deepest = ("exit_kd", "auxiliary_kd_intra", "auxiliary_kd_inter", "relation_transfer")
    options: CorsdOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        if o.fusion == "maps" and (o.shared or o.symmetric or o.relation != "trained"):
            given = f"relation {o.relation!r}, shared {o.shared}, symmetric {o.symmetric}"
            allowed = "relation 'trained', shared False, symmetric False"
            raise CorsdError(f"method {self.name!r}: fusion 'maps' needs {allowed}; given: {given}")
        if (o.fusion == "maps" or o.relation != "trained") and self._reads_log_odds():
            given = f"{', '.join(self._reads_log_odds())} with fusion {o.fusion!r}, relation {o.relation!r}"
            raise CorsdError(f"method {self.name!r}: {given}; allowed: fusion 'vectors' and relation 'trained'")
        self.relations = nn.ModuleList()

    def attach(self, network: MultiExitNetwork) -> Method:
        o, classes = self.options, network.num_classes
        if len(network.exit_stages) < 2 and (o.fusion == "vectors" or o.exit_ce or o.exit_kd or o.synergy):
            weights = f"exit_ce {o.exit_ce}, exit_kd {o.exit_kd}, synergy {o.synergy}"
            given = f"fusion {o.fusion!r}, {weights} on a network with one exit"
            raise CorsdError(f"method {self.name!r}: {given}; allowed there: fusion 'maps' and 0 for these weights")
        make = self._vector_relations if o.fusion == "vectors" else self._map_relations
        self.relations = nn.ModuleList(make(network))
        self.logit_relation = LogitRelation(classes, o.hidden, o.class_mean_momentum)
        return self

    def _vector_relations(self, network: MultiExitNetwork) -> list[nn.Module]:
        stages, o = len(network.exit_stages), self.options
        if o.relation != "trained":
            return [HandcraftedRelation(o.relation) for _ in range(stages)]
        size = (network.embedding_dim, network.num_classes, o.hidden, o.block_pairs, o.symmetric)
        if o.shared:
            shared = VectorRelation(*size)
            return [shared for _ in range(stages)]  # the same module at every stage
        return [VectorRelation(*size) for _ in range(stages)]

    def _map_relations(self, network: MultiExitNetwork) -> list[nn.Module]:
        *_, deepest = info = network.backbone.feature_info
        steps = [stride2_steps(stage.reduction, deepest.reduction) for stage in info]
        return [
            MapRelation(stage.channels, n, deepest.channels, network.num_classes, self.options.hidden)
            for stage, n in zip(info, steps, strict=True)
        ]

    def _reads_log_odds(self) -> list[str]:
        """Names of the options in use that need the log-odds of all pairs of a batch."""
        o = self.options
        chosen = {
            "relation_ce": o.relation_ce,
            "relation_kd of affinity 'trained'": o.relation_kd and o.affinity == "trained",
            f"transfer {o.transfer!r}": o.transfer != "squared",
        }
        return [name for name, is_chosen in chosen.items() if is_chosen]

    def relation_networks(self) -> nn.ModuleList:
        return self.relations

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        return {**self.exit_terms(out, batch), **self.relation_terms(out, batch)}

    def exit_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        """Terms of the exits, by name: cross-entropy, distillation between exits, and distillation within a class."""
        *shallow, deepest = out.logits
        pairs = list(permutations(out.logits, 2))  # (teacher, student)
        between = partial(losses.class_distillation, labels=batch.labels, temperature=self.options.class_temperature)
        parts = {
            "task": lambda: self._cross_entropy(deepest, batch.labels),
            "exit_ce": lambda: sum_of(self._cross_entropy(z, batch.labels) for z in shallow),
            "exit_kd": lambda: sum_of(losses.distillation(deepest, z, self.options.temperature) for z in shallow),
            "synergy": lambda: sum_of(losses.distillation(t, z, self.options.temperature) for t, z in pairs),
            "class_kd": lambda: sum_of(between(z, z) for z in (out.logits if self._shallow_exits_learn else [deepest])),
        }
        return self.active_terms(parts)

    @property
    def _shallow_exits_learn(self) -> bool:
        """Whether `exit_ce`, `exit_kd` or `synergy` trains the shallow exits.

        Otherwise `class_kd` and `relation_kd` are not applied to them: a constant prediction would minimise these two terms.
        """
        return bool(self.options.exit_ce or self.options.exit_kd or self.options.synergy)

    def relation_terms(self, out: ExitOutputs, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss that use relations, by name.

        They are the losses of each relation network, the distillation from the deepest relation network to the others,
        "logit_relation" (see `LogitRelation`) and "relation_kd" (see `_relation_kd`). Raises `CorsdError` if `attach` was not
        called before. If the batch has no random tensors, they are sampled here; with the sampling "triplet" this raises
        `CorsdError` unless the batch size is a multiple of 3.
        """
        if not self.relations:
            raise CorsdError(f"method {self.name!r} has no relation networks yet: call attach(network) first")
        o, labels = self.options, batch.labels
        random = batch.random or self.sample(batch)
        pairs = StructuredPairs(random["intra"], random["inter"])
        rest = {
            "logit_relation": lambda: self.logit_relation(out.logits[-1], labels, random["other"], o.margin),
            "relation_kd": lambda: self._relation_kd(out, labels, relations[-1:], random),
        }
        relations: list[RelationOutput] = []
        trained = o.relation_kd and o.affinity == "trained"
        if not trained and not any(getattr(o, name) for name in OF_RELATIONS):  # no term needs the networks
            return self.active_terms(rest)
        inputs = out.embeddings if o.fusion == "vectors" else out.features
        relations = [net(x, labels, pairs) for net, x in zip(self.relations, inputs, strict=True)]
        *shallow, deepest = relations
        intra_labels, inter_labels = labels[pairs.intra], labels[pairs.inter]  # (2, P), (2, Q)
        kd, ce = losses.distillation, losses.auxiliary_cross_entropy
        parts = {
            "auxiliary_intra": lambda: sum_of(ce(r.intra_logits, *intra_labels) for r in relations),
            "auxiliary_inter": lambda: sum_of(ce(r.inter_logits, *inter_labels) for r in relations),
            "auxiliary_kd_intra": lambda: sum_of(kd(deepest.intra_logits, r.intra_logits, o.temperature) for r in shallow),
            "auxiliary_kd_inter": lambda: sum_of(kd(deepest.inter_logits, r.inter_logits, o.temperature) for r in shallow),
            "relation_transfer": lambda: sum_of(self._transfer(deepest, r, labels) for r in shallow),
            "relation_margin": lambda: sum_of(self._margin(r, labels) for r in relations),
            "relation_ce": lambda: sum_of(losses.relation_cross_entropy(_log_odds(r), labels) for r in relations),
        }
        return self.active_terms({**parts, **rest})

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Random tensors: "intra" (2, P) and "inter" (2, Q), the structured pairs; "other" (B,): another class for each image;
        with `relation_warmup` also "warmup" (): the factor of relation_kd in [0, 1].
        """
        intra, inter = self._pairs(batch)
        random = {"intra": intra, "inter": inter, "other": self.logit_relation.sample(batch.labels, batch.generator)}
        if self.options.relation_warmup:  # a tensor: a CUDA graph would freeze a Python number
            random["warmup"] = torch.tensor(min(1.0, batch.progress / self.options.relation_warmup)).to(batch.labels.device)
        return random

    def _pairs(self, batch: Batch) -> StructuredPairs:
        if self.options.relation != "trained":  # there is no auxiliary classifier, and no pairs are needed
            return StructuredPairs(*batch.labels.new_empty(2, 2, 0))
        if batch.sampling == "triplet":
            return triplet_pairs(len(batch.labels), batch.labels.device)
        return sample_pairs(batch.labels, batch.generator, self.options.pair_limit)

    def _relation_kd(
        self, out: ExitOutputs, labels: Tensor, deepest: list[RelationOutput], random: Mapping[str, Tensor]
    ) -> Tensor:
        """KL divergence of each trained exit from its targets, summed over the exits.

        The targets are the exit's own predictions for the batch, mixed with the weights of `_affinity`.
        """
        o = self.options
        affinity = self._affinity(out.embeddings[-1].detach(), labels, deepest)
        terms = []
        for logits in out.logits if self._shallow_exits_learn else out.logits[-1:]:
            target = losses.ensembled_targets(
                (logits.detach().float() / o.class_temperature).softmax(1), affinity, o.relation_share
            )
            terms.append(losses.target_divergence(target, logits, o.class_temperature))
        return sum_of(terms) * random.get("warmup", 1.0)

    def _affinity(self, embeddings: Tensor, labels: Tensor, deepest: list[RelationOutput]) -> Tensor:
        """Weights (B, B) of the predictions for other images in the targets of `relation_kd`; rows sum to 1."""
        if self.options.affinity == "trained":
            return losses.relation_affinity(_log_odds(deepest[-1]).detach())
        if self.options.affinity == "labels":
            return losses.class_affinity(labels)
        if self.options.affinity == "cosine":
            return losses.batch_affinity(embeddings)
        return losses.relation_affinity(-losses.normalised_distances(embeddings))

    def _transfer(self, teacher: RelationOutput, student: RelationOutput, labels: Tensor) -> Tensor:
        if self.options.transfer == "row_kl":
            return losses.relation_transfer_by_row_divergence(_log_odds(teacher), _log_odds(student))
        if self.options.transfer == "row_correlation":
            return losses.relation_transfer_by_row_correlation(_log_odds(teacher), _log_odds(student))
        if teacher.matrix is not None and student.matrix is not None:
            return losses.relation_transfer_over_batch(teacher.matrix, student.matrix, labels)
        return losses.relation_transfer((teacher.intra, teacher.inter), (student.intra, student.inter))

    def _margin(self, relation: RelationOutput, labels: Tensor) -> Tensor:
        if relation.matrix is not None:
            return losses.margin_over_batch(relation.matrix, labels, self.options.margin)
        return losses.margin_over_triplets(relation.intra, relation.inter, self.options.margin)


def _log_odds(relation: RelationOutput) -> Tensor:
    """The log-odds (B, B) in the output of a `VectorRelation`; there they are never None."""
    assert relation.log_odds is not None
    return relation.log_odds


class LogitRelation(nn.Module):
    """Hinge loss on relation scores between the deepest logits of an image and the mean logits of two classes.

    The score with the mean of the image's own class should exceed the score with the mean of another class by a margin.
    `class_mean` (C, C), with one row for each class, is a running exponential mean; its bias is corrected when it is used. In
    train mode it is updated after the loss is computed, so that an image is never compared with itself only. This is the logit
    relation of the authors' code, which used a running sum instead of the mean. The loss is of little use with two classes,
    because layer-normalised logits of two classes are always 1 and -1.
    """

    def __init__(self, num_classes: int, hidden: int, momentum: float) -> None:
        super().__init__()
        self.relation = PairScore(num_classes, hidden)
        self.momentum = momentum
        self.class_mean: Tensor
        self.seen: Tensor
        self.register_buffer("class_mean", torch.zeros(num_classes, num_classes))
        self.register_buffer("seen", torch.zeros(num_classes))  # total weight of each mean; 0 before the first image

    def sample(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Another class (B,) for each of `labels` (B,), uniformly at random; the same class if there is only one."""
        classes = len(self.seen)
        shift = torch.randint(1, max(2, classes), labels.shape, generator=generator).to(labels.device)
        return (labels + shift) % classes

    def forward(self, logits: Tensor, labels: Tensor, other: Tensor, margin: float) -> Tensor:
        """Mean of max(0, m - r(z, mean of its class) + r(z, mean of class `other`)) over the logits z (B, C), a scalar.

        `labels` (B,); `other` (B,): from `sample`; `margin`: m. Images are left out if the mean of a class is not known yet, or
        if both classes are the same.
        """
        loss = self._margin(logits, labels, other, margin)
        if self.training:
            self._update(logits.detach().to(self.class_mean.dtype), labels)
        return loss

    def _margin(self, logits: Tensor, labels: Tensor, other: Tensor, margin: float) -> Tensor:
        known = (self.seen[labels] > 0) & (self.seen[other] > 0) & (other != labels)
        mean = self.class_mean / self.seen.clamp_min(1e-12)[:, None]
        own, another = (self.relation.pair_scores(logits, mean.index_select(0, c)) for c in (labels, other))
        return (torch.relu(margin - own + another) * known).sum() / known.sum().clamp_min(1)

    @torch.no_grad()
    def _update(self, logits: Tensor, labels: Tensor) -> None:
        counts = torch.zeros_like(self.seen).index_add_(0, labels, torch.ones_like(self.seen[labels]))
        sums = torch.zeros_like(self.class_mean).index_add_(0, labels, logits)  # (C, C)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for total in (counts, sums):  # summed over processes, so that all have the same mean
                torch.distributed.all_reduce(total)
        step = (1 - self.momentum) * (counts > 0)  # (C,) 0 for classes that are not in the batch
        self.class_mean += step[:, None] * (sums / counts.clamp_min(1)[:, None] - self.class_mean)
        self.seen += step * (1 - self.seen)


@dataclass(frozen=True)
class CorsdReleaseOptions(CorsdOptions):
    """Options of CORSD with the weights of the authors' code: no shallow classifiers (weight 0), feature-map fusion."""

    exit_ce: float = 0.0
    exit_kd: float = 0.0
    class_kd: float = 0.0
    auxiliary_intra: float = 0.04
    auxiliary_inter: float = 0.01
    auxiliary_kd_intra: float = 0.16
    auxiliary_kd_inter: float = 0.04
    relation_transfer: float = 0.01
    relation_margin: float = 0.01
    logit_relation: float = 0.01
    fusion: str = "maps"


class CorsdRelease(Corsd):
    """CORSD with the terms, triplet sampling and weights of the authors' released code, and with its bugs fixed.

    Fixed, each with a test:

    - KL terms take log-probabilities, not raw logits;
    - transfer terms send no gradient to the deepest relation network;
    - the label of a pair (1/2 for the class of each image) is used directly, not after a softmax;
    - BatchNorm never gets a batch of one;
    - the test set is read image by image, not as triplets;
    - relation inputs are built by indexing, not in a loop over samples;
    - the logits of a class are averaged by a running mean, not added to a running sum.

    Each anchor comes with two more images, so compare methods at equal numbers of images. Unlike in the authors' code,
    the cross-entropy of the deepest exit covers all three images. Their batch of 43 anchors corresponds to batch_size 129 here.
    """

    name = "corsd_release"
    Options = CorsdReleaseOptions
    exits = "deepest"
    sampling = "triplet"
