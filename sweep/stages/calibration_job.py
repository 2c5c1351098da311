"""Calibration on Ray Data: the games of a few hundred pictures at a high budget, and the prior and report made of them."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.shapley.calibration import AttributionPrior, CalibrationReport, Games, calibrate, is_held_out
from core.shapley.kernel_shap import CoalitionMatrix, sample_coalitions
from sweep.engines.shards import ShardReport
from sweep.experiment.config import ConfigError
from sweep.stages.dataset_labels import DatasetLabels, collected, decode

ROLE = 7
"""Tells the seeds of calibration coalitions from those of any pool."""

HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class CalibrationShard:
    """Pictures that share a reference matrix; the index-th."""

    index: int
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"calibration/games-{self.index:03d}.npz"


@dataclass(frozen=True)
class CalibrationJob:
    """Values pictures' games for `core.shapley.calibration`: on a reference matrix, and of held-out ones at the budget in use."""

    labels: DatasetLabels
    num_players: int
    design_budget: int
    reference_budget: int = 512

    def label(self, shard: CalibrationShard) -> ShardReport:
        job = self.labels
        labeller = job.labeller()
        began = time.monotonic()
        decoded = collected(job, shard.indices, [decode(job, i) for i in shard.indices])
        evaluator = labeller.evaluator
        before = evaluator.num_evaluations, evaluator.seconds
        arrays: dict[str, NDArray[Any]] = {}
        if decoded.ids:
            inputs, own = job.inputs(decoded.pixels), torch.from_numpy(decoded.class_ids).to(job.device)
            began += job.find_batch_size(inputs, own)
            for name, coalitions in self.coalitions(shard).items():
                arrays[name] = evaluator.values(inputs, own, torch.from_numpy(coalitions)).cpu().numpy()
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        job.out.write(shard.name, content.getvalue())
        return ShardReport(
            len(decoded.ids),
            evaluator.num_evaluations - before[0],
            len(decoded.skipped),
            time.monotonic() - began,
            evaluator.seconds - before[1],
        )

    def coalitions(self, shard: CalibrationShard) -> dict[str, NDArray[np.bool_]]:
        """What is evaluated, by name: `reference`, the `ends` (empty and grand coalition) and of a held-out shard `design`."""
        ends = np.stack([np.zeros(self.num_players, dtype=bool), np.ones(self.num_players, dtype=bool)])
        games = {"reference": self.matrix(shard, self.reference_budget, 0).coalitions, "ends": ends}
        if is_held_out(shard.index):
            games["design"] = self.matrix(shard, self.design_budget, 1).coalitions
        return games

    def matrix(self, shard: CalibrationShard, budget: int, part: int) -> CoalitionMatrix:
        seed = (self.labels.settings.seed, ROLE, shard.index, part)
        return sample_coalitions(self.num_players, budget, seed, must_determine=part == 0)

    def games(self, shard: CalibrationShard) -> tuple[Games, Games | None] | None:
        """The games of a finished shard on both matrices; None where no picture could be read."""
        with self.labels.out.open(shard.name) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
            if "ends" not in arrays:
                return None
            empty, full = arrays["ends"].astype(np.float64).T
            values = {name: arrays[name].astype(np.float64) for name in arrays.files}
        reference = Games(self.matrix(shard, self.reference_budget, 0), values["reference"], empty, full)
        if "design" not in values:
            return reference, None
        return reference, Games(self.matrix(shard, self.design_budget, 1), values["design"], empty, full)

    def shards(self, num_pictures: int, num_matrices: int = 16) -> list[CalibrationShard]:
        """A seeded random choice of the data set's pictures, spread over reference matrices."""
        number = self.labels.num_pictures
        chosen = np.random.default_rng((self.labels.settings.seed, ROLE)).permutation(number)[:num_pictures]
        return [CalibrationShard(k, tuple(chosen[k::num_matrices].tolist())) for k in range(min(num_matrices, len(chosen)))]

    def missing(self, shards: list[CalibrationShard]) -> list[CalibrationShard]:
        there = set(self.labels.out.names("calibration"))
        return [shard for shard in shards if shard.name.rsplit("/", 1)[1] not in there]

    def prior(self, shards: list[CalibrationShard]) -> tuple[AttributionPrior, CalibrationReport]:
        """The prior of the finished shards, and what it does on pictures it was not fitted to. Raises ConfigError for too few."""
        found = [games for shard in shards if (games := self.games(shard)) is not None]
        try:
            return calibrate([reference for reference, _ in found], [design for _, design in found])
        except ValueError as error:
            raise ConfigError(f"{error}: raise --calibration-pictures, or take another estimator") from error
