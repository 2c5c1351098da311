"""Children of a sweep: found by key, one an artifact, however many drivers log them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from mlflow_runs import EXPERIMENT, WEIGHTS, Start, Vector, children, pair, published

from sweep.record.children import Children
from sweep.record.recorder import Recorder
from sweep.record.tracker import Tracker, TrackingError
from sweep.store.artifacts import Store


def test_a_child_whose_logging_broke_off_is_not_left_beside_the_whole_one(tracker: Tracker, start: Start, store: Store) -> None:
    sweep_run = start()
    missing = store.url + "/a file that is not there"
    with pytest.raises(TrackingError):
        sweep_run.log_child(pair(files=[(Path(missing), None)]), store)
    assert [child.info.status for child in children(tracker)] == ["RUNNING"]
    sweep_run.log_child(pair(), store)
    assert [child.info.status for child in children(tracker)] == ["FINISHED"]


def test_whether_children_are_logged_is_one_question_to_the_store(
    tracker: Tracker, start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = published(store, *(Vector(f"domain {i}") for i in range(5)))
    with Recorder(start("another sweep"), store) as recorder:
        for stage in stages:
            recorder.on_finished(stage)
        recorder.flush()
    sweep_run = start()
    assert sweep_run.may_log()
    questions = []
    ask = tracker.client.search_runs
    monkeypatch.setattr(tracker.client, "search_runs", lambda *given, **more: questions.append(given) or ask(*given, **more))
    with Recorder(sweep_run, store) as recorder:
        for stage in stages:
            recorder.on_finished(stage)
        recorder.flush()
    assert len(questions) == 1


def test_two_sweeps_that_log_the_same_child_at_the_same_moment_keep_one(tracker: Tracker, start: Start, store: Store) -> None:
    """Both have looked before the other began; afterwards each knows what the other has logged meanwhile."""
    first, second = start("one sweep"), start("another sweep")
    assert not first.is_logged("a" * 40)
    assert not second.is_logged("a" * 40)
    first.log_child(pair(), store)
    first.log_child(pair("b" * 40), store)
    second.log_child(pair(), store)
    assert [child.data.tags["mlflow.parentRunId"] for child in children(tracker)] == [first.run_id] * 2
    assert second.is_logged("b" * 40)


def test_drivers_in_a_race_end_with_one_child_a_key(tracker: Tracker, store: Store, start: Start) -> None:
    keys = [f"{i:040d}" for i in range(6)]
    logs = [Children(tracker) for _ in range(3)]
    parent = start()
    for log in logs:
        assert not log.is_logged(keys[0])
    barrier = threading.Barrier(len(logs))

    def log_all(log: Children) -> None:
        for key in keys:
            barrier.wait(30)
            log._finished = {}  # as if nothing had been seen yet
            log.log(pair(key), parent.run_id, store)

    threads = [threading.Thread(target=log_all, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(child.data.tags["artifact_key"] for child in children(tracker)) == keys
    assert {child.info.status for child in children(tracker)} == {"FINISHED"}


def test_a_vector_in_a_bucket_is_named_by_a_link_without_credentials(tracker: Tracker, start: Start, tmp_path: Path) -> None:
    store = Store("memory://user:secret@bucket/sweep", str(tmp_path / "cache"))
    file_name = "explainability_vector.safetensors"
    (stage,) = published(store, Vector("cars"))
    with Recorder(start(), store) as recorder:
        recorder.on_finished(stage)
        recorder.flush()
    (child,) = children(tracker)
    (file,) = tracker.client.list_artifacts(child.info.run_id, "vectors")
    assert file.path == "vectors/explainability_vector.json"
    link = json.loads(Path(tracker.client.download_artifacts(child.info.run_id, file.path)).read_text())
    facts = stage.artifact(store).manifest["files"][file_name]
    assert {"key": stage.key, **facts}.items() <= link.items()
    assert "secret" not in f"{link} {child.data.tags}"
    assert child.data.tags["explainability_vector.url"] == link["url"]
    assert not (tmp_path / "cache" / "files").exists(), "nothing was fetched to be logged"
    assert link["url"] == f"memory://bucket/sweep/artifacts/{stage.key[:2]}/{stage.key}/{link['url'].split('/')[-2]}/{file_name}"
    assert store._files.fs.cat_file(link["url"].replace("memory://", "/user:secret@")) == WEIGHTS


def test_an_experiment_does_not_know_the_children_of_another(tracker: Tracker, start: Start, store: Store) -> None:
    start().log_child(pair(), store)
    assert Children(tracker).is_logged("a" * 40)
    assert not Children(Tracker(tracker.uri, EXPERIMENT + "/other")).is_logged("a" * 40)
