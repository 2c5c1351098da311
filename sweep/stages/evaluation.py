"""Scores of models on a domain: the transferred ones, and every reference row they are read against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.games.attribution_labels import AttributionLabels, perturbations
from core.merging import MERGE_RULES, Merger
from core.metrics import Scores, attribution_scores, chance_iou_at
from core.metrics import accuracy as accuracy_of
from core.model import SelfExplainingClassifier
from sweep.stages.computations import (
    cached_base,
    explainability_vector,
    load_classifier,
    load_labels,
    load_pictures,
    run,
    target_task_vector,
    zero_shot,
)
from sweep.stages.plan import LabelSplit, Plan
from sweep.store.artifacts import Artifact, Store

BATCH_SIZE = 256


class SplitEvaluator:
    """One split of a domain with its labels, ready to score any model on. Accuracy over all pictures, the rest over the labelled."""

    def __init__(self, plan: Plan, store: Store, domain: str, split: LabelSplit) -> None:
        self._plan = plan
        self._pictures = load_pictures(plan, store, domain, split)
        self.labels: AttributionLabels = load_labels(plan, store, domain, split)
        num_perturbations = plan.label_settings(split).num_perturbations
        self._removed = perturbations(self.labels.attributions.shape[1], num_perturbations)

    @torch.inference_mode()
    def outputs(self, classifier: SelfExplainingClassifier) -> tuple[np.ndarray, np.ndarray]:
        """Logits of all pictures [N, C] and attributions of the true classes of the labelled ones [L, M]."""
        device = self._plan.config.device
        logits: list[Tensor] = []
        attributions: list[Tensor] = []
        for start in range(0, len(self._pictures), BATCH_SIZE):
            stop = min(start + BATCH_SIZE, len(self._pictures))
            inputs = self._plan.preprocessing.normalise(self._pictures.tensor(start, stop).to(device))
            class_ids = torch.from_numpy(self._pictures.class_ids[start:stop]).to(device)
            num_labelled = max(0, min(stop, len(self.labels)) - start)
            if num_labelled:
                explained = classifier(inputs[:num_labelled], class_ids[:num_labelled])
                logits.append(explained.logits)
                attributions.append(explained.attributions)
            if num_labelled < stop - start:
                logits.append(classifier.logits(inputs[num_labelled:]))
        return torch.cat(logits).float().cpu().numpy(), torch.cat(attributions).float().cpu().numpy()

    def scores(self, classifier: SelfExplainingClassifier) -> Scores:
        """Every score of a model."""
        logits, attributions = self.outputs(classifier)
        return self.map_scores(attributions, accuracy_of(logits, self._pictures.class_ids))

    def map_scores(self, attributions: np.ndarray, accuracy: float | None = None) -> Scores:
        """Scores of attributions [L, M] (or of one map [M] for all pictures) without a model."""
        attributions = np.broadcast_to(attributions, self.labels.attributions.shape)
        return attribution_scores(
            attributions,
            self.labels.attributions,
            self._removed,
            self.labels.value_full,
            self.labels.perturbation_values,
            accuracy,
        )


class Transfer:
    """Merged models of one (source, target) pair, eq. 8: one network whose weights are set for each point."""

    def __init__(self, plan: Plan, store: Store, source: str, target: str) -> None:
        self._plan, self._store, self._source = plan, store, source
        self._base = dict(cached_base(plan.config.base).visual.state_dict())
        self._target_task = target_task_vector(plan, store, target)
        self._mergers: dict[float, Merger] = {}
        self._classifier = zero_shot(plan, target).to(plan.config.device)

    def classifier(self, alpha: float, lambda1: float, lambda2: float) -> SelfExplainingClassifier:
        """The transferred model of a point. The same object every time."""
        if alpha not in self._mergers:
            vector = explainability_vector(self._plan, self._store, self._source, alpha)
            self._mergers[alpha] = MERGE_RULES["addition"].prepare(self._base, self._target_task, vector, self._plan.config.device)
        self._classifier.visual.load_state_dict(self._mergers[alpha].weights(lambda1, lambda2))
        return self._classifier


def normalized(scores: Scores, prediction_only: Mapping[str, float]) -> dict[str, float | None]:
    """The scores with accuracy and E-RMSE also divided by the prediction-only target model's."""
    row: dict[str, float | None] = asdict(scores)
    for name in ("accuracy", "e_rmse"):
        value, base = row[name], prediction_only[name]
        row[f"normalized_{name}"] = None if value is None or not base else value / base
    return row


def compute_reference(plan: Plan, store: Store, domain: str) -> Artifact:
    """Score on test (and, for the models, on validation) everything that a transferred model of the domain is compared with.

    `supervised` is the domain's own self-explaining model, at the alpha that is best on validation: the upper bound. `label_ceiling` is a
    second label draw with other coalitions against the first, on the same pictures.
    """

    def compute(directory: Path) -> dict[str, Any]:
        splits = {split: SplitEvaluator(plan, store, domain, split) for split in ("validation", "test")}
        rows: list[dict[str, Any]] = []

        def add(reference: str, split: str, scores: Scores, alpha: float | None = None) -> None:
            rows.append({"domain": domain, "reference": reference, "split": split, "alpha": alpha, **asdict(scores)})

        for split, evaluator in splits.items():
            add("prediction_only", split, evaluator.scores(load_classifier(plan, store, domain, 1.0)))
            add("zero_shot", split, evaluator.scores(zero_shot(plan, domain).to(plan.config.device)))
            for alpha in plan.config.search.alphas:
                add("supervised", split, evaluator.scores(load_classifier(plan, store, domain, alpha)), alpha)
            num_patches = evaluator.labels.attributions.shape[1]
            add("zero_predictor", split, _scale_free_undefined(evaluator.map_scores(np.zeros(num_patches, np.float32))))
            mean_map = load_labels(plan, store, domain, "train").attributions.mean(axis=0)
            add("mean_map", split, evaluator.map_scores(mean_map))
        test = splits["test"]
        add("chance", "test", _chance(test.labels.attributions.shape[1], len(plan.domains[domain].class_names)))
        add("label_ceiling", "test", _ceiling(test.labels, load_labels(plan, store, domain, "ceiling")))
        (directory / "references.json").write_text(json.dumps(rows))
        return {"num_test_labels": len(test.labels)}

    artifact = run(store, plan.reference(domain), compute)
    assert artifact is not None
    return artifact


def reference_rows(plan: Plan, store: Store, domain: str) -> list[dict[str, Any]]:
    """All rows of `compute_reference`."""
    rows = json.loads(compute_reference(plan, store, domain).path("references.json").read_text())
    return list(rows)


def prediction_only_scores(plan: Plan, store: Store, domain: str, split: str) -> dict[str, float]:
    """Scores of the prediction-only model, which normalised scores are divided by."""
    for row in reference_rows(plan, store, domain):
        if row["reference"] == "prediction_only" and row["split"] == split:
            return row
    raise AssertionError(f"no prediction_only row for {domain}/{split}")


def other_mean_map(plan: Plan, store: Store, domain: str) -> Scores:
    """Scores on test of the other domains' mean label maps: the mean over them, each scored by itself."""
    evaluator = SplitEvaluator(plan, store, domain, "test")
    all_scores = [
        asdict(evaluator.map_scores(load_labels(plan, store, other, "train").attributions.mean(axis=0)))
        for other in plan.domains
        if other != domain
    ]
    return Scores(**{name: _mean([s[name] for s in all_scores]) for name in all_scores[0]})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _scale_free_undefined(scores: Scores) -> Scores:
    """A zero map orders no patches and has no correlation: those scores are undefined, not small."""
    return Scores(
        e_rmse=scores.e_rmse, e_rmse_at_best_scale=scores.e_rmse_at_best_scale, infidelity=scores.infidelity
    )


def _chance(num_patches: int, num_classes: int) -> Scores:
    return Scores(
        accuracy=1.0 / num_classes,
        correlation=0.0,
        iou_at_1=chance_iou_at(1, num_patches),
        iou_at_10=chance_iou_at(10, num_patches),
    )


def _ceiling(first: AttributionLabels, second: AttributionLabels) -> Scores:
    """How well the second draw of labels predicts the first."""
    same = first.take(slice(0, len(second)))
    return attribution_scores(
        second.attributions,
        same.attributions,
        perturbations(same.attributions.shape[1], same.perturbation_values.shape[1]),
        same.value_full,
        same.perturbation_values,
    )
