"""Stages are recorded as they finish, off the sweep's path, whatever becomes of the MLflow store meanwhile."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qs

import pandas as pd
import pytest
from mlflow_runs import (
    SWEEP_KEY,
    WEIGHTS,
    Pictures,
    Start,
    Vector,
    children,
    names,
    parents,
    published,
    status,
)
from patience import wait_for

from sweep.record import recorder as recorder_module
from sweep.record.recorder import Recorder
from sweep.record.tracker import Tracker, TrackingError
from sweep.store.artifacts import Store, StoreError


def finish(
    recorder: Recorder, directory: Path, note: str = "All pairs of two domains.\n\nThe best of all.", compared: Sequence[str] = ()
) -> None:
    """End a sweep with a report, a figure and a table."""
    (directory / "report.html").write_text("<h1>the report</h1>")
    (directory / "trade_off.png").write_bytes(b"png")
    cells = pd.DataFrame({"source_domain": ["cars", "scenes <b>"], "e_rmse": [0.5, None]})
    recorder.finish(
        files={"report.html": directory / "report.html", "figures/trade_off.png": directory / "trade_off.png"},
        tables={"cells": cells},
        metrics={"mean_correlation": 0.25, "mean_iou_at_10": float("nan")},
        note=note,
        compared=compared,
    )


@pytest.fixture
def outage(tracker: Tracker, tmp_path: Path) -> Callable[[bool], None]:
    """Take the MLflow store away, and bring it back as it was."""

    def switch(is_down: bool) -> None:
        database, saved = tmp_path / "mlflow.db", tmp_path / "saved.db"
        if is_down:
            shutil.copyfile(database, saved)
            database.write_text("gone")
        else:
            shutil.copyfile(saved, database)

    return switch


# ---------------------------------------------------------------- while a sweep runs


def test_a_child_stands_in_mlflow_before_the_sweep_ends(tracker: Tracker, start: Start, store: Store) -> None:
    sweep_run = start()
    with Recorder(sweep_run, store) as recorder:
        for number, stage in enumerate(published(store, Vector("cars"), Pictures("cars"), Vector("scenes"))):
            recorder.on_finished(stage)
            wait_for(lambda: len(children(tracker)) == [1, 1, 2][number])  # noqa: B023  # called at once
        recorder.flush()
    assert names(tracker) == ["cars alpha=0.5", "scenes alpha=0.5"]
    child = next(child for child in children(tracker) if child.info.run_name == "cars alpha=0.5")
    assert child.info.status == "FINISHED"
    assert child.data.params == {"source_domain": "cars", "alpha": "0.5"}
    assert child.data.metrics == {"accuracy": 0.75, "loss": 1.0}
    assert child.data.tags["mlflow.parentRunId"] == sweep_run.run_id
    fetched = tracker.client.download_artifacts(child.info.run_id, "vectors/explainability_vector.safetensors")
    assert Path(fetched).read_bytes() == WEIGHTS
    assert status(tracker, sweep_run) == "RUNNING"


def test_the_sweep_does_not_wait_for_a_child_that_takes_long(tracker: Tracker, start: Start, store: Store) -> None:
    is_asked, may_go_on = threading.Event(), threading.Event()

    class Slow(Vector):
        def child_run(self, store: Store):  # type: ignore[no-untyped-def]
            is_asked.set()
            assert may_go_on.wait(20)
            return super().child_run(store)

    with Recorder(start(), store) as recorder:
        stages = published(store, Slow("cars"), Vector("scenes"))
        started = time.monotonic()
        for stage in stages:
            recorder.on_finished(stage)
        assert time.monotonic() - started < 1
        assert is_asked.wait(20)
        assert children(tracker) == []
        may_go_on.set()
        recorder.flush()
    assert len(children(tracker)) == 2


def test_a_wait_for_the_record_shows_how_far_it_is_and_can_be_interrupted(start: Start, store: Store) -> None:
    seen = []

    def show(num_done: int, num_all: int) -> None:
        seen.append((num_done, num_all))

    with Recorder(start(), store, show) as recorder:
        for stage in published(store, *(Vector(f"domain {i}") for i in range(4))):
            recorder.on_finished(stage)
        recorder.flush()
    assert seen[-1] == (4, 4)
    assert seen == sorted(seen)

    def interrupt(num_done: int, num_all: int) -> None:
        raise KeyboardInterrupt

    is_held = threading.Event()

    class Held(Vector):
        def child_run(self, store: Store):  # type: ignore[no-untyped-def]
            is_held.wait(3)

    with Recorder(start(), store, interrupt) as recorder:
        recorder.on_finished(Held("cars"))
        with pytest.raises(KeyboardInterrupt):
            recorder.flush()
        is_held.set()


def test_a_stage_that_cannot_be_recorded_is_named_and_the_others_are_recorded(tracker: Tracker, start: Start, store: Store) -> None:
    damaged = StoreError("history.json of the artifact is damaged: delete this directory")
    recorder = Recorder(start(), store)
    for stage in published(store, Vector("cars"), Vector("textures", error=damaged), Vector("scenes")):
        recorder.on_finished(stage)
    with pytest.raises(StoreError, match="delete this directory"):
        recorder.flush()
    assert names(tracker) == ["cars alpha=0.5", "scenes alpha=0.5"]
    recorder.close()


# ---------------------------------------------------------------- the end


def test_the_end_logs_what_is_the_whole_sweeps(tracker: Tracker, start: Start, store: Store, tmp_path: Path) -> None:
    sweep_run = start(note="All pairs of two domains.\n\nNot finished yet.")
    assert parents(tracker)[0].data.tags["mlflow.note.content"].startswith("All pairs of two domains.")
    with Recorder(sweep_run, store) as recorder:
        recorder.on_finished(published(store, Vector("cars"))[0])
        finish(recorder, tmp_path)
    (parent,) = parents(tracker)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"mean_correlation": 0.25}
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("All pairs of two domains.\n\nLook at [report.html](")
    assert note.endswith(")\n\nThe best of all.")
    assert (
        f"[report.html](#/experiments/{tracker.experiment_id}/runs/{sweep_run.run_id}/artifacts/report.html?workflowType=machine_learning)"
        in note
    )
    assert "[figures](" in note and "[cells.html](" in note
    files = {file.path for file in tracker.client.list_artifacts(sweep_run.run_id)}
    assert files == {"report.html", "figures", "cells.parquet", "cells.html"}
    assert [file.path for file in tracker.client.list_artifacts(sweep_run.run_id, "figures")] == ["figures/trade_off.png"]
    page = Path(tracker.client.download_artifacts(sweep_run.run_id, "cells.html")).read_text()
    assert "scenes &lt;b&gt;" in page and "scenes <b>" not in page
    assert names(tracker) == ["cars alpha=0.5"]


def test_the_note_leads_to_all_pairs_side_by_side_whichever_sweep_logged_them(
    tracker: Tracker, start: Start, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, both, textures = published(store, Vector("cars"))[0], *published(store, Vector("scenes"), Vector("textures"))
    with Recorder(start("another sweep"), store) as recorder:
        recorder.on_finished(before)
        finish(recorder, tmp_path, compared=[before.key])
    (earlier,) = parents(tracker)
    assert "side by side" not in earlier.data.tags["mlflow.note.content"]  # one is nothing to compare

    def note_of(sweep_key: str) -> str:
        with Recorder(start(sweep_key), store) as recorder:
            for stage in (both, textures):
                recorder.on_finished(stage)
            finish(recorder, tmp_path, compared=[before.key, both.key])
        (run,) = (run for run in parents(tracker) if run.data.tags["sweep_key"] == sweep_key)
        return str(run.data.tags["mlflow.note.content"])

    (address,) = re.findall(r"\[all 2 pairs side by side\]\(#/compare-runs\?(.*?)\)", note_of("this sweep"))
    asked = parse_qs(address)
    ids = {child.data.tags["artifact_key"]: child.info.run_id for child in children(tracker)}
    assert json.loads(asked["runs"][0]) == [ids[before.key], ids[both.key]]
    assert json.loads(asked["experiments"][0]) == [tracker.experiment_id]
    monkeypatch.setattr("sweep.record.sweep_run.MOST_COMPARED", 1)
    assert "side by side" not in note_of("a sweep of too many pairs")


def test_a_recorded_sweep_is_left_as_it_is(tracker: Tracker, start: Start, store: Store, tmp_path: Path) -> None:
    stages = published(store, Vector("cars"))
    for note in ("the first", "the second"):
        with Recorder(start(), store) as recorder:
            for stage in stages:
                recorder.on_finished(stage)
            finish(recorder, tmp_path, note)
    (parent,) = parents(tracker)
    assert parent.data.tags["mlflow.note.content"].startswith("the first")
    assert len(children(tracker)) == 1


def test_a_sweep_that_was_cut_off_is_recorded_by_the_next_run(tracker: Tracker, start: Start, store: Store, tmp_path: Path) -> None:
    stages = published(store, Vector("cars"), Vector("scenes"))
    first = start()
    with Recorder(first, store) as recorder:
        recorder.on_finished(stages[0])
        recorder.flush()
    first.finish("KILLED")
    (before,) = children(tracker)

    with Recorder(start(), store) as recorder:
        for stage in stages:
            recorder.on_finished(stage)
        finish(recorder, tmp_path)
    assert names(tracker) == ["cars alpha=0.5", "scenes alpha=0.5"]
    assert before.info.run_id in {child.info.run_id for child in children(tracker)}
    assert status(tracker, first) == "FINISHED"


def test_closing_does_not_wait_for_what_hangs(start: Start, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "PATIENCE_S", 0.5)
    may_end = threading.Event()

    class Hanging(Vector):
        def child_run(self, store: Store):  # type: ignore[no-untyped-def]
            may_end.wait(30)

    recorder = Recorder(start(), store)
    recorder.on_finished(Hanging("cars"))
    started = time.monotonic()
    recorder.close()
    assert time.monotonic() - started < 5
    may_end.set()


# ---------------------------------------------------------------- a store that fails


def test_a_failing_store_is_told_at_the_end_and_the_next_run_logs_what_is_missing(
    tracker: Tracker, start: Start, store: Store, tmp_path: Path, outage: Callable[[bool], None]
) -> None:
    stages = published(store, Vector("cars"), Vector("scenes"), Vector("textures"))
    sweep_run = start()
    recorder = Recorder(sweep_run, store)
    recorder.on_finished(stages[0])
    recorder.flush()
    outage(True)
    for stage in stages:
        recorder.on_finished(stage)
    started = time.monotonic()
    with pytest.raises(TrackingError, match="the same command logs what is missing") as failure:
        finish(recorder, tmp_path)
    assert time.monotonic() - started < 30
    assert "writable directory" in str(failure.value)
    recorder.close()
    sweep_run.finish("FAILED")

    outage(False)
    assert names(tracker) == ["cars alpha=0.5"]
    with Recorder(start(), store) as recorder:
        for stage in stages:
            recorder.on_finished(stage)
        finish(recorder, tmp_path)
    assert names(tracker) == ["cars alpha=0.5", "scenes alpha=0.5", "textures alpha=0.5"]
    assert status(tracker, sweep_run) == "FINISHED"


def test_what_failed_is_tried_again_while_the_sweep_runs(
    tracker: Tracker, start: Start, store: Store, outage: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.5)
    with Recorder(start(), store) as recorder:
        outage(True)
        for stage in published(store, Vector("cars"), Vector("scenes")):
            recorder.on_finished(stage)
        wait_for(lambda: recorder._failure is not None)
        outage(False)
        wait_for(lambda: names(tracker) == ["cars alpha=0.5", "scenes alpha=0.5"])
        recorder.flush()
    assert {child.info.status for child in children(tracker)} == {"FINISHED"}


def test_a_second_driver_records_nothing_beside_the_first_and_all_once_it_has_died(
    tracker: Tracker, store: Store, start: Start, other_driver: str, tmp_path: Path
) -> None:
    tags = {"sweep_key": SWEEP_KEY, "stage": "sweep", "driver": other_driver}
    theirs = tracker.client.create_run(tracker.experiment_id, tags=tags).info.run_id
    stages = published(store, Vector("cars"), Vector("scenes"))
    with Recorder(start(), store) as recorder:
        for stage in stages:
            recorder.on_finished(stage)
        recorder.flush()
        finish(recorder, tmp_path)
        assert children(tracker) == []
        assert tracker.client.get_run(theirs).info.status == "RUNNING"
        tracker.client.set_terminated(theirs, "KILLED")
        finish(recorder, tmp_path)
    assert names(tracker) == ["cars alpha=0.5", "scenes alpha=0.5"]
    assert tracker.client.get_run(theirs).info.status == "FINISHED"
