"""What the surrogate estimator learns from, on Ray Data: the label evaluations of many pictures, kept, and one fit on a worker."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.games.patch_features import patch_features
from core.shapley.calibration import CalibrationReport, held_out_report
from core.shapley.estimators import CoalitionPool
from core.shapley.kernel_shap import CoalitionMatrix, sample_coalitions
from core.shapley.residual_posterior import ResidualSolver
from core.shapley.size_adjustment import SizeAdjustedSolver
from core.shapley.surrogate import LEAST_PICTURES, EvaluatedPictures, Surrogate, SurrogateFit
from sweep.engines.shards import ShardReport
from sweep.experiment.config import ConfigError
from sweep.stages.dataset_labels import DatasetLabels, decoded_chunks

ROLE = 9
"""Tells the seeds of reference coalitions from those of any pool."""

NUM_REFERENCES = 48
"""Pictures also valued at a high budget, for the report and the error bars; none of them is in the network's fit."""
REFERENCES_A_SHARD = 16

FITTED, REPORT = "calibration/surrogate.npz", "calibration/report.json"


@dataclass(frozen=True)
class GamesShard:
    """Pictures that are evaluated before the fit; has_reference: on a reference matrix too, this shard's own."""

    index: int
    indices: tuple[int, ...]
    has_reference: bool

    @property
    def name(self) -> str:
        return f"calibration/games-{self.index:03d}.npz"


@dataclass(frozen=True)
class SurrogateJob:
    """Evaluates pictures as their labels will, so that nothing is evaluated twice, and fits a surrogate to that.

    labels: the job that the surrogate is for, without it. reference_budget: evaluations of each reference picture.
    """

    labels: DatasetLabels
    num_players: int
    num_pictures: int
    reference_budget: int

    @property
    def pool(self) -> CoalitionPool:
        return self.labels.settings.pool(self.num_players, "train")

    def shards(self) -> list[GamesShard]:
        """A seeded random choice of the data set's pictures, those with references first. Raises ConfigError for too few."""
        number = min(self.num_pictures, self.labels.num_pictures)
        if number < LEAST_PICTURES:
            raise ConfigError(
                f"a surrogate is learned from at least {LEAST_PICTURES} pictures, here are {number}: take --estimator calibrated, "
                "which does with fewer, or raise --calibration-pictures"
            )
        chosen = np.random.default_rng((self.labels.settings.seed, ROLE)).permutation(self.labels.num_pictures)[:number].tolist()
        edges = [*range(0, NUM_REFERENCES, REFERENCES_A_SHARD), *range(NUM_REFERENCES, number, self.labels.shard_size), number]
        return [
            GamesShard(k, tuple(chosen[start:stop]), start < NUM_REFERENCES)
            for k, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True))
        ]

    def missing(self, shards: list[GamesShard]) -> list[GamesShard]:
        there = set(self.labels.out.names("calibration"))
        return [shard for shard in shards if shard.name.rsplit("/", 1)[1] not in there]

    def label(self, shard: GamesShard) -> ShardReport:
        """Evaluate a shard's pictures and publish the values."""
        job = self.labels
        labeller = job.labeller()
        began = time.monotonic()
        evaluator = labeller.evaluator
        before = evaluator.num_evaluations, evaluator.seconds
        ids: list[str] = []
        parts: list[dict[str, NDArray[Any]]] = []
        num_skipped = 0
        for chunk in decoded_chunks(job, shard.indices):
            num_skipped += len(chunk.skipped)
            if not chunk.ids:
                continue
            inputs, own = job.inputs(chunk.pixels), torch.from_numpy(chunk.class_ids).to(job.device)
            began += job.find_batch_size(inputs, own)
            members = np.array([labeller.pool.member_of(picture_id) for picture_id in chunk.ids])
            values: NDArray[np.float32] | None = None
            for member in np.unique(members):
                index = np.flatnonzero(members == member)
                found = labeller.values(int(member), inputs[index], own[index])
                values = np.empty((len(members), found.shape[1]), np.float32) if values is None else values
                values[index] = found
            assert values is not None
            part: dict[str, NDArray[Any]] = {"values": values}
            if shard.has_reference:
                coalitions = torch.from_numpy(self.reference_matrix(shard).coalitions)
                part["reference"] = evaluator.values(inputs, own, coalitions).cpu().numpy()
            ids += chunk.ids
            parts.append(part)
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        content = io.BytesIO()
        np.savez(content, ids=np.array(ids, dtype=np.str_), **arrays)  # type: ignore[arg-type]
        job.out.write(shard.name, content.getvalue())
        return ShardReport(
            len(ids),
            evaluator.num_evaluations - before[0],
            num_skipped,
            time.monotonic() - began,
            evaluator.seconds - before[1],
        )

    def reference_matrix(self, shard: GamesShard) -> CoalitionMatrix:
        return sample_coalitions(self.num_players, self.reference_budget, (self.labels.settings.seed, ROLE, shard.index))

    def arrays(self, shard: GamesShard) -> dict[str, NDArray[Any]]:
        """What a finished shard holds: `ids` [n], `values` [n, P + 2] and maybe `reference` [n, R]; the ids alone where there are none."""
        with self.labels.out.open(shard.name) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def known(self, shards: list[GamesShard]) -> dict[str, NDArray[np.float32]]:
        """Values by picture id, of finished shards."""
        return {
            picture_id: values
            for shard in shards
            for arrays in [self.arrays(shard)]
            for picture_id, values in zip(arrays["ids"].tolist(), arrays.get("values", ()), strict=True)
        }

    def fitted(self) -> tuple[Surrogate, CalibrationReport] | None:
        """The surrogate, if it has been fitted."""
        if FITTED.rsplit("/", 1)[1] not in self.labels.out.names("calibration"):
            return None
        with self.labels.out.open(FITTED) as surrogate, self.labels.out.open(REPORT) as report:
            return Surrogate.from_bytes(surrogate.read()), CalibrationReport(**json.loads(report.read()))

    def fit(self, shards: list[GamesShard]) -> Iterator[float]:
        """Fit a surrogate to finished shards and publish it, with its report. Yields the loss after each epoch, of `default_epochs`."""
        values = [self.arrays(shard).get("values", np.empty((0, self.labels.settings.budget + 2), np.float32)) for shard in shards]
        fit = SurrogateFit(self._evaluated(shards, np.concatenate(values).astype(np.float64)), seed=self.labels.settings.seed)
        for _ in range(fit.epochs):
            yield fit.epoch()
        surrogate = fit.finish()
        report = self._report(surrogate, [shard for shard in shards if shard.has_reference], fit)
        surrogate = replace(surrogate, prior=replace(surrogate.prior, error_scale=report.z_spread))
        self.labels.out.write(REPORT, json.dumps(asdict(report)).encode())
        self.labels.out.write(FITTED, surrogate.to_bytes())

    def _evaluated(self, shards: list[GamesShard], values: NDArray[np.float64]) -> EvaluatedPictures:
        """Features of the shards' pictures beside their values [n, P + 2]."""
        job = self.labels
        evaluator = job.labeller().evaluator
        features, ids = [], []
        for shard in shards:
            for chunk in decoded_chunks(job, shard.indices):
                if not chunk.ids:
                    continue
                own = torch.from_numpy(chunk.class_ids).to(job.device)
                features.append(patch_features(evaluator, job.inputs(chunk.pixels), own).bfloat16())
                ids += chunk.ids
        members = np.array([self.pool.member_of(picture_id) for picture_id in ids], dtype=np.int64)
        coalitions = np.stack([self.pool.coalitions(member) for member in range(self.pool.size)])
        budget = job.settings.budget
        return EvaluatedPictures(torch.cat(features), members, coalitions, values[:, :budget], values[:, budget], values[:, budget + 1])

    def _report(self, surrogate: Surrogate, shards: list[GamesShard], fit: SurrogateFit) -> CalibrationReport:
        """Estimates of the pictures with references, at the budget in use."""
        start = 0
        truth, truth_error, estimate, deviation = [], [], [], []
        pictures = fit.pictures
        for shard in shards:
            reference = self.arrays(shard).get("reference")
            if reference is None:
                continue
            index = np.arange(start, start + len(reference))
            start += len(reference)
            ends = pictures.value_empty[index], pictures.value_full[index]
            solver = SizeAdjustedSolver(self.reference_matrix(shard))
            truth.append(solver.attributions(reference.astype(np.float64), *ends))
            truth_error.append(solver.standard_error(reference.astype(np.float64), *ends))
            for member, n in zip(pictures.members[index], index, strict=True):
                one = slice(n, n + 1)
                coalitions = pictures.coalitions[member]
                predicted = surrogate.predict(
                    pictures.features[one].float(), pictures.value_empty[one], pictures.value_full[one], seed=int(member)
                )
                found = predicted.corrected(coalitions, ResidualSolver(coalitions, surrogate.prior), pictures.values[one])
                estimate.append(found[0])
                deviation.append(found[1])
        return held_out_report(
            np.concatenate(truth),
            np.concatenate(truth_error),
            np.concatenate(estimate),
            np.concatenate(deviation),
            None,
            budget=self.labels.settings.budget,
            num_fitted=fit.num_fitted,
        )
