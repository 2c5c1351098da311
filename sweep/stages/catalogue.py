"""What finished sweeps left in a store that a new target can use: explainability vectors, and results to learn from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.finetune import Recipe
from core.task_vectors import TaskVector, Weights
from sweep.experiment.sources import TOGETHER
from sweep.report.result import ResultError, SweepResult
from sweep.stages.result import read_result
from sweep.stages.sensitivity import attribution_fisher_keys, stored_attribution_fisher
from sweep.store.artifacts import Artifact, Store

_TASK, _EXPLAINABILITY = "task_vector.safetensors", "explainability_vector.safetensors"


@dataclass(frozen=True)
class StoredVector:
    """An explainability vector of a store. prediction_only: the key of its source's prediction-only vector.

    domains: that the source consists of (`others` is another union for each target). recipe: of the prediction-only training.
    """

    key: str
    source: str
    domains: tuple[str, ...]
    alpha: float
    prediction_only: str
    recipe: Recipe

    @property
    def name(self) -> str:
        return self.source if len(self.domains) < 2 else f"{self.source} ({len(self.domains)} domains)"

    def path(self, store: Store) -> Path:
        """Its file, to read or to copy at once."""
        return store.open(self.key).path(_EXPLAINABILITY)

    def load(self, store: Store) -> TaskVector:
        return TaskVector.load(self.path(store))

    def has_attribution_fisher(self, store: Store) -> bool:
        return bool(attribution_fisher_keys(store, store.open(self.key)))

    def load_attribution_fisher(self, store: Store) -> Weights | None:
        """What merge rules need of its self-explaining model; None where no sweep of the store measured it."""
        return stored_attribution_fisher(store, store.open(self.key))

    def load_prediction_only(self, store: Store) -> TaskVector:
        return TaskVector.load(store.open(self.prediction_only).path(_TASK))


def stored_vectors(store: Store, base_fingerprint: str) -> list[StoredVector]:
    """The explainability vectors of a base, by source and alpha; each once, though it may serve under two names; combined ones too.

    One whose prediction-only vector is not in the store is left out.
    """
    vectors = [artifact for key in store.keys("vector") if (artifact := store.open(key)).manifest["params"]["base"] == base_fingerprint]
    start_of = {_inputs(v)[0]: v.key for v in vectors if _TASK in v.manifest["files"]}
    found: dict[tuple[str, ...], StoredVector] = {}
    by_key: dict[str, tuple[str, StoredVector]] = {}
    for vector in vectors:
        if _EXPLAINABILITY not in vector.manifest["files"]:
            continue
        model, start = _inputs(vector)
        if start not in start_of or store.existing([model, start]) != {model, start}:
            continue
        alpha, recipe = store.open(model).manifest["params"]["alpha"], store.open(start).manifest["params"]["recipe"]
        source, domains = vector.manifest["params"]["source_domain"], _domains(store, store.open(start))
        stored = StoredVector(vector.key, source, domains, float(alpha), start_of[start], Recipe(**recipe))
        by_key[vector.key] = start, stored
        if (model, start) not in found or (source,) == domains:  # a domain's own name is the clearer one
            found[model, start] = stored
    combined = _combined_vectors(store, by_key, {v.key: _inputs(v)[0] for v in vectors if _TASK in v.manifest["files"]})
    return sorted([*found.values(), *combined], key=lambda v: (v.source, v.alpha, v.key))


def _combined_vectors(store: Store, members: Mapping[str, tuple[str, StoredVector]], trained: Mapping[str, str]) -> list[StoredVector]:
    """Of several sources' vectors made one. members: a vector's key -> its prediction-only model and itself; trained: a prediction-only
    vector's key -> its model."""
    made = [store.open(key) for key in store.keys("combined_vector")]
    tasks = {_identity(v, [trained.get(key) for key in _inputs(v)]): v.key for v in made if _TASK in v.manifest["files"]}
    found = []
    for vector in made:
        if _EXPLAINABILITY not in vector.manifest["files"] or not set(_inputs(vector)) <= members.keys():
            continue
        starts, parts = zip(*(members[key] for key in _inputs(vector)), strict=True)
        task = tasks.get(_identity(vector, starts))
        if task is not None:
            domains = tuple(dict.fromkeys(domain for part in parts for domain in part.domains))
            source = TOGETHER.join(part.source for part in parts)
            found.append(StoredVector(vector.key, source, domains, parts[0].alpha, task, parts[0].recipe))
    return found


def _identity(combined: Artifact, models: Sequence[str | None]) -> tuple[str, ...]:
    """What tells combinations apart: how, and of which prediction-only models."""
    return json.dumps(combined.manifest["params"]["combination"], sort_keys=True), *(str(model) for model in models)


def results_of(store: Store, base_fingerprint: str) -> list[SweepResult]:
    """Results of sweeps on a base, those of most pairs first. Ones that another version wrote are left out."""
    found = []
    for key in store.keys("result"):
        try:
            result = read_result(store.open(key))
        except (ResultError, FileNotFoundError):
            continue
        if result.provenance.get("base_fingerprint") == base_fingerprint:
            found.append(result)
    return sorted(found, key=lambda result: -len(result.pairs))


def _domains(store: Store, model: Artifact) -> tuple[str, ...]:
    """Whose pictures a model was trained on."""
    inputs = [store.open(key) for key in _inputs(model) if store.exists(key)]
    return tuple(str(a.manifest["params"]["name"]) for a in inputs if a.manifest["stage"] == "pictures")


def _inputs(artifact: Artifact) -> Sequence[str]:
    return list(artifact.manifest["inputs"])
