"""What a sweep's run and its children hold, against real MLflow on SQLite."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from mlflow.utils import validation
from mlflow_runs import SWEEP_KEY, Start, children, pair, parents

from sweep.record import entities
from sweep.record.note import CUT, running_note
from sweep.record.tracker import Tracker
from sweep.report.result import SCORE_COLUMNS
from sweep.store.artifacts import Store
from sweep.store.credentials import without_credentials


def test_a_stage_becomes_a_finished_child_with_its_own_times(tracker: Tracker, start: Start, tmp_path: Path, store: Store) -> None:
    vector = tmp_path / "explainability_vector.safetensors"
    vector.write_bytes(b"weights")
    sweep_run = start()

    sweep_run.log_child(pair(files=[(vector, "vectors")], curves={"loss": [(0, 2.0), (10, 1.0)]}), store)

    (child,) = children(tracker)
    assert child.info.status == "FINISHED"
    assert child.info.run_name == "pair cars to scenes"
    assert (child.info.start_time, child.info.end_time) == (1_700_000_000_250, 1_700_000_012_750)
    expected = {"source_domain": "cars", "target_domain": "scenes", "alpha": "0.5", "lambda1": "1.0", "lambda2": "0.8"}
    assert child.data.params == expected
    assert child.data.metrics == {"accuracy": 0.75, "e_rmse": 0.5, "loss": 1.0}
    assert [(p.step, p.value) for p in tracker.client.get_metric_history(child.info.run_id, "loss")] == [(0, 2.0), (10, 1.0)]
    tags = {"stage": "pair", "artifact_key": "a" * 40, "mlflow.parentRunId": sweep_run.run_id, "constraint_met": "True"}
    assert tags.items() <= child.data.tags.items()
    (file,) = tracker.client.list_artifacts(child.info.run_id, "vectors")
    assert (file.path, file.file_size) == ("vectors/explainability_vector.safetensors", 7)


def test_the_parent_holds_the_sweeps_params_metrics_tables_and_files(tracker: Tracker, start: Start, tmp_path: Path) -> None:
    cells = pd.DataFrame({"source_domain": ["cars", "scenes"], "e_rmse": [0.5, math.nan], "is_chosen": [True, False]})
    (tmp_path / "result" / "figures").mkdir(parents=True)
    (tmp_path / "result" / "figures" / "figure2.png").write_bytes(b"png")
    sweep_run = start(alphas=[0.0, 0.5], base="miniature")

    sweep_run.log_metrics({"mean_correlation": 0.25, "num_cells": 2})
    sweep_run.log_table("cells", cells)
    sweep_run.log_artifacts(tmp_path / "result")
    sweep_run.finish()

    (parent,) = parents(tracker)
    assert parent.info.run_name == "all_pairs miniature 01234567"
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"alphas": "[0.0, 0.5]", "base": "miniature"}
    assert parent.data.metrics == {"mean_correlation": 0.25, "num_cells": 2.0}
    assert {"sweep_key": SWEEP_KEY, "stage": "sweep", "suite": "miniature"}.items() <= parent.data.tags.items()
    fetched = tracker.client.download_artifacts(parent.info.run_id, "cells.parquet", str(tmp_path))
    pd.testing.assert_frame_equal(pd.read_parquet(fetched), cells)
    assert [file.path for file in tracker.client.list_artifacts(parent.info.run_id, "figures")] == ["figures/figure2.png"]


def test_every_score_is_a_metric_of_its_child(tracker: Tracker, start: Start, store: Store) -> None:
    scores = {name: 0.01 * number for number, name in enumerate(SCORE_COLUMNS)}
    start().log_child(pair(metrics=scores), store)
    assert children(tracker)[0].data.metrics == scores
    assert {"e_rmse_at_best_scale", "infidelity_at_best_scale"} <= set(scores)


def test_metrics_without_a_value_are_left_out(tracker: Tracker, start: Start, store: Store) -> None:
    start().log_child(pair(metrics={"accuracy": 0.5, "e_rmse": math.nan, "iou_at_1": None, "infidelity": math.inf}), store)
    assert children(tracker)[0].data.metrics == {"accuracy": 0.5}


def test_more_params_and_metrics_than_one_request_takes_are_all_logged(tracker: Tracker, start: Start, store: Store) -> None:
    params = {f"recipe.{i}": i for i in range(150)}
    start().log_child(pair(params=params, curves={"loss": [(step, 1.0) for step in range(2500)]}), store)
    (child,) = children(tracker)
    assert len(child.data.params) == 150
    assert len(tracker.client.get_metric_history(child.info.run_id, "loss")) == 2500


def test_overlong_params_are_shortened_and_stay_distinct(tracker: Tracker, start: Start, store: Store) -> None:
    long = "x" * 10_000
    start().log_child(pair(params={"first": long + "1", "second": long + "2"}, tags={"note": long}), store)
    (child,) = children(tracker)
    first, second = child.data.params["first"], child.data.params["second"]
    assert first != second
    assert len(first) <= validation.MAX_PARAM_VAL_LENGTH
    assert "10001 characters" in first
    assert (entities.MAX_PARAM_LENGTH, entities.MAX_TAG_LENGTH) == (validation.MAX_PARAM_VAL_LENGTH, validation.MAX_TAG_VAL_LENGTH)


# ---------------------------------------------------------------- what stands at its top


def note(tracker: Tracker) -> str:
    return str(parents(tracker)[0].data.tags["mlflow.note.content"])


def test_a_sweep_says_what_it_is_while_it_runs_and_again_when_it_is_continued(tracker: Tracker, start: Start) -> None:
    first = start(note=running_note("All pairs of 8 domains."))
    assert note(tracker).startswith("All pairs of 8 domains.\n\n**Not finished yet.**")
    first.describe("# The best pairs")
    assert note(tracker) == "# The best pairs"
    first.finish("KILLED")
    start(note=running_note("All pairs of 8 domains."))
    assert note(tracker).startswith("All pairs of 8 domains.")


def test_a_note_longer_than_mlflow_takes_is_cut_at_a_line(tracker: Tracker, start: Start) -> None:
    start().describe("\n".join(f"line {i}" for i in range(2000)))
    assert note(tracker).endswith(CUT)
    assert len(note(tracker)) <= validation.MAX_TAG_VAL_LENGTH
    assert note(tracker).removesuffix(CUT).splitlines()[-1].startswith("line ")


def test_a_note_holds_no_credential(tracker: Tracker, start: Start) -> None:
    start(note="reads s3://AKIA:secret@bucket/cars").describe("wrote to s3://AKIA:secret@bucket/cars")
    assert note(tracker) == "wrote to s3://bucket/cars"


# ---------------------------------------------------------------- credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:5000/path", "https://host:5000/path"),
        ("https://secret@host/path", "https://host/path"),
        ("postgresql+psycopg://user:s%40cret@host/db?password=secret", "postgresql+psycopg://host/db"),
        ("s3://AKIA:se/cr+et@bucket/key", "s3://bucket/key"),
        ("s3://AKIA:se@cr/et@bucket/key", "s3://bucket/key"),
        ("s3://bucket/key?X-Amz-Signature=secret#secret", "s3://bucket/key"),
        ("hf://datasets/tanganke/dtd@main/data", "hf://datasets/tanganke/dtd@main/data"),
        ("http://[::1]:5000/path", "http://[::1]:5000/path"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("data/cars", "data/cars"),
    ],
)
def test_credentials_are_taken_out_of_urls(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_no_credential_reaches_a_param_or_tag(tracker: Tracker, start: Start, store: Store) -> None:
    url = "s3://AKIA:secret@bucket/cars?token=secret"
    sweep_run = start(domains=[url, "data/scenes"], note=f"reads {url} first", places={"store": f"simplecache::{url}"})
    sweep_run.log_child(pair(params={"source": url}, tags={"store": url}), store)
    (parent,), (child,) = parents(tracker), children(tracker)
    assert "secret" not in f"{parent.data} {child.data}"
    assert parent.data.params["domains"] == "[s3://bucket/cars, data/scenes]"
    assert child.data.tags["store"] == "s3://bucket/cars"
