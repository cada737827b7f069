"""Gradients of each term of a loss, by part of the network."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from corsd_lib.datasets import ImageData
from corsd_lib.errors import CorsdError, shortened
from corsd_lib.methods import Method
from corsd_lib.network import MultiExitNetwork
from corsd_lib.runs import Run, run_data, training_batches

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["term_gradients"]

# The terms that are cross-entropies with the labels; `cosine` compares with the gradient of their sum.
LABELS = ("task", "exit_ce")


def term_gradients(run: Run, data: ImageData | None = None, batches: int = 2) -> pd.DataFrame:
    """Gradients of each weighted loss term of a run with respect to its newest weights, by part of the network.

    The gradients are computed on the first `batches` training batches of one more epoch after the last planned epoch. Terms
    whose weight grows during the training have their full weight. The table has one row for each term of non-zero weight and
    each part of the network. Columns:

    - `term`: name of the loss term;
    - `place`: the part of the network, shallow -> deep: "backbone", its parts "stem" and "stage 1", ..., then "exit 1", ... and
      "relation 1", ...;
    - `norm`: L2 norm of weight · gradient over the parameters of this part;
    - `cosine`: cosine in [-1, 1] of this gradient with that of the weighted cross-entropy of all exits; NaN if one of the two
      is zero.

    `norm` and `cosine` are means over the batches. They are computed in train mode, in float32, on the CPU; the run is not
    changed. Raises `CorsdError` if `batches` is below 1, and the errors of `run_data`. Source: ours.
    """
    import pandas as pd

    if batches < 1:
        raise CorsdError(f"batches = {shortened(batches)}; allowed: 1 or more")
    network, method = run.network().train(), run.method().train()
    places = _parameters_by_part(network, method)
    source = training_batches(run.config, run_data(run, data))
    rows = []
    for batch in islice(source(run.config.epochs), batches):
        batch = batch._replace(progress=1.0)  # terms that grow during the training have their full weight
        batch = batch._replace(random=method.sample(batch))
        parts = method(network(method.transform_images(batch), detach_exits=method.detach_exits), batch)
        weighted = {k: weight * v for k, v in parts.items() if k != "total" and (weight := getattr(method.options, k))}
        labels = sum((weighted[k] for k in LABELS if k in weighted), start=torch.zeros(()))
        for place, parameters in places.items():
            reference = _gradient(labels, parameters)
            for term, part in weighted.items():
                found = _gradient(part, parameters)
                norms = found.norm() * reference.norm()
                cosine = float(found @ reference / norms) if norms else float("nan")
                rows.append({"term": term, "place": place, "norm": found.norm().item(), "cosine": cosine})
    return pd.DataFrame(rows).groupby(["term", "place"], sort=False, as_index=False).mean()


def _parameters_by_part(network: MultiExitNetwork, method: Method) -> dict[str, list[nn.Parameter]]:
    """Parameters of each part of the network, by name of the part; parts without parameters are left out.

    Backbone parameters outside all stages are the "stem". If the stages have no parameters (`TimmBackbone`), there is no
    "stem".
    """
    backbone = list(network.backbone.parameters())
    stages = [list(stage.parameters()) for stage in network.backbone.stages]
    inside = {id(p) for stage in stages for p in stage}
    parts = {
        "backbone": backbone,
        "stem": [p for p in backbone if inside and id(p) not in inside],
        **{f"stage {k}": stage for k, stage in enumerate(stages, 1)},
        **{f"exit {k}": list(head.parameters()) for k, head in enumerate(network.exits, 1)},
        **{f"relation {k}": list(net.parameters()) for k, net in enumerate(method.relation_networks(), 1)},
    }
    return {name: parameters for name, parameters in parts.items() if parameters}


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Gradient of `loss` as one vector, with zeros for parameters that the loss does not depend on."""
    if not loss.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])
