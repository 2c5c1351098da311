"""The result of a finished sweep: what the report shows, checked, and storable as plain files."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.metrics import SCORES
from sweep.report.example import Example
from sweep.report.references import REFERENCES

PAIR_COLUMNS = ("source_domain", "target_domain")
SCORE_COLUMNS = tuple(score.name for score in SCORES)
POINT_COLUMNS = ("attribution_scale", "normalized_accuracy_lower", "few_labels_e_rmse")
"""Of a point besides its scores: the factor of its maps, the lower confidence limit of its normalised accuracy, E-RMSE on a few labels."""
CELL_COLUMNS = (*PAIR_COLUMNS, "alpha", "lambda1", "lambda2", "split", "trial", "is_chosen", *POINT_COLUMNS, *SCORE_COLUMNS)
MERGE_COLUMN = "merge"
"""Of cells besides, where parameters of the merge rule were searched: the rule as `--merge` takes it, with its values at the point."""
OBJECTIVE_COLUMNS = (*PAIR_COLUMNS, "objective", "needs_labels", "alpha", "lambda2", "attribution_scale", *SCORE_COLUMNS)
REFERENCE_COLUMNS = ("domain", "reference", "alpha", *SCORE_COLUMNS)
SIMILARITY_COLUMNS = (*PAIR_COLUMNS, "alpha", "similarity_prediction_only", "similarity_explainability")

SOURCE_MODEL_COLUMNS = (*PAIR_COLUMNS, "model", "alpha", *SCORE_COLUMNS)
SOURCE_MODELS = ("source_prediction_only", "source_self_explaining")
"""The models that a vector is the difference of, each with the target's classes: rows of the paper's Table 1."""

CONVERGENCE_COLUMNS = ("target_domain", "budget", "picture", "iou_at_10")
ONE_PASS_COLUMNS = (*PAIR_COLUMNS, "picture", "iou_at_10")
PAPER_POINT_COLUMNS = (*PAIR_COLUMNS, "alpha", "lambda2", *SCORE_COLUMNS)
INTERVAL_COLUMNS = (*PAIR_COLUMNS, "score", "estimate", "low", "high", "n")
REFERENCE_INTERVAL_COLUMNS = ("domain", "reference", "alpha", "score", "estimate", "low", "high", "n")

SPLITS = ("validation", "test")

FRAMES = {
    "cells": CELL_COLUMNS,
    "references": REFERENCE_COLUMNS,
    "similarities": SIMILARITY_COLUMNS,
    "source_models": SOURCE_MODEL_COLUMNS,
    "objectives": OBJECTIVE_COLUMNS,
    "convergence": CONVERGENCE_COLUMNS,
    "one_pass": ONE_PASS_COLUMNS,
    "paper_points": PAPER_POINT_COLUMNS,
    "intervals": INTERVAL_COLUMNS,
    "reference_intervals": REFERENCE_INTERVAL_COLUMNS,
}
"""The tables of a result and their columns."""

_STRING_COLUMNS = {*PAIR_COLUMNS, "split", "domain", "reference", "objective", "model", "score", MERGE_COLUMN}
_NULLABLE_COLUMNS = {
    *SCORE_COLUMNS, "normalized_accuracy_lower", "similarity_prediction_only", "similarity_explainability", "low", "high",
}  # fmt: skip
_KINDS = {"is_chosen": "bool", "needs_labels": "bool", "trial": "int64", "budget": "int64", "picture": "int64", "n": "int64"}
_BOUNDS = {
    "alpha": (0.0, 1.0),
    **{score.name: score.bounds for score in SCORES},
    "similarity_prediction_only": (-1.0, 1.0),
    "similarity_explainability": (-1.0, 1.0),
}
RESULT = "result.json"
"""The file of all that is no table."""
_BOUND_TOLERANCE = 1e-5  # float32 cosines and correlations pass 1 by a few units in the last place
_FORMAT = 8

Scalar = str | int | float | bool | None


class ResultError(ValueError):
    """A sweep's result that contradicts itself or lacks a part."""


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Everything the report shows. Frames are checked and brought to one column order and one set of types.

    command: what was asked for, such as `all_pairs`. sources: names of what explanations are transferred from; a source may be several
    domains taken together, and need not be a target. targets: the domains they are transferred to. pairs: the planned (source, target).
    cells: every evaluated point (CELL_COLUMNS, and MERGE_COLUMN where it was searched). The chosen point of a pair is its row with
    `is_chosen` on split `test`, one at most; pairs without one count as unfinished. With provenance["select"] == "validation" no other
    row may be on test.
    references: REFERENCE_COLUMNS, scored on each target's test split, at most one row a (domain, reference, alpha);
    alpha is NaN where none applies, `supervised` has a row an alpha.
    similarities: SIMILARITY_COLUMNS, cosines of the task vectors of source and target at that alpha.
    source_models: SOURCE_MODEL_COLUMNS, SOURCE_MODELS scored on each target's test split with the target's classes; may be empty.
    objectives: OBJECTIVE_COLUMNS, the point that each objective would have chosen, on test, and the best there was; may be empty.
    convergence: CONVERGENCE_COLUMNS, IoU@10 of Kernel SHAP with the test labels of some pictures, over its budget; may be empty.
    one_pass: ONE_PASS_COLUMNS, the chosen points' IoU@10 with the same pictures.
    paper_points: PAPER_POINT_COLUMNS, each pair at the alpha and lambda2 of the paper's Figures 2 and 3 (or the nearest alpha that there
    is), on test, with maps as the head gives them; may be empty.
    intervals: INTERVAL_COLUMNS, 95 % intervals of the chosen points' scores over the n test pictures that each was measured on, the model
    and the labels being what they are; may be empty. reference_intervals: REFERENCE_INTERVAL_COLUMNS, the same of the references, those
    but chance and the other domain's mean map.
    artifacts: of a pair, what its numbers were made from -> the key of that artifact in the store; may be of no pair.
    A score that is undefined is NaN, never infinite. provenance: flat; must hold `select`.
    Raises ResultError, a ValueError.
    """

    sweep_key: str
    command: str
    suite: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    provenance: Mapping[str, Scalar]
    cells: pd.DataFrame
    references: pd.DataFrame
    similarities: pd.DataFrame
    examples: tuple[Example, ...] = ()
    source_models: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(SOURCE_MODEL_COLUMNS)))
    objectives: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(OBJECTIVE_COLUMNS)))
    convergence: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(CONVERGENCE_COLUMNS)))
    one_pass: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(ONE_PASS_COLUMNS)))
    paper_points: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(PAPER_POINT_COLUMNS)))
    intervals: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(INTERVAL_COLUMNS)))
    reference_intervals: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(REFERENCE_INTERVAL_COLUMNS)))
    artifacts: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sources", "targets", "examples"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "pairs", tuple((source, target) for source, target in self.pairs))
        self._check_pairs()
        object.__setattr__(self, "provenance", _checked_provenance(self.provenance))
        allowed = {
            "split": SPLITS, "reference": REFERENCES,
            "source_domain": self.sources, "target_domain": self.targets, "domain": self.targets, "model": SOURCE_MODELS,
            "score": SCORE_COLUMNS,
        }  # fmt: skip
        for name, columns in FRAMES.items():
            own = (*columns, MERGE_COLUMN) if name == "cells" and MERGE_COLUMN in self.cells else columns
            frame = _checked_frame(name, getattr(self, name), own, allowed)
            if "source_domain" in columns:
                strangers = set(frame[list(PAIR_COLUMNS)].itertuples(index=False, name=None)) - set(self.pairs)
                if strangers:
                    raise ResultError(f"{name} holds pairs that were not planned: {sorted(strangers)[:5]}")
            object.__setattr__(self, name, frame)
        self._check_cells()
        _check_unique("references", self.references, ["domain", "reference", "alpha"])
        _check_unique("similarities", self.similarities, [*PAIR_COLUMNS, "alpha"])
        _check_unique("intervals", self.intervals, [*PAIR_COLUMNS, "score"])
        _check_unique("paper_points", self.paper_points, list(PAIR_COLUMNS))
        _check_unique("reference_intervals", self.reference_intervals, ["domain", "reference", "alpha", "score"])
        for example in self.examples:
            for source in (example.source_domain, *example.over_lambda):
                if example.domain not in self.targets or source not in self.sources:
                    raise ResultError(f"an example is of {example.domain!r} from {source!r}: no such target or source")
        if not set(self.artifacts) <= set(self.pairs):
            raise ResultError(f"artifacts are of pairs that were not planned: {sorted(set(self.artifacts) - set(self.pairs))[:5]}")

    def _check_pairs(self) -> None:
        for names, kind in ((self.sources, "sources"), (self.targets, "targets"), (self.pairs, "pairs")):
            if not names or len(set(names)) < len(names):
                raise ResultError(f"a sweep needs one or more {kind}, no two alike, not {names}")
        for source, target in self.pairs:
            if source == target:
                raise ResultError(f"source and target of a pair are two different domains, not both {source!r}")
            if source not in self.sources or target not in self.targets:
                raise ResultError(f"the pair {source!r} -> {target!r} is of no known source and target")

    def _check_cells(self) -> None:
        is_test = self.cells["split"] == "test"
        chosen = self.cells[is_test & self.cells["is_chosen"]]
        if chosen.empty:
            raise ResultError("cells has no chosen row on test: no pair was finished, so there is nothing to report")
        _check_unique("chosen cells", chosen, list(PAIR_COLUMNS))
        if self.selected_on == "validation" and (is_test & ~self.cells["is_chosen"]).any():
            raise ResultError(
                "cells has test rows that were not chosen although select is 'validation': of the points that a pair was searched by, only "
                "the chosen one is scored on test"
            )

    @property
    def is_all_pairs(self) -> bool:
        """Whether the pairs are all those of one set of domains."""
        return self.sources == self.targets and len(self.pairs) == len(self.sources) * (len(self.sources) - 1)

    @property
    def selected_on(self) -> str:
        """The split on which alpha and lambda2 were chosen: `validation`, or `test` as in the paper's grid."""
        return str(self.provenance["select"])

    def to_directory(self, directory: Path) -> None:
        """Writes the result as Parquet, npz and JSON files into `directory`, which exists or is made."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in FRAMES:
            getattr(self, name).to_parquet(directory / f"{name}.parquet", index=False)
        arrays: dict[str, NDArray] = {}
        for index, example in enumerate(self.examples):
            arrays |= {f"{index}/{name}": values for name, values in example.arrays()}
        with (directory / "examples.npz").open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # names are ours, no clash with its options
        description = {
            "format": _FORMAT,
            "sweep_key": self.sweep_key,
            "command": self.command,
            "suite": self.suite,
            "sources": list(self.sources),
            "targets": list(self.targets),
            "pairs": [list(pair) for pair in self.pairs],
            "provenance": dict(self.provenance),
            "artifacts": [[*pair, dict(keys)] for pair, keys in self.artifacts.items()],
            "examples": [example.description() for example in self.examples],
        }
        text = json.dumps(description, indent=1, allow_nan=False)
        (directory / RESULT).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_directory(cls, directory: Path) -> "SweepResult":
        """Reads what `to_directory` wrote. Raises ResultError for another format, FileNotFoundError for a lost file."""
        description = json.loads((directory / RESULT).read_text(encoding="utf-8"))
        if description.get("format") != _FORMAT:
            raise ResultError(f"{directory} holds result format {description.get('format')}, not {_FORMAT}: run again")
        examples = []
        with np.load(directory / "examples.npz", allow_pickle=False) as arrays:
            for index, found in enumerate(description["examples"]):
                prefix = f"{index}/"
                own = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
                examples.append(Example.from_parts(found, own))
        return cls(
            sweep_key=description["sweep_key"],
            command=description["command"],
            suite=description["suite"],
            sources=tuple(description["sources"]),
            targets=tuple(description["targets"]),
            pairs=tuple((source, target) for source, target in description["pairs"]),
            provenance=description["provenance"],
            examples=tuple(examples),
            artifacts={(source, target): keys for source, target, keys in description["artifacts"]},
            **{name: pd.read_parquet(directory / f"{name}.parquet") for name in FRAMES},
        )


def _checked_provenance(provenance: Mapping[str, Scalar]) -> dict[str, Scalar]:
    checked: dict[str, Scalar] = {}
    for name, value in provenance.items():
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise ResultError(f"provenance[{name!r}] is a {type(value).__name__}: flatten it to scalars")
        if isinstance(value, float) and not math.isfinite(value):
            raise ResultError(f"provenance[{name!r}] is {value}: a setting is a finite number")
        checked[name] = value
    if checked.get("select") not in SPLITS:
        raise ResultError(f"provenance['select'] must be one of {SPLITS}, not {checked.get('select')!r}")
    return checked


def _checked_frame(
    name: str, frame: pd.DataFrame, columns: tuple[str, ...], allowed: Mapping[str, tuple[str, ...]]
) -> pd.DataFrame:
    """A copy with exactly `columns` in order, typed, in range, with known names."""
    missing, unknown = set(columns) - set(frame.columns), set(frame.columns) - set(columns)
    if missing or unknown:
        raise ResultError(f"{name}: missing columns {sorted(missing)}, unknown columns {sorted(unknown)}")
    frame = frame.loc[:, list(columns)].reset_index(drop=True).copy()
    for column in columns:
        is_null = frame[column].isna()
        is_nullable = column in _NULLABLE_COLUMNS or (name in ("references", "reference_intervals", "source_models") and column == "alpha")
        if is_null.any() and not is_nullable:
            raise ResultError(f"{name}.{column} has {is_null.sum()} empty values")
        if column in _STRING_COLUMNS:
            strangers = set(frame[column]) - set(allowed[column]) if column in allowed else set()
            if strangers:
                raise ResultError(f"{name}.{column} holds {sorted(strangers)}; known are {list(allowed[column])}")
            frame[column] = frame[column].astype(str)
            continue
        kind = _KINDS.get(column, "float64")
        try:
            frame[column] = frame[column].astype(kind)
        except (TypeError, ValueError) as error:
            raise ResultError(f"{name}.{column} must be {kind}: {error}") from error
        low, high = _BOUNDS.get(column, (-math.inf, math.inf))
        values = frame[column].to_numpy(dtype=np.float64)
        is_outside = np.isinf(values) | (values < low - _BOUND_TOLERANCE) | (values > high + _BOUND_TOLERANCE)
        if is_outside.any():
            raise ResultError(
                f"{name}.{column} holds {values[is_outside][0]}, outside [{low}, {high}]; an undefined score is NaN"
            )
    return frame


def _check_unique(name: str, frame: pd.DataFrame, columns: list[str]) -> None:
    is_repeated = frame.duplicated(columns)
    if is_repeated.any():
        first = frame.loc[is_repeated, columns].iloc[0].to_dict()
        raise ResultError(f"{name} holds {first} more than once")
