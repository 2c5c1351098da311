"""A stage that computes something else than before has another version, so that no artifact of before is taken for one of now.

On a small, fixed pipeline the outputs of every kind of stage are compared with those recorded in stage_outputs.json.
"""

from __future__ import annotations

import copy
import json

import pytest
import stage_outputs
from in_process import compute, graph_of
from safetensors.torch import load_file, save_file

from sweep.stages.heads import TextHead
from sweep.stages.references import Reference
from sweep.stages.stage import closure
from sweep.store.artifacts import Store

RECORDED = json.loads(stage_outputs.RECORD.read_text())
KINDS = sorted(stage_outputs.kinds().keys() - stage_outputs.NOT_KEPT)


@pytest.fixture(scope="module")
def found(watched_pipeline) -> dict:
    return stage_outputs.outputs(watched_pipeline.store, watched_pipeline.stages)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_computes_what_its_version_did(kind, found):
    assert kind in found, f"the pipeline of stage_outputs.py has no stage {kind}: add one"
    assert stage_outputs.differences(RECORDED, found).get(kind) is None


def test_nothing_is_recorded_of_stages_that_there_are_no_more(found):
    assert RECORDED.keys() == found.keys()


def few(store: Store) -> dict:
    """Head and pictures of a domain, and what is made of them on the way to its label set."""
    graph = graph_of(store, *stage_outputs.DIGITS, *stage_outputs.GRID)
    labels = graph.labels("clean_digits", "train")
    compute(store, labels)
    return stage_outputs.outputs(store, list(closure([labels])))


def test_a_stage_that_computes_a_little_else_is_reported_and_what_follows_from_it_is_not(tmp_path, monkeypatch):
    """The head's weights are off by half a percent: its labels are too, but it is the head's version that must be raised."""
    before = few(Store(str(tmp_path / "before")))
    assert stage_outputs.differences(before, few(Store(str(tmp_path / "again")))) == {}
    plain = TextHead.compute

    def a_little_else(stage, store, directory) -> None:
        plain(stage, store, directory)
        path = directory / "head.safetensors"
        head = load_file(path)["head"]
        save_file({"head": head + 0.005 * head.roll(1, 0)}, path)

    monkeypatch.setattr(TextHead, "compute", a_little_else)
    monkeypatch.setattr("sweep.stages.labels._last", None)  # a process keeps the last classifier, by its key
    now = few(Store(str(tmp_path / "now")))
    advice = stage_outputs.differences(before, now)
    assert list(advice) == ["head"]
    assert "raise its version in sweep/stages/heads.py, then record anew with `python tests/record_stage_outputs.py`" in advice["head"]
    assert now["label"] != before["label"]
    monkeypatch.setattr(TextHead, "version", TextHead.version + 1)
    advice = stage_outputs.differences(before, few(Store(str(tmp_path / "raised"))))
    assert list(advice) == ["head"] and "another version than was recorded: record anew" in advice["head"]


def test_a_changed_number_text_or_count_of_any_stage_is_reported():
    for kind, entry in RECORDED.items():
        for name, summaries in entry["outputs"].items():
            assert summaries, f"nothing is kept of {name}"
            for what, value in summaries.items():
                changed = RECORDED | {kind: copy.deepcopy(entry)}
                if isinstance(value, list) and not isinstance(value[-1], str):
                    changed[kind]["outputs"][name][what][-1] += 0.01 + 0.01 * abs(value[1])
                else:
                    changed[kind]["outputs"][name][what] = f"not {value}"
                assert kind in stage_outputs.differences(RECORDED, changed), (kind, name, what)


def test_versions_are_part_of_keys(tmp_path, monkeypatch):
    graph = graph_of(Store(str(tmp_path / "store")), *stage_outputs.DIGITS, *stage_outputs.GRID)
    before, result = graph.reference("clean_digits").key, graph.result.key
    monkeypatch.setattr(Reference, "version", Reference.version + 1)
    raised = graph_of(Store(str(tmp_path / "store")), *stage_outputs.DIGITS, *stage_outputs.GRID)
    assert raised.reference("clean_digits").key != before and raised.result.key != result
