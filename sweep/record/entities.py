"""Params, tags, metrics and runs as MLflow takes and gives them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sweep.store.credentials import text_without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run

# MLflow's own limits (mlflow.utils.validation); a longer value is an error there.
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000


def as_text(values: Mapping[str, Any], max_length: int) -> dict[str, str]:
    """Params or tags as MLflow takes them: text without credentials, cut with a note of what is missing."""
    return {key: _shortened(text_without_credentials(value), max_length) for key, value in values.items()}


def _shortened(text: str, max_length: int) -> str:
    """Text of at most max_length characters; two long texts that differ stay different."""
    if len(text) <= max_length:
        return text
    note = f"... ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
    return text[: max_length - len(note)] + note


def metrics_of(points: Iterable[tuple[str, float | None, int]], timestamp_ms: int) -> list[Metric]:
    """Metrics from (name, value, step); values that are None, NaN or infinite are left out, and nothing else is."""
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), timestamp_ms, int(step)) for name, value, step in points if value is not None and math.isfinite(value)
    ]


def params_of(values: Mapping[str, str]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(key, value) for key, value in values.items()]


def search(client: MlflowClient, experiment_id: str, chosen: str) -> list[Run]:
    """All runs that a filter chooses, page by page."""
    page = client.search_runs([experiment_id], chosen, max_results=1000)
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment_id], chosen, max_results=1000, page_token=page.token)
        runs += page
    return runs


def now_ms() -> int:
    return round(time.time() * 1000)
