"""Attribution maps of the prediction of an exit, and of the relation of two images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corsd_lib.attribution.engine import (
    Attribution,
    Score,
    Stage,
    baseline_of,
    check_request,
    exit_index,
    exit_parts,
    frozen_copy,
    grad_cam,
    image_batch,
    integrated,
)
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.network import MultiExitNetwork
from corsd_lib.relation import HANDCRAFTED, HandcraftedRelation, MapRelation, VectorRelation, cosine_scores


def attribute_exit(
    network: MultiExitNetwork,
    image: Tensor,
    exit: int,
    target: int | None = None,
    method: str = "integrated_gradients",
    steps: int = 50,
    baseline: str = "mean",
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> Attribution:
    """Attribute the logit of class `target` (default: the prediction) at `exit` (1 = shallowest) to the pixels of an image.

    The score f is the logit, because the probability has almost no gradient near 1 and depends on all other classes. `image`
    (C, H, W), normalised. Methods:

    - "integrated_gradients": (x - x') * mean gradient of f at `steps` points on the line from x' to x. Its sum over the pixels
      approximates f(x) - f(x') (Sundararajan et al., arXiv 1703.01365, equation 1). The `baseline` x' is "mean" (the mean
      colour, 0 once normalised), "black" (needs `normalise`, the function that made the image from pixels 0 to 255) or "blur".
    - "grad_cam": sum over channels of activation * mean gradient on the feature map of the exit's stage, upsampled (arXiv
      1610.02391, equations 1 and 2). The ReLU of equation 2 is left out, so that negative values remain.

    Raises `CorsdError` for an invalid exit, class, method, baseline, number of steps or image, and `MissingPackage` if captum
    is not installed.
    """
    check_request(method, baseline, steps)
    x = image_batch(network, image)
    stage, head = exit_parts(network, exit)
    target = _target_class(target, network.num_classes, head(stage(x))[1])
    what = f"the logit of class {target} at exit {exit}"

    def score(images: Tensor) -> Tensor:
        return head(stage(images))[1][:, target]

    if method == "grad_cam":
        return grad_cam(score, stage, x, what, exit, target)
    (found,) = integrated(score, [x], [baseline_of(baseline, image, normalise)], steps, [what], baseline, exit, target)
    return found


def _target_class(target: int | None, classes: int, logits: Tensor) -> int:
    """`target`, or the predicted class of `logits` (1, C) if `target` is None. Raises `CorsdError` for an unknown class."""
    if target is None:
        return int(logits.argmax())
    if isinstance(target, bool) or target not in range(classes):
        raise CorsdError(f"target = {shortened(target)}; allowed: 0 to {classes - 1}, or None")
    return int(target)


def attribute_pair(
    network: MultiExitNetwork,
    relations: Sequence[nn.Module] | nn.ModuleList | str,
    image_a: Tensor,
    image_b: Tensor,
    exit: int,
    method: str = "integrated_gradients",
    steps: int = 50,
    baseline: str = "mean",
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Attribution, Attribution]:
    """Attribute the relation score r_ab at `exit` (1 = shallowest) to the pixels of both images, a and b; one map for each.

    `relations`: the relation networks of a method, `run.method().relation_networks()`, one for each stage or exit; "cosine" or
    "l2" for a method without them. If there is one for each stage, `exit` is the number of the stage. The attributed score
    f(a, b) is:

    - for a relation network its logit, because the sigmoid saturates near 0 and 1. In general f(b, a) differs from f(a, b), and
      so do the maps;
    - for "cosine" the cosine of the embeddings;
    - for "l2" the negative distance of the embeddings, not divided by the mean distance in a batch.

    Methods:

    - "integrated_gradients": the path goes from both baselines a' and b' to both images at once. The two maps together sum to
      about f(a, b) - f(a', b') and share one completeness gap. `baseline_score` is f(a', b'). If both baselines are equal,
      f(a', b') may be the maximum of f; then the sum is negative.
    - "grad_cam": one image at a time, while the embedding of the other is fixed.

    Other arguments as in `attribute_exit`. Raises the errors of `attribute_exit`, and `CorsdError` for images of different
    shapes and for `relations` that are empty, an unknown name, or not relation networks. Source of the method for pairs: ours.
    """
    check_request(method, baseline, steps)
    a, b = image_batch(network, image_a), image_batch(network, image_b)
    if a.shape != b.shape:
        raise CorsdError(
            f"the images of a pair have shapes {tuple(image_a.shape)} and {tuple(image_b.shape)}; allowed: one shape"
        )
    stage, read, compare, name = _pair_parts(network, relations, exit)
    where = "exit" if isinstance(relations, str) or len(relations) == len(network.exits) else "stage"
    what = [f"the {name} of a pair (a, b) at {where} {exit}, for image {which}" for which in "ab"]
    if method == "grad_cam":
        fixed_a, fixed_b = (read(stage(image)) for image in (a, b))
        of_a = grad_cam(lambda images: compare(read(stage(images)), fixed_b), stage, a, what[0], exit)
        of_b = grad_cam(lambda images: compare(fixed_a, read(stage(images))), stage, b, what[1], exit)
        return of_a, of_b

    def score(first: Tensor, second: Tensor) -> Tensor:
        return compare(read(stage(first)), read(stage(second)))

    baselines = [baseline_of(baseline, image, normalise) for image in (image_a, image_b)]
    of_a, of_b = integrated(score, [a, b], baselines, steps, what, baseline, exit)
    return of_a, of_b


def _pair_parts(
    network: MultiExitNetwork, relations: Sequence[nn.Module] | nn.ModuleList | str, exit: int
) -> tuple[Stage, Callable[[Tensor], Tensor], Score, str]:
    """The parts of the score of a pair: (stage, head, compare, name).

    - `stage` maps images to a feature map.
    - `head` maps a feature map to the input of the relation.
    - `compare` maps two such inputs, of the first and of the second images of n pairs, to scores (n,).
    - `name` is the name of the score.
    """
    relation = _relation_at(network, relations, exit)
    if isinstance(relation, MapRelation):  # there is one for each stage, with or without an exit
        return Stage(network, exit - 1), lambda feature: feature, _map_logit(relation), "relation logit"
    stage, head = exit_parts(network, exit)
    compare, name = _vector_score(relation)
    return stage, lambda feature: head(feature)[0], compare, name


def _relation_at(network: MultiExitNetwork, relations: Sequence[nn.Module] | nn.ModuleList | str, exit: int) -> nn.Module:
    """Frozen copy of the relation network at `exit`, or the handcrafted relation if `relations` is its name.

    Raises `CorsdError` for an unknown name or exit, for a network of an unknown type, and if `relations` is empty.
    """
    if isinstance(relations, str):
        check_choice("relation", relations, HANDCRAFTED)
        exit_index(exit, len(network.exits), "exits")
        return HandcraftedRelation(relations)
    if not len(relations):
        raise CorsdError("relations is empty: this method has no relation networks; allowed: 'cosine', 'l2', or networks")
    relation = frozen_copy(relations[exit_index(exit, len(relations), "relation networks")])
    if not isinstance(relation, VectorRelation | MapRelation | HandcraftedRelation):
        types = "VectorRelation, MapRelation, HandcraftedRelation"
        raise CorsdError(f"the relation network is of type {type(relation).__name__}; allowed: {types}")
    return relation


def _vector_score(relation: nn.Module) -> tuple[Score, str]:
    """The score function of `relation`, and the name of the score.

    The function takes the embeddings of the first and of the second images of n pairs, both (n, D), and returns scores (n,).
    """
    if isinstance(relation, VectorRelation):
        trained = relation
        return lambda a, b: trained.score(trained.pair_embeddings(a, b)).squeeze(-1), "relation logit"
    if relation.scores is cosine_scores:
        return lambda a, b: F.cosine_similarity(a, b, dim=1, eps=1e-12), "cosine"
    return lambda a, b: -torch.linalg.vector_norm(a - b, dim=1), "negative distance"


def _map_logit(relation: MapRelation) -> Score:
    """Function from the feature maps of n pairs, two tensors (n, c, H, W), to logits (n,)."""

    def logit(a: Tensor, b: Tensor) -> Tensor:
        rows = torch.arange(len(a), device=a.device)
        pooled = relation._pool(torch.cat([a, b]), rows, rows + len(a))  # (n, 2 * deepest)
        return relation.score(F.relu(relation.embed(pooled))).squeeze(-1)

    return logit
