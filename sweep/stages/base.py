"""The base model as a stage: what must be known of its weights before anything else can be planned."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.base_models import BaseDescription
from core.games.coalition_values import Fill
from core.games.flops import flops_per_evaluation, flops_per_picture
from core.model import Base, Preprocessing, load_base
from sweep.experiment.config import ConfigError
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store


@dataclass(frozen=True)
class BaseFacts:
    """A base model that was loaded once. fingerprint: of its weights and preprocessing; num_patches: M.

    picture_flops: operations of the label engine once a picture; mean_flops, drop_flops: those of an evaluation, by fill.
    """

    name: str
    fingerprint: str
    preprocessing: Preprocessing
    num_patches: int
    picture_flops: float
    mean_flops: float
    drop_flops: float

    def evaluation_flops(self, fill: Fill) -> float:
        return self.mean_flops if fill == "mean" else self.drop_flops

    def load(self) -> Base:
        """The model on the CPU, once a process. Raises ConfigError if it is another one by now."""
        base = loaded_base(self.name)
        if base.fingerprint != self.fingerprint:
            raise ConfigError(f"the base {self.name} changed while it was in use: start again")
        return base


@lru_cache(maxsize=2)
def loaded_base(name: str) -> Base:
    return load_base(name)


@dataclass(frozen=True, eq=False)
class BaseModel(Stage):
    """Load the base model on a worker and keep what the plan needs of it. Not an input of others: they depend on its fingerprint."""

    kind = "base"
    version = 2

    description: BaseDescription

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def params(self) -> dict[str, Any]:
        return asdict(self.description)

    def compute(self, store: Store, directory: Path) -> None:
        (directory / "base.json").write_text(json.dumps(asdict(self.look_at())))

    def look_at(self) -> BaseFacts:
        """Load the model here."""
        base = loaded_base(self.description.name)
        flops = [flops_per_picture(base.visual), flops_per_evaluation(base.visual, "mean"), flops_per_evaluation(base.visual, "drop")]
        return BaseFacts(self.description.name, base.fingerprint, base.preprocessing, base.num_patches, *flops)

    def load(self, store: Store) -> BaseFacts:
        facts: dict[str, Any] = self.artifact(store).read_json("base.json")
        preprocessing: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["preprocessing"].items()}
        # By the name it is known by here: the artifact may be of an earlier sweep from another directory.
        return BaseFacts(**{**facts, "name": self.description.name, "preprocessing": Preprocessing(**preprocessing)})
