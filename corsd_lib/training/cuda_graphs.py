"""Training steps as CUDA graphs: a small network is not slow on a GPU, it waits for the CPU to launch its many small kernels.

A graph is recorded once for every shape of a batch and replayed as one launch. It computes what the recorded step computed, on
the batch that is copied into its inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corsd_lib.batches import Batch

__all__ = ["GraphedPasses", "Passes"]

# What a forward and a backward pass leave beside the gradients: parts of the loss by name, and logits of every exit.
Passes = tuple[dict[str, Tensor], list[Tensor]]
Shapes = tuple[torch.Size, ...]


@dataclass
class _Recorded:
    """A graph, the tensors it reads, and those it writes: results and gradients."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    results: Passes
    gradients: list[Tensor | None]


class GraphedPasses:
    """`passes` (forward and backward pass of a batch, gradients set anew) as a graph for each shape of a batch.

    The first `eager` batches of a shape run as they are, which lets libraries set themselves up; the next one is recorded. A
    shape that is rare is never recorded, nor are more than `most`: each holds memory of its own. Results are overwritten by the
    next batch of the shape. Only for passes that read images, labels and draws of a batch and never wait for the GPU
    (`Method.graphs`).
    """

    def __init__(
        self, passes: Callable[[Batch], Passes], parameters: Iterable[nn.Parameter], eager: int = 3, most: int = 4
    ) -> None:
        self.passes, self.parameters, self.eager, self.most = passes, list(parameters), eager, most
        self.stream = torch.cuda.Stream()
        self.seen: Counter[Shapes] = Counter()
        self.recorded: dict[Shapes, _Recorded] = {}

    def __call__(self, batch: Batch) -> Passes:
        # All on one stream of its own: a backward pass follows the stream of the first one that met a parameter.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self._run(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _run(self, batch: Batch) -> Passes:
        shapes = tuple(tensor.shape for tensor in _inputs(batch))
        self.seen[shapes] += 1
        if shapes not in self.recorded:
            if self.seen[shapes] <= self.eager or len(self.recorded) == self.most:
                return self.passes(batch)
            self.recorded[shapes] = self._record(batch)
        return self._replay(self.recorded[shapes], batch)

    def _record(self, batch: Batch) -> _Recorded:
        inputs = [tensor.clone() for tensor in _inputs(batch)]
        images, labels, *draws = inputs
        still = batch._replace(images=images, labels=labels, draws=dict(zip(batch.draws or (), draws, strict=True)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            results = self.passes(still)
        return _Recorded(graph, inputs, results, [p.grad for p in self.parameters])

    def _replay(self, recorded: _Recorded, batch: Batch) -> Passes:
        for still, tensor in zip(recorded.inputs, _inputs(batch), strict=True):
            still.copy_(tensor)
        recorded.graph.replay()
        for parameter, gradient in zip(self.parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        return recorded.results


def _inputs(batch: Batch) -> list[Tensor]:
    return [batch.images, batch.labels, *(batch.draws or {}).values()]
