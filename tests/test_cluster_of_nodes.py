"""A sweep on a cluster of three nodes that share no disk: a head without CPUs, two workers, one of them lost on the way.

Each node is a raylet of its own, started in a directory of its own with a cache of its own; what they share is a bucket on a local S3
server. Real: Ray's scheduling, losses and retries, the engines, S3 requests. Not real: separate machines, and AWS.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from patience import PATIENCE_S

from sweep.store.artifacts import Store

SWEEP = [
    *("all_pairs", "--suite", "miniature", "--domains", "clean_digits", "street_digits", "--num-steps", "20", "--alphas", "0.5"),
    *("--targets", "street_digits", "--validation-share", "0.1"),
    *("--max-train-pictures", "40", "--max-test-pictures", "12", "--max-test-labels", "4", "--budget", "104", "--test-budget", "104"),
    *("--precision", "float32", "--search", "optuna", "--lambdas", "0,1.2", "--num-trials", "3"),
]
GUARD = Path(__file__).parent / "driver_without_models.py"
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """One `ray start`, in a directory of its own."""

    def __init__(self, directory: Path, environment: dict[str, str], *arguments: str) -> None:
        directory.mkdir()
        self.cache = directory / "cache"
        self._log = directory / "log"
        self._process = subprocess.Popen(
            [*RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=150000000", *arguments],
            cwd=directory,
            env={**environment, "XDG_CACHE_HOME": str(self.cache)},
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
        )

        self._wait_until_up()

    def _wait_until_up(self) -> None:
        """Two that start on one machine at the same moment take the same names for their sockets, and one that finds no head gives up."""
        deadline = time.monotonic() + PATIENCE_S
        while "block forever" not in self._log.read_text():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def lose(self) -> None:
        """The machine is gone: nothing of it gets a chance to say so."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


class Cluster:
    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory, self.environment = directory, environment
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        head = ("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={directory / 'ray'}")
        self.head = Node(directory / "head", environment, *head)
        self.workers = [self.add(name) for name in ("one", "two")]

    def add(self, name: str) -> Node:
        return Node(self.directory / name, self.environment, f"--address={self.address}", "--num-cpus=2")

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        """`python -m sweep.run` on the head's machine, in a process that can build no model."""
        home = self.directory / "head"
        return subprocess.Popen(
            [sys.executable, str(GUARD), *arguments, "--address", self.address, "--workers", "2", "--device", "cpu"],
            cwd=home,
            env={**self.environment, "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """The environment in which s3://bucket is on a local server."""
    moto_server = pytest.importorskip("moto.server", reason="moto is a test dependency")
    boto3 = pytest.importorskip("boto3", reason="boto3 is a test dependency")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"], **credentials)
    client.create_bucket(Bucket="bucket")
    yield {**os.environ, **settings, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, bucket) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("nodes"), bucket)
    yield cluster
    for node in (*cluster.workers, cluster.head):
        node.lose()


def wait_for(condition, process: subprocess.Popen[str], seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(1.0)  # each look is a request to a server in this process


def test_a_store_that_the_nodes_do_not_see_is_refused(cluster):
    """All nodes of this test see its disk, so that the place that one of them does not see is the driver's own memory."""
    process = cluster.run(*SWEEP, "--store", "memory://of-one-process")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2 and "only this machine sees it" in output and "s3://" in output, output


def test_a_sweep_ends_on_a_head_without_cpus_though_a_node_is_lost(cluster, bucket, monkeypatch):
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    process = cluster.run(*SWEEP, "--store", "s3://bucket/sweep")
    store = Store("s3://bucket/sweep", str(cluster.directory / "test_cache"))
    wait_for(lambda: store.keys("finetune"), process)
    cluster.workers.pop().lose()
    cluster.workers.append(cluster.add("three"))
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "clean_digits -> street_digits" in output and "Report:" in output
    assert len(store.keys("finetune")) == 4 and len(store.keys("result")) == 1
    (pair,) = store.keys("pair")
    assert store.open(pair).path("study.journal").is_file()
    # The driver needed neither pictures nor weights: only what it writes down came to the head.
    copied = {path.name for path in (cluster.directory / "head" / "cache").rglob("*") if path.is_file()}
    assert "report.html" in copied and not copied & {"pixels.npy", "visual.safetensors"}
