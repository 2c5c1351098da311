"""The label command as several test files use it: its arguments, and what it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sweep import run as command_line
from sweep.commands.label import request_of
from sweep.commands.labelling import check
from sweep.stages.base import BaseModel
from sweep.stages.dataset import LabelGraph

NUM_PICTURES = 120
DAMAGED = 50


def arguments(data: Path, out: Path | str, *more: str) -> list[str]:
    required = ["label", "--data", str(data), "--model", "miniature", "--out", str(out)]
    return [*required, "--budget", "320", "--shard-size", "16", "--batch-size", "64", "--precision", "float32", *more]


def graph_of(data: Path, out: Path | str, *more: str) -> LabelGraph:
    """The stages of a labelling."""
    checked = check(request_of(command_line.make_parser().parse_args(arguments(data, out, *more))))
    return checked.graph(BaseModel(checked.base).look_at())


def label(data: Path, out: Path | str, *more: str) -> None:
    """Run the command; `engines_here` must be in place."""
    assert command_line.main(arguments(data, out, *more)) == 0


def all_labels(out: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((out / "data").glob("*.parquet"))], ignore_index=True)


def maps(labels: pd.DataFrame) -> np.ndarray:
    """[N, M]"""
    return np.stack(labels["attributions"])
