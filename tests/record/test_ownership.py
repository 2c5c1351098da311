"""Who may write to a run, and how it ends; drivers that die are real processes that are really killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from mlflow_runs import EXPERIMENT, SWEEP_KEY, Start, children, pair, parents, status
from patience import wait_for

from sweep.record.tracker import Tracker
from sweep.store.artifacts import Store
from sweep.store.processes import is_alive_here, this_process


def test_an_artifact_is_logged_once_over_all_sweeps_of_an_experiment(tracker: Tracker, start: Start, store: Store) -> None:
    first = start()
    first.log_child(pair(), store)
    first.log_child(pair(), store)
    first.finish()
    second = start("another sweep")
    assert second.is_logged("a" * 40)
    second.log_child(pair(), store)
    assert [child.data.tags["mlflow.parentRunId"] for child in children(tracker)] == [first.run_id]


def test_a_child_that_was_cut_off_is_replaced(tracker: Tracker, start: Start, store: Store) -> None:
    sweep_run = start()
    tags = {"stage": "pair", "artifact_key": "a" * 40, "mlflow.parentRunId": sweep_run.run_id}
    cut_off = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    sweep_run.finish("KILLED")
    assert tracker.client.get_run(cut_off).info.status == "KILLED"

    again = start()
    assert not again.is_logged("a" * 40)
    again.log_child(pair(), store)
    assert [child.info.status for child in children(tracker)] == ["FINISHED"]


def test_a_stopped_sweep_continues_in_the_same_run(tracker: Tracker, start: Start) -> None:
    first = start(device="cpu")
    first.finish("KILLED")
    assert status(tracker, first) == "KILLED"

    second = start(device="cuda", search="grid")
    assert second.run_id == first.run_id
    assert not second.already_finished
    assert status(tracker, second) == "RUNNING"
    assert parents(tracker)[0].data.params == {"device": "cpu", "search": "grid"}
    second.finish()
    assert status(tracker, second) == "FINISHED"


def test_a_finished_sweep_is_final(tracker: Tracker, start: Start, store: Store) -> None:
    start().finish()
    again = start()
    assert again.already_finished
    again.log_child(pair(), store)
    again.log_metrics({"mean_correlation": 1.0})
    again.finish("FAILED")
    (parent,) = parents(tracker)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {}
    assert children(tracker) == []


# ---------------------------------------------------------------- two drivers


def test_a_process_is_alive_only_as_itself() -> None:
    host, pid, started = this_process().rsplit(":", 2)
    assert is_alive_here(this_process())
    assert not is_alive_here(f"{host}:{pid}:{float(started) - 60}")
    assert not is_alive_here(f"another-host:{pid}:{started}")
    assert not is_alive_here("")


def test_a_second_driver_leaves_a_living_drivers_run_alone(tracker: Tracker, start: Start, other_driver: str, store: Store) -> None:
    tags = {"sweep_key": SWEEP_KEY, "stage": "sweep", "driver": other_driver}
    theirs = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    second = start()
    assert second.run_id == theirs
    assert not second.may_log()
    second.log_child(pair(), store)
    second.finish("FAILED")
    assert children(tracker) == []
    assert tracker.client.get_run(theirs).info.status == "RUNNING"
    assert tracker.client.get_run(theirs).data.tags["driver"] == other_driver


def test_a_second_driver_takes_over_when_the_first_has_died_meanwhile(
    tracker: Tracker, start: Start, other_driver: str, store: Store
) -> None:
    tags = {"sweep_key": SWEEP_KEY, "stage": "sweep", "driver": other_driver}
    theirs = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    second = start()
    tracker.client.set_tag(theirs, "driver", f"{socket.gethostname()}:{2**22 + 1}:1.00")
    second.log_child(pair(), store)
    second.finish()
    assert len(children(tracker)) == 1
    assert tracker.client.get_run(theirs).info.status == "FINISHED"


def test_a_driver_that_was_taken_over_does_not_mark_the_run(tracker: Tracker, start: Start, other_driver: str) -> None:
    first = start()
    tracker.client.set_tag(first.run_id, "driver", other_driver)
    first.finish("FAILED")
    assert status(tracker, first) == "RUNNING"


def test_drivers_that_start_at_the_same_moment_keep_one_run(tracker: Tracker, start: Start, other_driver: str, store: Store) -> None:
    second = start()
    tags = {"sweep_key": SWEEP_KEY, "stage": "sweep", "driver": other_driver}
    older = tracker.client.create_run(tracker.experiment_id, start_time=1000, tags=tags).info.run_id
    second.log_child(pair(), store)
    second.finish()
    assert [parent.info.run_id for parent in parents(tracker)] == [older]
    assert children(tracker) == []


# ---------------------------------------------------------------- ways of ending

DRIVER = """
import os, signal, sys, time
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker
signal.signal(signal.SIGINT, signal.SIG_IGN)
tracker = Tracker(sys.argv[1], sys.argv[2])
run = SweepRun(tracker, sys.argv[3], "all_pairs miniature", {})
tracker.client.create_run(tracker.experiment_id, tags={"stage": "pair", "mlflow.parentRunId": run.run_id})
detached, detach = os.pipe()
forked = os.fork() if sys.argv[4] == "forking" else None
if forked == 0:
    os.setsid()
    os.write(detach, b".")  # before this the group's signals reach it
    time.sleep(300)
    os._exit(0)
if forked:
    os.read(detached, 1)
print(forked or 0, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["plain", "forking"])
def test_nothing_stays_running_after_kill_9(tracker: Tracker, kind: str) -> None:
    """Under "forking" a child without exec outlives the driver and keeps the pipe to the watchdog open."""
    tracker.check()
    command = [sys.executable, "-c", DRIVER, tracker.uri, EXPERIMENT, SWEEP_KEY, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
        assert driver.stdout is not None
        forked = int(driver.stdout.readline())
        try:
            # The whole process group, as a terminal's Ctrl-C or a batch system does it.
            os.killpg(driver.pid, signal.SIGINT)
            assert {run.info.status for run in parents(tracker) + children(tracker)} == {"RUNNING"}
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            wait_for(lambda: {run.info.status for run in parents(tracker) + children(tracker)} == {"KILLED"})
        finally:
            if forked:
                os.kill(forked, signal.SIGKILL)


def test_a_sweep_killed_while_it_starts_does_not_stay_running(tracker: Tracker) -> None:
    tracker.check()
    code = "SweepRun._take_over = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    driver = DRIVER.replace("tracker = ", code + "tracker = ", 1)
    ended = subprocess.run([sys.executable, "-c", driver, tracker.uri, EXPERIMENT, SWEEP_KEY, "plain"])
    assert ended.returncode == -signal.SIGKILL
    wait_for(lambda: [run.info.status for run in parents(tracker)] == ["KILLED"])


def test_the_watchdog_ends_with_the_run(start: Start) -> None:
    before = set(psutil.Process().children())
    sweep_run = start()
    (watchdog,) = set(psutil.Process().children()) - before
    assert watchdog.memory_info().rss < 50_000_000  # no MLflow in it: that takes 150 MB
    sweep_run.finish()
    assert not watchdog.is_running()
