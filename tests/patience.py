"""How long a test waits before it calls something hung. A limit, never a measure: machines differ by a factor of five."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 1200


def wait_for(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
