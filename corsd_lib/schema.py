"""What the values of a JSON file must be: small checks, put together into the schema of a file, that name what does not fit.

A check is called with a value and where it stands, as in ("runs/a/config.json", "data", "mean", 0), and raises one `CorsdError`
that says both and what is allowed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from corsd_lib.errors import CorsdError, shortened

__all__ = [
    "Check",
    "Place",
    "anything",
    "choice",
    "entries",
    "fields",
    "many",
    "number",
    "optional",
    "parse_json",
    "place_text",
    "shortened",
    "text",
    "whole",
]

Place = tuple[str | int, ...]  # a file, and the names and list positions that lead to a value in it
Check = Callable[[Any, Place], None]

DEEPEST = 32  # objects and lists within each other; the deepest of our files has 6


def parse_json(content: str) -> Any:
    """The value of a JSON text; `ValueError` where it is none, repeats a name in an object, nests too deep or is no Unicode."""
    try:
        value = json.loads(content, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"objects and lists are nested too deeply; allowed: {DEEPEST}") from None
    if _depth(value, DEEPEST) < 0:
        raise ValueError(f"objects and lists are nested too deeply; allowed: {DEEPEST}")
    if "\\u" in content:  # the only way to write half of a surrogate pair, which no file can hold in UTF-8
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shortened(repeated)} stands twice in an object")
    return found


def _depth(value: object, left: int) -> int:
    """How many levels are left below the deepest of `value`; negative where there are too many."""
    if left < 0 or not isinstance(value, dict | list):
        return left
    below = value.values() if isinstance(value, dict) else value
    return min((_depth(v, left - 1) for v in below if isinstance(v, dict | list)), default=left)


# --- checks -----------------------------------------------------------------------------------------------------------


def _refuse(value: object, where: Place, allowed: str) -> None:
    raise CorsdError(f"{place_text(where)} = {shortened(value)}; allowed: {allowed}")


def place_text(where: Place) -> str:
    """A place as text: "runs/a/config.json: data: mean[0]"."""
    first, *rest = where
    return str(first) + "".join(f"[{part}]" if isinstance(part, int) else f": {shortened(part)[1:-1]}" for part in rest)


def anything(value: Any, where: Place) -> None:
    """Any value."""


def text(value: Any, where: Place) -> None:
    """A string."""
    if type(value) is not str:
        _refuse(value, where, "a string")


def whole(low: int = 0, high: int = 2**63 - 1) -> Check:
    """A whole number from `low` to `high`."""
    allowed = f"a whole number from {low} {f'to {high}' if high < 2**53 else 'up'}"

    def check(value: Any, where: Place) -> None:
        if type(value) is not int or not low <= value <= high:
            _refuse(value, where, allowed)

    return check


def number(low: float = -sys.float_info.max, high: float = sys.float_info.max, finite: bool = True, allowed: str = "") -> Check:
    """A number from `low` to `high`; with `finite` False also NaN and the infinities. `allowed`: as a message says it."""
    named = {-sys.float_info.max: "-infinity", sys.float_info.max: "infinity"}
    allowed = allowed or f"a number from {named.get(low, f'{low:g}')} to {named.get(high, f'{high:g}')}"

    def check(value: Any, where: Place) -> None:
        kind = type(value)
        if not finite and kind is float and not abs(value) <= sys.float_info.max:
            return
        if (kind is not float and kind is not int) or not low <= value <= high:
            _refuse(value, where, allowed if finite else f"{allowed}, or NaN")

    return check


def choice(*allowed: object) -> Check:
    """One of `allowed`."""

    def check(value: Any, where: Place) -> None:
        if not any(type(value) is type(other) and value == other for other in allowed):
            _refuse(value, where, ", ".join(map(str, allowed)))

    return check


def optional(check: Check) -> Check:
    """None, or what `check` allows."""

    def check_unless_none(value: Any, where: Place) -> None:
        if value is not None:
            check(value, where)

    return check_unless_none


def many(check: Check, least: int = 0, most: int | None = None) -> Check:
    """A list of `least` to `most` values that `check` allows."""

    def check_all(value: Any, where: Place) -> None:
        if type(value) is not list:
            _refuse(value, where, "a list")
        if len(value) < least or (most is not None and len(value) > most):
            allowed = f"{least} or more" if most is None else f"{least} to {most}"
            raise CorsdError(f"{place_text(where)} has {len(value)} entries; allowed: {allowed}")
        for k, each in enumerate(value):
            check(each, (*where, k))

    return check_all


def entries(check: Check, least: int = 0) -> Check:
    """An object of `least` or more names, whose values `check` allows."""

    def check_all(value: Any, where: Place) -> None:
        if type(value) is not dict:
            _refuse(value, where, "an object")
        if len(value) < least:
            raise CorsdError(f"{place_text(where)} has {len(value)} entries; allowed: {least} or more")
        for name, each in value.items():
            check(each, (*where, name))

    return check_all


def fields(required: Mapping[str, Check], others: Mapping[str, Check] | None = None, more: bool = False) -> Check:
    """An object that has the fields `required`, perhaps those of `others`, and with `more` any besides."""
    known = {**required, **(others or {})}

    def check_fields(value: Any, where: Place) -> None:
        if type(value) is not dict:
            _refuse(value, where, "an object")
        for name in required:
            if name not in value:
                raise CorsdError(f"{place_text(where)} lacks {name}; allowed: an object with {', '.join(required)}")
        for name, each in value.items():
            if name in known:
                known[name](each, (*where, name))
            elif not more:
                raise CorsdError(f"{place_text(where)}: field {shortened(name)} is not known; allowed: {', '.join(known)}")

    return check_fields
