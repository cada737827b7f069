"""The hyperparameter search of a variant, read from the field `tuning` of its study and checked before the first training."""

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
from corsd_lib.studies.study import TRIALS, Study, check_fields

__all__ = ["Distribution", "Search", "split_parameters"]

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

# Fields that a study cannot set, that do not affect the result of a trial, and that choose the data. None can be searched.
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
    """The hyperparameter search of a variant.

    A parameter is an option of the method, or a field of `TrainConfig` as "train.<field>". `path`: file of the tuning record.
    `config`: configuration of all trials, before the parameters, seed and run directory of a trial are set. `space`: for each
    parameter either {"choices"} or {"low", "high"}, the latter optionally with "step", "log" and "int". `own`: values of the
    parameters in the variant itself. `trials`: number of trials. `seeds`: a trial is trained once with each seed; its value is
    the mean validation top-1 (%) of the deepest exit.
    """

    path: Path
    config: TrainConfig
    space: dict[str, dict[str, Any]]
    own: dict[str, Any]
    trials: int
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, study: Study, variant: str) -> Search:
        """The search of `variant`, from its entry in `study.tuning`. Raises `CorsdError` for a missing or invalid entry."""
        check_choice("variant", variant, study.variants)
        study.check_tuning()
        check_choice(f"{study.path}: tuning of variant", variant, study.tuning)
        where = f"{study.path}: tuning of variant {variant!r}"
        entry = _check_entry(where, study.tuning[variant])
        config = _trial_config(where, study, variant, entry.get("train", {}))
        for name, what in entry["space"].items():
            _check_parameter(f"{where}: {name} = {shortened(what)}", name, what, config)
            if study.variants[variant].tuned and name in study.variants[variant].train["method_options"]:
                raise CorsdError(
                    f"{where}: {name} is also in the variant's method_options, which override the result of the search"
                )
        values = _settings(config)
        return cls(
            path=study.path / "tuning" / f"{variant}.json",
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
        """Search space as distributions of Optuna, by parameter."""
        return {name: _distribution(what) for name, what in self.space.items()}

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of choices except the variant's own; [] if a parameter has a range, or if there are more
        combinations than trials.
        """
        if not all("choices" in what for what in self.space.values()):
            return []
        combinations = itertools.product(*(what["choices"] for what in self.space.values()))
        found = [dict(zip(self.space, values, strict=True)) for values in combinations]
        return [params for params in found if params != self.own] if len(found) <= self.trials else []

    def settings(self) -> dict[str, Any]:
        """Settings that identify this search, by parameter name, as JSON values."""
        fixed = {k: v for k, v in _settings(self.config).items() if k.removeprefix("train.") not in _MACHINE}
        return json.loads(json.dumps({"seeds": self.seeds, **fixed, **self.space}))

    def plain(self) -> dict[str, Any]:
        """Fields of the tuning record that describe the search: space, seeds and the shared training settings."""
        config = {k: v for k, v in asdict(self.config).items() if k not in _MACHINE}
        return json.loads(json.dumps({"space": self.space, "seeds": self.seeds, "train": config}))

    def configs(self, params: Mapping[str, Any], folder: Path, data_root: str | None) -> list[TrainConfig]:
        """Configurations of a trial with `params` in `folder`, one for each seed; existing runs are resumed."""
        config = replace(_with(self.config, params), data_root=data_root, resume=True)
        return [replace(config, seed=seed, out=str(folder / f"seed{seed}")) for seed in self.seeds]


def split_parameters(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters into options of the method and fields of `TrainConfig`, the latter without "train."."""
    options = {name: value for name, value in params.items() if not name.startswith("train.")}
    return options, {name.removeprefix("train."): value for name, value in params.items() if name not in options}


def _with(config: TrainConfig, params: Mapping[str, Any]) -> TrainConfig:
    options, changes = split_parameters(params)
    return replace(config, **changes, method_options={**config.method_options, **options})


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting of a training by its parameter name."""
    method_class = find_method(config.method)
    # A field that is None has the default of the method.
    train = {f"train.{k}": getattr(method_class, k, None) if v is None else v for k, v in asdict(config).items()}
    del train["train.method_options"]
    return {**asdict(config.build_method().options), **train}


# --- reading an entry -------------------------------------------------------------------------------------------------


def _check_entry(where: str, entry: object) -> dict[str, Any]:
    """The entry of a variant. Raises `CorsdError` if a field has a wrong type. The contents of `space` and `train` are checked
    later.
    """
    found = check_fields(entry, where, {"trials": int, "seeds": list, "space": dict, "train": dict})
    if not found.get("space"):
        raise CorsdError(f"{where} = {shortened(entry)}; allowed: a JSON object that has a space of one parameter or more")
    trials, seeds = found.get("trials", 1), found.get("seeds", [0])
    if type(trials) is not int or trials < 1:
        raise CorsdError(f"{where}: trials = {shortened(trials)}; allowed: a whole number of at least 1")
    if not seeds or not all(map(is_seed, seeds)):
        raise CorsdError(f"{where}: seeds = {shortened(seeds)}; allowed: one or more {SEEDS}")
    return found


def _trial_config(where: str, study: Study, variant: str, changes: Mapping[str, Any]) -> TrainConfig:
    """Configuration of the trials of a variant; `changes` override the settings that all variants share.

    Raises `CorsdError` for fields that cannot be set, if there is no validation split, and for more than one device or node.
    """
    for name in changes:
        check_choice(f"{where}: train: field", name, [f.name for f in fields(TrainConfig) if f.name not in _OUTSIDE])
    own = replace(study.without_tuning(), train={**study.train, **changes}).config(variant, 0)
    # Without snapshots, which a search does not use, and without test images
    config = replace(own, probe_every=0, probe_split="auto")
    if not config.validation_fraction:
        raise CorsdError(
            f"{where}: train: validation_fraction = 0.0; allowed: above 0, because trials are compared on validation images"
        )
    if config.devices * config.num_nodes > 1:
        raise CorsdError(f"{where}: devices = {config.devices}, num_nodes = {config.num_nodes}; allowed: 1 and 1")
    return config


def _check_parameter(where: str, name: str, what: Any, config: TrainConfig) -> None:
    """Raise `CorsdError` unless the parameter can be searched, its choices (or the ends of its range) are valid, and the value
    of the variant itself is among them.
    """
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
        raise CorsdError(f"{where}: trial 0, the variant itself, has {shortened(own)}: extend the space to include this value")


def _is_range(what: Any) -> bool:
    if not isinstance(what, dict) or not {"low", "high"} <= what.keys() <= {"low", "high", "step", "log", "int"}:
        return False
    flags, numbers = [what.get(k, False) for k in ("log", "int")], [what.get(k, 1) for k in ("low", "high", "step")]
    types = (int,) if what.get("int") else (int, float)
    return all(type(flag) is bool for flag in flags) and all(type(number) in types for number in numbers)


def _is_choice(what: Any) -> bool:
    if not isinstance(what, dict) or what.keys() != {"choices"} or not isinstance(what["choices"], list):
        return False
    return bool(what["choices"]) and all(value is None or isinstance(value, str | int | float) for value in what["choices"])


def _distribution(what: Mapping[str, Any]) -> Distribution:
    """Distribution of Optuna for an entry of the space. Raises `ValueError` for an invalid range."""
    if "choices" in what:
        return CategoricalDistribution(what["choices"])
    distribution = IntDistribution if what.get("int") else FloatDistribution
    return distribution(**{name: value for name, value in what.items() if name != "int"})


def _allows(found: Distribution, value: Any) -> bool:
    if isinstance(found, CategoricalDistribution):
        return value in found.choices
    return isinstance(value, int | float) and found.low <= value <= found.high
