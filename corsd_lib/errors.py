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


def check_text(what: str, *texts: str) -> None:
    """Raise `CorsdError` unless every one of `texts` can be written as UTF-8; `what` names them in the message.

    Python reads file names in another encoding as surrogates, which no JSON file, table or terminal takes.
    """
    for text in texts:
        if shown_text(text) != text:
            raise CorsdError(f"{what} {shown_text(text)!r} is not valid UTF-8; allowed: text that is, so rename it")


def shown_text(text: str) -> str:
    """`text` with what is not valid UTF-8 in it written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
