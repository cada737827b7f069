"""Progress bars."""

from __future__ import annotations

from typing import Any


def progress_bar(*args: Any, **options: Any) -> Any:
    """A tqdm bar in a notebook or terminal; hidden if stderr is a file or a pipe. Arguments as in `tqdm`."""
    from tqdm.auto import tqdm
    from tqdm.notebook import tqdm_notebook

    bar: type[Any] = tqdm
    return bar(
        *args, disable=False if issubclass(bar, tqdm_notebook) else None, **options
    )  # None hides the bar without a terminal
