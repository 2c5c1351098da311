"""Ctrl-C that lands where Python drops exceptions is raised again at the next check."""

from __future__ import annotations

import os
import signal
import time

import pytest

from sweep.engines import interruption
from sweep.engines.progress import Progress, polled


class DropsExceptions:
    """Its destructor is where the signal lands: Python prints and drops what is raised there."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_interrupt_is_raised_at_the_next_check():
    with interruption.remembered():
        DropsExceptions()
        assert interruption.is_interrupted()
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_interrupt_ends_a_wait_that_checks_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sweep.engines.progress.LOST_S", 0.3)
    began = time.monotonic()
    with (
        interruption.remembered(),
        pytest.raises(KeyboardInterrupt),
        polled(Progress("stage", 2, "units"), lambda: 0, every_s=0.1),
    ):
        DropsExceptions()
        time.sleep(20)
    assert time.monotonic() - began < 10


def test_an_ordinary_interrupt_is_raised_at_once_and_forgotten_by_the_next_run():
    before = signal.getsignal(signal.SIGINT)
    with interruption.remembered(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    with interruption.remembered():
        interruption.check()
    assert signal.getsignal(signal.SIGINT) is before
