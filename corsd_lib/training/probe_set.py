"""The probe set: a small fixed set of images, and the snapshot of a network's outputs on it after an epoch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from corsd_lib.batches import evaluation_batches, step_generator
from corsd_lib.datasets import ImageData, Split
from corsd_lib.errors import CorsdError
from corsd_lib.files import write_tensors
from corsd_lib.methods import Method
from corsd_lib.network import ExitOutputs, MultiExitNetwork, evaluating
from corsd_lib.relation import HandcraftedRelation, MapRelation, VectorRelation, cosine_scores, relation_matrix

__all__ = ["ProbeSet"]


class ProbeSet:
    """A small class-balanced set of images, the same for every run on the same data.

    `split`: where the images come from. "auto" means validation images if there are any, else training images without
    augmentation; test images are used only if `split` is "test". Each class has max(2, `size` // C) images, or all its images
    if it has fewer. The images are sorted by class. `workers`: processes that read images which are not in memory. Raises
    `CorsdError` if the data does not have the split.
    """

    def __init__(self, data: ImageData, size: int, split: str = "auto", workers: int = 2) -> None:
        auto = "train" if data.validation is None else "validation"
        self.data, self.split_name, self.workers = data, auto if split == "auto" else split, workers
        images: Split | None = getattr(data, self.split_name)
        if images is None:
            raise CorsdError(
                f"probe_split {split!r}: data {data.name!r} has no such split; set a validation_fraction, or use probe_split "
                "'auto', 'train' or 'test'"
            )
        self._choose(images, size)

    def _choose(self, split: Split, size: int) -> None:
        data = self.data
        order = torch.randperm(len(split), generator=step_generator(0))
        order = order[split.labels[order].argsort(stable=True)]
        sizes = torch.bincount(split.labels, minlength=data.num_classes)
        rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[split.labels[order]]
        keep = rank < max(2, size // data.num_classes)
        self.split = split.subset(order[keep])
        self.few = rank[keep] < max(2, 64 // data.num_classes)  # relations of feature maps are expensive: fewer images

    def write(self, path: Path) -> None:
        """Write labels and indices of the probe images into the run directory `path`."""
        tensors = {"labels": self.split.labels, "index": self.split.index}
        write_tensors(path / "probe.safetensors", tensors, {"split": self.split_name}, within=path)

    def finite(self, network: MultiExitNetwork) -> bool:
        """Whether all logits of the first 64 probe images are finite, in eval mode."""
        with evaluating(network):
            device = next(network.parameters()).device
            images, _ = next(evaluation_batches(self.data, self.split, device, batch_size=64, workers=0))
            return all(bool(z.isfinite().all()) for z in network(images).logits)

    def snapshot(self, network: MultiExitNetwork, method: Method) -> dict[str, Tensor]:
        """Tensors of a snapshot file by name, see `Snapshot`."""
        device = next(network.parameters()).device
        relations = method.relation_networks()
        with evaluating(network), evaluating(method):
            out = self._outputs(network, device, maps=any(isinstance(r, MapRelation) for r in relations))
            matrices = self._relations(relations, out)
        state = relations.state_dict(prefix="method.relations.")
        return {
            **{f"embeddings.{k}": _half(e) for k, e in enumerate(out.embeddings)},
            **{f"logits.{k}": _half(z) for k, z in enumerate(out.logits)},
            **{f"relations.{k}": m for k, m in enumerate(matrices)},
            **{k: _half(v) if v.is_floating_point() else v for k, v in state.items()},
        }

    def _outputs(self, network: MultiExitNetwork, device: torch.device, maps: bool) -> ExitOutputs:
        """Outputs for all probe images, with feature maps of only the images `self.few`, because feature maps are large.

        Without `maps` there are no feature maps.
        """
        outs, start = [], 0
        for images, _ in evaluation_batches(self.data, self.split, device, workers=self.workers):
            out = network(images)
            few = self.few[start : start + len(images)].to(device)
            outs.append(out._replace(features=[f[few] for f in out.features] if maps else []))
            start += len(images)
        joined = ([torch.cat(batches).float() for batches in zip(*lists, strict=True)] for lists in zip(*outs, strict=True))
        return ExitOutputs(*joined)

    def _relations(self, networks: nn.ModuleList, out: ExitOutputs) -> list[Tensor]:
        """Class-level relations (C, C): one for each relation network, computed from its scores.

        Without relation networks there is one for each exit, computed from the cosine of the embeddings.
        """
        labels = self.split.labels.to(out.logits[0].device)
        few = self.few.to(labels.device)
        matrices = []
        for k in range(len(networks) or len(out.embeddings)):
            network = networks[k] if len(networks) else None
            if isinstance(network, MapRelation):
                scores, of = network.scores(out.features[k]), labels[few]
            elif isinstance(network, VectorRelation | HandcraftedRelation):
                scores, of = network.scores(out.embeddings[k]), labels
            else:
                scores, of = cosine_scores(out.embeddings[k]), labels
            matrices.append(relation_matrix(scores, of, self.data.num_classes))
        return matrices


def _half(values: Tensor) -> Tensor:
    """`values` as float16; values out of range become the largest finite number of float16, with their sign."""
    most = torch.finfo(torch.float16).max
    return values.clamp(-most, most).half()
