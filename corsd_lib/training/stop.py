"""Stopping a training on a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["stop_request"]


@contextmanager
def stop_request(stop: threading.Event | None = None) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT (Ctrl-C) or SIGTERM sets.

    `stop`: the event to use (default: a new one). After the first signal, SIGINT has its usual effect again, and further
    SIGTERMs, which some schedulers send, have no effect. Python handles signals only in the main thread of a process; in
    another thread signals do not set the event, and only the caller can set `stop`.
    """
    stop = stop or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, handlers[signal.SIGINT])

    for s in handlers:
        signal.signal(s, request)
    try:
        yield stop
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
