"""A result is checked when it is made, and survives its directory unchanged."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic_result import synthetic_result

from sweep.report.example import Example, ExampleError, LambdaMaps
from sweep.report.result import CELL_COLUMNS, FRAMES, ResultError, SweepResult


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return synthetic_result(num_examples=2)


def test_a_stored_result_is_read_back_unchanged(result, tmp_path):
    result.to_directory(tmp_path / "result")
    read = SweepResult.from_directory(tmp_path / "result")

    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(read, name), getattr(result, name), check_exact=True)
    for name in ("sweep_key", "command", "suite", "sources", "targets", "pairs", "provenance", "artifacts"):
        assert getattr(read, name) == getattr(result, name)
    assert len(read.examples) == 2
    for before, after in zip(result.examples, read.examples, strict=True):
        assert (after.domain, after.source_domain, after.class_name) == (
            before.domain, before.source_domain, before.class_name
        )  # fmt: skip
        np.testing.assert_array_equal(after.pixels, before.pixels)
        assert list(after.attributions) == list(before.attributions)
        for name, values in before.attributions.items():
            np.testing.assert_array_equal(after.attributions[name], values)
        assert list(after.over_lambda) == list(before.over_lambda)
        for source, maps in before.over_lambda.items():
            np.testing.assert_array_equal(after.over_lambda[source].attributions, maps.attributions)
            assert replace(after.over_lambda[source], attributions=maps.attributions).__dict__ == maps.__dict__


def test_the_same_result_is_stored_as_the_same_bytes(result, tmp_path):
    result.to_directory(tmp_path / "a")
    SweepResult.from_directory(tmp_path / "a").to_directory(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(["examples.npz", "result.json", *(f"{name}.parquet" for name in FRAMES)])
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_directory_with_pickled_arrays_is_not_unpickled(result, tmp_path):
    result.to_directory(tmp_path)
    np.savez(tmp_path / "examples.npz", **{"0/pixels": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle"):
        SweepResult.from_directory(tmp_path)


def test_a_frame_is_brought_to_its_columns_and_types(result):
    shuffled = result.cells[list(reversed(CELL_COLUMNS))].astype({"correlation": object, "trial": float})
    shuffled.loc[0, "correlation"] = None
    made = replace(result, cells=shuffled)
    assert list(made.cells.columns) == list(CELL_COLUMNS)
    assert made.cells["correlation"].dtype == np.float64 and np.isnan(made.cells["correlation"][0])
    assert made.cells["trial"].dtype == np.int64


@pytest.mark.parametrize(
    ("frame", "edit", "message"),
    [
        ("cells", lambda f: f.drop(columns="iou_at_10"), "missing columns.*iou_at_10"),
        ("cells", lambda f: f.assign(iou10=0.1), "unknown columns.*iou10"),
        ("cells", lambda f: f.assign(alpha=1.5), "alpha holds 1.5"),
        ("cells", lambda f: f.assign(e_rmse=np.inf), "e_rmse holds inf"),
        ("cells", lambda f: f.assign(iou_at_10=-0.2), "iou_at_10 holds -0.2"),
        ("cells", lambda f: f.assign(lambda2=None), "lambda2 has .* empty"),
        ("cells", lambda f: f.assign(accuracy="high"), "accuracy must be float64"),
        ("cells", lambda f: f.assign(split="train"), "split holds .*train"),
        ("cells", lambda f: f.assign(source_domain="moon"), "source_domain holds .*moon"),
        ("cells", lambda f: f.assign(source_domain=f["target_domain"]), "not planned"),
        ("cells", lambda f: f[f["split"] == "validation"], "no chosen row on test"),
        ("cells", lambda f: f[~f["is_chosen"] | (f["split"] == "test")].assign(split="test"), "only the chosen one is scored on test"),
        ("cells", lambda f: pd.concat([f, f[f["split"] == "test"]]), "more than once"),
        ("references", lambda f: pd.concat([f, f]), "more than once"),
        ("references", lambda f: f.assign(reference="luck"), "reference holds .*luck"),
        ("intervals", lambda f: f.assign(score="luck"), "score holds .*luck"),
        ("intervals", lambda f: pd.concat([f, f]), "more than once"),
        ("similarities", lambda f: f.assign(similarity_prediction_only=1.2), "similarity_prediction_only holds 1.2"),
    ],
)
def test_a_frame_that_contradicts_the_contract_is_refused(result, frame, edit, message):
    with pytest.raises(ResultError, match=message):
        replace(result, **{frame: edit(getattr(result, frame))})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ()}, "one or more targets"),
        ({"sources": ("cars", "cars")}, "no two alike"),
        ({"pairs": (("cars", "cars"),)}, "two different domains"),
        ({"pairs": (("cars", "moon"),)}, "no known source and target"),
        ({"pairs": (("cars", "scenes"),)}, "cells holds pairs that were not planned"),
        ({"provenance": {}}, "select"),
        ({"provenance": {"select": "train"}}, "select"),
        ({"provenance": {"select": "validation", "alphas": [0.5]}}, "alphas.*flatten"),
        ({"provenance": {"select": "validation", "lr": float("nan")}}, "lr.*finite"),
    ],
)
def test_a_result_without_its_frame_of_reference_is_refused(result, changes, message):
    with pytest.raises(ResultError, match=message):
        replace(result, **changes)


def test_cosines_a_rounding_above_one_are_accepted(result):
    replace(result, similarities=result.similarities.assign(similarity_prediction_only=1 + 1e-7))


def test_an_example_must_be_a_picture_with_square_maps():
    pixels = np.zeros((56, 56, 3), np.uint8)
    good = {"label": np.zeros(49, np.float32)}
    with pytest.raises(ExampleError, match="uint8"):
        Example("a", "b", "c", pixels.astype(np.float32), good)
    with pytest.raises(ExampleError, match="g \\* g"):
        Example("a", "b", "c", pixels, {"label": np.zeros(48, np.float32)})
    with pytest.raises(ExampleError, match="label"):
        Example("a", "b", "c", pixels, {"transferred": np.zeros(49, np.float32)})
    with pytest.raises(ExampleError, match="not finite"):
        Example("a", "b", "c", pixels, {"label": np.full(49, np.nan, np.float32)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambdas": (0.8, 0.0)}, "ascending"),
        ({"lambdas": (), "attributions": np.zeros((0, 49), np.float32), "class_names": (), "probabilities": ()}, "one or more lambda2"),
        ({"class_names": ("a",)}, "a class and a probability for each"),
        ({"attributions": np.full((2, 49), np.inf, np.float32)}, "not finite"),
    ],
)
def test_maps_over_lambda2_that_contradict_each_other_are_refused(changes, message):
    good = {
        "lambdas": (0.0, 0.8), "attributions": np.zeros((2, 49), np.float32), "class_names": ("a", "b"), "probabilities": (1.0, 0.5),
    }  # fmt: skip
    LambdaMaps(**good)
    with pytest.raises(ExampleError, match=message):
        LambdaMaps(**{**good, **changes})


def test_maps_over_lambda2_are_of_the_picture_and_of_known_sources(result):
    example = result.examples[0]
    (source, maps), *_ = example.over_lambda.items()
    with pytest.raises(ExampleError, match="must be \\[L, 49\\]"):
        replace(example, over_lambda={source: replace(maps, attributions=maps.attributions[:, :36])})
    with pytest.raises(ResultError, match="moon"):
        replace(result, examples=[replace(example, over_lambda={"moon": maps})])
    with pytest.raises(ResultError, match="artifacts are of pairs that were not planned"):
        replace(result, artifacts={("moon", "cars"): {}})
