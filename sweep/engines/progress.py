"""Progress on the terminal: how far a stage is, how fast, and what is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from sweep.engines import interruption
from sweep.report.text import duration

LOST_S = 5.0


class Progress:
    """Counts units of one stage. On a terminal the line is rewritten; elsewhere a line is printed every `every_s` seconds.

    The estimate is by the rate since the first unit was done: start-up is not extrapolated.
    """

    def __init__(
        self, stage: str, total: int, unit: str, *, stream: TextIO | None = None, every_s: float = 10.0
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done = 0
        self.extra = ""
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._every_s = 0.2 if self._is_terminal else every_s
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._printed = -1e9
        self._lock = threading.Lock()

    def advance(self, number: int = 1, extra: str = "") -> None:
        """`number` more units are done. Raises KeyboardInterrupt in the main thread if Ctrl-C was pressed."""
        if threading.current_thread() is threading.main_thread():
            interruption.check()
        with self._lock:
            self.done += number
            self.extra = extra
            now = time.monotonic()
            if self._first is None:
                self._first = (now, self.done)
            if now - self._printed >= self._every_s or self.done >= self.total:
                self._printed = now
                self._print(self.line(now), end=self.done >= self.total)

    def left_s(self, now: float) -> float | None:
        """Estimated seconds left; None before two units are done."""
        if self._first is None or self.done <= self._first[1]:
            return None
        return (now - self._first[0]) / (self.done - self._first[1]) * (self.total - self.done)

    def line(self, now: float) -> str:
        left = self.left_s(now)
        parts = [f"{self.done}/{self.total} {self.unit}", duration(now - self._started)]
        if self.done < self.total:
            parts.append(f"about {duration(left)} left" if left is not None else "estimating")
        if self.extra:
            parts.append(self.extra)
        return f"  {self.stage:<9} " + ", ".join(parts)

    def _print(self, text: str, end: bool) -> None:
        if self._is_terminal:
            self._stream.write(f"\r\x1b[2K{text}" + ("\n" if end else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


@contextmanager
def polled(progress: Progress, count_done: Callable[[], int], every_s: float = 2.0) -> Iterator[None]:
    """Advance `progress` from a thread that counts what is done, while the caller waits for something that reports nothing itself."""
    stopped = threading.Event()

    def poll() -> None:
        interrupted_s = 0.0
        while not stopped.wait(every_s):
            interrupted_s = interrupted_s + every_s if interruption.is_interrupted() else 0.0
            if interrupted_s > LOST_S:  # the caller still waits: the exception was dropped
                os.kill(os.getpid(), signal.SIGINT)
                return
            number = count_done()
            if number > progress.done:
                progress.advance(number - progress.done)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
    number = count_done()
    if number > progress.done:
        progress.advance(number - progress.done)
