"""Readers of the files of runs and studies, one for each kind of file. They check the content against a schema.

A reader raises a `CorsdError` with the file and the field if a value is not valid, so that other modules need not check values
again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corsd_lib.errors import CorsdError
from corsd_lib.files import read_json, read_lines, read_tensors
from corsd_lib.schema import anything, choice, entries, fields, location_text, many, number, optional, shortened, text, whole

__all__ = [
    "CHECKPOINT_ADVICE",
    "FLOATS",
    "check_classifier",
    "read_checkpoint",
    "read_config",
    "read_embedding",
    "read_metrics",
    "read_probe_set",
    "read_record",
    "read_snapshot",
    "read_summary",
    "read_test",
    "read_trials",
    "read_weights",
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes that all operations accept
SPLITS = ("train", "validation", "test")
SIDE = 65_535  # largest image side, pixels
CLASSES = 65_535  # explorers and pages store class numbers as uint16
_COUNTS = 2**62  # upper limit for indices of images; no data set has so many

percent = number(0, 100.001, allowed="a number from 0 to 100")  # sums may exceed 100 by rounding
seconds = number(0, 1e10)
macs = number(0, 1e30)

# --- a run ------------------------------------------------------------------------------------------------------------

_DATA = {
    "name": text,
    "class_names": many(text, 1, CLASSES),
    "superclass_names": many(text, 1, CLASSES),
    "superclass_of_class": many(whole(0, CLASSES), 1, CLASSES),
    "mean": many(number(-1e6, 1e6), 1, 1024),
    "std": many(number(1e-12, 1e6), 1, 1024),
    "image_size": whole(1, SIDE),
}
_FACTS = {
    **dict.fromkeys(("corsd_lib", "revision", "python", "machine", "system", "device"), text),
    "versions": fields({"torch": text}, more=True),
    "threads": whole(1),
}
_MORE_FACTS = {"started": text, "methods": text, "cores": optional(whole(1)), "epochs_done": whole()}
_CONFIG = fields(
    {
        "train": fields({"method_options": entries(anything)}, more=True),  # `TrainConfig` checks the other fields
        "data": fields(_DATA, {"splits": optional(entries(many(whole(), 2, 3))), "unseen_class_names": many(text, 0, CLASSES)}),
        "provenance": fields(_FACTS, _MORE_FACTS, more=True),
    },
    {"resumed": many(fields({**_FACTS, "epochs_done": whole()}, _MORE_FACTS, more=True))},
    more=True,
)


def read_config(path: Path) -> dict[str, Any]:
    """Content of the `config.json` of a run. The fields of "train" are not checked here but by `TrainConfig`."""
    values = read_json(path)
    if not isinstance(values, dict) or not values.keys() >= {"train", "data", "provenance"}:
        raise CorsdError(f"{path} is not the configuration of a run: it lacks one of train, data, provenance")
    _CONFIG(values, (str(path),))
    data = values["data"]
    wanted = {"superclass_of_class": len(data["class_names"]), "std": len(data["mean"])}
    for name, length in wanted.items():
        if len(data[name]) != length:
            raise CorsdError(f"{path}: data: {name} has {len(data[name])} entries; allowed: {length}, as {_OF[name]} has")
    if max(data["superclass_of_class"]) >= len(data["superclass_names"]):
        raise CorsdError(f"{path}: data: superclass_of_class names more than the {len(data['superclass_names'])} superclasses")
    return values


_OF = {"superclass_of_class": "class_names", "std": "mean"}

_CLASSIFIER = fields(
    {
        "network": text,
        "exit": whole(1, CLASSES),
        **{name: _DATA[name] for name in ("class_names", "mean", "std", "image_size")},
    },
    {"width": optional(whole(1, 2**31 - 1)), "stem": text, "exits": text},
)


def check_classifier(values: object, source: str) -> None:
    """Raise `CorsdError` unless `values` are the arguments of an `ExitClassifier` as JSON. The message begins with `source`."""
    _CLASSIFIER(values, (source,))
    assert isinstance(values, dict)
    if len(values["std"]) != len(values["mean"]):
        raise CorsdError(f"{source}: std has {len(values['std'])} entries; allowed: {len(values['mean'])}, as mean has")


_EPOCH = {"epoch": whole(1), "step": whole(), "lr": number(0), "images": whole(1), "seconds": seconds}
_epoch = fields(_EPOCH, more=True)
_loss = number(finite=False)  # a term of weight 0 may have any value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl`, one for each epoch, all with the same columns; [] if there is no file."""
    lines = read_lines(path)
    if not lines:
        return lines
    _epoch(lines[0], (str(path), "line 1"))
    rest = [name for name in lines[0] if name not in _EPOCH]
    line_of = fields({**_EPOCH, **{name: percent if "_top1." in name else _loss for name in rest}})
    for count, line in enumerate(lines):
        where = (str(path), f"line {count + 1}")
        line_of(line, where)
        if line["epoch"] != lines[0]["epoch"] + count:
            raise CorsdError(f"{location_text(where)}: epoch = {line['epoch']}; allowed: {lines[0]['epoch'] + count}")
    _check_columns(path, rest)
    return lines


def _check_columns(path: Path, columns: list[str]) -> None:
    if "loss.total" not in columns:
        raise CorsdError(f"{path} lacks the column loss.total")
    trained, validated = ([c for c in columns if c.startswith(f"{split}_top1.")] for split in ("train", "val"))
    exits = [c.partition(".")[2] for c in trained]
    wanted = [f"exit{k}" for k in range(1, len(exits) + 1)]
    if not exits or exits != wanted or [c.partition(".")[2] for c in validated] not in ([], wanted):
        found = ", ".join([*trained, *validated]) or "none"
        raise CorsdError(
            f"{path}: the columns of exits are {shortened(found)}; allowed: train_top1.exit1 and so on, and the same exits of "
            "val_top1"
        )


_QUALITY = {"top1": percent, "top5": percent, "cross_entropy": number(finite=False), "calibration_error": percent}
_COSTS = {"macs": whole(1), "parameters": whole(1)}
_FIGURES = {"exits": many(fields({**_QUALITY, **_COSTS}), 1), "ensemble": fields(_QUALITY)}
_TEST = fields(
    {"data": text, "split": choice(*SPLITS), "images": whole(1), **_FIGURES}, {"trained": fields(_FIGURES)}, more=True
)


def read_test(path: Path) -> dict[str, Any]:
    """Content of a `test.json`: the fields of `Evaluation`. An export also has "trained", the results before weights were
    rounded.
    """
    values = read_json(path)
    _TEST(values, (str(path),))
    trained = values.get("trained", values)["exits"]
    if len(trained) != len(values["exits"]):
        raise CorsdError(
            f"{path}: trained: exits has {len(trained)} entries; allowed: {len(values['exits'])}, "
            "as many as exits of the export itself"
        )
    return values


# --- tensors of a run -------------------------------------------------------------------------------------------------

# Advice for damaged files.
_OF_WEIGHTS = "restore a copy, or remove it and test.json and resume the run; for an export, export the run again"
CHECKPOINT_ADVICE = "restore a copy, or remove it to start over"
_OF_PROBE_SET = (
    "restore a copy, or remove it and test.json (if it exists) and resume the run; for an export, export the run again"
)
_OF_SNAPSHOT = "restore a copy, or remove it: the other snapshots stay usable"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a `weights.safetensors` by name, which begins with "network." or "method."."""
    return read_tensors(path, _OF_WEIGHTS)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a `checkpoint.safetensors`; `corsd_lib.training.checkpoint` checks that they match a training."""
    return read_tensors(path, CHECKPOINT_ADVICE)


def read_probe_set(path: Path, classes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors "labels" and "index" of a `probe.safetensors`, both int64 (N,), N >= 1; and its metadata, which names the
    "split".
    """
    tensors, metadata = read_tensors(path, _OF_PROBE_SET)
    for name in ("labels", "index"):
        if name not in tensors:
            raise CorsdError(f"{path} lacks {name}")
        found = tensors[name]
        if found.dtype != torch.int64 or found.ndim != 1 or not len(found) or len(found) != len(tensors["labels"]):
            raise _shape_error(path, name, found, "int64 (N,) of one image or more, the same N of labels and index")
    _check_within(path, "labels", tensors["labels"], 0, classes - 1)
    _check_within(path, "index", tensors["index"], 0, _COUNTS)
    choice(*SPLITS)(metadata.get("split"), (str(path), "split"))
    return tensors, metadata


def read_snapshot(path: Path, images: int, classes: int, like: Path | None = None) -> dict[str, Any]:
    """Content of a `probes/epoch_*.safetensors` as fields of `Snapshot`: lists of tensors, and the state of the relation
    networks.

    `images` and `classes`: numbers of probe images and classes of the run. `like`: another snapshot of the run, which must have
    the same shapes.
    """
    tensors, _ = read_tensors(path, _OF_SNAPSHOT)
    parts = {name: _numbered(path, tensors, name) for name in ("embeddings", "logits", "relations")}
    state = {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
    if len(tensors) > len(state) + sum(map(len, parts.values())):
        known = {*(f"{name}.{k}" for name, found in parts.items() for k in range(len(found)))}
        extra = next(k for k in tensors if k not in known and not k.startswith("method."))
        raise CorsdError(
            f"{path}: {shortened(extra)} is not known; allowed: {', '.join(parts)}, each with .0 and so on, method.*"
        )
    exits, width = len(parts["embeddings"]), parts["embeddings"][0].shape[-1:]
    if len(parts["logits"]) != exits:
        raise CorsdError(f"{path} has logits of {len(parts['logits'])} exits; allowed: {exits}, as many as of embeddings")
    shapes = {"embeddings": (images, *width), "logits": (images, classes), "relations": (classes, classes)}
    for name, found in parts.items():
        for k, tensor in enumerate(found):
            _check_floating(path, f"{name}.{k}", tensor, shapes[name])
    for k, matrix in enumerate(parts["relations"]):
        _check_within(path, f"relations.{k}", matrix[~matrix.isnan()], -1e-3, 1 + 1e-3)
    if like is not None:
        _check_like(path, tensors, like)
    return {**parts, "relation_state": state}


def _numbered(path: Path, tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """List of the tensors `name`.0, `name`.1 and so on. Raises `CorsdError` if there is none, and for gaps in the numbers."""
    count = sum(key.startswith(f"{name}.") for key in tensors)
    names = [f"{name}.{k}" for k in range(max(1, count))]
    for each in names:
        if each not in tensors:
            raise CorsdError(f"{path} lacks {each}")
    return [tensors[each] for each in names]


def _check_floating(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype not in FLOATS or tuple(tensor.shape) != shape or len(shape) != 2 or 0 in shape:
        raise _shape_error(path, name, tensor, f"floating point {shape if len(shape) == 2 else '(N, D)'}")


def _check_within(path: Path, name: str, values: Tensor, low: float, high: float) -> None:
    if values.numel() and not (low <= values.min() and values.max() <= high):
        found = " to ".join(f"{v}" if isinstance(v, int) else f"{v:g}" for v in (values.min().item(), values.max().item()))
        allowed = f"{low:g} to {high:g}" if high < _COUNTS else f"whole numbers of at least {low:g}"
        raise CorsdError(f"{path}: {name}: values are from {found}; allowed: {allowed}")


def _shape_error(path: Path, name: str, tensor: Tensor, allowed: str) -> CorsdError:
    kind = str(tensor.dtype).removeprefix("torch.")
    return CorsdError(f"{path}: {name} is {kind} {tuple(tensor.shape)}; allowed: {allowed}")


def _check_like(path: Path, tensors: Mapping[str, Tensor], like: Path) -> None:
    """Raise `CorsdError` unless `tensors` have the same names and shapes as those in the file `like`.

    Tensors whose names begin with "method." are not compared, and nothing is compared if `like` cannot be read.
    """
    there = _shapes(like)
    # `load_part` checks the tensors of the method
    names = [name for name in {**there, **tensors} if there and not name.startswith("method.")]
    for name in names:
        have, want = tuple(tensors[name].shape) if name in tensors else "absent", there.get(name, "absent")
        if have != want:
            raise CorsdError(f"{path}: {name} is {have} and {want} in {like.name}; allowed: the same in all snapshots of a run")


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name, from the header of a safetensors file, without reading the tensors; {} if the header is not
    valid.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 10_000_000)))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def read_embedding(path: Path, epochs: int, exits: int, images: int) -> dict[str, Tensor]:
    """Tensors of an `embeddings/*.safetensors`, by the names of the fields of `StageEmbedding`.

    `epochs`, `exits`, `images`: the sizes that the tensors must have. Raises `CorsdError` for a tensor that is missing or has a
    wrong shape or type, and for coordinates that are not finite.
    """
    tensors, _ = read_tensors(path)
    measures = dict.fromkeys(("trustworthiness", "knn_purity", "embedding_purity"), (epochs, exits))
    of_images: dict[str, tuple[int, ...]] = {"coordinates": (epochs, exits, images, 2), "labels": (images,), "index": (images,)}
    wanted = {**of_images, **measures}
    for name, shape in wanted.items():
        whole_numbers = name in ("labels", "index")
        found = tensors.get(name)
        dtypes = (torch.int64,) if whole_numbers else FLOATS
        if found is None or found.shape != shape or found.dtype not in dtypes:
            raise CorsdError(f"{path}: {name} is missing or not of shape {shape}")
        if name == "coordinates" and not found.isfinite().all():
            raise CorsdError(f"{path}: {name} has values that are not finite")
    return {name: tensors[name] for name in wanted}


# --- a study ----------------------------------------------------------------------------------------------------------

_some_quality = {k: v for k, v in _QUALITY.items() if k != "top1"}
_of_unseen = {name: optional(percent) for name in ("recall_at_1", "map_at_r", "r_precision")}
_few_shot = {f"{name}{ending}": optional(percent) for name in ("one_shot", "five_shot") for ending in ("", "_half")}
_UNSEEN = fields(
    {
        "classes": whole(2),
        "images": whole(1),
        "ways": whole(2),
        "queries": whole(1),
        "episodes": whole(1),
        "figures": many(fields({"exit": whole(1), "score": text, **_of_unseen, **_few_shot}), 1),
    }
)
_RECORD = fields(
    {
        "row": text,
        "seed": whole(),
        "config": entries(anything),  # checked by `TrainConfig`
        "test": fields(
            {"exits": many(fields({"top1": percent}, {**_some_quality, **_COSTS}), 1)},
            {"data": text, "split": choice(*SPLITS), "images": whole(1), "ensemble": fields(_QUALITY)},
            more=True,
        ),
        "train_top1": many(percent, 1),
        "images": whole(1, 2**53),
        "macs": macs,
        "seconds": seconds,
    },
    {
        "unseen": _UNSEEN,
        "provenance": fields({}, {**_FACTS, **_MORE_FACTS}, more=True),
        "resumed": many(fields({}, {**_FACTS, **_MORE_FACTS}, more=True)),
    },
)


def read_record(path: Path, seed: int) -> dict[str, Any]:
    """Content of a `records/<variant>-s<seed>.json`, see `corsd_lib.studies.records.make_record`."""
    values = read_json(path)
    for part in ("config", "test"):
        if not isinstance(values, dict) or not isinstance(values.get(part), dict):
            raise CorsdError(f"{path} is not a record of a training: it lacks {part}")
    _RECORD(values, (str(path),))
    if values["seed"] != seed:
        raise CorsdError(f"{path}: seed = {values['seed']}; allowed: {seed}, as in the file name")
    return values


_TRIALS = fields(
    {},
    {
        "best": optional(
            fields({"options": entries(anything)}, {"train": entries(anything), "number": whole(), "value": percent})
        ),
        "trials": many(fields({}, {"number": whole(), "error": text}, more=True)),
    },
    more=True,
)


def read_trials(path: Path) -> dict[str, Any]:
    """Content of a `tuning/<variant>.json`, where "trials" and "best" may be missing and "best" may be None.

    Raises `CorsdError` if a value is not valid.
    """
    values = read_json(path)
    _TRIALS(values, (str(path),))
    return values


_gain = {
    "gain_n": whole(),
    "gain": optional(number(-101, 101)),
    "gain_low": optional(number()),
    "gain_high": optional(number()),
}
_SUMMARY_ROW = fields(
    {
        "label": text,
        "group": text,
        "from": optional(text),
        "n": whole(1),
        "seeds": many(whole(), 1),
        "top1": many(percent, 1),
        "top1_low": many(optional(number()), 1),
        "top1_high": many(optional(number()), 1),
        "top1_by_seed": entries(many(percent, 1), 1),
        **_gain,
        "epochs": whole(1),
        "images": number(1, 2**53),
        "macs": macs,
        "seconds": seconds,
        "macs_ratio": optional(number(0)),
        "time_ratio": optional(number(0)),
        "revisions": many(text),
        "torch": many(text),
        "train_top1": percent,
        "options": entries(anything),
    },
    more=True,
)
_UNSEEN_LINE = fields(
    {
        **dict.fromkeys(("variant", "label", "group", "exit", "score", "figure"), text),
        "n": whole(),
        "mean": optional(percent),
        **dict.fromkeys(("low", "high"), optional(number())),
        "over": optional(text),
        **_gain,
    },
    {"by_seed": entries(percent)},
)
_SUMMARY = fields(
    {
        "title": text,
        "data": text,
        "train": entries(anything),
        "equal": choice("images", "epochs"),
        "baseline": text,
        "seeds": many(whole()),
        "methods": entries(_SUMMARY_ROW),
    },
    {"unseen": many(_UNSEEN_LINE, 1)},
    more=True,
)


def read_summary(path: Path) -> dict[str, Any]:
    """Content of a `summary.json`, see `corsd_lib.studies.summary.summarise`."""
    values = read_json(path)
    _SUMMARY(values, (str(path),))
    for name, row in values["methods"].items():
        _check_row(f"{path}: methods: {shortened(name)[1:-1]}", row, values["baseline"] in values["methods"])
    return values


def _check_row(where: str, row: Mapping[str, Any], reference: bool) -> None:
    """Raise `CorsdError` if the values of a row do not fit together.

    All its lists by exit must have the same length. An interval must have both ends or neither. `reference`: whether the
    baseline has a row; if not, the gain must be None. If the gain is None, its interval must be None, too.
    """
    if any(len(each) != len(row["top1"]) for each in (row["top1_low"], row["top1_high"], *row["top1_by_seed"].values())):
        raise CorsdError(
            f"{where}: top1 has {len(row['top1'])} exits; allowed: as many as top1_low, top1_high and top1_by_seed"
        )
    ends = [*zip(row["top1_low"], row["top1_high"], strict=True), (row["gain_low"], row["gain_high"])]
    if any((low is None) != (high is None) for low, high in ends):
        raise CorsdError(f"{where}: an interval has only one end; allowed: both ends, or null for both")
    if row["gain"] is None and row["gain_low"] is not None:
        raise CorsdError(
            f"{where}: gain = None, but it has an interval; allowed: a number, or null for gain, gain_low and gain_high"
        )
    if row["gain"] is not None and not reference:
        raise CorsdError(f"{where}: gain = {row['gain']}, but the baseline has no row; allowed: null")
