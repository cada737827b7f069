"""Notices: remarks on how data was read, shown once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["DataNotice", "say", "silent"]

_said: set[str] = set()


class DataNotice(UserWarning):
    """A remark about the data that is not an error: ignored files, an unused folder, enlarged images."""


def say(name: str, notices: Iterable[str]) -> None:
    """Show each notice about the data set `name` as a warning, once in a process.

    Python's own filter "once" is not enough: it is reset whenever a library uses `warnings.catch_warnings`.
    """
    for text in (f"{name}: {notice}" for notice in notices):
        if text not in _said:
            _said.add(text)
            warnings.warn(text, DataNotice, stacklevel=3)  # reported at the call of load_dataset


@contextmanager
def silent() -> Iterator[None]:
    """Suppress `DataNotice` warnings inside the context, for a caller that shows the notices in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)
        yield
