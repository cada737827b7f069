"""What a user should know of how data was read, said once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["DataNotice", "say", "silent"]

_said: set[str] = set()


class DataNotice(UserWarning):
    """Something about the data that is no error: files that were passed over, a folder that is not used, images enlarged."""


def say(name: str, notices: Iterable[str]) -> None:
    """Warn of each notice about the data set `name`, once a process.

    Python's own filter is no help: it forgets what was shown whenever a library has used `warnings.catch_warnings`.
    """
    for text in (f"{name}: {notice}" for notice in notices):
        if text not in _said:
            _said.add(text)
            warnings.warn(text, DataNotice, stacklevel=3)  # of the caller of load_dataset


@contextmanager
def silent() -> Iterator[None]:
    """No notice is shown inside: somebody else does it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)
        yield
