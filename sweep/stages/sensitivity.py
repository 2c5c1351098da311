"""What merge rules need besides the vectors, measured on pictures: how much a model's answers depend on each weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from core.merging.rule import Need
from core.sensitivity import attribution_fisher, class_fisher, class_gradient
from sweep.stages.models import Classifier, FineTuned
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

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
    def params(self) -> dict[str, Any]:
        return {"need": self.need, "num_pictures": NUM_PICTURES}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.model, *self.model.inputs)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        model = self.model
        data = model.training_data(store)
        classifier = Classifier(model.base, model.heads, model, model.device).load(store)
        measured = _MEASURES[self.need](classifier, data, NUM_PICTURES, model.recipe.seed)
        save_file({name: value.cpu().contiguous() for name, value in measured.items()}, directory / SENSITIVITY)
        return {"num_pictures": min(NUM_PICTURES, len(data))}

    def load(self, store: Store) -> dict[str, Tensor]:
        """A number a weight, by the image tower's names."""
        return load_file(self.artifact(store).path(SENSITIVITY))
