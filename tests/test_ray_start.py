"""Ray on a machine that is busy: started again where its own processes took too long, and nowhere else."""

from __future__ import annotations

import pytest

from sweep.engines.cluster import patiently

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup"  # Ray 2.60's words


@pytest.mark.parametrize(("num_slow", "num_starts"), [(0, 1), (2, 3)])
def test_a_slow_start_is_tried_again(num_slow, num_starts):
    starts = []

    def start() -> None:
        starts.append(1)
        if len(starts) <= num_slow:
            raise Exception(SLOW)

    patiently(start)
    assert len(starts) == num_starts


@pytest.mark.parametrize(
    ("message", "told", "num_starts"), [(SLOW, "too busy.*the same command again", 3), ("the port is taken", "the port is taken", 1)]
)
def test_what_does_not_pass_is_raised(message, told, num_starts):
    starts = []

    def start() -> None:
        starts.append(1)
        raise Exception(message)

    with pytest.raises(Exception, match=told):
        patiently(start)
    assert len(starts) == num_starts
