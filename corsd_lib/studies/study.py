"""A study: variants (a method with settings) x seeds, read from study.json, and the records of its trainings.

    results/<study>/study.json                       the variants, and the settings that they share
                    records/<variant>-s<seed>.json   a finished training: configuration, test results, images, cost, provenance
                    summary.json table.csv table.md   written by `write_tables` from the records
                    unseen.csv unseen.md             tables for classes that were held out of the trainings, if there are any

A record has a few kilobytes and is committed to git. A training that has a record is not repeated, on any machine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

from corsd_lib.cards import Facts, card
from corsd_lib.errors import CorsdError, check_choice, shortened
from corsd_lib.files import read_json, write_json
from corsd_lib.methods import find_method
from corsd_lib.readers import read_record, read_trials
from corsd_lib.runs import SEEDS, TrainConfig, differences, is_seed, portable_name
from corsd_lib.studies.records import Record

__all__ = ["TRIALS", "Study", "Variant", "check_fields", "new_study", "study_file"]

TRIALS = 40  # default number of trials of a search
_NOT_IN_A_STUDY = ("out", "resume", "data_root", "seed")


@dataclass(frozen=True)
class Variant:
    """One variant of a study: a method with settings.

    `group`: name of a group of variants; "methods" is the main one. `train`: its settings, including inherited ones; they
    override the settings of the study. `parent`: name of the variant that it inherits from. `tuned`: file of a tuning record,
    relative to the folder of the study; its best options are used unless `train` sets them.
    """

    name: str
    label: str
    group: str
    seeds: tuple[int, ...]
    train: dict[str, Any]
    parent: str | None = None
    tuned: str | None = None


@dataclass(frozen=True)
class Study:
    """A comparison of `variants`, each trained with several seeds.

    `path`: folder of the study. `equal`: "images" or "epochs", the number that is equal for all variants, see `config`.
    `train`: settings that all variants share. `baseline`: name of the variant that gains are relative to. `tuning`: the
    hyperparameter search of each variant that is tuned, see `studies.search.Search`.
    """

    path: Path
    title: str
    equal: str
    baseline: str
    seeds: tuple[int, ...]
    train: dict[str, Any]
    variants: dict[str, Variant]
    tuning: dict[str, Any]

    @classmethod
    def from_file(cls, path: str | Path) -> Study:
        """Read a study from `study.json` or the folder that holds it. Raises `CorsdError` if the file is missing or not
        valid.
        """
        file = study_file(path)
        return cls.from_dict(read_json(file), file)

    @classmethod
    def from_dict(cls, values: object, file: Path) -> Study:
        """Create a study from `values`, the contents of a study.json. Raises `CorsdError` if they are not valid.

        `file`: path of this study.json. The file is not read and need not exist; its folder is that of the study.
        """
        types = {"title": str, "equal": str, "baseline": str, "seeds": list, "train": dict, "variants": dict, "tuning": dict}
        found = check_fields(_rename_rows(values, str(file)), str(file), types)
        seeds = _seeds(found.get("seeds", [0]), str(file))
        variants = {name: _variant(name, found["variants"], seeds, str(file)) for name in found.get("variants", {})}
        for name in found.get("tuning", {}):
            check_choice(f"{file}: tuning of variant", name, variants)
            if variants[name].tuned is None and "tuned" not in found["variants"][name]:
                raise CorsdError(
                    f'{file}: variant {name!r} has a search but no result in use: add "tuned": "tuning/{name}.json" to it, '
                    'or "tuned": null to train it without the search'
                )
        study = cls(
            path=file.parent,
            title=found.get("title", file.resolve().parent.name),
            equal=found.get("equal", "images"),
            baseline=found.get("baseline", "baseline"),
            seeds=seeds,
            train=found.get("train", {}),
            variants=variants,
            tuning=found.get("tuning", {}),
        )
        study._check(str(file))
        return study

    def _check(self, where: str) -> None:
        check_choice(f"{where}: equal", self.equal, ("images", "epochs"))
        check_choice(f"{where}: baseline", self.baseline, self.variants)
        for name in [*self.train, *(name for variant in self.variants.values() for name in variant.train)]:
            if name in _NOT_IN_A_STUDY:
                raise CorsdError(f"{where}: train: {name} depends on the run or the machine: a study cannot set it")
        for name in self.variants:
            try:
                self.without_tuning().config(name, 0).build_method()
            except CorsdError as error:
                raise CorsdError(f"{where}: variant {name!r}: {error}") from error

    @property
    def name(self) -> str:
        """Name of the folder of the study."""
        return self.path.resolve().name

    def without_tuning(self) -> Study:
        """A copy without tuning records, in which every variant has its own options."""
        return replace(self, variants={name: replace(variant, tuned=None) for name, variant in self.variants.items()})

    def jobs(self) -> list[tuple[str, int]]:
        """All trainings as (variant, seed).

        The first seed of every variant comes first, then the second, so that a stopped study has a balanced table.
        """
        seeds = dict.fromkeys([*self.seeds, *(seed for variant in self.variants.values() for seed in variant.seeds)])
        return [(name, seed) for seed in seeds for name, variant in self.variants.items() if seed in variant.seeds]

    def config(self, variant: str, seed: int) -> TrainConfig:
        """Configuration of a variant with a seed; its run directory is in `runs/<study>`.

        If `equal` is "images", the number of epochs is changed so that every variant trains on as many images as the baseline.
        For each training image an epoch has f images: 3 with "triplet" batches, 2 with "overlapping" batches, else 1. The
        number of epochs is multiplied by f of the baseline, divided by f of the variant, and rounded to a whole number of at
        least 1. Raises `CorsdError` for an unknown variant, an invalid setting and a missing tuning record.
        """
        check_choice("variant", variant, self.variants)
        config = self._base_config(variant)
        if self.equal == "images":
            images = _images_per_anchor(config) / _images_per_anchor(self._base_config(self.baseline))
            config = replace(config, epochs=max(1, round(config.epochs / images)))
        return replace(config, seed=seed, out=f"runs/{self.name}/{variant}/seed{seed}")

    def _base_config(self, name: str) -> TrainConfig:
        """Configuration of a variant before its epochs are adjusted: shared settings, overridden by tuned ones, then by its
        own.
        """
        variant = self.variants[name]
        tuned = self._tuned(variant.tuned) if variant.tuned else {}
        return TrainConfig.from_dict(_override(_override(self.train, tuned), variant.train), "train")

    def _tuned(self, file: str) -> dict[str, Any]:
        """Best settings of a tuning record. Raises `CorsdError` if it has none."""
        path = self.path / file
        best = read_trials(path).get("best") if os.path.isfile(path) else None
        if best is None:
            raise CorsdError(f"{path} has no best options: tune the variant first (corsd tune)")
        return {**best.get("train", {}), "method_options": best["options"]}

    def check_tuning(self) -> None:
        """Raise `CorsdError` if the study has no search."""
        if not self.tuning:
            raise CorsdError(f'{study_file(self.path)} has no field "tuning" with the search spaces of the variants')

    def check_search(self, variant: str) -> None:
        """Raise `CorsdError` if the search of a variant has fewer trials than its entry in `tuning` requires.

        With fewer trials its best settings may still change.
        """
        file = self.variants[variant].tuned
        entry = self.tuning.get(Path(file).stem) if file else None
        wanted = entry.get("trials", TRIALS) if isinstance(entry, dict) else None
        if file is None or not isinstance(wanted, int):
            return
        done = self.trials_done(read_trials(self.path / file))
        if done < wanted:
            raise CorsdError(
                f"variant {variant!r}: {self.path / file} has {done} of {wanted} trials: finish the search (corsd tune), or "
                "lower its number of trials; the best settings may still change"
            )

    @staticmethod
    def trials_done(tuning_record: Mapping[str, Any]) -> int:
        """Number of trials of a search, failed ones included; a trial that was stopped and resumed counts once."""
        return sum("taken up by" not in trial.get("error", "") for trial in tuning_record.get("trials", []))

    # --- records ---

    def record_path(self, variant: str, seed: int) -> Path:
        """Path of the record of a training."""
        return self.path / "records" / f"{variant}-s{seed}.json"

    def record(self, variant: str, seed: int) -> Record | None:
        """Record of a training; None if there is none. Raises `CorsdError` if it is damaged or of another
        configuration, and the errors of `config`.
        """
        path = self.record_path(variant, seed)
        if not path.is_file():
            return None
        record = read_record(path, seed)
        before, now = TrainConfig.from_dict(record["config"], str(path)), self.config(variant, seed)
        if changes := differences(before, replace(now, data=portable_name(now.data))):
            raise CorsdError(f"{path} is of another configuration: {changes}; remove or rename it to train again")
        return record

    def records(self) -> dict[str, dict[int, Record]]:
        """Existing records: variant -> seed -> record. Raises `CorsdError` for an invalid record."""
        found: dict[str, dict[int, Record]] = {name: {} for name in self.variants}
        for variant, seed in self.jobs():
            if (record := self.record(variant, seed)) is not None:
                exits = [len(r["test"]["exits"]) for r in (record, *found[variant].values())]
                if exits[0] != exits[-1]:
                    path = self.record_path(variant, seed)
                    raise CorsdError(
                        f"{path}: test: exits has {exits[0]} entries; allowed: {exits[-1]}, as in the records of other seeds"
                    )
                found[variant][seed] = record
        return {variant: by_seed for variant, by_seed in found.items() if by_seed}

    def _repr_html_(self) -> str:
        return card("Study", self.title, self._facts)

    def _facts(self) -> Facts:
        """Content of the HTML card: the variants, and which of their seeds have a record."""
        records, jobs = self.records(), self.jobs()
        done = sum(len(by_seed) for by_seed in records.values())
        lines = [["variant", "label", "seeds", "recorded"]]
        for name, variant in self.variants.items():
            recorded = ", ".join(map(str, records.get(name, {})))
            lines.append([name, variant.label, ", ".join(map(str, variant.seeds)), recorded or "none"])
        facts = {"folder": self.path, "equal": self.equal, "baseline": self.baseline, "records": f"{done} of {len(jobs)}"}
        settings = [["setting", "value"], *([name, value] for name, value in self.train.items())]
        return Facts(facts, [lines], {"settings of all variants": settings})


_LONGEST_NAME = 100  # bytes; file systems accept 255, and the names of records and temporary files are longer

# --- reading study.json -----------------------------------------------------------------------------------------------


def study_file(path: str | Path) -> Path:
    """Path of the `study.json` of a study. `path` is that file or its folder; `CorsdError` is raised for any other JSON
    file.
    """
    path = Path(path)
    if path.suffix == ".json" and path.name != "study.json":
        raise CorsdError(f"study {path} must be named study.json and have its own folder, where records and tables are written")
    return path if path.suffix == ".json" else path / "study.json"


def check_fields(values: object, where: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """Check that `values` is an object whose fields are in `types` and have the types given there; return it.

    If the field "train" has "method_options", they must be an object, too. Raises `CorsdError` otherwise; the message begins
    with `where`.
    """
    if not isinstance(values, dict):
        raise CorsdError(f"{where} = {shortened(values)}; allowed: a JSON object of fields and values")
    for name, value in values.items():
        check_choice(f"{where}: field", name, types)
        if not isinstance(value, types[name]):
            allowed = " or ".join(k.__name__ for k in (types[name] if isinstance(types[name], tuple) else [types[name]]))
            raise CorsdError(f"{where}: {name} = {shortened(value)} is of type {type(value).__name__}; allowed: {allowed}")
    options = values.get("train", {}).get("method_options", {})
    if not isinstance(options, dict):
        raise CorsdError(f"{where}: train: method_options = {shortened(options)}; allowed: a JSON object of options and values")
    return values


def _rename_rows(values: object, where: str) -> object:
    """`values` with "variants" in place of "rows", the name of this field in older files."""
    if not isinstance(values, dict) or "rows" not in values:
        return values
    if "variants" in values:
        raise CorsdError(f'{where}: "rows" is the old name of "variants"; allowed: one of them')
    return {"variants" if name == "rows" else name: value for name, value in values.items()}


def _seeds(values: Sequence[object], where: str) -> tuple[int, ...]:
    seeds = tuple(value for value in values if is_seed(value))
    if not seeds or len(set(seeds)) != len(values):
        raise CorsdError(f"{where}: seeds = {shortened(values)}; allowed: one or more different {SEEDS}")
    return seeds


def _variant(name: str, variants: Mapping[str, Any], seeds: tuple[int, ...], where: str) -> Variant:
    """The variant `name`, from the JSON values of all `variants`, with inherited settings filled in.

    Raises `CorsdError` for an invalid name or field and for circular inheritance. The message begins with `where`.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise CorsdError(
            f"{where}: the name of a variant is {name!r}; allowed: letters, digits and _ . + -, as files are named after it"
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise CorsdError(f"{where}: variant {shortened(name)} has {len(name.encode())} bytes; allowed: up to {_LONGEST_NAME}")
    types = {"label": str, "group": str, "seeds": list, "from": str, "train": dict, "tuned": (str, NoneType)}
    line = [check_fields(variants[name], f"{where}: variant {name!r}", types)]  # the variant, its parent, and so on
    while (parent := line[-1].get("from")) is not None:
        check_choice(f"{where}: variant {name!r}: from", parent, variants)
        line.append(check_fields(variants[parent], f"{where}: variant {parent!r}", types))
        if len(line) > len(variants):
            raise CorsdError(f"{where}: variant {name!r} inherits from itself")
    own, train = line[0], dict[str, Any]()
    for values in reversed(line):
        train = _override(train, values.get("train", {}))
    return Variant(
        name,
        own.get("label", name),
        own.get("group", "methods"),
        _seeds(own["seeds"], f"{where}: variant {name!r}") if "seeds" in own else seeds,
        train,
        own.get("from"),
        next((values["tuned"] for values in line if "tuned" in values), None),
    )


def _override(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings `below`, overridden by `above`; method options are overridden one by one."""
    options = {**below.get("method_options", {}), **above.get("method_options", {})}
    return {**below, **above, "method_options": options}


def _images_per_anchor(config: TrainConfig) -> int:
    return {"triplet": 3, "overlapping": 2}.get(config.sampling or find_method(config.method).sampling, 1)


def new_study(path: str | Path, methods: Sequence[str], seeds: Sequence[int], train: Mapping[str, Any], equal: str) -> Study:
    """Write a `study.json` with one variant for each of `methods` and the shared settings `train`; return the study.

    The baseline is the variant "baseline" if there is one, else the first. `equal`: see `Study`. Raises `CorsdError` if the
    settings are not valid, if the file exists and holds another study, and if it cannot be written.
    """
    file = study_file(path)
    plain: dict[str, Any] = json.loads(json.dumps({"train": train}))
    per_class = f", {train['per_class']} images a class" if train.get("per_class") else ""
    values = {
        "title": f"{train.get('data', TrainConfig.data)}{per_class}",
        "equal": equal,
        "baseline": "baseline" if "baseline" in methods else methods[0],
        "seeds": list(seeds),
        **plain,
        "variants": {method: {"train": {"method": method}} for method in methods},
    }
    study = Study.from_dict(values, file)
    if file.is_file() and _rename_rows(read_json(file), str(file)) != values:
        raise CorsdError(f"{file} is another study: continue it without --methods and settings, or choose another folder")
    write_json(file, values)
    return study
