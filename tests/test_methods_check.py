"""`check_method`: the methods of the library keep every rule, and a method that breaks one is told which and how to mend it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from corsd_lib import losses
from corsd_lib.batches import Batch
from corsd_lib.errors import CorsdError
from corsd_lib.methods import METHODS, Method, MethodOptions, check_method, option
from corsd_lib.methods.base import sum_of
from corsd_lib.methods.classic import Baseline, Byot, ByotOptions, DeepSupervision
from corsd_lib.methods.corsd import Corsd, CorsdOptions
from corsd_lib.network import ExitOutputs, MultiExitNetwork
from corsd_lib.relation import RelationOutput

Terms = dict[str, Tensor]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_library_keeps_the_rules(name: str) -> None:
    check_method(METHODS[name])


@pytest.mark.parametrize("options", [{"fusion": "maps"}, {"shared": True}, {"relation": "l2"}, {"class_kd": 0.0}], ids=str)
def test_corsd_keeps_them_with_other_options(options: dict[str, Any]) -> None:
    check_method(METHODS["corsd"], **options)


def test_the_random_state_of_the_caller_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    check_method(Baseline)
    assert torch.equal(torch.rand(2), wanted)


# --- one broken method a rule -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneTerm(MethodOptions):
    extra: float = 1.0


class Broken(Baseline):
    """The plain network with a term `extra`, which subclasses break."""

    name = "broken"
    Options = OneTerm
    options: OneTerm

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        return {**super().loss_terms(out, batch), "extra": self.extra(out.logits[-1], batch)}

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.square().mean()


class WithoutAName(Broken):
    name = ""


class OddExits(Broken):
    exits = "some"


class ATeacherInAString(Broken):
    taught_by_deepest = "extra"  # type: ignore[assignment]


class NotADataclass(Broken):
    class Options(MethodOptions):
        extra: float = 1.0


class AttachReturnsNothing(Broken):
    def attach(self, network: MultiExitNetwork) -> Method:
        return None  # type: ignore[return-value]


class WithoutAWeight(Broken):
    Options: ClassVar[type[MethodOptions]] = MethodOptions


@dataclass(frozen=True)
class WholeWeight(MethodOptions):
    extra: int = 1


class AWholeWeight(Broken):
    Options: ClassVar[type[MethodOptions]] = WholeWeight


class NoScalar(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.mean(0)


class CalledTotal(Broken):
    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        return {**super().loss_terms(out, batch), "total": out.logits[-1].mean()}


class OtherTotal(Broken):
    def forward(self, out: ExitOutputs, batch: Batch) -> Terms:
        parts = super().forward(out, batch)
        return {**parts, "total": 2 * parts["total"]}


class KeepsTheNetwork(Broken):
    def attach(self, network: MultiExitNetwork) -> Method:
        self.network = network
        return self


class TaughtBothWays(Byot):
    """BYOT's hint without the detachment of its teacher."""

    name = "both_ways"
    Options = ByotOptions

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        hint = sum_of((e - out.embeddings[-1]).square().sum() for e in out.embeddings[:-1])
        return {**super().loss_terms(out, batch), "hint": hint}


class TeachesItsRelation(Corsd):
    """The deepest relation network learns from the shallow ones, through its parameters alone."""

    name = "teaches_its_relation"
    Options = CorsdOptions

    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        cut = ExitOutputs([f.detach() for f in out.features], [e.detach() for e in out.embeddings], out.logits)
        return {**super().loss_terms(out, batch), "relation_transfer": super().loss_terms(cut, batch)["relation_transfer"]}

    def _transfer(self, teacher: RelationOutput, student: RelationOutput, labels: Tensor) -> Tensor:
        return (teacher.matrix - student.matrix).square().mean()


class TeachesWhatIsNotThere(Broken):
    taught_by_deepest = ("exit_kd",)


class RemembersItsGraph(Broken):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("past", torch.zeros(()), persistent=False)

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        self.past = logits.mean()
        return self.past


class DividesByItsPairs(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        same = (batch.labels[:, None] == batch.labels[None, :]).float() - torch.eye(len(logits))
        return (same * (logits @ logits.T)).sum() / same.sum()


class RootOfZero(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return (logits - logits[0]).square().sum(1).sqrt().mean()


class NeedsTwoImages(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return (logits[0] - logits[1]).square().sum()


class SometimesATerm(Broken):
    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        terms = super().loss_terms(out, batch)
        return terms if len(batch.labels) > 1 else {"task": terms["task"]}


class TrainsNothing(Broken):
    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        return {name: value.detach() for name, value in super().loss_terms(out, batch).items()}


class CountsOnAnAttribute(Broken):
    steps = 0

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        self.steps += 1
        return logits.square().mean() / self.steps


class RemembersOnAnAttribute(Broken):
    past: Tensor | None = None

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        before, self.past = self.past, logits.detach().mean(0)
        return logits.square().mean() if before is None else (logits - before).square().mean()


class GrowsABuffer(Broken):
    cuda_graphs = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("past", torch.zeros(0))

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        self.past = torch.cat([self.past, logits.detach().mean()[None]])
        return (logits - self.past.mean()).square().mean()


class TrainsWhatIsMadeLate(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(logits.shape[1], 1)
        return self.late(logits).square().mean()


class ReadsProgress(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.square().mean() * batch.progress


class DrawsInTerms(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits[torch.randperm(len(logits), generator=batch.generator)].square().mean()


class WaitsForAValue(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.square().mean() if logits.max() > 0 else logits.square().sum()


class PicksOut(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits[batch.labels == 0].square().sum()


class ReadsAList(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return sum_of(logits[i].square().sum() for i, y in enumerate(batch.labels.tolist()) if y == 0)


class ReadsAnArray(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.square().mean() * float(logits.detach().numpy().max() > 0)


class KeepsAPlainTensor(Broken):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.direction = torch.ones(3)

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return (logits @ self.direction).square().mean()


class ReplacesABuffer(Broken):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("mean", torch.zeros(()))

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * logits.detach().mean()
        return (logits - self.mean).square().mean()


class WritesIntoTheBatch(Broken):
    def transform_images(self, batch: Batch) -> Tensor:
        return batch.images.mul_(0.5)


class CropsTheImages(Broken):
    def transform_images(self, batch: Batch) -> Tensor:
        return batch.images[..., 1:]


class ImagesOfAnotherType(Broken):
    def transform_images(self, batch: Batch) -> Tensor:
        return batch.images.double()


class NoImages(Broken):
    def transform_images(self, batch: Batch) -> Tensor:
        return None  # type: ignore[return-value]


class DividesByTheSpread(Broken):
    def transform_images(self, batch: Batch) -> Tensor:
        return batch.images / batch.images.std(0, correction=0)


class DrawsInImages(Broken):
    def transform_images(self, batch: Batch) -> Tensor:
        return batch.images + torch.randn(batch.images.shape, generator=batch.generator)


class ReadsProgressInImages(Broken):
    def transform_images(self, batch: Batch) -> Tensor:
        return batch.images * batch.progress


class PicksOutImages(Broken):
    def transform_images(self, batch: Batch) -> Tensor:
        images = batch.images.clone()
        images[batch.labels == 0] = batch.images[batch.labels == 0].flip(3)
        return images


class MixesInImages(Broken):
    """Keeps the rules: `images` mixes by what `sample` has returned."""

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"order": torch.randperm(len(batch.labels), generator=batch.generator)}

    def transform_images(self, batch: Batch) -> Tensor:
        assert batch.random is not None
        return (batch.images + batch.images.index_select(0, batch.random["order"])) / 2


class DrawsNoTensor(Broken):
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"first": 0}  # type: ignore[dict-item]


class ANameOfNone(Broken):
    name = None  # type: ignore[assignment]


class ATakenName(Broken):
    name = "corsd"


class WithoutTerms(Method):
    name = "broken"


class AttachChangesAWeight(Broken):
    def attach(self, network: MultiExitNetwork) -> Method:
        next(network.parameters()).data.mul_(2)
        return self


class AttachFreezesAWeight(Broken):
    def attach(self, network: MultiExitNetwork) -> Method:
        next(network.parameters()).requires_grad_(False)
        return self


class AttachAddsAModule(Broken):
    def attach(self, network: MultiExitNetwork) -> Method:
        network.extra = nn.Linear(2, 2)
        return self


class AttachLeavesAHook(Broken):
    def attach(self, network: MultiExitNetwork) -> Method:
        network.backbone.register_forward_hook(lambda *given: None)
        return self


class ReturnsNoTerms(Broken):
    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        return None  # type: ignore[return-value]


class ReturnsAList(Broken):
    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        return [out.logits[-1].mean()]  # type: ignore[return-value]


class NamesATermByANumber(Broken):
    def loss_terms(self, out: ExitOutputs, batch: Batch) -> Terms:
        return {**super().loss_terms(out, batch), 3: out.logits[-1].mean()}  # type: ignore[dict-item]


class ReturnsANumber(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return 1.0  # type: ignore[return-value]


@dataclass(frozen=True)
class FarBelowZero(MethodOptions):
    extra: float = option(-1e9, low=-1e10)


class ClimbsAway(Broken):
    Options: ClassVar[type[MethodOptions]] = FarBelowZero


class DrawsFromTorch(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return (logits * torch.rand(3)).mean()


class DrawsFromNumpy(Broken):
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        return {"noise": torch.tensor(np.random.rand(3))}


class DrawsFromPython(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.mean() * random.random()


class ChangesLabels(Broken):
    cuda_graphs = False

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        batch.labels.zero_()
        return {}


class ChangesLogits(Broken):
    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        logits.data.zero_()
        return logits.square().mean()


class KeepsItsGraph(Broken):
    cuda_graphs = False

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        self.past = logits
        return logits.square().mean()


class KeepsGraphsInAList(Broken):
    cuda_graphs = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.past: dict[str, list[Tensor]] = {"logits": []}

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        self.past["logits"].append(logits)
        return logits.square().mean()


DECLARED, MADE, NAMED = (
    "declared well",
    "created from its options, then attached to a network",
    "terms have weights of their names",
)
SHOWN = "images are new tensors of the same shape"
TEACHER, SMALL, RESUMED = "no gradient reaches a teacher", "finite on batches with few pairs", "resumable"
TIDY = "random numbers from the generator of a batch, which is not changed"
GRAPH = r"safe in a CUDA graph \(cuda_graphs = True\)"
BROKEN: list[tuple[type[Method], str, str]] = [
    (WithoutAName, DECLARED, "its `name` is ''; allowed: letters"),
    (ANameOfNone, DECLARED, "its `name` is None; allowed: letters"),
    (ATakenName, DECLARED, r"the name 'corsd' is taken by corsd_lib\.methods\.corsd\.Corsd: choose another one"),
    (WithoutTerms, DECLARED, r"it has no terms: define loss_terms\(self, out, batch\)"),
    (OddExits, DECLARED, "exits = 'some'; allowed: 'all', 'deepest'"),
    (ATeacherInAString, DECLARED, "taught_by_deepest = 'extra'; allowed: a tuple of names of terms"),
    (NotADataclass, DECLARED, r"put @dataclass\(frozen=True\) on Options"),
    (AttachReturnsNothing, MADE, "attach returned NoneType: end it with `return self`"),
    (AttachChangesAWeight, MADE, r"attach changes the network \(backbone\.stem\.conv\.weight\): create"),
    (AttachFreezesAWeight, MADE, r"attach changes the network \(requires_grad of backbone\.stem\.conv\.weight\)"),
    (AttachAddsAModule, MADE, r"attach changes the network \(module extra, "),
    (AttachLeavesAHook, MADE, r"attach changes the network \(module backbone\)"),
    (ReturnsNoTerms, NAMED, "loss_terms returned None of type NoneType; allowed: a dict of scalar tensors by name"),
    (ReturnsAList, NAMED, r"loss_terms returned \[tensor.*\] of type list; allowed: a dict"),
    (NamesATermByANumber, NAMED, "a term is named 3; allowed: a string"),
    (ReturnsANumber, NAMED, r"the term 'extra' is 1\.0: return a scalar tensor"),
    (ClimbsAway, RESUMED, "is not finite after three steps of gradient descent .*: a weight or a term is too large"),
    (DrawsFromTorch, TIDY, "it uses the random numbers of torch, numpy or Python: sample them in sample, from batch.gen"),
    (DrawsFromNumpy, TIDY, "it uses the random numbers of torch, numpy or Python"),
    (DrawsFromPython, TIDY, "it uses the random numbers of torch, numpy or Python"),
    (ChangesLabels, TIDY, r"it changes batch\.labels in place: work on a copy"),
    (ChangesLogits, TIDY, r"it changes out\.logits\[2?0?\] in place"),
    (KeepsItsGraph, TEACHER, "the attribute past has a gradient, and keeps its graph in memory: detach"),
    (KeepsGraphsInAList, TEACHER, "the attribute past has a gradient"),
    (WithoutAWeight, NAMED, "the term 'extra' has no weight: add the field `extra: float` to MethodOptions"),
    (AWholeWeight, NAMED, "the option 'extra' is 1: the weight of a term is a float"),
    (NoScalar, NAMED, r"the term 'extra' is of shape \(3,\): return a scalar tensor"),
    (CalledTotal, NAMED, "a term is called 'total'.*choose another name"),
    (OtherTotal, NAMED, "the total is .*, the weighted terms are"),
    (KeepsTheNetwork, NAMED, r"network\.backbone.* is a parameter of the network: do not keep the network in the method"),
    (WritesIntoTheBatch, SHOWN, r"on six images of three classes: transform_images writes into batch\.images: clone it"),
    (
        CropsTheImages,
        SHOWN,
        r"transform_images returned a tensor of shape \(6, 3, 8, 7\) and type torch.float32: return .* \(6, 3, 8, 8\)",
    ),
    (ImagesOfAnotherType, SHOWN, "and type torch.float64: return a tensor .* and type torch.float32"),
    (NoImages, SHOWN, "transform_images returned None: return a tensor of shape"),
    (DividesByTheSpread, SHOWN, "on one image: transform_images returned values that are not finite"),
    (
        DrawsInImages,
        SHOWN,
        r"transform_images returns different images for the same batch: sample in sample\(batch\), and read batch\.random",
    ),
    (TaughtBothWays, TEACHER, r"the term 'hint' gives a gradient to out\.embeddings\[-1\]: detach the teacher"),
    (TeachesItsRelation, TEACHER, "the term 'relation_transfer' gives a gradient to the deepest relation network's .*: detach"),
    (TeachesWhatIsNotThere, TEACHER, "taught_by_deepest names 'exit_kd'; its terms are task, extra"),
    (RemembersItsGraph, TEACHER, "the buffer past has a gradient: detach stored values"),
    (DividesByItsPairs, SMALL, "on one image: .*extra is not finite: return 0 if there are no pairs"),
    (RootOfZero, SMALL, "on six images of three classes: the gradient of network.* is not finite: a root"),
    (NeedsTwoImages, SMALL, "on one image: it raised IndexError"),
    (SometimesATerm, SMALL, "on one image: the terms are .*: return the same ones for every batch"),
    (TrainsNothing, SMALL, "the total has no gradient: do not detach what is to be trained"),
    (CountsOnAnAttribute, RESUMED, "after a resume the term total, extra differs: keep .* in buffers"),
    (RemembersOnAnAttribute, RESUMED, "after a resume the term total, extra differs"),
    (GrowsABuffer, RESUMED, "size mismatch for past.*a buffer that changes its shape must be persistent=False"),
    (TrainsWhatIsMadeLate, RESUMED, "Unexpected key.*late.*create trained modules in attach"),
    (ReadsProgress, GRAPH, "loss_terms reads batch.progress, .*: read it in sample, or set cuda_graphs = False"),
    (DrawsInTerms, GRAPH, "loss_terms reads batch.generator"),
    (
        WaitsForAValue,
        GRAPH,
        r"loss_terms waits for a value of the device \(aten._local_scalar_dense.*: use a mask instead of indexing",
    ),
    (PicksOut, GRAPH, r"loss_terms waits for a value of the device \(aten.nonzero"),
    (ReadsAList, GRAPH, r"loss_terms waits for a value of the device \(aten._local_scalar_dense"),
    (ReadsAnArray, GRAPH, r"loss_terms cannot run on tensors without values \(RuntimeError: .*\): compute with tensors only"),
    (KeepsAPlainTensor, GRAPH, "loss_terms reads a tensor that is not a parameter, a buffer .*: register it as a buffer"),
    (ReplacesABuffer, GRAPH, r"loss_terms replaces the buffer mean: write into it \(copy_, add_\), or set cuda_graphs = False"),
    (ReadsProgressInImages, GRAPH, "transform_images reads batch.progress, .*: read it in sample, or set cuda_graphs = False"),
    (PicksOutImages, GRAPH, r"transform_images waits for a value of the device \(aten"),
    (DrawsNoTensor, GRAPH, "sample returned {'first': 0}: return tensors by name"),
]


@pytest.mark.parametrize(("kind", "rule", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_rule_is_named_with_how_to_mend_it(kind: type[Method], rule: str, words: str) -> None:
    with pytest.raises(CorsdError, match=f"method {kind.name!r} breaks the rule '{rule}': .*{words}"):
        check_method(kind)


class WithAFrozenParameter(Broken):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def extra(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.scale * logits.square().mean()


def test_a_frozen_parameter_keeps_the_rules() -> None:
    check_method(WithAFrozenParameter)


def test_the_method_that_others_break_keeps_the_rules() -> None:
    check_method(Broken)
    check_method(MixesInImages)


@pytest.mark.parametrize("kind", [ReadsProgress, WaitsForAValue, PicksOut, ReplacesABuffer, ReadsProgressInImages])
def test_what_is_never_recorded_need_not_be_safe_in_a_graph(kind: type[Broken]) -> None:
    check_method(type("Ungraphed", (kind,), {"cuda_graphs": False}))


def test_other_things_are_no_methods() -> None:
    for thing in ("corsd", DeepSupervision(), MethodOptions):
        with pytest.raises(CorsdError, match=r"check_method\(.*\); allowed: a subclass of Method"):
            check_method(thing)  # type: ignore[arg-type]
    with pytest.raises(CorsdError, match=r"method 'broken': extra = -1\.0 must be finite and at least 0"):
        check_method(Broken, extra=-1.0)


def test_an_option_keeps_its_range_in_a_subclass_that_sets_another_default() -> None:
    @dataclass(frozen=True)
    class Ranges(MethodOptions):
        share: float = option(0.5, "a share", high=1)
        shift: float = option(0.0, low=-2, below=2)
        count: int = option(0, low=0)
        mode: str = option("a", choices=("a", "b"))
        temperature: float = 0.0  # no name is special

    @dataclass(frozen=True)
    class More(Ranges):
        share: float = 0.25

    class Ranged(Baseline):
        name, Options = "ranged", More

    assert Ranged(share=1, shift=-2, count=0, mode="b").options == More(share=1.0, shift=-2.0, mode="b")
    wrong = {
        "share": (1.5, "at most 1"),
        "shift": (2.0, "below 2"),
        "count": (-1, "at least 0"),
        "label_smoothing": (1.0, "below 1"),
    }
    for name, (value, words) in wrong.items():
        with pytest.raises(CorsdError, match=f"method 'ranged': {name} = {value} must be {words}"):
            Ranged(**{name: value})
    for value, words in {
        float("nan"): "finite and at least -2",
        -3.0: "finite and at least -2",
        float("inf"): "below 2",
    }.items():
        with pytest.raises(CorsdError, match=f"method 'ranged': shift = {value} must be {words}"):
            Ranged(shift=value)
    with pytest.raises(CorsdError, match="method 'ranged': temperature = inf must be finite"):
        Ranged(temperature=float("inf"))
    with pytest.raises(CorsdError, match="method 'ranged': mode 'c' is not known; allowed: a, b"):
        Ranged(mode="c")


def test_a_class_that_is_defined_again_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a cell of a notebook is run again."""
    monkeypatch.setitem(METHODS, "broken", type("Broken", (Broken,), {"__module__": Broken.__module__}))
    check_method(Broken)
    monkeypatch.setitem(METHODS, "broken", type("Other", (Broken,), {"__module__": Broken.__module__}))
    with pytest.raises(CorsdError, match=r"the name 'broken' is taken by .*\.Other"):
        check_method(Broken)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"low": "a"}, "low = 'a'; allowed: a number"),
        ({"high": True}, "high = True; allowed: a number"),
        ({"below": [1]}, r"below = \[1\]; allowed: a number"),
        ({"choices": "ab"}, "choices = 'ab'; allowed: strings"),
        ({"choices": (1, 2)}, r"choices = \(1, 2\); allowed: strings"),
    ],
)
def test_a_limit_that_is_none_is_named_where_the_option_is_declared(limits: dict[str, Any], words: str) -> None:
    with pytest.raises(CorsdError, match=f"^option: {words}, or None$"):
        option(1.0, **limits)


@pytest.mark.parametrize("default", [None, (1,), torch.float32], ids=repr)
def test_an_option_whose_default_is_no_plain_value_is_named(default: Any) -> None:
    fields = [("extra", float, 1.0), ("list", Any, field(default=default))]
    kind = make_dataclass("Odd", fields, bases=(MethodOptions,), frozen=True)
    words = r"method 'broken': option list has the default .* of type .*; allowed: a number, a bool or a string"
    with pytest.raises(CorsdError, match=words):
        check_method(type("Odd", (Broken,), {"Options": kind}))


def test_a_method_without_terms_says_so_when_it_is_trained() -> None:
    with pytest.raises(CorsdError, match=r"method 'broken' has no terms: define loss_terms\(self, out, batch\)"):
        WithoutTerms()(ExitOutputs([], [], []), None)


def test_a_term_called_total_is_named_when_it_is_trained() -> None:
    logits = [torch.randn(2, 3)]
    batch = Batch(torch.empty(2, 1, 1, 1), torch.tensor([0, 1]), torch.arange(2))
    with pytest.raises(CorsdError, match=r"method 'broken': a term is called 'total'.*choose another name"):
        CalledTotal()(ExitOutputs([], [], logits), batch)


def test_an_option_without_a_default_is_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bare(MethodOptions):
        weight: float

    with pytest.raises(CorsdError, match="method 'mine': option weight has no default"):
        type("Mine", (Baseline,), {"name": "mine", "Options": Bare})()


def test_losses_stop_the_gradient_of_a_teacher_that_is_the_student_too() -> None:
    """What `taught_by_deepest` cannot tell apart: in class KD an exit is its own teacher."""
    z, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 0, 1, 1])
    both = torch.autograd.grad(losses.class_distillation(z, z, y), z)[0]
    student = torch.autograd.grad(losses.class_distillation(z.detach(), z, y), z)[0]
    torch.testing.assert_close(both, student)
