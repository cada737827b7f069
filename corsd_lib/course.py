"""Helpers for the notebooks of the course: comparison of results with the reader's predictions, and checks of exercises."""

from __future__ import annotations

from numbers import Real
from typing import NoReturn

from corsd_lib.errors import CorsdError, shortened

__all__ = ["Hint", "answered", "compare", "expect", "with_ends"]


class Hint(AssertionError):
    """Raised for an answer that is missing or wrong. Jupyter shows "Not yet: " and the message, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def expect(condition: object, hint: str) -> None:
    """Raise a `Hint` with the text `hint` unless `condition` is true; a tensor must have one element."""
    if not bool(condition):
        raise Hint(hint)


def answered(answer: object) -> None:
    """Raise a `Hint` while `answer` is still the `...` of a stub."""
    if answer is ...:
        raise Hint("no answer yet. Replace the `...` with your code and run both cells again.")


def compare(quantity: str, predicted: object, actual: object, unit: str = "", atol: float = 0.0, digits: int = 0) -> None:
    """Print the result `actual` beside the reader's prediction, if there is one.

    `predicted`: None (no prediction), a number if `actual` is one, else a value that is compared with `actual` as text,
    ignoring case. Numbers are printed with `digits` decimals and `unit`; a difference of at most `atol` counts as correct.
    Raises `CorsdError` if `actual` is a number and `predicted` is not.
    """
    number = isinstance(actual, Real) and not isinstance(actual, bool)
    result = f"{actual:.{digits}f}{unit}" if number else f"{actual}"
    if predicted is None:
        print(f"{quantity}: {result}.")
    elif number:
        print(f"{quantity}: {result}. {_compared(quantity, predicted, actual, unit, atol, digits)}")
    else:
        verdict = "as you predicted" if str(predicted).strip().lower() == str(actual).lower() else f"you predicted {predicted}"
        print(f"{quantity}: {result}, {verdict}.")


def with_ends(mean: float, low: float | None, high: float | None) -> str:
    """A mean with the ends of its interval as text, such as "+1.2 [+0.1, +2.4]"; the mean alone if the ends are None.

    Numbers have one decimal. They have two if one decimal would make both ends look equal, or would round an end to 0.0. From
    an end of 0.0 a reader could not tell whether the interval excludes 0.
    """
    if low is None or high is None:
        return f"{mean:+.1f}"
    digits = 2 if min(abs(low), abs(high)) < 0.05 or f"{low:.1f}" == f"{high:.1f}" else 1
    mean = round(mean, digits) or 0.0  # not -0.0
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _compared(quantity: str, predicted: object, actual: object, unit: str, atol: float, digits: int) -> str:
    if not isinstance(predicted, Real) or isinstance(predicted, bool):
        _refuse(quantity, predicted)
    gap = float(predicted) - float(actual)  # type: ignore[arg-type]
    said = f"You predicted {float(predicted):.{digits}f}{unit}"
    if abs(gap) <= atol:
        return f"{said}: close."
    return f"{said}: {abs(gap):.{digits}f}{unit} too {'high' if gap > 0 else 'low'}."


def _refuse(quantity: str, predicted: object) -> NoReturn:
    raise CorsdError(f"the prediction of {quantity} is {shortened(predicted)}; allowed: a number, or None for no prediction")
