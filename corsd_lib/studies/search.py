"""What is searched: the entry of a row in the `tuning` of its study, checked before anything is trained."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from corsd_lib.errors import CorsdError, check_choice, missing_package, shortened

try:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
except ImportError as error:
    raise missing_package("tuning", "optuna", error) from error

from corsd_lib.methods import find_method
from corsd_lib.runs import PLACE_FIELDS, SEEDS, TrainConfig, is_seed
from corsd_lib.studies.study import TRIALS, Study

__all__ = ["Distribution", "Search", "parted"]

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

# Fields of a training that are not for a study to say; those that make no trial another; those none chooses.
_OUTSIDE = ("seed", "out", "resume", "data_root")
_MACHINE = ("seed", *PLACE_FIELDS)
_DATA = (
    "data",
    "per_class",
    "validation_fraction",
    "test_fraction",
    "hold_out_classes",
    "hold_out",
    "hold_out_seed",
    "label_noise",
)
_FIXED = (*_MACHINE, *_DATA, "method", "method_options", "epochs", "devices", "num_nodes")


@dataclass(frozen=True)
class Search:
    """What is searched for a row of a study. A parameter is an option of its method, or "train." and a field of `TrainConfig`.

    `path` of the record; `config` of every training but for parameters, seed and place; `space`: parameter -> {"low", "high"},
    with or without "step", "log" and "int", or {"choices"}; `own`, what the row itself has for each; `trials` wanted; `seeds`
    that the value of a trial is the mean over.
    """

    path: Path
    config: TrainConfig
    space: dict[str, dict[str, Any]]
    own: dict[str, Any]
    trials: int
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, study: Study, row: str) -> Search:
        """What `study` says of the tuning of `row`. Raises `CorsdError` naming what is wrong in it."""
        check_choice("row", row, study.rows)
        study.check_tuning()
        check_choice(f"{study.path}: tuning of row", row, study.tuning)
        where = f"{study.path}: tuning of row {row!r}"
        entry = _checked(where, study.tuning[row])
        config = _trial_config(where, study, row, entry.get("train", {}))
        for name, what in entry["space"].items():
            _check_parameter(f"{where}: {name} = {shortened(what)}", name, what, config)
            if study.rows[row].tuned and name in study.rows[row].train["method_options"]:
                raise CorsdError(f"{where}: {name} is also in the row's method_options, which go over what is found")
        values = _settings(config)
        return cls(
            path=study.path / "tuning" / f"{row}.json",
            config=config,
            space=entry["space"],
            own={name: values[name] for name in entry["space"]},
            trials=entry.get("trials", TRIALS),
            seeds=tuple(entry.get("seeds", study.seeds[:1])),
        )

    @property
    def journal(self) -> Path:
        return self.path.with_suffix(".journal")

    def distributions(self) -> dict[str, Distribution]:
        """The space as Optuna has it."""
        return {name: _distribution(what) for name, what in self.space.items()}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of choices but the row's own, where nothing else is searched and the trials are enough for all."""
        if not all("choices" in what for what in self.space.values()):
            return []
        combinations = itertools.product(*(what["choices"] for what in self.space.values()))
        found = [dict(zip(self.space, values, strict=True)) for values in combinations]
        return [params for params in found if params != self.own] if len(found) <= self.trials else []

    def settings(self) -> dict[str, Any]:
        """All that makes this search another than others, by the names that parameters have; as JSON gives it back."""
        fixed = {k: v for k, v in _settings(self.config).items() if k.removeprefix("train.") not in _MACHINE}
        return json.loads(json.dumps({"seeds": self.seeds, **fixed, **self.space}))

    def plain(self) -> dict[str, Any]:
        """What the record says of the search: space, seeds, and the training that all trials have in common."""
        config = {k: v for k, v in asdict(self.config).items() if k not in _MACHINE}
        return json.loads(json.dumps({"space": self.space, "seeds": self.seeds, "train": config}))

    def configs(self, params: Mapping[str, Any], folder: Path, data_root: str | None) -> list[TrainConfig]:
        """The trainings of a trial, one a seed, below `folder`; what is there already goes on."""
        config = replace(_with(self.config, params), data_root=data_root, resume=True)
        return [replace(config, seed=seed, out=str(folder / f"seed{seed}")) for seed in self.seeds]


def parted(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters as options of the method, and as fields of the training."""
    options = {name: value for name, value in params.items() if not name.startswith("train.")}
    return options, {name.removeprefix("train."): value for name, value in params.items() if name not in options}


def _with(config: TrainConfig, params: Mapping[str, Any]) -> TrainConfig:
    options, changes = parted(params)
    return replace(config, **changes, method_options={**config.method_options, **options})


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting of a training by the name that it has as a parameter."""
    kind = find_method(config.method)  # what a field leaves open may be the method's to say
    train = {f"train.{k}": getattr(kind, k, None) if v is None else v for k, v in asdict(config).items()}
    del train["train.method_options"]
    return {**asdict(config.build_method().options), **train}


# --- reading an entry -------------------------------------------------------------------------------------------------


def _checked(where: str, entry: object) -> dict[str, Any]:
    """The entry of a row, its fields of the right types; what is in space and train is not looked at yet."""
    if not isinstance(entry, dict) or not isinstance(entry.get("space"), dict) or not entry["space"]:
        raise CorsdError(f"{where} = {shortened(entry)}; allowed: an object that has a space of one parameter or more")
    for name in entry:
        check_choice(f"{where}: field", name, ("trials", "seeds", "space", "train"))
    if not isinstance(entry.get("train", {}), dict):
        raise CorsdError(f"{where}: train = {shortened(entry['train'])}; allowed: an object of fields and values")
    trials, seeds = entry.get("trials", 1), entry.get("seeds", [0])
    if type(trials) is not int or trials < 1:
        raise CorsdError(f"{where}: trials = {shortened(trials)}; allowed: a whole number of at least 1")
    if not isinstance(seeds, list) or not seeds or not all(map(is_seed, seeds)):
        raise CorsdError(f"{where}: seeds = {shortened(seeds)}; allowed: one or more {SEEDS}")
    return entry


def _trial_config(where: str, study: Study, row: str, changes: Mapping[str, Any]) -> TrainConfig:
    """The row's own training, with `changes` to what all rows have in common."""
    for name in changes:
        check_choice(f"{where}: train: field", name, [f.name for f in fields(TrainConfig) if f.name not in _OUTSIDE])
    own = replace(study.without_tuning(), train={**study.train, **changes}).config(row, 0)
    config = replace(own, probe_every=0, probe_split="auto")  # snapshots are of no use here, and none may show images of test
    if not config.validation_fraction:
        raise CorsdError(f"{where}: train: validation_fraction = 0.0; allowed: above 0, for nothing is tuned on test")
    if config.devices * config.num_nodes > 1:
        raise CorsdError(f"{where}: devices = {config.devices}, num_nodes = {config.num_nodes}; allowed: 1 and 1")
    return config


def _check_parameter(where: str, name: str, what: Any, config: TrainConfig) -> None:
    """Raise `CorsdError` unless the parameter can be searched, the row takes what is allowed for it and has such a value."""
    if name.startswith("train."):
        allowed = [f"train.{f.name}" for f in fields(TrainConfig) if f.name not in _FIXED]
        check_choice(f"{where}: parameter", name, allowed)
    elif name in {f.name for f in fields(TrainConfig)} - asdict(config.build_method().options).keys():
        raise CorsdError(f"{where}: a field of the training is searched as train.{name}")
    if not _is_range(what) and not _is_choice(what):
        raise CorsdError(f"{where}; allowed: numbers low and high, with or without step, log and int, or a list of choices")
    try:
        found = _distribution(what)
        for value in found.choices if isinstance(found, CategoricalDistribution) else (found.low, found.high):
            _with(config, {name: value}).build_method()
    except ValueError as error:
        raise CorsdError(f"{where}: {error}") from error
    own = _settings(config)[name]
    if not _allows(found, own):
        raise CorsdError(
            f"{where}: the row itself, which is trial 0, has {shortened(own)}: widen the space so that it is within"
        )


def _is_range(what: Any) -> bool:
    if not isinstance(what, dict) or not {"low", "high"} <= what.keys() <= {"low", "high", "step", "log", "int"}:
        return False
    flags, numbers = [what.get(k, False) for k in ("log", "int")], [what.get(k, 1) for k in ("low", "high", "step")]
    kinds = (int,) if what.get("int") else (int, float)
    return all(type(flag) is bool for flag in flags) and all(type(number) in kinds for number in numbers)


def _is_choice(what: Any) -> bool:
    if not isinstance(what, dict) or what.keys() != {"choices"} or not isinstance(what["choices"], list):
        return False
    return bool(what["choices"]) and all(value is None or isinstance(value, str | int | float) for value in what["choices"])


def _distribution(what: Mapping[str, Any]) -> Distribution:
    """As Optuna has it; raises `ValueError` for a range that is none."""
    if "choices" in what:
        return CategoricalDistribution(what["choices"])
    kind = IntDistribution if what.get("int") else FloatDistribution
    return kind(**{name: value for name, value in what.items() if name != "int"})


def _allows(found: Distribution, value: Any) -> bool:
    if isinstance(found, CategoricalDistribution):
        return value in found.choices
    return isinstance(value, int | float) and found.low <= value <= found.high
