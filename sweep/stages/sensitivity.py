"""What merge rules need besides the vectors, measured on pictures: how much a model's answers depend on each weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.merging.rule import Need
from core.sensitivity import attribution_fisher, class_fisher, class_gradient
from core.task_vectors import Weights
from sweep.stages.models import Classifier, FineTuned
from sweep.stages.stage import Stage
from sweep.store.artifacts import Artifact, Store, artifact_key

SENSITIVITY = "sensitivity.safetensors"
NUM_PICTURES = 256
"""Of the model's training pictures that are measured on, one backward pass each for Fisher information."""

_MEASURES: dict[Need, Callable[..., dict[str, Tensor]]] = {
    "class_fisher": class_fisher,
    "attribution_fisher": attribution_fisher,
    "class_gradient": class_gradient,
}


@dataclass(frozen=True, eq=False)
class Sensitivity(Stage):
    """One kind of evidence for a merge rule: of a fine-tuned model, on the pictures it was trained on."""

    kind = "sensitivity"
    version = 1
    uses_device = True

    need: Need
    model: FineTuned

    @property
    def name(self) -> str:
        return f"{self.model.name} {self.need}"

    @property
    def alpha(self) -> float:
        """Of the model: 1 for one that serves all of a source's vectors."""
        return self.model.alpha

    @property
    def params(self) -> dict[str, Any]:
        return _params(self.need)

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.model, *self.model.inputs)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        model = self.model
        data = model.picture_source(store)
        classifier = Classifier(model.base, model.heads, model, model.device).load(store)
        measured = _MEASURES[self.need](classifier, data, NUM_PICTURES, model.recipe.seed)
        save_file({name: value.cpu().contiguous() for name, value in measured.items()}, directory / SENSITIVITY)
        return {"num_pictures": min(NUM_PICTURES, len(data))}

    def load(self, store: Store) -> dict[str, Tensor]:
        """A number a weight, by the image tower's names."""
        return load_file(self.artifact(store).path(SENSITIVITY))


def _params(need: Need) -> dict[str, Any]:
    return {"need": need, "num_pictures": NUM_PICTURES}


def attribution_fisher_keys(store: Store, vector: Artifact) -> list[str]:
    """What a sweep by a merge rule that needs it measured for an explainability vector in a store, as keys there: of its self-explaining
    model; of a combined vector, of each member's. Empty where the store lacks one.
    """
    is_combined = vector.manifest["stage"] == "combined_vector"
    found = [_measured_for(store, key) for key in (vector.manifest["inputs"] if is_combined else [vector.key])]
    keys = [key for key in found if key is not None]
    return keys if len(keys) == len(found) else []


def stored_attribution_fisher(store: Store, vector: Artifact) -> dict[str, Tensor] | None:
    """A number a weight; the mean where there are several keys, as sweeps merge. None where the store lacks one."""
    found = [load_file(store.open(key).path(SENSITIVITY)) for key in attribution_fisher_keys(store, vector)]
    return mean_of_models(found) if found else None


def mean_of_models(found: Sequence[Weights]) -> dict[str, Tensor]:
    """Of what was measured of several models, those that a combined vector comes from: a number a weight."""
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}


def _measured_for(store: Store, key: str) -> str | None:
    """Of the model that a vector was made from: the key follows from the manifests."""
    if not store.exists(key) or not (inputs := store.open(key).manifest["inputs"]) or not store.exists(inputs[0]):
        return None
    made_from = [inputs[0], *store.open(inputs[0]).manifest["inputs"]]
    measured = artifact_key(Sensitivity.kind, Sensitivity.version, _params("attribution_fisher"), made_from)
    return measured if store.exists(measured) else None
