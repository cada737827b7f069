"""What a network is shown after every epoch: a small probe set, and the snapshot of it that the explorers read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from corsd_lib.batches import evaluation_batches, step_generator
from corsd_lib.datasets import ImageData, Split
from corsd_lib.evaluation import evaluating
from corsd_lib.files import write_tensors
from corsd_lib.methods import Method
from corsd_lib.network import ExitOutputs, MultiExitNetwork
from corsd_lib.relation import MapRelation, VectorRelation, cosine_scores, relation_matrix

__all__ = ["ProbeSet"]


class ProbeSet:
    """A small class-balanced set of images that the network is shown after every epoch; the same for every run on the data.

    Drawn from validation where there is one, else from test: nothing is chosen by it. Sorted by class.
    """

    def __init__(self, data: ImageData, size: int) -> None:
        self.data, self.split_name = data, "test" if data.validation is None else "validation"
        split: Split = data.test if data.validation is None else data.validation
        order = torch.randperm(len(split), generator=step_generator(0))
        order = order[split.labels[order].argsort(stable=True)]
        sizes = torch.bincount(split.labels, minlength=data.num_classes)
        rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[split.labels[order]]
        keep = rank < max(1, size // data.num_classes)
        self.split, self.rank = split.subset(order[keep]), rank[keep]

    def write(self, path: Path) -> None:
        """Labels and rows of the probe images, into a run."""
        tensors = {"labels": self.split.labels, "index": self.split.index}
        write_tensors(path / "probe.safetensors", tensors, {"split": self.split_name})

    def snapshot(self, network: MultiExitNetwork, method: Method) -> dict[str, Tensor]:
        """What `Snapshot` holds, by file key."""
        device = next(network.parameters()).device
        with evaluating(network), evaluating(method):
            outs = [network(images) for images, _ in evaluation_batches(self.data, self.split, device)]
            exits = range(len(outs[0].logits))
            embeddings = [torch.cat([o.embeddings[k] for o in outs]).float() for k in exits]
            logits = [torch.cat([o.logits[k] for o in outs]).float() for k in exits]
            matrices = self._relations(method, outs, embeddings)
        state = method.relation_networks().state_dict(prefix="method.relations.")
        return {
            **{f"embeddings.{k}": e.half() for k, e in enumerate(embeddings)},
            **{f"logits.{k}": z.half() for k, z in enumerate(logits)},
            **{f"relations.{k}": m for k, m in enumerate(matrices)},
            **{k: v.half() if v.is_floating_point() else v for k, v in state.items()},
        }

    def _relations(self, method: Method, outs: list[ExitOutputs], embeddings: list[Tensor]) -> list[Tensor]:
        """Class-level relation of every stage: of the trained score, else of the cosine."""
        networks, labels = method.relation_networks(), self.split.labels.to(embeddings[0].device)
        few = (self.rank < max(2, 256 // self.data.num_classes)).to(labels.device)
        matrices = []
        for k in range(len(networks) or len(embeddings)):
            network = networks[k] if len(networks) else None
            if isinstance(network, MapRelation):  # pairs of maps are dear: some images of each class
                scores = network.scores(torch.cat([o.features[k] for o in outs])[few])
            elif isinstance(network, VectorRelation):
                scores = network.scores(embeddings[k])
            else:
                scores = cosine_scores(embeddings[k])
            of = labels[few] if isinstance(network, MapRelation) else labels
            matrices.append(relation_matrix(scores, of, self.data.num_classes))
        return matrices
