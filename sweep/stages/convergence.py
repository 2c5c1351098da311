"""Figure 6: how well Kernel SHAP agrees with the test labels as it gets more evaluations, picture by picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from core.games.attribution_labels import Labeller, LabelSettings
from core.metrics import top_patches
from core.model import Preprocessing
from core.shapley.kernel_shap import ENUMERATION_EVALUATIONS_A_PLAYER, KERNEL_SHAP
from sweep.experiment.config import Device
from sweep.report.result import CONVERGENCE_COLUMNS
from sweep.stages.labels import LabelSet, batch_size_of
from sweep.stages.models import Classifier
from sweep.stages.pictures import Pictures
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

ROLE = "convergence"
"""Names the coalition pool: the references are labelled on other coalitions than any point of the curve."""


@dataclass(frozen=True, eq=False)
class Convergence(Stage):
    """IoU@10 of plain Kernel SHAP with a target's first test labels, for several budgets.

    The smaller budgets are the first coalitions of the largest of their design (`designs`): evaluated once.
    budgets: evaluations a picture, ascending. num_patches: M.
    """

    kind = "convergence"
    version = 1
    uses_device = True
    unit = "targets"

    target: str
    preprocessing: Preprocessing
    pictures: Pictures
    classifier: Classifier
    test: LabelSet
    budgets: tuple[int, ...]
    num_pictures: int
    device: Device
    num_patches: int

    @property
    def name(self) -> str:
        return self.target

    @property
    def params(self) -> dict[str, Any]:
        found = designs(self.budgets, self.num_patches)
        return {
            **self.classifier.params,
            "budgets": self.budgets,
            **({"designs": found} if len(found) > 1 else {}),
            "num_pictures": self.num_pictures,
            "settings": asdict(self.test.settings),
            "device": self.device,
        }

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.pictures, *self.classifier.inputs, self.test)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        classifier = self.classifier.load(store)
        labels, split = self.test.load(store), self.pictures.load(store, "test")
        number = min(self.num_pictures, len(labels))
        inputs = self.preprocessing.normalise(split.pixels.range(0, number).to(self.device))
        class_ids = torch.from_numpy(split.class_ids[:number]).to(self.device)
        strongest = top_patches(labels.attributions[:number], 10)
        overlap, evaluations = np.empty((len(self.budgets), number)), 0
        for budgets_of_design in designs(self.budgets, self.num_patches):
            most = budgets_of_design[-1]
            settings = plain(self.test.settings, most)
            labeller = Labeller(classifier, settings, ROLE, batch_size=batch_size_of(self.device, settings))
            for member, index in labeller.by_member(split.ids[:number]):
                values = labeller.values(member, inputs[index], class_ids[index]).astype(np.float64)
                empty, full = values[:, most], values[:, most + 1]
                for budget in budgets_of_design:
                    solver = labeller.pool.design(member, budget).solver
                    attributions, _ = solver.solve(values[:, :budget], empty, full, _no_features)
                    own = top_patches(attributions, 10)
                    shared = (own & strongest[index]).sum(1) / (own | strongest[index]).sum(1)
                    overlap[self.budgets.index(budget), index] = shared
            evaluations += labeller.evaluator.num_evaluations
        budgets, positions = np.meshgrid(self.budgets, np.arange(number), indexing="ij")
        columns = (self.target, budgets.ravel(), positions.ravel(), overlap.ravel())
        frame = pd.DataFrame(dict(zip(CONVERGENCE_COLUMNS, columns, strict=True)))
        frame.to_parquet(directory / "convergence.parquet", index=False)
        return {"num_pictures": number, "evaluations": evaluations}

    def load(self, store: Store) -> pd.DataFrame:
        """CONVERGENCE_COLUMNS"""
        return pd.read_parquet(self.artifact(store).path("convergence.parquet"))


def plain(settings: LabelSettings, budget: int) -> LabelSettings:
    """Those of Kernel SHAP by itself with so many evaluations."""
    return replace(settings, budget=budget, estimator=KERNEL_SHAP.name, l1_reg="none", target_error=None, num_perturbations=0)


def designs(budgets: tuple[int, ...], num_patches: int) -> tuple[tuple[int, ...], ...]:
    """Ascending budgets by the design that they are prefixes of.

    A draw that is large enough enumerates the extreme coalitions first, and its prefixes with it; a smaller budget by itself does not.
    """
    least = ENUMERATION_EVALUATIONS_A_PLAYER * num_patches
    below, above = (tuple(b for b in budgets if (b >= least) == is_above) for is_above in (False, True))
    return tuple(part for part in (below, above) if part)


def _no_features() -> torch.Tensor:
    raise AssertionError("plain Kernel SHAP looks at no features")
