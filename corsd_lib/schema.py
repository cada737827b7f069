"""Checks of JSON values. Small checks are combined into the schema of a file.

A check is called with a value and its location, such as ("runs/a/config.json", "data", "mean", 0). If the value is not valid,
it raises a `CorsdError` with the location, the value and what is allowed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from corsd_lib.errors import CorsdError, shortened

__all__ = [
    "Check",
    "Location",
    "anything",
    "choice",
    "entries",
    "fields",
    "location_text",
    "many",
    "number",
    "optional",
    "parse_json",
    "shortened",
    "text",
    "whole",
]

Location = tuple[str | int, ...]  # a file, and the names and list indices that lead to a value in it
Check = Callable[[Any, Location], None]

DEEPEST = 32  # nested objects and lists; our files have up to 6 levels


def parse_json(content: str) -> Any:
    """Parse JSON. Raises `ValueError` for invalid JSON, repeated names in an object, nesting that is too deep, and invalid
    Unicode.
    """
    try:
        value = json.loads(content, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"objects and lists are nested too deeply; allowed: {DEEPEST} levels") from None
    if _depth(value, DEEPEST) < 0:
        raise ValueError(f"objects and lists are nested too deeply; allowed: {DEEPEST} levels")
    if "\\u" in content:  # may be half of a surrogate pair, which UTF-8 cannot encode
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shortened(repeated)} appears twice in an object")
    return found


def _depth(value: object, left: int) -> int:
    """`left` minus the nesting depth of `value`; negative if `value` is nested too deeply."""
    if left < 0 or not isinstance(value, dict | list):
        return left
    below = value.values() if isinstance(value, dict) else value
    return min((_depth(v, left - 1) for v in below if isinstance(v, dict | list)), default=left)


# --- checks -----------------------------------------------------------------------------------------------------------


def _refuse(value: object, where: Location, allowed: str) -> None:
    raise CorsdError(f"{location_text(where)} = {shortened(value)}; allowed: {allowed}")


def location_text(where: Location) -> str:
    """A location as text, such as "runs/a/config.json: data: mean[0]"."""
    first, *rest = where
    return str(first) + "".join(f"[{part}]" if isinstance(part, int) else f": {shortened(part)[1:-1]}" for part in rest)


def anything(value: Any, where: Location) -> None:
    """A check that accepts any value."""


def text(value: Any, where: Location) -> None:
    """A check that accepts a string only."""
    if type(value) is not str:
        _refuse(value, where, "a string")


def whole(low: int = 0, high: int = 2**63 - 1) -> Check:
    """Return a check for a whole number from `low` to `high`."""
    allowed = f"a whole number from {low} {f'to {high}' if high < 2**53 else 'up'}"

    def check(value: Any, where: Location) -> None:
        if type(value) is not int or not low <= value <= high:
            _refuse(value, where, allowed)

    return check


def number(low: float = -sys.float_info.max, high: float = sys.float_info.max, finite: bool = True, allowed: str = "") -> Check:
    """Return a check for a number from `low` to `high`; with `finite` False also for NaN and infinities.

    `allowed`: what the message says is allowed.
    """
    named = {-sys.float_info.max: "-infinity", sys.float_info.max: "infinity"}
    allowed = allowed or f"a number from {named.get(low, f'{low:g}')} to {named.get(high, f'{high:g}')}"

    def check(value: Any, where: Location) -> None:
        kind = type(value)
        if not finite and kind is float and not abs(value) <= sys.float_info.max:
            return
        if (kind is not float and kind is not int) or not low <= value <= high:
            _refuse(value, where, allowed if finite else f"{allowed}, or NaN")

    return check


def choice(*allowed: object) -> Check:
    """Return a check for one of the values `allowed`, with the same type."""

    def check(value: Any, where: Location) -> None:
        if not any(type(value) is type(other) and value == other for other in allowed):
            _refuse(value, where, ", ".join(map(str, allowed)))

    return check


def optional(check: Check) -> Check:
    """Return a check that accepts None, and all that `check` accepts."""

    def check_unless_none(value: Any, where: Location) -> None:
        if value is not None:
            check(value, where)

    return check_unless_none


def many(check: Check, least: int = 0, most: int | None = None) -> Check:
    """Return a check for a list of `least` to `most` values that `check` accepts."""

    def check_all(value: Any, where: Location) -> None:
        if type(value) is not list:
            _refuse(value, where, "a list")
        if len(value) < least or (most is not None and len(value) > most):
            allowed = f"{least} or more" if most is None else f"{least} to {most}"
            raise CorsdError(f"{location_text(where)} has {len(value)} entries; allowed: {allowed}")
        for k, each in enumerate(value):
            check(each, (*where, k))

    return check_all


def entries(check: Check, least: int = 0) -> Check:
    """Return a check for an object with at least `least` entries, whose values `check` accepts."""

    def check_all(value: Any, where: Location) -> None:
        if type(value) is not dict:
            _refuse(value, where, "a JSON object")
        if len(value) < least:
            raise CorsdError(f"{location_text(where)} has {len(value)} entries; allowed: {least} or more")
        for name, each in value.items():
            check(each, (*where, name))

    return check_all


def fields(required: Mapping[str, Check], others: Mapping[str, Check] | None = None, more: bool = False) -> Check:
    """Return a check for an object with the fields `required` and optionally those of `others`.

    With `more` any further fields are accepted too.
    """
    known = {**required, **(others or {})}

    def check_fields(value: Any, where: Location) -> None:
        if type(value) is not dict:
            _refuse(value, where, "a JSON object")
        for name in required:
            if name not in value:
                raise CorsdError(f"{location_text(where)} lacks {name}; allowed: a JSON object with {', '.join(required)}")
        for name, each in value.items():
            if name in known:
                known[name](each, (*where, name))
            elif not more:
                raise CorsdError(f"{location_text(where)}: field {shortened(name)} is not known; allowed: {', '.join(known)}")

    return check_fields
