"""Progress is one line on a terminal, some lines in a file, and an estimate that start-up does not spoil."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from patience import PATIENCE_S

from sweep.engines import interruption
from sweep.engines.progress import Progress, polled
from sweep.report.text import duration


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    """Stands where the module looks for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("sweep.engines.progress.time", SimpleNamespace(monotonic=lambda: self.now))


def test_durations_are_read_at_a_glance():
    assert [duration(s) for s in (0.4, 42, 187.2, 7500)] == ["0 s", "42 s", "3:07", "2:05:00"]


def test_a_terminal_keeps_one_line_and_a_file_gets_whole_ones_now_and_then(monkeypatch):
    terminal, file = _Terminal(), io.StringIO()
    clock = _Clock(monkeypatch)
    shown = [Progress("labels", 40, "pictures", stream=stream) for stream in (terminal, file)]
    for _ in range(40):
        clock.now += 1.0
        for progress in shown:
            progress.advance(1, "5 evaluations/s")
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().endswith("\n")
    assert all(part.startswith("\x1b[2K  labels") for part in terminal.getvalue().split("\r")[1:])
    lines = file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/40", "11/40", "21/40", "31/40", "40/40"]
    assert lines[1] == "  labels    11/40 pictures, 11 s, about 29 s left, 5 evaluations/s"
    assert lines[-1] == "  labels    40/40 pictures, 40 s, 5 evaluations/s"
    assert "\r" not in file.getvalue() and "\x1b" not in file.getvalue()


def test_start_up_is_not_extrapolated(monkeypatch):
    clock = _Clock(monkeypatch)
    progress = Progress("models", 10, "models", stream=io.StringIO())
    clock.now += 300  # an engine starts
    progress.advance()
    assert progress.left_s(clock.now) is None
    clock.now += 2
    progress.advance()
    assert progress.left_s(clock.now) == pytest.approx(16)


def test_an_interrupt_that_was_dropped_is_raised_by_the_next_unit_in_the_main_thread_only():
    progress = Progress("models", 10, "models", stream=io.StringIO())
    with interruption.remembered():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        thread = threading.Thread(target=progress.advance)
        thread.start()
        thread.join()
        assert progress.done == 1
        with pytest.raises(KeyboardInterrupt):
            progress.advance()


def test_what_reports_nothing_is_counted_from_outside_to_the_end():
    done: list[int] = []
    progress = Progress("models", 3, "models", stream=io.StringIO())
    with interruption.remembered(), polled(progress, lambda: len(done), every_s=0.01):
        done.append(0)
        deadline = time.monotonic() + PATIENCE_S
        while progress.done < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert progress.done == 1
        done += [1, 2]
    assert progress.done == 3
