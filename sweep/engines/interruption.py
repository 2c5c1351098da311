"""Ctrl-C that cannot get lost.

Python turns SIGINT into a KeyboardInterrupt wherever the main thread happens to be; in a destructor or a callback of a library the
exception is dropped, and the program goes on. Here it is remembered and raised again at the next check.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_is_interrupted = threading.Event()


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, a SIGINT raises KeyboardInterrupt and is remembered for `check`. Only in the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _is_interrupted.clear()
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    _is_interrupted.set()
    raise KeyboardInterrupt


def is_interrupted() -> bool:
    """Whether a SIGINT has come."""
    return _is_interrupted.is_set()


def check() -> None:
    """Raise KeyboardInterrupt if a SIGINT has come."""
    if _is_interrupted.is_set():
        raise KeyboardInterrupt
