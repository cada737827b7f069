"""What a user should know of how data was read, said once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

__all__ = ["DataNotice", "say"]


class DataNotice(UserWarning):
    """Something about the data that is no error: files that were passed over, a folder that is not used, images enlarged."""


def say(name: str, notices: Iterable[str]) -> None:
    """Warn of each notice about the data set `name`; Python's default filter shows the same text once a process."""
    for notice in notices:
        warnings.warn(f"{name}: {notice}", DataNotice, stacklevel=1)  # of this line, whoever asks: else once a caller
