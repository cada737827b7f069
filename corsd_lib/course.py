"""What the notebooks of the course use beside the library: predictions to compare, and checks of exercises with hints."""

from __future__ import annotations

from numbers import Real
from typing import NoReturn

from corsd_lib.errors import CorsdError, shortened

__all__ = ["Hint", "answered", "compare", "expect"]


class Hint(AssertionError):
    """An answer that is missing or wrong. Jupyter shows its text alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def expect(condition: object, hint: str) -> None:
    """Raise a `Hint` with the text `hint` unless `condition` is true. A tensor must be a single true value."""
    if not bool(condition):
        raise Hint(hint)


def answered(answer: object) -> None:
    """Raise a `Hint` while `answer` is still the `...` of a stub."""
    if answer is ...:
        raise Hint("no answer yet. Write your code in place of the `...` and run both cells again.")


def compare(what: str, predicted: object, found: object, unit: str = "", close: float = 0.0, digits: int = 0) -> None:
    """Print the result `found` beside the reader's prediction, if there is one.

    `predicted`: None (no prediction), or a value of the kind of `found`: a number, in the unit `unit` and printed with
    `digits` decimals, or a text. `close`: the distance up to which a number counts as right. Raises `CorsdError` for a
    prediction of another kind.
    """
    number = isinstance(found, Real) and not isinstance(found, bool)
    result = f"{found:.{digits}f}{unit}" if number else f"{found}"
    if predicted is None:
        print(f"{what}: {result}.")
    elif number:
        print(f"{what}: {result}. {_beside(what, predicted, found, unit, close, digits)}")
    else:
        verdict = "as you predicted" if str(predicted).strip().lower() == str(found).lower() else f"you predicted {predicted}"
        print(f"{what}: {result}, {verdict}.")


def _beside(what: str, predicted: object, found: object, unit: str, close: float, digits: int) -> str:
    if not isinstance(predicted, Real) or isinstance(predicted, bool):
        _refuse(what, predicted)
    gap = float(predicted) - float(found)  # type: ignore[arg-type]
    said = f"You predicted {float(predicted):.{digits}f}{unit}"
    if abs(gap) <= close:
        return f"{said}: close."
    return f"{said}: {abs(gap):.{digits}f}{unit} too {'high' if gap > 0 else 'low'}."


def _refuse(what: str, predicted: object) -> NoReturn:
    raise CorsdError(f"prediction {shortened(predicted)} of {what}; allowed: a number, or None for no prediction")
