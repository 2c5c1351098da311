"""The page's script is given what the frames hold, in little room."""

import base64
import json
import math
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from synthetic_result import DOMAINS, synthetic_result

from core.metrics import SCORES, chance_iou_at
from sweep.report.page import render_html
from sweep.report.page_data import page_data
from sweep.report.result import SweepResult
from sweep.report.tables import chosen_pairs, pair_references


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return synthetic_result(DOMAINS[:4], num_examples=4)


@pytest.fixture(scope="module")
def data(result) -> dict:
    return page_data(result)


def close(shown: float, value: float) -> bool:
    """Six significant digits are kept."""
    return math.isclose(shown, value, rel_tol=5.1e-6, abs_tol=1e-12)


def test_every_pair_has_its_scores_its_references_and_its_cells(result, data):
    references = pair_references(result).set_index(["source_domain", "target_domain", "reference"])
    pairs = chosen_pairs(result)
    assert len(data["pairs"]) == len(pairs) == 12
    for shown, (_, pair) in zip(data["pairs"], pairs.iterrows(), strict=True):
        source, target = data["sources"][shown["source"]], data["targets"][shown["target"]]
        assert (source, target) == (pair["source_domain"], pair["target_domain"])
        assert all(close(shown["scores"][score.name], pair[score.name]) for score in SCORES)
        assert close(shown["references"]["mean_map"]["iou_at_10"], references.loc[(source, target, "mean_map"), "iou_at_10"])
        low, high, n = shown["intervals"]["correlation"]
        assert close(low, pair["correlation"] - 0.04) and close(high, pair["correlation"] + 0.06) and n == 40
        assert close(shown["similarities"]["similarity_explainability"], pair["similarity_explainability"])
        cells = result.cells.query("source_domain == @source and target_domain == @target and split == 'validation'")
        assert len(shown["cells"]["alpha"]) == len(cells) == 21
        assert sum(map(close, shown["cells"]["accuracy"], cells.sort_values(["alpha", "lambda2"])["accuracy"])) == 21
        assert shown["artifacts"] == result.artifacts[source, target]


def test_every_target_has_the_intervals_of_its_references(result, data):
    rows = result.references.set_index(["domain", "reference"])
    for target, shown in zip(data["targets"], data["reference_intervals"], strict=True):
        low, high, n = shown["mean_map"]["iou_at_10"]
        value = rows.loc[(target, "mean_map"), "iou_at_10"].item()
        assert close(low, value - 0.04) and close(high, value + 0.06) and n == 40 and "chance" not in shown
        for alpha in data["pairs"][0]["cells"]["alpha"]:
            assert f"supervised {alpha}" in shown  # as the script asks for it


def test_the_matrix_switches_between_all_scores_with_a_reading(result, data):
    columns = {column["name"]: column for column in data["columns"]}
    assert {score.name for score in SCORES if score.reading is not None} < set(columns)
    pairs = chosen_pairs(result)
    reach = max(0.25, (pairs["normalized_accuracy"] - 1).abs().max())
    accuracy = columns["normalized_accuracy"]
    assert accuracy["middle"] == 1.0 and close(accuracy["high"], 1 + reach) and not accuracy["lower_is_better"]
    assert columns["normalized_e_rmse"]["lower_is_better"]
    overlap = columns["iou_at_10"]
    assert close(overlap["low"], chance_iou_at(10, 49)) and overlap["middle"] is None and close(overlap["high"], pairs["iou_at_10"].max())
    assert close(overlap["means"]["transferred"], pairs["iou_at_10"].mean())


def test_pictures_come_with_their_maps_over_lambda2(result, data):
    for shown, example in zip(data["examples"], result.examples, strict=True):
        picture = Image.open(BytesIO(base64.b64decode(shown["picture"].split(",")[1])))
        np.testing.assert_array_equal(np.asarray(picture), example.pixels)
        largest = np.abs(example.attributions["label"]).max()
        np.testing.assert_allclose(shown["maps"]["label"], example.attributions["label"], atol=largest / 1000)
        for source, maps in example.over_lambda.items():
            over_lambda = shown["over_lambda"][str(result.sources.index(source))]
            assert over_lambda["lambdas"] == list(maps.lambdas) and over_lambda["class_names"] == list(maps.class_names)
            np.testing.assert_allclose(over_lambda["maps"], maps.attributions, atol=np.abs(maps.attributions).max() / 1000)


def test_the_page_rounds_as_the_tables_do(result):
    cells = result.cells.assign(correlation=0.26449)
    shown = page_data(replace(result, cells=cells))["pairs"][0]["scores"]["correlation"]
    assert f"{shown:.3f}" == "0.264"  # 0.2645, of four digits, would be 0.265


def test_gaps_are_null_and_never_nan(result):
    cells = result.cells.copy()
    cells.loc[cells["target_domain"] == "cars", ["correlation", "iou_at_10", "normalized_accuracy"]] = np.nan
    lost = (cells["source_domain"] == "cars") & (cells["target_domain"] == "textures")
    gappy = page_data(replace(result, cells=cells[~lost], similarities=result.similarities.iloc[:0], references=result.references.iloc[:3]))
    assert json.loads(json.dumps(gappy, allow_nan=False)) == gappy
    assert len(gappy["pairs"]) == 11 and len(gappy["planned"]) == 12
    assert {pair["scores"]["correlation"] for pair in gappy["pairs"] if pair["target"] == 0} == {None}


def test_the_page_stays_small_for_the_papers_grid_on_nine_sources():
    """1.5 MB besides pictures, with nine sources, eight targets, 117 points a pair and two pictures a target."""
    alphas, lambdas = [i / 10 for i in range(1, 10)], np.linspace(0, 1.2, 13).tolist()
    result = synthetic_result(sources=[*DOMAINS, "others"], alphas=alphas, lambdas=lambdas, num_examples=16)
    text = re.sub(r"data:image/[^\"]*", "", render_html(result, []))
    assert len(text.encode()) < 1_500_000
