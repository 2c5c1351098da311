"""Transferred models in MLflow: logged with the code that runs them, so that they load where this project is not installed."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.model_directory import CARD, PROVENANCE
from sweep.record.entities import MAX_PARAM_LENGTH, as_text
from sweep.record.note import NOTE_TAG, fitting
from sweep.record.tracker import Tracker

EXPERIMENT = "transferred"
_CODE = Path(__file__).with_name("served_model.py")
_ROOT = Path(__file__).parents[2]
_REQUIREMENTS = ("mlflow", "torch", "torchvision", "open_clip_torch", "safetensors", "numpy", "scipy", "pillow", "pandas")
"""What `served_model` imports, by distribution."""


@dataclass(frozen=True)
class RecordedModel:
    """uri: `models:/m-...`, as `mlflow models serve -m` takes it. version: in the registry, where it was registered."""

    uri: str
    version: str | None = None


def record_model(tracker: Tracker, directory: Path, register: str | None = None) -> RecordedModel:
    """Log the model that `transfer` wrote to a directory. register: a name in the registry, which gets a version of it.

    Raises TrackingError, with the fix.
    """
    provenance = json.loads((directory / PROVENANCE).read_text(encoding="utf-8")) if (directory / PROVENANCE).is_file() else {}
    client = tracker.client
    with tempfile.TemporaryDirectory() as scratch:
        packed = _packed(directory, Path(scratch))
        with tracker.reporting("take the model"):
            logged = client.create_logged_model(tracker.experiment_id, directory.name, params=_params(provenance), tags=_tags(directory))
            client.log_model_artifacts(logged.model_id, str(packed))
            client.finalize_logged_model(logged.model_id, "READY")
            uri = f"models:/{logged.model_id}"
            return RecordedModel(uri, _registered(client, register, uri, logged.model_id) if register else None)


def _packed(directory: Path, scratch: Path) -> Path:
    """The model as MLflow lays one out: this project's code, the directory, requirements, signature."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    code = []
    for package in ("core", "sweep"):
        shutil.copytree(_ROOT / package, scratch / package, ignore=shutil.ignore_patterns("__pycache__"))
        code.append(str(scratch / package))
    inputs = Schema([ColSpec("string", "image"), ColSpec("string", "class", required=False)])
    numbers = Array(Array(DataType.double))
    outputs = Schema([ColSpec("string", "class"), ColSpec("double", "probability"), ColSpec(numbers, "attributions")])
    packed = scratch / "model"
    with _without_hints():
        mlflow.pyfunc.save_model(
            packed,
            python_model=str(_CODE),  # as text, no pickle
            artifacts={"explaining": str(directory.resolve())},
            code_paths=code,
            signature=ModelSignature(inputs, outputs),
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        )
    return packed


@contextmanager
def _without_hints() -> Iterator[None]:
    """Keeps back MLflow's hints that types of `predict` are wanted: the signature says what they would. MLflow overrides filters."""
    with warnings.catch_warnings(record=True) as raised:
        yield
    for warning in raised:
        if not re.search("type hints|input example", str(warning.message)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _params(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What made the model, as far as its directory says."""
    parts = {
        "base": provenance.get("base", {}).get("name"),
        "vector_domain": provenance.get("vector", {}).get("domain"),
        "vector_sha256": provenance.get("vector", {}).get("sha256"),
        "lambda2": provenance.get("merge", {}).get("lambda2"),
        "rule": provenance.get("choice", {}).get("rule"),
        "head": provenance.get("attribution_head", {}).get("kind"),
        "scale": provenance.get("attribution_head", {}).get("scale"),
    }
    return as_text({name: value for name, value in parts.items() if value is not None}, MAX_PARAM_LENGTH)


def _tags(directory: Path) -> dict[str, str]:
    card = directory / CARD
    return {NOTE_TAG: fitting(card.read_text(encoding="utf-8"))} if card.is_file() else {}


def _registered(client: Any, name: str, uri: str, model_id: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, uri, model_id=model_id).version)
