"""The transferred models of a pair, merged point by point (eq. 8), and their scores on a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.map_scale import rescaled
from core.merging.rule import Evidence, Merger, MergeRule
from core.merging.rules import parse_rule
from core.metrics import Scores, attribution_scores, e_rmse, with_normalized
from core.model import Preprocessing, SelfExplainingClassifier
from core.statistics.proportions import kept_accuracy
from core.task_vectors import TaskVector, Weights
from sweep.experiment.config import Device, SearchSettings
from sweep.report.result import MERGE_COLUMN
from sweep.stages.coefficients import LearnedCoefficients
from sweep.stages.intervals import ScoredPoint
from sweep.stages.labels import LabelSet
from sweep.stages.models import Classifier
from sweep.stages.objectives import Cell, Evaluate
from sweep.stages.per_picture import PictureScores
from sweep.stages.pictures import Pictures
from sweep.stages.references import ModelScores
from sweep.stages.scoring import SplitEvaluator
from sweep.stages.sensitivity import Sensitivity, mean_of_models
from sweep.stages.stage import Stage
from sweep.stages.vectors import AnyVector
from sweep.store.artifacts import Store

EvidenceStage = Sensitivity | LearnedCoefficients


@dataclass(frozen=True)
class Transfer:
    """What a pair is merged from and scored on.

    source_vectors: tau_star of the source, by alpha; target_vectors: the target's own, whose similarity is reported; source_task and
    target_task: both tau_ft. zero_shot: the base with the target's head. prediction_only: what normalised scores are divided by.
    evidence: what the merge rule needs of the target's prediction-only model, and of the source's self-explaining ones or its vectors of
    each alpha.
    """

    source: str
    target: str
    preprocessing: Preprocessing
    pictures: Pictures
    zero_shot: Classifier
    source_task: AnyVector
    target_task: AnyVector
    source_vectors: tuple[AnyVector, ...]
    target_vectors: tuple[AnyVector, ...]
    validation: LabelSet
    test: LabelSet
    prediction_only: ModelScores
    device: Device
    source_models: tuple[ModelScores, ...] = ()
    evidence: tuple[EvidenceStage, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.source} -> {self.target}"

    def inputs(self, vectors: Sequence[AnyVector]) -> tuple[Stage, ...]:
        tasks = (self.pictures, *self.zero_shot.inputs, self.source_task, self.target_task)
        evidence = dict.fromkeys(found for vector in vectors for found in self.evidence_at(vector.alpha))
        return (*tasks, *vectors, self.validation, self.test, self.prediction_only, *evidence)

    def evidence_at(self, alpha: float) -> tuple[EvidenceStage, ...]:
        """What the merge rule needs for the source's vector of an alpha."""
        return tuple(found for found in self.evidence if found.alpha in (1.0, alpha))

    def evaluator(self, store: Store, search: SearchSettings) -> Points:
        return Points(self, store, search)


class Points:
    """Merged models of a pair: one network on the device, whose weights are set for each point."""

    def __init__(self, transfer: Transfer, store: Store, search: SearchSettings) -> None:
        self._transfer, self._store, self._search = transfer, store, search
        self._classifier: SelfExplainingClassifier = transfer.zero_shot.load(store)
        base = transfer.zero_shot.base.load().visual.state_dict()
        self._base = {name: weight.to(transfer.device) for name, weight in base.items()}
        self._task: TaskVector = transfer.target_task.load(store).to(transfer.device)
        self._mergers: dict[tuple[float, MergeRule], Merger] = {}
        self._max_mergers = len(search.alphas) + 1  # each holds a vector on the device
        self._splits: dict[str, _Split] = {}
        self._scales: dict[tuple[float, float, MergeRule], float] = {}

    def classifier(self, alpha: float, lambda2: float, merge: MergeRule | None = None) -> SelfExplainingClassifier:
        """The transferred model of a point, before calibration. The same object every time.

        merge: the rule with its parameters at this point, where some are searched; None: the search's own.
        """
        rule = merge or self._search.merge
        if (alpha, rule) not in self._mergers:
            while len(self._mergers) >= self._max_mergers:
                del self._mergers[next(iter(self._mergers))]  # the oldest
            self._mergers[alpha, rule] = self._merger(alpha, rule)
        weights = self._mergers[alpha, rule].weights(self._search.lambda1, lambda2)
        self._classifier.visual.load_state_dict(weights)
        return self._classifier

    def at(self, cell: Mapping[str, Any]) -> SelfExplainingClassifier:
        """The transferred model of an evaluated point, by its cell."""
        return self.classifier(*point_of(cell))

    def scale(self, alpha: float, lambda2: float, merge: MergeRule | None = None) -> float:
        """The factor that calibrates a point's maps, found on the validation pictures; 1 where none is wanted."""
        if self._search.calibration == "none":
            return 1.0
        point = alpha, lambda2, merge or self._search.merge
        if point not in self._scales:
            evaluator = self._split("validation").evaluator
            _, attributions = evaluator.outputs(self.classifier(*point))
            self._scales[point] = evaluator.map_scale(self._classifier.attribution_head, attributions)
        return self._scales[point]

    def _merger(self, alpha: float, rule: MergeRule) -> Merger:
        transfer, store = self._transfer, self._store
        (vector,) = (v for v in transfer.source_vectors if v.alpha == alpha)
        evidence = _evidence(store, transfer.evidence_at(alpha))
        return rule.prepare(self._base, self._task, vector.load(store), transfer.device, evidence)

    def on(self, split: str) -> Evaluate:
        """A function that gives the cell of a point on a split."""
        scored_point = self.scored_on(split)

        def evaluate(alpha: float, lambda2: float, merge: MergeRule | None = None) -> Cell:
            return scored_point(alpha, lambda2, merge).cell

        return evaluate

    def scored_on(self, split: str, is_calibrated: bool = True) -> Callable[[float, float, MergeRule | None], ScoredPoint]:
        """The same with what the scores of the point were computed from.

        is_calibrated: with the factor of the maps that the search asks for; without, the maps are those of the head.
        """
        found = self._split(split)

        def evaluate(alpha: float, lambda2: float, merge: MergeRule | None = None) -> ScoredPoint:
            rule = merge or self._search.merge
            head = self._classifier.attribution_head
            logits, attributions = found.evaluator.outputs(self.classifier(alpha, lambda2, rule))
            if is_calibrated and split == "validation" and self._search.calibration == "scale":
                self._scales[alpha, lambda2, rule] = found.evaluator.map_scale(head, attributions)
            scale = self.scale(alpha, lambda2, rule) if is_calibrated else 1.0
            attributions = rescaled(head, attributions, scale)
            is_correct = found.evaluator.is_correct(logits)
            scored = found.evaluator.scored(attributions, is_correct)
            few = min(self._search.num_few_labels, len(attributions))
            cell = {
                "source_domain": self._transfer.source,
                "target_domain": self._transfer.target,
                "alpha": float(alpha),
                "lambda1": float(self._search.lambda1),
                "lambda2": float(lambda2),
                **({MERGE_COLUMN: rule.text} if self._search.searched else {}),
                "split": split,
                "is_chosen": False,
                "attribution_scale": scale * head.scale,
                "normalized_accuracy_lower": found.accuracy_bound(is_correct, self._search.accuracy_confidence),
                "few_labels_e_rmse": e_rmse(attributions[:few], found.evaluator.labels.attributions[:few]),
                **with_normalized(attribution_scores(scored), found.prediction_only),
            }
            return ScoredPoint(cell, scored, found.prediction_only_per_picture)

        return evaluate

    def _split(self, split: str) -> _Split:
        if split not in self._splits:
            transfer = self._transfer
            labels = {"validation": transfer.validation, "test": transfer.test}[split]
            evaluator = SplitEvaluator(self._store, transfer.pictures, labels, transfer.preprocessing, transfer.device)
            self._classifier.visual.load_state_dict(self._task.apply_to(self._base))
            logits, _ = evaluator.outputs(self._classifier)
            scores = transfer.prediction_only.load(self._store, split)
            per_picture = transfer.prediction_only.per_picture(self._store) if split == "test" else {}
            self._splits[split] = _Split(evaluator, scores, per_picture, evaluator.is_correct(logits))
        return self._splits[split]


def point_of(cell: Mapping[str, Any]) -> tuple[float, float, MergeRule | None]:
    """(alpha, lambda2, merge rule) of a cell; None where the rule is the search's own."""
    return cell["alpha"], cell["lambda2"], parse_rule(cell[MERGE_COLUMN]) if MERGE_COLUMN in cell else None


def _evidence(store: Store, stages: Sequence[EvidenceStage]) -> Evidence:
    """By need; that of several models, a source's of which the vectors were made one, is their mean."""
    found: dict[str, list[Weights]] = {}
    for stage in stages:
        found.setdefault(stage.need, []).append(stage.load(store))
    return Evidence(**{need: mean_of_models(measured) for need, measured in found.items()})


@dataclass(frozen=True)
class _Split:
    """A split, and how the prediction-only model does on it: its scores, those of the test pictures one by one, and the pictures [N] that
    it classifies rightly.
    """

    evaluator: SplitEvaluator
    prediction_only: Scores
    prediction_only_per_picture: PictureScores
    is_correct: np.ndarray

    def accuracy_bound(self, is_correct: np.ndarray, confidence: float) -> float | None:
        """The lower confidence limit of a model's normalised accuracy, whose pictures [N] are classified rightly."""
        return kept_accuracy(is_correct, self.is_correct, confidence)
