"""What the page's script draws, as plain JSON: the matrix's columns, every pair with its cells, pictures with their maps.

Numbers have six significant digits, so that the script's rounding to three decimals is that of the tables; a map's values have as many
decimals as its largest needs for four. An undefined number is null.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from core.metrics import SCORE_NAMED, SCORES
from sweep.report.colour_scale import colour_scale
from sweep.report.example import Example
from sweep.report.figures.matrices import READINGS
from sweep.report.result import MERGE_COLUMN, PAIR_COLUMNS, SCORE_COLUMNS, SweepResult
from sweep.report.tables import (
    KEPT_ACCURACY,
    MODEL_TITLES,
    PAIR_TITLES,
    chosen_pairs,
    curve_split,
    headline,
    intervals_of_pairs,
    intervals_of_references,
    known_references,
    matrix,
)
from sweep.report.tables import pair_references as references_of_pairs

_CONSTRAINT = "search.min_normalized_accuracy"
_CURVES = ("accuracy", "e_rmse", "correlation", "iou_at_10")
_CELL_COLUMNS = ("alpha", "lambda2", "trial", *_CURVES, "normalized_accuracy", "normalized_e_rmse", "normalized_accuracy_lower")


def page_data(result: SweepResult) -> dict[str, Any]:
    """All of it; `templates/script` says where each part is drawn."""
    pairs, references = chosen_pairs(result), references_of_pairs(result)
    by_target = references.groupby(["reference", "target_domain"]).mean(numeric_only=True)
    return {
        "split": curve_split(result),
        "kept_accuracy": KEPT_ACCURACY,
        "constraint": result.provenance.get(_CONSTRAINT),
        "sources": list(result.sources),
        "targets": list(result.targets),
        "planned": [[result.sources.index(source), result.targets.index(target)] for source, target in result.pairs],
        "titles": MODEL_TITLES,
        "scores": [{"name": score.name, "title": score.title, "lower_is_better": score.lower_is_better} for score in SCORES],
        "curves": list(_CURVES),
        "columns": [_column(result, pairs, name) for name in READINGS],
        "references": {
            reference: [
                _numbers(by_target.loc[(reference, target)]) if (reference, target) in by_target.index else {} for target in result.targets
            ]
            for reference in known_references(result)
        },
        "reference_intervals": [
            {name: _intervals(of) for name, of in intervals_of_references(result, target).items()} for target in result.targets
        ],
        "pairs": _pairs(result, pairs, references),
        "examples": [_example(result, example) for example in result.examples],
    }


def _column(result: SweepResult, pairs: pd.DataFrame, name: str) -> dict[str, Any]:
    """One position of the matrix's switch. means: of a score, by model, over the pairs."""
    scale = colour_scale(result, name, matrix(result, pairs, name).to_numpy(dtype=float))
    means = headline(result)[name].dropna() if name in SCORE_NAMED else pd.Series({"transferred": pairs[name].mean()}).dropna()
    return {
        "name": name,
        "title": PAIR_TITLES[name],
        "reading": READINGS[name],
        "is_score": name in SCORE_NAMED,
        "lower_is_better": scale.lower_is_better,
        "low": _number(scale.low),
        "middle": None if scale.middle is None else _number(scale.middle),
        "high": _number(scale.high),
        "means": _numbers(means),
    }


def _pairs(result: SweepResult, pairs: pd.DataFrame, references: pd.DataFrame) -> list[dict[str, Any]]:
    bars = {key: frame for key, frame in references.groupby(list(PAIR_COLUMNS))}
    split = curve_split(result)
    cells = {key: frame for key, frame in result.cells[result.cells["split"] == split].groupby(list(PAIR_COLUMNS))}
    intervals = intervals_of_pairs(result)
    found = []
    for pair in pairs.to_dict("records"):
        key = (pair["source_domain"], pair["target_domain"])
        searched = cells.get(key, result.cells.iloc[:0]).sort_values(["alpha", "lambda2", "trial"])
        found.append(
            {
                "source": result.sources.index(key[0]),
                "target": result.targets.index(key[1]),
                **{name: _number(pair[name]) for name in ("alpha", "lambda1", "lambda2", "trial", "attribution_scale")},
                "scores": _numbers({name: pair[name] for name in SCORE_COLUMNS}),
                "intervals": _intervals(intervals.get(key, {})),
                "similarities": _numbers({n: pair[n] for n in ("similarity_prediction_only", "similarity_explainability")}),
                "references": {row["reference"]: _numbers({n: row[n] for n in SCORE_COLUMNS}) for row in bars[key].to_dict("records")},
                **({MERGE_COLUMN: pair[MERGE_COLUMN]} if MERGE_COLUMN in pair else {}),
                "cells": {name: [_number(value) for value in searched[name]] for name in _CELL_COLUMNS},
                "artifacts": dict(result.artifacts.get(key, {})),
            }
        )
    return found


def _intervals(of_scores: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Score -> low, high and n."""
    return {score: [_number(row.low), _number(row.high), row.n] for score, row in of_scores.items()}


def _example(result: SweepResult, example: Example) -> dict[str, Any]:
    return {
        "target": result.targets.index(example.domain),
        "source": result.sources.index(example.source_domain),
        "class_name": example.class_name,
        "picture": _picture(example.pixels),
        "maps": {name: _map(values) for name, values in example.attributions.items()},
        "over_lambda": {
            str(result.sources.index(source)): {
                "lambdas": [_number(value) for value in maps.lambdas],
                "maps": [_map(values) for values in maps.attributions],
                "class_names": list(maps.class_names),
                "probabilities": [_number(value) for value in maps.probabilities],
            }
            for source, maps in example.over_lambda.items()
        },
    }


def _picture(pixels: NDArray[np.uint8]) -> str:
    """An address that holds the picture itself. A small one stays exact; a photograph of a model's size is a JPEG, five times smaller."""
    kind = "PNG" if max(pixels.shape[:2]) <= 96 else "JPEG"
    options: dict[str, Any] = {"optimize": True} if kind == "PNG" else {"quality": 90, "subsampling": 0}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _map(values: NDArray[np.floating]) -> list[float]:
    largest = float(np.abs(values).max())
    decimals = 3 - math.floor(math.log10(largest)) if largest > 0 else 0
    return [round(float(value), decimals) for value in values]


def _numbers(values: Mapping[str, Any] | pd.Series) -> dict[str, float | None]:
    items: Iterable[tuple[Any, Any]] = values.items()
    return {str(name): _number(value) for name, value in items}


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
