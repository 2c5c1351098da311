"""Ray on a machine that is busy: started again where its own processes took too long, and nowhere else."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from pyarrow import fs

from sweep import run
from sweep.engines.cluster import check_storage, patiently
from sweep.experiment.config import ConfigError

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


KNOWN = ("store", "/data/a store", "file:///data/store", "s3://bucket/x", "gs://bucket/x", "abfs://container@account.dfs.core.windows.net/x")


@pytest.mark.parametrize("url", KNOWN)
def test_a_store_that_ray_can_write_to(url):
    check_storage(url)


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("s3a://bucket/x", "write s3://"),
        ("az://container/x", "write abfs://CONTAINER@ACCOUNT"),
        ("abfs://container/x", "write abfs://CONTAINER@ACCOUNT"),
        ("oss://bucket/x", "that all nodes share, s3://"),
    ],
)
def test_a_store_that_ray_cannot_write_to_is_refused_before_anything_runs(url, fix):
    """Arrow knows no such address, with the error that a training would end in."""
    with pytest.raises(ConfigError, match=re.escape(fix)):
        check_storage(url)
    with pytest.raises(pa.ArrowInvalid):
        fs.FileSystem.from_uri(url)


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--seeds", "2"]])
def test_a_sweep_is_refused_such_a_store(more, capsys):
    assert run.main(["all_pairs", "--store", "oss://bucket/x", *more]) == run.EXIT_BAD_INPUT
    assert "--store oss://bucket/x" in capsys.readouterr().err
