"""Bars are for people: logs and pipes get none."""

from __future__ import annotations

import sys

import pytest

from corsd_lib.datasets.progress import progress_bar


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_in_a_terminal_alone(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert list(progress_bar(range(3), desc="reading")) == [0, 1, 2]
    assert ("reading" in capsys.readouterr().err) is terminal


def test_a_bar_is_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm.notebook import tqdm_notebook

    made: list[bool | None] = []

    class Bar(tqdm_notebook):
        def __init__(self, *args: object, disable: bool | None = None, **options: object) -> None:
            made.append(disable)

        def __del__(self) -> None: ...

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    progress_bar(range(3))
    assert made == [False]
