"""Forward and backward passes as CUDA graphs.

With a small network on a GPU most of the time of a step goes to the CPU, which launches many small kernels. A graph is recorded
once for every shape of a batch and is replayed with one launch, on a batch that is copied into its inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corsd_lib.batches import Batch

__all__ = ["GraphedForwardBackward", "StepOutputs"]

# Results of a forward and backward pass besides the gradients: terms of the loss by name, and logits of every exit
StepOutputs = tuple[dict[str, Tensor], list[Tensor]]
Shapes = tuple[torch.Size, ...]


@dataclass
class _Recorded:
    """A recorded graph, its input tensors, and its output tensors: results and gradients."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    results: StepOutputs
    gradients: list[Tensor | None]


class GraphedForwardBackward:
    """Runs the function `forward_backward` as CUDA graphs.

    `forward_backward(batch)` sets the gradients and returns terms of the loss and logits (`StepOutputs`). It may read only
    images, labels and random tensors of the batch, and must not wait for the GPU (see `Method.cuda_graphs`).

    One graph is recorded for each shape of a batch. The first `eager` batches of a shape run without a graph, so that libraries
    can initialise; the next one is recorded. At most `most` graphs are recorded, because each holds its own memory; batches of
    other shapes run without a graph. The returned tensors are overwritten by the next batch of the same shape.
    """

    def __init__(
        self,
        forward_backward: Callable[[Batch], StepOutputs],
        parameters: Iterable[nn.Parameter],
        eager: int = 3,
        most: int = 4,
    ) -> None:
        self.forward_backward, self.parameters = forward_backward, list(parameters)
        self.eager, self.most = eager, most
        self.stream = torch.cuda.Stream()
        self.seen: Counter[Shapes] = Counter()
        self.recorded: dict[Shapes, _Recorded] = {}

    def __call__(self, batch: Batch) -> StepOutputs:
        # All batches use one separate stream: autograd runs a backward pass on the stream that first used the parameter.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self._run(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _run(self, batch: Batch) -> StepOutputs:
        shapes = tuple(tensor.shape for tensor in _inputs(batch))
        self.seen[shapes] += 1
        if shapes not in self.recorded:
            if self.seen[shapes] <= self.eager or len(self.recorded) == self.most:
                return self.forward_backward(batch)
            self.recorded[shapes] = self._record(batch)
        return self._replay(self.recorded[shapes], batch)

    def _record(self, batch: Batch) -> _Recorded:
        inputs = [tensor.clone() for tensor in _inputs(batch)]
        images, labels, *random = inputs
        static = batch._replace(images=images, labels=labels, random=dict(zip(batch.random or (), random, strict=True)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            results = self.forward_backward(static)
        return _Recorded(graph, inputs, results, [p.grad for p in self.parameters])

    def _replay(self, recorded: _Recorded, batch: Batch) -> StepOutputs:
        for static, tensor in zip(recorded.inputs, _inputs(batch), strict=True):
            static.copy_(tensor)
        recorded.graph.replay()
        for parameter, gradient in zip(self.parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        return recorded.results


def _inputs(batch: Batch) -> list[Tensor]:
    return [batch.images, batch.labels, *(batch.random or {}).values()]
