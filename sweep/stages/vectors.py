"""Task vectors as artifacts: tau_ft and the explainability vector tau_star, each a file that can be shipped (eqs. 6 and 7)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.merging.combination import Combination
from core.task_vectors import TaskVector
from sweep.stages.labels import LabelSet
from sweep.stages.models import FineTuned
from sweep.stages.stage import ChildRun, Stage
from sweep.store.artifacts import Store


@dataclass(frozen=True, eq=False)
class Vector(Stage):
    """model minus start: tau_ft where start is None, the base; tau_star where start is the same domain's prediction-only model."""

    kind = "vector"
    version = 2

    model: FineTuned
    start: FineTuned | None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def alpha(self) -> float:
        """Of the model; 1 for a task vector."""
        return self.model.alpha

    @property
    def file_name(self) -> str:
        return f"{'task' if self.start is None else 'explainability'}_vector.safetensors"

    @property
    def params(self) -> dict[str, Any]:
        return {"base": self.model.base.fingerprint, "source_domain": self.model.source}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.model, *((self.start,) if self.start else ()))

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        base = self.model.base
        start = self.start.load(store) if self.start else dict(base.load().visual.state_dict())
        vector = TaskVector.between(self.model.load(store), start, base.fingerprint)
        vector.save(directory / self.file_name, self.metadata())
        return {"norm": vector.norm()}

    def metadata(self) -> dict[str, str]:
        """What a file that is given away says of itself, beside the base's fingerprint."""
        model = self.model
        found = {
            "domain": model.source,
            "domains": json.dumps([pictures.name for pictures in model.pictures]),
            "alpha": repr(model.alpha),
            "base": model.base.name,
            "recipe": json.dumps(asdict(model.recipe), sort_keys=True),
            "model": model.key,
        }
        if self.start is not None:
            found["attribution_head"] = json.dumps(asdict(model.attribution_head), sort_keys=True)
            found["labels"] = json.dumps(asdict(labels.settings) if isinstance(labels := model.labels[0], LabelSet) else labels.kind)
        return found

    def load(self, store: Store) -> TaskVector:
        return TaskVector.load(self.artifact(store).path(self.file_name))

    def child_run(self, store: Store) -> ChildRun:
        """The training, with its curves and the vector that came of it."""
        model, alpha = self.model, self.model.alpha
        trained = model.artifact(store)
        history = model.history(store)
        curves = {
            metric: [(point["step"], point[metric]) for point in history if point[metric] is not None]
            for metric in ("loss", "classification_loss", "explanation_loss")
        }
        recipe = {f"recipe.{k}": v for k, v in trained.manifest["params"]["recipe"].items()}
        return ChildRun(
            stage="finetune",
            key=self.key,
            name=self.name,
            params={
                "source_domain": model.source,
                "alpha": alpha,
                "base": model.base.name,
                "base_fingerprint": model.base.fingerprint,
                **recipe,
            },
            metrics={
                "vector_norm": self.artifact(store).manifest["meta"]["norm"],
                "final_loss": history[-1]["loss"],
                "num_pictures": trained.manifest["meta"]["num_pictures"],
            },
            tags={"kind": "prediction_only" if alpha == 1.0 else "self_explaining", "model_key": model.key},
            started_s=trained.manifest["started"],
            seconds=trained.manifest["seconds"],
            large_files=[(self.file_name, "vectors")],
            curves={metric: points for metric, points in curves.items() if points},
        )


@dataclass(frozen=True, eq=False)
class CombinedVector(Stage):
    """One vector of several sources' vectors: all tau_ft, or all tau_star of one alpha."""

    kind = "combined_vector"
    version = 1

    source: str
    vectors: tuple[Vector, ...]
    combination: Combination

    @property
    def name(self) -> str:
        return f"{self.source} {'prediction-only' if self.vectors[0].start is None else f'alpha={self.alpha:g}'}"

    @property
    def alpha(self) -> float:
        return self.vectors[0].alpha

    @property
    def file_name(self) -> str:
        return self.vectors[0].file_name

    @property
    def params(self) -> dict[str, Any]:
        return {"combination": {"name": self.combination.name, **asdict(self.combination)}}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return self.vectors

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        vector = self.combination.combine([vector.load(store) for vector in self.vectors])
        domains = dict.fromkeys(pictures.name for made in self.vectors for pictures in made.model.pictures)
        own = {"domain": self.source, "domains": json.dumps(list(domains)), "combination": self.combination.text}
        shared = {k: v for k, v in self.vectors[0].metadata().items() if k in ("alpha", "base", "attribution_head", "labels")}
        vector.save(directory / self.file_name, {**shared, **own})
        return {"norm": vector.norm()}

    def load(self, store: Store) -> TaskVector:
        return TaskVector.load(self.artifact(store).path(self.file_name))

    def child_run(self, store: Store) -> ChildRun:
        manifest = self.artifact(store).manifest
        return ChildRun(
            stage="vector",
            key=self.key,
            name=self.name,
            params={"source_domain": self.source, "alpha": self.alpha, "combination": self.combination.text},
            metrics={"vector_norm": manifest["meta"]["norm"]},
            tags={"kind": "combined"},
            started_s=manifest["started"],
            seconds=manifest["seconds"],
            large_files=[(self.file_name, "vectors")],
        )


AnyVector = Vector | CombinedVector
"""What a pair is merged from."""
