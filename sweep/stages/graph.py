"""The graph of a sweep: from an experiment and what was looked at to the stages that make its result. Pure data; nothing is computed here.

    pictures(D), head(D) -> prediction_only(S) -> labels(D, role) -> self_explaining(S, alpha) -> vectors
                                                        |
    reference(T), pair(S, T): from the vectors of the source, the task vector and the labels of the target  -> examples -> result

alpha needs training, lambda1 and lambda2 only merge: so a sweep trains (1 + len(alphas)) models a source, whatever the number of pairs and
trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from core.attribution_head import COSINE, AttributionHead
from core.games.attribution_labels import LabelSettings
from core.merging.atlas import Atlas
from core.merging.rule import Need
from sweep.experiment.config import SHAPLEY, SweepConfig
from sweep.experiment.sources import Pair, Source
from sweep.stages.base import BaseFacts
from sweep.stages.coefficients import LearnedCoefficients
from sweep.stages.convergence import Convergence
from sweep.stages.domains import DomainFacts, Split
from sweep.stages.examples import Examples
from sweep.stages.explainer_labels import explained
from sweep.stages.explainer_scores import ExplainerScores
from sweep.stages.heads import TextHead
from sweep.stages.imported_labels import GivenLabels, imported
from sweep.stages.label_pictures import StoredPictures
from sweep.stages.labels import LabelSet, LabelShard, batch_size_of, shard_ranges
from sweep.stages.learned import Lesson, make_learned
from sweep.stages.models import Classifier, FineTuned
from sweep.stages.other_targets import other_targets_points
from sweep.stages.pairs import PairSearch
from sweep.stages.picture_stream import stream_window
from sweep.stages.pictures import Pictures, make_pictures
from sweep.stages.points import EvidenceStage, Transfer
from sweep.stages.references import ModelScores, Reference
from sweep.stages.result import Result
from sweep.stages.sensitivity import Sensitivity
from sweep.stages.side_head import FittedSideHead, SideHeadScores
from sweep.stages.stage import closure
from sweep.stages.vectors import CombinedVector, Vector

Role = Literal["train", "validation", "test", "ceiling"]
"""What a label set is for, which names its coalition pool: a second draw of test labels has the role `ceiling`."""
ROLES: dict[Role, Split] = {"train": "train", "validation": "validation", "test": "test", "ceiling": "test"}


@dataclass(frozen=True)
class SweepGraph:
    """The stages of a sweep. Each is made once, so that what shares inputs shares the objects.

    imported: train labels that the label command made or the user brings, by domain.
    """

    command: str
    config: SweepConfig
    base: BaseFacts
    domains: Mapping[str, DomainFacts] = field(hash=False)
    imported: Mapping[str, GivenLabels] = field(default_factory=dict, hash=False)
    _made: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def _once(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def pictures(self, domain: str) -> Pictures:
        facts = self.domains[domain]
        return self._once(("pictures", domain), lambda: make_pictures(facts, self.config.data_of(domain), self.base.preprocessing))

    def head(self, domain: str) -> TextHead:
        facts = self.domains[domain]
        return self._once(
            ("head", domain), lambda: TextHead(domain, self.base, facts.prompt_names, facts.templates, self.config.device)
        )

    def prediction_only(self, source: Source) -> FineTuned:
        """Weights fine-tuned without explanation supervision."""
        return self._finetuned(source, 1.0)

    def self_explaining(self, source: Source, alpha: float) -> FineTuned:
        """Weights fine-tuned with explanation supervision; a union's pictures keep the labels of their own domains."""
        return self._finetuned(source, alpha)

    def _finetuned(self, source: Source, alpha: float) -> FineTuned:
        pictures = tuple(self.pictures(part) for part in source.parts)
        return self._once(
            ("finetune", source, alpha),
            lambda: FineTuned(
                source.name,
                self.base,
                pictures,
                tuple(self.head(part) for part in source.parts),
                tuple(self.labels(part, "train") for part in source.parts) if alpha < 1.0 else (),
                self.config.recipe_of(source),
                float(alpha),
                self.config.attribution_head,
                self.config.device,
                stream_window(pictures, self.base.preprocessing),
                self.prediction_only(source) if alpha < 1.0 and self.config.start == "prediction_only" else None,
            ),
        )

    def task_vector(self, source: Source) -> Vector | CombinedVector:
        """tau_ft"""
        if source.members:
            return self._combined(source, tuple(self._task_vector(member) for member in source.members))
        return self._task_vector(source)

    def _task_vector(self, source: Source) -> Vector:
        return self._once(("task", source), lambda: Vector(self.prediction_only(source), None))

    def explainability_vector(self, source: Source, alpha: float) -> Vector | CombinedVector:
        """tau_star"""
        if source.members:
            return self._combined(source, tuple(self._explainability_vector(member, alpha) for member in source.members))
        return self._explainability_vector(source, alpha)

    def _combined(self, source: Source, vectors: tuple[Vector, ...]) -> CombinedVector:
        return self._once(("combined", source.name, vectors), lambda: CombinedVector(source.name, vectors, self.config.combine))

    def _explainability_vector(self, source: Source, alpha: float) -> Vector:
        return self._once(
            ("star", source, alpha), lambda: Vector(self.self_explaining(source, alpha), self.prediction_only(source))
        )

    def zero_shot(self, domain: str, attribution_head: AttributionHead = COSINE) -> Classifier:
        return self._once(
            ("zero", domain, attribution_head),
            lambda: Classifier(self.base, (self.head(domain),), None, self.config.device, attribution_head),
        )

    def classifier(self, domain: str, alpha: float, attribution_head: AttributionHead = COSINE) -> Classifier:
        """A domain's own fine-tuned model with its head."""
        model = self._finetuned(alone(domain), alpha)
        return self._once(
            ("classifier", domain, alpha, attribution_head),
            lambda: Classifier(self.base, (self.head(domain),), model, self.config.device, attribution_head),
        )

    def label_settings(self, role: Role) -> LabelSettings:
        labels = self.config.labels
        return {"train": labels.train, "validation": labels.validation}.get(role, labels.test)

    def num_labelled(self, domain: str, role: Role) -> int:
        """Pictures of a label set, before those that cannot be read are left out."""
        labels, number = self.config.labels, self.domains[domain].count(ROLES[role])
        limits = {"train": labels.max_train, "validation": labels.max_validation, "test": labels.max_test}
        most = labels.num_second_draw if role == "ceiling" else limits[role]
        if role == "ceiling" and labels.max_test is not None:
            most = min(labels.num_second_draw, labels.max_test)
        return number if most is None else min(most, number)

    def labels(self, domain: str, role: Role) -> LabelSet:
        return self._once(("labels", domain, role), lambda: self._labels(domain, role))

    def _labels(self, domain: str, role: Role) -> LabelSet:
        settings, split = self.label_settings(role), ROLES[role]
        pictures, classifier = StoredPictures(self.pictures(domain), split), self.classifier(domain, 1.0)
        title, labels, number = f"{domain} {role}", self.config.labels, self.num_labelled(domain, role)
        preprocessing, num_patches = self.base.preprocessing, self.base.num_patches
        label_set = LabelSet(domain, split, role, settings, ())
        if role == "train" and domain in self.imported:
            return imported(label_set, self.pictures(domain), self.imported[domain], labels.max_train)
        if role == "train" and labels.train_source != SHAPLEY:
            return explained(label_set, self.pictures(domain), preprocessing, classifier, labels.train_source, number)
        batch_size = batch_size_of(self.config.device, settings)
        # Estimators that learn do so from training pictures, on coalitions of the role's own: a small split teaches little.
        teachers = StoredPictures(self.pictures(domain), "train")
        lesson = Lesson(
            title, teachers, classifier, preprocessing, num_patches, settings, role, labels.learning_budget, batch_size
        )
        learned = make_learned(lesson, teachers.num_pictures, labels.learning_pictures, labels.shard_size)
        shards = tuple(
            LabelShard(title, pictures, classifier, preprocessing, settings, role, *bounds, learned, batch_size)
            for bounds in shard_ranges(number, labels.shard_size)
        )
        return replace(label_set, shards=shards)

    def scores(self, target: str, reference: str, classifier: Classifier) -> ModelScores:
        """Of one of a target's models."""
        preprocessing, pictures, device = self.base.preprocessing, self.pictures(target), self.config.device
        labels = self.labels(target, "validation"), self.labels(target, "test")
        return self._once(
            ("scores", target, reference, classifier.fingerprint),
            lambda: ModelScores(target, reference, preprocessing, pictures, classifier, *labels, device),
        )

    def prediction_only_scores(self, target: str) -> ModelScores:
        return self.scores(target, "prediction_only", self.classifier(target, 1.0))

    def explainer_scores(self, target: str) -> ExplainerScores:
        return self._once(("explainers", target), lambda: ExplainerScores(self.prediction_only_scores(target)))

    def side_head_scores(self, target: str) -> SideHeadScores:
        """Of a head that meets efficiency, whatever the sweep's own does."""
        model, head = self.prediction_only_scores(target), replace(self.config.attribution_head, kind="efficiency")
        classifier, labels = self.classifier(target, 1.0, head), self.labels(target, "train")
        fitted = FittedSideHead(target, model.preprocessing, model.pictures, classifier, labels, self.config.recipe_of(alone(target)))
        return self._once(("side head", target), lambda: SideHeadScores(fitted, model))

    def reference(self, target: str) -> Reference:
        return self._once(("reference", target), lambda: self._reference(target))

    def _reference(self, target: str) -> Reference:
        head, models = self.config.attribution_head, [self.prediction_only_scores(target)]
        if head.kind != COSINE.kind:
            models.append(self.scores(target, "prediction_only_head", self.classifier(target, 1.0, head)))
        models.append(self.scores(target, "zero_shot", self.zero_shot(target)))
        models += [self.scores(target, "supervised", self.classifier(target, alpha, head)) for alpha in self.config.search.alphas]
        roles: tuple[Role, ...] = ("train", "validation", "test", "ceiling")
        return Reference(
            target,
            len(self.domains[target].class_names),
            tuple(models),
            self.explainer_scores(target),
            self.side_head_scores(target),
            *(self.labels(target, role) for role in roles),
        )

    def transfer(self, pair: Pair) -> Transfer:
        source, target, alphas = pair.source, alone(pair.target), self.config.search.alphas
        return Transfer(
            source.name,
            pair.target,
            self.base.preprocessing,
            self.pictures(pair.target),
            self.zero_shot(pair.target, self.config.attribution_head),
            self.task_vector(source),
            self.task_vector(target),
            tuple(self.explainability_vector(source, alpha) for alpha in alphas),
            tuple(self.explainability_vector(target, alpha) for alpha in alphas),
            self.labels(pair.target, "validation"),
            self.labels(pair.target, "test"),
            self.prediction_only_scores(pair.target),
            self.config.device,
            self._source_models(pair) if self.config.scores_source_models else (),
            self.evidence(pair),
        )

    def _source_models(self, pair: Pair) -> tuple[ModelScores, ...]:
        return tuple(self.scores(pair.target, name, classifier) for name, classifier in self._source_classifiers(pair))

    def _source_classifiers(self, pair: Pair) -> tuple[tuple[str, Classifier], ...]:
        """The source's own models with the target's classes: prediction-only with the paper's head, self-explaining with the sweep's.

        Several sources whose vectors were made one have none.
        """
        if pair.source.members:
            return ()
        head = (self.head(pair.target),)
        models = [("source_prediction_only", self.prediction_only(pair.source), COSINE)]
        for alpha in self.config.search.alphas:
            models.append(("source_self_explaining", self.self_explaining(pair.source, alpha), self.config.attribution_head))
        return tuple((name, Classifier(self.base, head, model, self.config.device, explains)) for name, model, explains in models)

    def evidence(self, pair: Pair) -> tuple[EvidenceStage, ...]:
        """What the merge rule needs: attributions are the source's, classes the target's, coefficients the pair's."""
        rule, alphas, found = self.config.search.merge, self.config.search.alphas, list[EvidenceStage]()
        target = self.prediction_only(alone(pair.target))
        for need in rule.needs:
            if need == "attribution_fisher":
                found += [self._sensitivity(need, self.self_explaining(s, alpha)) for s in pair.source.trained for alpha in alphas]
            elif need == "coefficients":
                assert isinstance(rule, Atlas)
                vectors, head = [self.explainability_vector(pair.source, alpha) for alpha in alphas], self.config.attribution_head
                found += [LearnedCoefficients(rule, target, vector, head) for vector in vectors]
            else:
                found.append(self._sensitivity(need, target))
        return tuple(found)

    def _sensitivity(self, need: Need, model: FineTuned) -> Sensitivity:
        return self._once((need, model), lambda: Sensitivity(need, model))

    def pair(self, pair: Pair) -> PairSearch:
        prefix = f"{self.command}/{self.config.suite}"
        return self._once(("pair", pair), lambda: PairSearch(self.transfer(pair), self.config.search, prefix))

    def examples(self, target: str) -> Examples:
        pairs = [pair for pair in self.config.pairs if pair.target == target]
        return self._once(
            ("examples", target),
            lambda: Examples(
                target,
                self.base.preprocessing,
                self.pictures(target),
                tuple(self.pair(pair) for pair in pairs),
                tuple(self._source_classifiers(pair) for pair in pairs),
                self.zero_shot(target),
                self.classifier(target, 1.0),
                tuple(self.classifier(target, alpha, self.config.attribution_head) for alpha in self.config.search.alphas),
                self.labels(target, "test"),
                self.config.device,
            ),
        )

    @cached_property
    def result(self) -> Result:
        """The whole sweep."""
        return Result(
            self.command,
            self.config,
            tuple(self.pair(pair) for pair in self.config.pairs),
            tuple(self.reference(target) for target in self.targets),
            tuple(self.examples(target) for target in self.targets),
            tuple(self.labels(domain, "train") for domain in self.domains),
            tuple(self.convergence(target) for target in self.targets) if self.config.convergence else (),
            other_targets_points([self.pair(pair) for pair in self.config.pairs]) if self.config.search.compares_objectives else (),
        )

    def convergence(self, target: str) -> Convergence:
        assert self.config.convergence is not None
        return Convergence(
            target,
            self.base.preprocessing,
            self.pictures(target),
            self.classifier(target, 1.0),
            self.labels(target, "test"),
            self.config.convergence.budgets,
            self.config.convergence.num_pictures,
            self.config.device,
            self.base.num_patches,
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that some pair has, in the order they were named."""
        used = {pair.target for pair in self.config.pairs}
        return tuple(target for target in self.config.target_names if target in used)

    @property
    def models(self) -> list[FineTuned]:
        """Every distinct training."""
        return [stage for stage in self.stages if isinstance(stage, FineTuned)]

    @cached_property
    def stages(self) -> list[Any]:
        """Every stage, inputs first."""
        return list(closure([self.result]))


def alone(domain: str) -> Source:
    """A domain by itself."""
    return Source(domain, (domain,))
