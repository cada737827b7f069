"""`check_method`: tests a method class against the rules that a training relies on, like scikit-learn's `check_estimator`."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from corsd_lib.batches import SAMPLINGS, Batch
from corsd_lib.errors import CorsdError, shortened
from corsd_lib.methods.base import Method, MethodOptions, make_options
from corsd_lib.methods.registry import known_methods
from corsd_lib.network import ExitOutputs, MultiExitNetwork, build_network

__all__ = ["check_method"]

CLASSES = 3
LABELS = {  # valid as triplet batches too: a third each of anchors, same class and, if there is one, another class
    "six images of three classes": [0, 1, 0, 1, 2, 2],
    "one image": [0],
    "three images of one class": [1, 1, 1],
    "three images of three classes": [0, 1, 2],
}
# Fields of a batch that a CUDA graph may read: tensors, and `sampling`, which does not change during a training.
READ_IN_A_GRAPH = ("images", "labels", "sampling", "random")
Parts = dict[str, Tensor]


def check_method(method_class: type[Method], **options: Any) -> None:
    """Check that a `Method` subclass keeps the contract of methods; takes seconds on a CPU.

    `options` override the default options. Raises `CorsdError` for the first rule that is broken, with advice on how to fix it:

    - the class declares a unique name and valid attributes;
    - `attach` does not change the network;
    - `transform_images` returns new images of the same shape, and the same images for the same random tensors;
    - every term is a scalar, and the option of the same name is its weight;
    - the terms in `taught_by_deepest` send no gradient to the deepest exit or its relation network;
    - no buffer and no other stored tensor has a gradient;
    - random numbers come from the generator of the batch, and the batch is not changed;
    - loss and gradients are finite for a batch of one image and for a batch of one class;
    - a training that is resumed from a checkpoint gives the same results;
    - if `cuda_graphs` is True, `transform_images` and `loss_terms` can be recorded as a CUDA graph.

    The random state of the caller is restored.
    """
    _check_declaration(method_class)
    make_options(method_class.name, method_class.Options, options)
    rules: dict[str, Callable[[_Case], None]] = {
        "created from its options, then attached to a network": lambda case: None,
        "images are new tensors of the same shape": _check_images,
        "terms have weights of their names": _check_weights,
        "no gradient reaches a teacher": _check_teacher,
        "random numbers from the generator of a batch, which is not changed": _check_side_effects,
        "finite on batches with few pairs": _check_small_batches,
        "resumable": _check_resume,
    }
    if method_class.cuda_graphs:
        rules["safe in a CUDA graph (cuda_graphs = True)"] = _check_graph
    with torch.random.fork_rng([]):
        for name, rule in rules.items():
            with _rule(method_class, name):
                rule(_Case.of(method_class, options))


@contextmanager
def _rule(method_class: type[Method], name: str) -> Iterator[None]:
    """Turn any exception inside the context into a `CorsdError` that names the method and the rule."""
    try:
        yield
    except CorsdError as error:
        raise CorsdError(f"method {method_class.name!r} breaks the rule '{name}': {error}") from error
    except Exception as error:
        text = " ".join(str(error).split())
        raise CorsdError(
            f"method {method_class.name!r} breaks the rule '{name}': it raised {type(error).__name__}: {text}"
        ) from error


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CorsdError(message)


# --- test cases -------------------------------------------------------------------------------------------------------


class _Case(NamedTuple):
    """A small network and a method that is attached to it."""

    network: MultiExitNetwork
    method: Method

    @classmethod
    def of(cls, method_class: type[Method], options: Mapping[str, Any], seed: int = 0) -> _Case:
        torch.manual_seed(seed)
        network = build_network("resnet8", CLASSES, width=4, image_size=8, exits=method_class.exits)
        method = method_class(**options)
        before = _contents(network)
        made = method.attach(network)
        after = _contents(network)
        changed = [name for name in {**before, **after} if not _same(before.get(name), after.get(name))]
        _require(
            not changed,
            f"attach changes the network ({', '.join(changed[:3])}): create modules that are trained beside it in the method",
        )
        _require(made is method, f"attach returned {type(made).__name__}: end it with `return self`")
        return cls(network, method)

    def parts(self, batch: Batch) -> Parts:
        batch = self.with_random(batch)
        return self.method(self.outputs(batch), batch)

    def outputs(self, batch: Batch) -> ExitOutputs:
        return self.network(self.method.transform_images(batch), detach_exits=self.method.detach_exits)

    def with_random(self, batch: Batch) -> Batch:
        return batch._replace(random=self.method.sample(batch))

    def parameters(self) -> dict[str, nn.Parameter]:
        parts = {"network": self.network, "method": self.method}
        return {f"{name}.{k}": p for name, part in parts.items() for k, p in part.named_parameters() if p.requires_grad}

    def memory(self) -> dict[str, Tensor]:
        """Buffers of the method, by name, that checkpoints store in addition to the weights."""
        weights = self.method.state_dict()
        return {k: v for k, v in self.method.named_buffers() if k not in weights}

    def another(self) -> _Case:
        """A new network and method with the same options and other initial weights."""
        options = {f.name: getattr(self.method.options, f.name) for f in fields(self.method.options)}
        return self.of(type(self.method), options, seed=1)


def _batch(method: Method, labels: list[int], step: int = 0) -> Batch:
    """A batch of random images, different for each step, with `labels`. For triplet sampling the labels are repeated three
    times if their number is not a multiple of 3.
    """
    labels = labels * 3 if method.sampling == "triplet" and len(labels) % 3 else labels
    y = torch.tensor(labels)
    images = torch.randn(len(y), 3, 8, 8, generator=torch.Generator().manual_seed(step))
    generator = torch.Generator().manual_seed(100 + step)
    return Batch(images, y, torch.arange(len(y)) + step, method.sampling, generator, progress=(step + 1) / 10)


def _mixed(method: Method, step: int = 0) -> Batch:
    return _batch(method, next(iter(LABELS.values())), step)


def _contents(network: nn.Module) -> dict[str, Any]:
    """State of a network that affects a training: modules with modes and hooks, tensors, and which parameters are trained."""
    modules = {
        f"module {name}": (type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in network.named_modules()
    }
    trained = {f"requires_grad of {name}": p.requires_grad for name, p in network.named_parameters()}
    return {**modules, **trained, **{k: v.detach().clone() for k, v in network.state_dict().items()}}


def _same(before: object, now: object) -> bool:
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        return before.shape == now.shape and torch.equal(before, now)
    return type(before) is type(now) and before == now


# --- the rules --------------------------------------------------------------------------------------------------------


def _check_declaration(method_class: type[Method]) -> None:
    if not (isinstance(method_class, type) and issubclass(method_class, Method)):
        raise CorsdError(f"check_method({shortened(method_class)}); allowed: a subclass of Method")
    with _rule(method_class, "declared well"):
        allowed: dict[str, tuple[object, ...]] = {"exits": ("all", "deepest"), "sampling": SAMPLINGS}
        allowed |= {"detach_exits": (False, True), "cuda_graphs": (False, True)}
        sound = isinstance(method_class.name, str) and re.fullmatch(r"\w[\w.+-]*", method_class.name)
        _require(
            bool(sound),
            f"its `name` is {shortened(method_class.name)}; allowed: letters, digits and _ . + -, as files are named after it",
        )
        _check_name_is_free(method_class)
        _require(
            method_class.loss_terms is not Method.loss_terms or method_class.forward is not Method.forward,
            "it has no terms: define loss_terms(self, out, batch)",
        )
        for key, values in allowed.items():
            value = getattr(method_class, key)
            _require(value in values, f"{key} = {shortened(value)}; allowed: {', '.join(map(repr, values))}")
        k = method_class.samples_per_class
        _require(type(k) is int and k > 0, f"samples_per_class = {shortened(k)}; allowed: a whole number of at least 1")
        names = method_class.taught_by_deepest
        _require(
            isinstance(names, tuple) and all(isinstance(name, str) for name in names),
            f"taught_by_deepest = {shortened(names)}; allowed: a tuple of names of terms",
        )
        _check_options(method_class.Options)


def _check_name_is_free(method_class: type[Method]) -> None:
    other = known_methods().get(method_class.name, method_class)
    # True also for the same class that is defined again in a notebook cell
    same = (other.__module__, other.__qualname__) == (method_class.__module__, method_class.__qualname__)
    taken = f"{other.__module__}.{other.__qualname__}"
    _require(same, f"the name {method_class.name!r} is taken by {taken}: choose another one")


def _check_options(options_class: type[MethodOptions]) -> None:
    _require(
        isinstance(options_class, type) and issubclass(options_class, MethodOptions),
        "Options must be a subclass of MethodOptions",
    )
    annotated = vars(options_class).get("__annotations__", {})
    frozen = is_dataclass(options_class) and options_class.__dataclass_params__.frozen  # type: ignore[attr-defined]
    missing = [name for name in annotated if name not in {f.name for f in fields(options_class)}]
    _require(frozen and not missing, f"put @dataclass(frozen=True) on {options_class.__name__}")


def _check_weights(case: _Case) -> None:
    method, options, batch = case.method, case.method.options, case.with_random(_mixed(case.method))
    out = case.outputs(batch)
    parts = method(out, batch)
    terms = {name: value for name, value in parts.items() if name != "total"}
    for name in terms:
        weight = getattr(options, name, None)
        _require(
            type(weight) is float, f"the option {name!r} is {shortened(weight)}: the weight of a term is a float, such as 1.0"
        )
    wanted = sum(getattr(options, name) * value.item() for name, value in terms.items())
    given = parts["total"].item()
    _require(abs(given - wanted) <= 1e-4 * max(1.0, abs(wanted)), f"the total is {given:g}, the weighted terms are {wanted:g}")
    owned = {id(p) for p in case.network.parameters()}
    shared = [name for name, p in method.named_parameters() if id(p) in owned]
    _require(not shared, f"{', '.join(shared[:3])} is a parameter of the network: do not keep the network in the method")


def _check_images(case: _Case) -> None:
    for what, labels in LABELS.items():
        with _name_in_errors(what):
            batch = case.with_random(_batch(case.method, labels))
            copied = batch._replace(images=batch.images.clone())
            first, second = case.method.transform_images(batch), case.method.transform_images(copied)
            _require(
                torch.equal(batch.images, _batch(case.method, labels).images),
                "transform_images writes into batch.images: clone it",
            )
            given, wanted = (_describe(images) for images in (first, batch.images))
            _require(given == wanted, f"transform_images returned {given}: return {wanted}")
            _require(bool(first.isfinite().all()), "transform_images returned values that are not finite")
            _require(
                torch.equal(first, second),
                "transform_images returns different images for the same batch: sample in sample(batch), and read batch.random",
            )


def _describe(images: object) -> str:
    if not isinstance(images, Tensor):
        return repr(images)
    return f"a tensor of shape {tuple(images.shape)} and type {images.dtype}"


def _check_teacher(case: _Case) -> None:
    method, batch = case.method, case.with_random(_mixed(case.method))
    for _ in range(2):  # the second step may use stored values of the first
        out = case.outputs(batch)
        leaves = ExitOutputs(*([t.detach().requires_grad_() for t in tensors] for tensors in out))
        terms = method.loss_terms(leaves, batch)
        teacher = {f"out.{name}[-1]": tensors[-1] for name, tensors in leaves._asdict().items()}
        teacher |= {f"the deepest relation network's {k}": p for k, p in _deepest_relation(method).items()}
        for name in method.taught_by_deepest:
            weight = getattr(method.options, name, None)
            if weight == 0:  # not computed
                continue
            _require(name in terms, f"taught_by_deepest names {name!r}; its terms are {', '.join(terms)}")
            reached = _with_gradient(terms[name], teacher)
            _require(not reached, f"the term {name!r} gives a gradient to {', '.join(reached[:3])}: detach the teacher")
        kept = [name for name, buffer in method.named_buffers() if buffer.requires_grad]
        _require(not kept, f"the buffer {', '.join(kept)} has a gradient: detach stored values")
        kept = _attributes_with_a_graph(method)
        _require(
            not kept,
            f"the attribute {', '.join(kept)} has a gradient, and keeps its graph in memory: detach stored values",
        )


def _deepest_relation(method: Method) -> dict[str, nn.Parameter]:
    """Parameters of the deepest relation network, by name, without those that it shares with others."""
    relations = list(method.relation_networks())
    shared = {id(p) for relation in relations[:-1] for p in relation.parameters()}
    return {k: p for relation in relations[-1:] for k, p in relation.named_parameters() if id(p) not in shared}


def _with_gradient(term: Tensor, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the `tensors` that get a gradient from `term`."""
    if not term.requires_grad:
        return []
    found = torch.autograd.grad(term, list(tensors.values()), retain_graph=True, allow_unused=True)
    return [name for name, gradient in zip(tensors, found, strict=True) if gradient is not None and bool(gradient.any())]


def _attributes_with_a_graph(method: Method) -> list[str]:
    """Names of attributes that hold a tensor with `requires_grad`, directly or in a list, tuple, set, deque or dict.

    Parameters, buffers and submodules are not counted.
    """
    found = []
    for prefix, module in method.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules") and _holds_a_graph(value):
                found.append(f"{prefix}.{name}".lstrip("."))
    return found


def _holds_a_graph(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad and not isinstance(value, nn.Parameter)
    if isinstance(value, dict):
        return any(map(_holds_a_graph, value.values()))
    return isinstance(value, list | tuple | set | deque) and any(map(_holds_a_graph, value))


def _check_side_effects(case: _Case) -> None:
    for step in range(2):
        batch = _mixed(case.method, step)
        out = case.network(batch.images, detach_exits=case.method.detach_exits)
        before, states = _values(batch, out), _random_states()
        case.method(out, case.with_random(batch))
        _require(
            not step or _random_states() == states,  # what the first step creates is tested by the rule on resuming
            "it uses the random numbers of torch, numpy or Python: sample them in sample, from batch.generator, which is the "
            "same in a resumed training",
        )
        changed = [name for name, value in _values(batch, out).items() if not torch.equal(value, before[name])]
        _require(not changed, f"it changes {', '.join(changed[:3])} in place: work on a copy (clone)")


def _values(batch: Batch, out: ExitOutputs) -> Parts:
    """Copies of the tensors of a batch and of the outputs of the network, by name."""
    of_batch = {f"batch.{name}": getattr(batch, name) for name in ("images", "labels", "indices")}
    of_out = {f"out.{name}[{k}]": t for name, tensors in out._asdict().items() for k, t in enumerate(tensors)}
    return {name: value.detach().clone() for name, value in {**of_batch, **of_out}.items()}


def _random_states() -> tuple[str, ...]:
    """States of the global random generators of torch, Python and numpy, as text."""
    return (str(torch.get_rng_state().tolist()), str(random.getstate()), str(np.random.get_state(legacy=False)))


def _check_small_batches(case: _Case) -> None:
    names: set[str] = set()
    for what, labels in LABELS.items():
        for step in range(2):  # the second step may use stored values of the first
            with _name_in_errors(what):
                parts = case.parts(_batch(case.method, labels, step))
                wrong = [name for name, value in parts.items() if not value.isfinite()]
                _require(not wrong, f"{', '.join(wrong)} is not finite: return 0 if there are no pairs")
                names = names or set(parts)
                _require(names == set(parts), f"the terms are {', '.join(parts)}: return the same ones for every batch")
                _require(parts["total"].requires_grad, "the total has no gradient: do not detach what is to be trained")
                _check_gradients(case, parts["total"])


@contextmanager
def _name_in_errors(what: str) -> Iterator[None]:
    try:
        yield
    except CorsdError as error:
        raise CorsdError(f"on {what}: {error}") from error
    except Exception as error:
        text = " ".join(str(error).split())
        raise CorsdError(f"on {what}: it raised {type(error).__name__}: {text}") from error


def _check_gradients(case: _Case, total: Tensor) -> None:
    parameters = case.parameters()
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    wrong = [name for name, g in zip(parameters, found, strict=True) if g is not None and not g.isfinite().all()]
    _require(not wrong, f"the gradient of {', '.join(wrong[:3])} is not finite: a root or a logarithm of 0 may be the reason")


# --- resume -----------------------------------------------------------------------------------------------------------


def _check_resume(case: _Case) -> None:
    for step in range(3):
        _train_step(case, step)
    resumed = case.another()
    _restore(resumed, safetensors.torch.save(_state(case)))
    ways = [_train_step(one, 3) for one in (case, resumed)]
    wrong = [name for name, value in ways[0].items() if not value.isfinite()]
    _require(
        not wrong,
        f"{', '.join(wrong)} is not finite after three steps of gradient descent at a rate of 0.01: a weight or a term is too "
        "large, or its gradient is wrong",
    )
    states = [_state(one) for one in (case, resumed)]
    for what, (straight, after) in {"term": ways, "state": states}.items():
        differing = [k for k, v in straight.items() if k not in after or not torch.equal(v, after[k])]
        _require(
            not differing,
            f"after a resume the {what} {', '.join(differing[:3])} differs: keep all stored values in "
            "buffers, and use batch.generator for random numbers",
        )


def _train_step(case: _Case, step: int) -> Parts:
    """A step of gradient descent; returns the terms of the loss, detached."""
    torch.manual_seed(step)  # stands for the random state in a checkpoint
    parameters = case.parameters()
    parts = case.parts(_mixed(case.method, step))
    found = torch.autograd.grad(parts["total"], list(parameters.values()), allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters.values(), found, strict=True):
            if gradient is not None:
                parameter.sub_(0.01 * gradient)
    return {name: value.detach() for name, value in parts.items()}


def _state(case: _Case) -> Parts:
    """Copies of the tensors of network and method that a checkpoint stores, by name."""
    groups = {"network": case.network.state_dict(), "method": case.method.state_dict(), "memory": case.memory()}
    return {
        f"{group}.{k}": v.detach().clone(memory_format=torch.contiguous_format)
        for group, tensors in groups.items()
        for k, v in tensors.items()
    }


def _restore(case: _Case, content: bytes) -> None:
    tensors = safetensors.torch.load(content)
    groups: dict[str, Parts] = {"network": {}, "method": {}, "memory": {}}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    case.network.load_state_dict(groups["network"])
    try:
        case.method.load_state_dict(groups["method"])
    except RuntimeError as error:
        raise CorsdError(
            f"{' '.join(str(error).split())}: create trained modules in attach; a buffer that changes its shape must be "
            "persistent=False"
        ) from error
    for key, value in groups["memory"].items():
        parent, _, buffer = key.rpartition(".")
        setattr(case.method.get_submodule(parent), buffer, value)


# --- CUDA graphs ------------------------------------------------------------------------------------------------------


def _check_graph(case: _Case) -> None:
    for step in range(2):
        method, batch = case.method, case.with_random(_mixed(case.method, step))
        _require(
            isinstance(batch.random, dict) and all(isinstance(v, Tensor) for v in batch.random.values()),
            f"sample returned {shortened(batch.random)}: return tensors by name",
        )
        before = dict(method.named_buffers())
        places = {name: buffer.data_ptr() for name, buffer in before.items()}
        out = case.network(method.transform_images(_watched(batch, "transform_images")), detach_exits=method.detach_exits)
        method(out, _watched(batch))
        after = dict(method.named_buffers())
        moved = [k for k, v in after.items() if before.get(k) is not v or places[k] != v.data_ptr()]
        _require(not moved, f"loss_terms replaces the buffer {', '.join(moved)}: write into it (copy_, add_), {_ELSE}")
    _check_without_values(method, out, batch)  # last, because it may leave parameters without values


_ELSE = "or set cuda_graphs = False"


def _watched(batch: Batch, reader: str = "loss_terms") -> Batch:
    """A copy of `batch` that raises `CorsdError` when a field that is not in `READ_IN_A_GRAPH` is read.

    `reader`: name of the function that reads it, for the message.
    """

    def refuse(name: str) -> property:
        def read(self: Batch) -> Any:
            raise CorsdError(f"{reader} reads batch.{name}, which a graph keeps as it was recorded: read it in sample, {_ELSE}")

        return property(read)

    others = [name for name in Batch._fields if name not in READ_IN_A_GRAPH]
    watched = type("WatchedBatch", (Batch,), {name: refuse(name) for name in others})
    return watched(**{name: getattr(batch, name) if name in READ_IN_A_GRAPH else None for name in Batch._fields})


def _check_without_values(method: Method, out: ExitOutputs, batch: Batch) -> None:
    """Run a forward and a backward pass on fake tensors, which have shapes but no values.

    Raises `CorsdError` if this fails, for example at an operation that needs a value and would therefore wait for the device.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # used by torch.compile; it has no public name

    mode = FakeTensorMode()
    state: Parts = {k: mode.from_tensor(v) for k, v in (*method.named_parameters(), *method.named_buffers())}
    fake_out = ExitOutputs(*([mode.from_tensor(t.detach()).requires_grad_() for t in given] for given in out))
    random = {k: mode.from_tensor(v) for k, v in (batch.random or {}).items()}
    copied = batch._replace(images=mode.from_tensor(batch.images), labels=mode.from_tensor(batch.labels), random=random)
    with mode:
        torch.func.functional_call(_RecordedPart(method), {f"method.{k}": v for k, v in state.items()}, (fake_out, copied))


class _RecordedPart(nn.Module):
    """The part of a method that a graph records: `transform_images`, `loss_terms` and the backward pass."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, out: ExitOutputs, batch: Batch) -> None:
        with _recording("transform_images"):
            self.method.transform_images(_watched(batch, "transform_images"))
        with _recording("loss_terms"):
            self.method(out, _watched(batch))["total"].backward()


@contextmanager
def _recording(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CorsdError(f"{what} {_why_not_recordable(error)}, {_ELSE}") from error


def _why_not_recordable(error: Exception) -> str:
    """Text that explains why a CUDA graph cannot record the method, with advice.

    `error` was raised on fake tensors, which have shapes but no values.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"waits for a value of the device ({error.func}): use a mask instead of indexing"
    if isinstance(error, AssertionError) and "FakeTensor" in str(error):
        return "reads a tensor that is not a parameter, a buffer or part of the batch: register it as a buffer"
    text = " ".join(str(error).split())
    return f"cannot run on tensors without values ({type(error).__name__}: {text}): compute with tensors only"
