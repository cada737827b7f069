"""The one error family of the library: bad input, named, with what is allowed."""

from __future__ import annotations

from collections.abc import Iterable


class CorsdError(ValueError):
    """Bad input, or a run that cannot go on. The message names the thing, its value and what is allowed."""


def check_choice(what: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `CorsdError` unless `value` is one of `allowed`; `what` names it in the message."""
    choices = list(allowed)
    if value not in choices:
        raise CorsdError(f"{what} {value!r} is not known; allowed: {', '.join(map(str, choices))}")
