"""Where `--vector` comes from: a file, an artifact of a store, a run of MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from core.low_rank import load_vector
from core.merging.addition import Addition
from core.merging.rule import MergeRule
from core.miniature.weights import VECTOR_FILE
from core.model import MINIATURE, Base
from core.task_vectors import TaskVector, TaskVectorError, Weights, load_attribution_fisher
from sweep.experiment.config import ConfigError
from sweep.record.vector_files import RUNS, fetch_vector
from sweep.stages.dataset import is_artifact
from sweep.stages.sensitivity import stored_attribution_fisher
from sweep.store.artifacts import Artifact, Store
from sweep.store.manifest import sha256_of

LAMBDA2, MERGE = "lambda2", "merge"
"""The fields of a vector's file that recommend a lambda2 and name the merge rule that it is of; without the second it is addition's."""
_EXPLAINABILITY = "explainability_vector.safetensors"


@dataclass(frozen=True, eq=False)
class FoundVector:
    """An explainability vector of the base. source: where it was, for the record; metadata: what its file says of it.

    checksum: of the file, computed beside what is done with the vector. attribution_fisher: of its self-explaining model, a number a
    weight, read when it is asked for; None where neither the file nor the store has it.
    """

    vector: TaskVector
    source: str
    checksum: Future[str]
    metadata: Mapping[str, str]
    attribution_fisher: Callable[[], Weights | None]

    @property
    def sha256(self) -> str:
        return self.checksum.result()

    def lambda2(self, rule: MergeRule) -> float | None:
        """What its file recommends for a merge rule, where `recommend --write` knew the targets of its sweep."""
        text = self.metadata.get(LAMBDA2)
        return float(text) if text is not None and self.recommended_rule == rule.text else None

    @property
    def recommended_rule(self) -> str | None:
        """The merge rule that its lambda2 is of, as text; None where its file recommends none."""
        return self.metadata.get(MERGE, Addition().text) if LAMBDA2 in self.metadata else None


@contextmanager
def found_vector(location: str, base: Base, store: str | None = None, tracking_uri: str | None = None) -> Iterator[FoundVector]:
    """The vector at a location, while it is in use: what was fetched is removed afterwards.

    location: a .safetensors file, <store>/artifacts/<xx>/<key> (with a store, the key alone), runs:/RUN_ID[/PATH], or `miniature` (that of
    `concepts`, in this package).
    Raises ConfigError, StoreError, TrackingError or TaskVectorError, with the fix, where there is none, or it is not of this base.
    """
    with tempfile.TemporaryDirectory() as fetched, ThreadPoolExecutor(1) as beside:
        held, artifact = _in_store(location, store)
        path = _in_artifact(artifact, location) if artifact else _file(location, Path(fetched), tracking_uri)
        checksum = beside.submit(sha256_of, path)
        try:
            vector = load_vector(path, base.fingerprint)
        except TaskVectorError as error:
            raise TaskVectorError(f"--vector {location}: {error} (--base is {base.name})") from None
        with safe_open(path, framework="pt") as file:
            metadata = {k: v for k, v in sorted((file.metadata() or {}).items()) if k != "format"}
        source = artifact.key if artifact else location if location.startswith(RUNS) else path.name

        def attribution_fisher() -> Weights | None:
            return stored_attribution_fisher(held, artifact) if held and artifact else load_attribution_fisher(path)

        yield FoundVector(vector, source, checksum, metadata, attribution_fisher)


def _in_store(location: str, store: str | None) -> tuple[Store, Artifact] | tuple[None, None]:
    """The artifact that a location names, with the store that it lies in."""
    if store is None and not is_artifact(location):
        return None, None
    root, _, key = location.rstrip("/").rpartition("/")
    held = Store(store or root.rpartition("/artifacts/")[0])
    return held, held.open(location if store else key)


def _in_artifact(artifact: Artifact, location: str) -> Path:
    if _EXPLAINABILITY not in artifact.manifest["files"]:
        raise ConfigError(
            f"--vector {location} is a {artifact.manifest['stage']} artifact without {_EXPLAINABILITY}: give the vector of a "
            "self-explaining model (its child run in MLflow names the key)"
        )
    return artifact.path(_EXPLAINABILITY)


def _file(location: str, directory: Path, tracking_uri: str | None) -> Path:
    if location == MINIATURE:
        return VECTOR_FILE
    if location.startswith(RUNS):
        return fetch_vector(location, directory, tracking_uri)
    path = Path(location).expanduser()
    if path.is_dir():
        path = path / _EXPLAINABILITY
    if not path.is_file():
        forms = "a .safetensors file, STORE/artifacts/XX/KEY, a key with --store, or runs:/RUN_ID"
        raise ConfigError(f"there is no vector {location}: give {forms}")
    return path
