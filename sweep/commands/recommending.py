"""Ranks the vectors of a store for a target, and tries the best ranked on its pictures. In this process: it takes seconds."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open

from core.attribution_head import AttributionHead
from core.checkpoint_formats import read_image_tower
from core.data.domains import check_templates, read_pictures
from core.finetune import Recipe, finetune
from core.merging.addition import Addition
from core.merging.parameters import ParameterError
from core.merging.rule import MergeRule
from core.merging.rules import parse_rule
from core.model import Base, SelfExplainingClassifier, load_base, prompt_class_names
from core.task_vectors import TaskVector, Weights
from core.training_data import PicturesInMemory, TrainingData
from core.transfer import TransferredModel
from sweep.commands.merge_target import MergeTarget
from sweep.commands.recommendation import Ranked, Recommendation, RecommendRequest, holds_weights, trial_rule
from sweep.commands.target_pictures import (
    OwnersPictures,
    check_class_names,
    labelled_pixels,
    num_learned,
    read_validation,
)
from sweep.commands.transferring import AUTO_LAMBDAS
from sweep.commands.vector_source import LAMBDA2, MERGE
from sweep.engines.progress import Progress
from sweep.experiment.config import ConfigError
from sweep.report.relation import similarity_relation
from sweep.report.result import SweepResult
from sweep.report.tables import chosen_pairs
from sweep.stages.catalogue import StoredVector, results_of, stored_vectors
from sweep.stages.other_targets import common_point
from sweep.store.artifacts import Store

MAX_TRAIN_PICTURES = 1000


def run_recommend(request: RecommendRequest) -> Recommendation:
    """Rank, and try the best ranked. Raises ConfigError and its kin, with the fix."""
    check_templates(request.templates)
    base = load_base(request.base)
    store = Store(request.store)
    vectors = [v for v in stored_vectors(store, base.fingerprint) if request.alpha is None or math.isclose(v.alpha, request.alpha)]
    if not vectors:
        of_alpha = "" if request.alpha is None else f" of alpha {request.alpha:g}"
        raise ConfigError(
            f"{request.store} holds no explainability vectors{of_alpha} of {base.name}: run a sweep with this --base and --store first"
        )
    results = results_of(store, base.fingerprint)
    shared = {vector.key: _shared_lambda2(results, vector, request.bound.least, store) for vector in vectors}
    tried = _Tried.of([rule for _, rule in shared.values()], request, base) if request.validation or request.calibrate else None
    fine_tuned = _target_weights(request, base, vectors)
    own = TaskVector.between(fine_tuned, dict(base.visual.state_dict()), base.fingerprint)
    of_sources = {vector.prediction_only: vector for vector in vectors}
    similarity = {key: own.cosine_similarity(vector.load_prediction_only(store)) for key, vector in of_sources.items()}
    relation = similarity_relation(results[0], request.score) if results else None
    ranked = [
        Ranked(
            vector,
            similarity[vector.prediction_only],
            relation.expected(similarity[vector.prediction_only]) if relation else math.nan,
            *_own_mean(results, vector.source, request.score),
            *shared[vector.key],
        )
        for vector in vectors
    ]
    ranked.sort(key=lambda r: -r.similarity)
    if tried is not None:
        ranked[: request.most] = _tried_on_pictures(request, base, fine_tuned, own, ranked[: request.most], store, tried)
    recommendation = Recommendation(request, tuple(ranked), relation)
    if request.write:
        _write(recommendation.best, store, request.write)
    return recommendation


def _target_weights(request: RecommendRequest, base: Base, vectors: list[StoredVector]) -> Weights:
    """Of the target's prediction-only model: read, or trained on its pictures as most sources were."""
    if holds_weights(request.target):
        return read_image_tower(Path(request.target).expanduser(), base, trust_base=request.trust_base).weights
    recipes = [v.recipe for v in vectors]
    recipe = replace(max(set(recipes), key=lambda r: (recipes.count(r), -(r.num_steps or 0))), workers_per_model=1)
    return _fine_tuned(request, base, recipe)


def _fine_tuned(request: RecommendRequest, base: Base, recipe: Recipe) -> Weights:
    labelled = read_pictures(request.target, split=None)
    names = prompt_class_names(labelled.class_names)
    check_class_names(names)
    pictures = labelled_pixels(labelled, names, base.preprocessing, MAX_TRAIN_PICTURES)
    assert pictures.class_ids is not None
    data = TrainingData(PicturesInMemory(pictures.pixels), torch.from_numpy(pictures.class_ids), base.preprocessing)
    tower = {name: weight.clone() for name, weight in base.visual.state_dict().items()}
    classifier = SelfExplainingClassifier(base.visual, base.head(names, request.templates), base.logit_scale).to(request.device)
    progress = Progress("fine-tuning the target", recipe.total_steps(len(data)), "steps")
    finetune(classifier, data, recipe, on_progress=lambda point: progress.advance(point.step - progress.done))
    weights = {name: weight.detach().cpu().clone() for name, weight in classifier.visual.state_dict().items()}
    base.visual.cpu().load_state_dict(tower)  # the base's own again
    return weights


def _own_mean(results: list[SweepResult], source: str, score: str) -> tuple[float, int]:
    """Of the chosen points of a source, over the targets of the sweeps that have it."""
    for result in results:
        pairs = chosen_pairs(result)
        found = pd.to_numeric(pairs.loc[pairs["source_domain"] == source, score]).dropna()
        if len(found):
            return float(found.mean()), len(found)
    return math.nan, 0


def _shared_lambda2(results: list[SweepResult], vector: StoredVector, least: float, store: Store) -> tuple[float | None, MergeRule]:
    """With its merge rule: of the first sweep that has the source and two targets of it or more, and whose rule can be followed."""
    for result in results:
        rule = _known_rule(str(result.provenance.get("search.merge")))
        if rule is None or ("attribution_fisher" in rule.needs and not vector.has_attribution_fisher(store)):
            continue
        cells = result.cells[result.cells["split"] == result.selected_on]
        is_of = (cells["source_domain"] == vector.source) & np.isclose(cells["alpha"], vector.alpha)
        of_targets = [found for _, found in cells[is_of].groupby("target_domain")]
        if len(of_targets) > 1:
            return common_point(of_targets, least)[1], rule
    return None, Addition()


def _known_rule(text: str) -> MergeRule | None:
    try:
        return parse_rule(text)
    except ParameterError:  # of another version of this package, or with a parameter of its own for each pair
        return None


def _write(best: Ranked, store: Store, path: str) -> None:
    """The vector's file, with its lambda2 and the merge rule that this is of where one is known, and what that rule needs of the source."""
    if best.lambda2 is None:
        shutil.copyfile(best.vector.path(store), path)
        return
    with safe_open(best.vector.path(store), framework="pt") as file:
        metadata = {**file.metadata(), LAMBDA2: f"{best.lambda2:g}", MERGE: best.rule.text}
    needed = best.vector.load_attribution_fisher(store) if "attribution_fisher" in best.rule.needs else None
    best.vector.load(store).save(Path(path), metadata, needed)
    Path(path).chmod(0o644)  # safetensors writes files that only their owner can read


@dataclass(frozen=True, eq=False)
class _Tried:
    """What vectors are tried on. num_learned: of the pictures, those that are kept apart for merge rules that learn."""

    class_names: tuple[str, ...]
    pictures: OwnersPictures
    num_learned: int

    @staticmethod
    def read(rules: Sequence[MergeRule], request: RecommendRequest, base: Base) -> _Tried:
        """Raises ConfigError, with the fix, for pictures that the rules cannot be tried on."""
        labelled, class_names = read_validation(request.validation, request.class_names)
        pictures = OwnersPictures.read(labelled, class_names, request.calibrate, base, rules=rules)
        return _Tried(class_names, pictures, num_learned(rules))

    @staticmethod
    def of(rules: Sequence[MergeRule], request: RecommendRequest, base: Base) -> _Tried:
        """Before it is known which vectors are the best: for those of the rules that ask for the fewest pictures."""
        fewest = sorted((trial_rule(rule, request) for rule in rules), key=lambda rule: num_learned([rule]))
        return _Tried.read(fewest[: request.most], request, base)


def _tried_on_pictures(
    request: RecommendRequest, base: Base, fine_tuned: Weights, own: TaskVector, ranked: list[Ranked], store: Store, tried: _Tried
) -> list[Ranked]:
    """own: fine_tuned minus base."""
    rules = [trial_rule(candidate.rule, request) for candidate in ranked]
    if num_learned(rules) != tried.num_learned:
        tried = _Tried.read(rules, request, base)
    pictures = tried.pictures
    head = base.head(tried.class_names, request.templates)
    classifier = SelfExplainingClassifier(base.visual, head, base.logit_scale, AttributionHead("efficiency")).to(request.device).eval()
    target = MergeTarget(classifier, fine_tuned, own, pictures)
    game, found = None, []
    progress = Progress("trying vectors", len(ranked), "vectors")
    for candidate, rule in zip(ranked, rules, strict=True):
        fisher = candidate.vector.load_attribution_fisher(store) if "attribution_fisher" in rule.needs else None
        model = TransferredModel(classifier, fine_tuned, target.edited(rule, candidate.vector.load(store), fisher))
        game = game or pictures.game(model)
        choice = pictures.search(model, game, request.bound).choose(AUTO_LAMBDAS)
        found.append(replace(candidate, tried=choice))
        progress.advance()
    return found
