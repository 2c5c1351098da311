"""How much of each tensor, or row, of a source's explainability vector a target takes: learned on the target's pictures, without labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from core.attribution_head import AttributionHead
from core.games.lambda2 import NUM_PERTURBATIONS
from core.games.learned_coefficients import learn_coefficients
from core.merging.atlas import Atlas
from core.merging.rule import Need
from sweep.stages.models import Classifier, FineTuned
from sweep.stages.stage import Stage
from sweep.stages.vectors import AnyVector
from sweep.store.artifacts import Store

COEFFICIENTS = "coefficients.safetensors"


@dataclass(frozen=True, eq=False)
class LearnedCoefficients(Stage):
    """Evidence for the rule `atlas` and its kin. model: the target's prediction-only one, on whose training pictures it is learned; its
    maps are those of attribution_head, as the transferred model's.
    """

    kind = "coefficients"
    version = 1
    uses_device = True
    need: ClassVar[Need] = "coefficients"

    rule: Atlas
    model: FineTuned
    vector: AnyVector
    attribution_head: AttributionHead

    @property
    def name(self) -> str:
        return f"{self.vector.name} on {self.model.source}"

    @property
    def alpha(self) -> float:
        """Of the source's vector that it is for."""
        return self.vector.alpha

    @property
    def params(self) -> dict[str, Any]:
        merge = {"name": self.rule.name, **asdict(self.rule)}
        return {"merge": merge, "head": asdict(self.attribution_head), "num_perturbations": NUM_PERTURBATIONS}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.model, *self.model.inputs, self.vector)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        model = self.model
        classifier = Classifier(model.base, model.heads, model, model.device, self.attribution_head).load(store)
        data = model.picture_source(store)
        found = learn_coefficients(classifier, data, self.vector.load(store), self.rule, model.recipe.seed)
        save_file(found.of_vector(0), directory / COEFFICIENTS)
        return {"num_pictures": min(self.rule.num_pictures, len(data)), "first_loss": found.losses[0], "final_loss": found.losses[-1]}

    def load(self, store: Store) -> dict[str, Tensor]:
        """By the image tower's names a number a tensor, [], or one for each of its rows, [R, 1, ...]."""
        return load_file(self.artifact(store).path(COEFFICIENTS))
