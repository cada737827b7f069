"""Programs of a network for deployment: the modules of each one, and the two file formats, `torch.export` and ONNX."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from corsd_lib.backbones import SequentialBackbone
from corsd_lib.errors import CorsdError, first_line, require
from corsd_lib.network import MultiExitNetwork

__all__ = ["FORMATS", "Format", "Program", "chain", "single"]

Outputs = tuple[Tensor, ...]
Call = Callable[[Tensor], Outputs]  # a program that was loaded from its bytes


@dataclass(frozen=True)
class Program:
    """A part of the network that is exported as one file, with its `name` and the `exit` (from 1) whose logits it returns.

    Its input is "images" (B, C, H, W), normalised, or "previous", the feature map that the previous program returned. It
    returns "logits" (B, num_classes) and, unless it is the last, "feature", the input of the next program.
    """

    name: str
    exit: int
    module: nn.Module
    input: str
    outputs: tuple[str, ...]


class _Part(nn.Module):
    """The modules between two exits, and the deeper exit. Maps images or a feature map to logits (B, C) and a feature map.

    The last part of a network returns only logits.
    """

    def __init__(self, modules: Sequence[nn.Module], head: nn.Module, last: bool) -> None:
        super().__init__()
        self.stages = nn.Sequential(*modules)
        self.exit, self.last = head, last

    def forward(self, given: Tensor) -> Outputs:
        feature = self.stages(given)
        _, logits = self.exit(feature)
        return (logits,) if self.last else (logits, feature)


class _SingleExit(nn.Module):
    """The sub-network of one exit. Returns logits (B, C) in a tuple, like `_Part`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Outputs:
        return (self.network(images),)


def chain(network: MultiExitNetwork) -> list[Program]:
    """One program for each exit, shallow to deep; each continues from the feature map that the previous one returns.

    Raises `CorsdError` for a backbone of timm, which may not be a sequence of stages.
    """
    backbone = network.backbone
    if not isinstance(backbone, SequentialBackbone):
        raise CorsdError("exit 'all': a network of timm cannot be cut into stages; allowed: the number of one exit")
    begins = [0, *(stage + 1 for stage in network.exit_stages)]
    programs = []
    for k, (begin, end) in enumerate(pairwise(begins), 1):
        last, before = k == len(network.exits), [backbone.stem] if k == 1 else []
        part = _Part([*before, *backbone.stages[begin:end]], network.exits[k - 1], last).eval()
        outputs = ("logits",) if last else ("logits", "feature")
        programs.append(Program(f"stage{k}", k, part, "images" if k == 1 else "previous", outputs))
    return programs


def single(network: MultiExitNetwork, k: int) -> list[Program]:
    """The deployable sub-network of exit `k`, from 1, as a list of one program."""
    return [Program(f"exit{k}", k, _SingleExit(network.truncated(k - 1)).eval(), "images", ("logits",))]


@dataclass(frozen=True)
class Format:
    """A file format: its suffix, the packages that it needs, and two functions.

    `write` returns the bytes of a program, traced with an example input. `read` returns a callable program from bytes.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[Program, Tensor], bytes]
    read: Callable[[bytes], Call]

    def convert(self, program: Program, example: Tensor) -> bytes:
        """`program` in this format, traced with `example`. Raises `CorsdError` if the exporter fails, such as for an unknown
        operation.
        """
        require(f"a model in the format {self.suffix}", *self.packages)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of the exporters about their own internals
                return self.write(program, example)
        except Exception as error:  # the exporters raise many types
            raise CorsdError(f"{program.name} cannot be written as {self.suffix}: {first_line(error)}") from error

    def outputs(self, program: Program, content: bytes, *inputs: Tensor) -> list[Outputs]:
        """Load a program from its bytes and return its outputs for each of `inputs`. Raises `CorsdError` if it does not run."""
        try:
            run = self.read(content)
            return [run(given) for given in inputs]
        except Exception as error:  # errors of torch or onnxruntime
            raise CorsdError(f"{program.name}{self.suffix} was written but does not run: {first_line(error)}") from error

    def versions(self) -> dict[str, str]:
        """Versions of torch and of the packages of this format, by name."""
        return {name: str(import_module(name).__version__) for name in ("torch", *self.packages)}


def _dynamic_shapes() -> tuple[dict[int, Any]]:
    """Dynamic shapes of the input for the exporters: the number of images is variable."""
    return ({0: torch.export.Dim("batch")},)


def _to_torch(program: Program, example: Tensor) -> bytes:
    exported = torch.export.export(program.module, (example,), dynamic_shapes=_dynamic_shapes())
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # a trace has paths of this machine
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    with zipfile.ZipFile(buffer) as archive:
        if not any(name.endswith("weights_config.json") for name in archive.namelist()):
            raise CorsdError(f"torch {torch.__version__} stores the weights of a program as a pickle: install a newer one")
    return buffer.getvalue()


def _from_torch(content: bytes) -> Call:
    return torch.export.load(io.BytesIO(content)).module()


def _to_onnx(program: Program, example: Tensor) -> bytes:
    made = torch.onnx.export(
        program.module,
        (example,),
        input_names=[program.input],
        output_names=program.outputs,
        dynamic_shapes=_dynamic_shapes(),
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    model = made.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # the properties have paths of this machine
    return model.SerializeToString()


def _from_onnx(content: bytes) -> Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: tuple(torch.from_numpy(values) for values in session.run(None, {name: images.numpy()}))


FORMATS = {
    "torch.export": Format(".pt2", (), _to_torch, _from_torch),
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _to_onnx, _from_onnx),
}
