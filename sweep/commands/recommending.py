"""Ranks the vectors of a store for a target, and tries the best ranked on its pictures. In this process: it takes seconds."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open

from core.attribution_head import AttributionHead
from core.checkpoint_formats import read_image_tower
from core.data.domains import DEFAULT_TEMPLATES, check_templates, read_pictures
from core.finetune import Recipe, finetune
from core.games.lambda2 import Bound, Choice
from core.merging.addition import Addition
from core.merging.parameters import ParameterError
from core.merging.rule import MergeRule
from core.merging.rules import parse_rule
from core.model import Base, SelfExplainingClassifier, load_base, prompt_class_names
from core.task_vectors import TaskVector, Weights
from core.training_data import PicturesInMemory, TrainingData
from core.transfer import TransferredModel
from sweep.commands.merge_target import MergeTarget
from sweep.commands.target_pictures import (
    OwnersPictures,
    check_class_names,
    labelled_pixels,
    read_validation,
)
from sweep.commands.transferring import AUTO_LAMBDAS
from sweep.commands.vector_source import LAMBDA2, MERGE
from sweep.engines.progress import Progress
from sweep.experiment.config import ConfigError, Device
from sweep.report.relation import PAPER_R, Relation, similarity_relation
from sweep.report.result import SweepResult
from sweep.report.tables import SCORE_TITLES, chosen_pairs
from sweep.stages.catalogue import StoredVector, results_of, stored_vectors
from sweep.stages.other_targets import common_point
from sweep.store.artifacts import Store

MAX_TRAIN_PICTURES = 1000
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class RecommendRequest:
    """What the recommend command is asked for. alpha: None takes vectors of all. class_names: None takes the validation pictures'.

    write: a new file for the best vector.
    """

    target: str
    store: str = "sweep_store"
    base: str = "miniature"
    score: str = "correlation"
    alpha: float | None = None
    validation: str | None = None
    calibrate: str | None = None
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    most: int = 4
    write: str | None = None
    bound: Bound = Bound()
    trust_base: bool = False
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError("--most must be at least 1")
        if self.write and (Path(self.write).exists() or not self.write.endswith(".safetensors")):
            raise ConfigError(f"--write {self.write} must be a new file called *.safetensors")
        if self.calibrate and not self.validation and not self.class_names:
            raise ConfigError("--calibrate asks for the classes too: --class-names A B, in your labels' order, or --validation PICTURES")


@dataclass(frozen=True)
class Ranked:
    """A vector with what is known of it. expected: the relation's score; on_sweeps_targets: the source's mean there; tried: measured.

    lambda2: the largest at which the sweep's targets keep the accuracy on average; None where there are not two. rule: by which the sweep
    merged, and the vector is tried; addition where lambda2 is None.
    """

    vector: StoredVector
    similarity: float
    expected: float
    on_sweeps_targets: float
    num_targets: int
    lambda2: float | None
    rule: MergeRule
    tried: Choice | None = None


@dataclass(frozen=True)
class Recommendation:
    """The vectors, the most similar first. relation: None where the store holds no finished sweep of the base."""

    request: RecommendRequest
    ranked: tuple[Ranked, ...]
    relation: Relation | None

    @property
    def best(self) -> Ranked:
        """By what was measured, where something was: the least infidelity at the best scale; else the first."""
        measured = [(r.tried.point.infidelity, n) for n, r in enumerate(self.ranked) if r.tried and r.tried.point.infidelity is not None]
        return self.ranked[min(measured)[1]] if measured else self.ranked[0]

    def text(self) -> str:
        """For the terminal."""
        title = SCORE_TITLES[self.request.score]
        rows = [f"{'source':<32} {'alpha':>5} {'similarity':>10} {'expected':>9} {'own mean':>9} {'lambda2':>8}  {'key':<12}  merge"]
        for r in self.ranked:
            rows.append(
                f"{r.vector.name[:32]:<32} {r.vector.alpha:>5.2f} {r.similarity:>10.3f} {_number(r.expected):>9} "
                f"{_number(r.on_sweeps_targets):>9} "
                f"{'-' if r.lambda2 is None else f'{r.lambda2:.2f}':>8}  {r.vector.key[:12]}  {r.rule.text}"
            )
        rows += [
            "",
            f"similarity: cosine of the target's and the source's prediction-only vectors. expected: {title} by the sweep's relation.",
            f"own mean: {title} of the source over the sweep's own targets, on test. lambda2: the largest at which they keep "
            f"{self.request.bound.least:.0%} of the accuracy on average, merged by the rule in the last column; --write puts both into the "
            "file, for transfer without labelled pictures.",
            *_told(self.relation, title),
        ]
        if any(r.tried for r in self.ranked):
            rows += ["", "Tried on your pictures:", *(_tried(r, self.request) for r in self.ranked if r.tried)]
        key, store = self.best.vector.key, self.request.store.rstrip("/")
        vector = self.request.write or f"{store}/artifacts/{key[:2]}/{key}"
        checkpoint = f"--checkpoint {self.request.target if _holds_weights(self.request.target) else 'MINE'}"
        merge = "" if self.best.rule == Addition() else f" --merge {self.best.rule.text}"
        what = f"{checkpoint} --base {self.request.base} --vector {vector}{merge}"
        rows += ["", f"Next: python -m sweep.run transfer {what} --out explaining/"]
        return "\n".join(rows)

    def as_json(self) -> str:
        """For machines: NaN is null."""
        relation = self.relation and {
            "score": self.relation.score, "sweep": self.relation.sweep, "r": self.relation.r.estimate, "low": self.relation.r.low,
            "high": self.relation.r.high, "p_value": self.relation.p_value, "num_pairs": self.relation.num_pairs,
            "r_within_targets": self.relation.r_within.estimate, "p_within_targets": self.relation.p_within,
        }  # fmt: skip
        rows = [
            {
                "source": r.vector.source,
                "domains": r.vector.domains,
                "alpha": r.vector.alpha,
                "key": r.vector.key,
                "similarity": r.similarity,
                "expected": r.expected,
                "own_mean": r.on_sweeps_targets,
                "lambda2": r.lambda2,
                "merge": r.rule.text,
                "tried": {"merge": _trial_rule(r, self.request).text, **asdict(r.tried.point)} if r.tried else None,
            }
            for r in self.ranked
        ]
        return json.dumps(_finite({"relation": relation, "vectors": rows, "best": self.best.vector.key}), indent=1)


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
    fine_tuned = _target_weights(request, base, vectors)
    own = TaskVector.between(fine_tuned, dict(base.visual.state_dict()), base.fingerprint)
    of_sources = {vector.prediction_only: vector for vector in vectors}
    similarity = {key: own.cosine_similarity(vector.load_prediction_only(store)) for key, vector in of_sources.items()}
    results = results_of(store, base.fingerprint)
    relation = similarity_relation(results[0], request.score) if results else None
    ranked = [
        Ranked(
            vector,
            similarity[vector.prediction_only],
            relation.expected(similarity[vector.prediction_only]) if relation else math.nan,
            *_own_mean(results, vector.source, request.score),
            *_shared_lambda2(results, vector, request.bound.least, store),
        )
        for vector in vectors
    ]
    ranked.sort(key=lambda r: -r.similarity)
    if request.validation or request.calibrate:
        ranked[: request.most] = _tried_on_pictures(request, base, fine_tuned, own, ranked[: request.most], store)
    recommendation = Recommendation(request, tuple(ranked), relation)
    if request.write:
        _write(recommendation.best, store, request.write)
    return recommendation


def _target_weights(request: RecommendRequest, base: Base, vectors: list[StoredVector]) -> Weights:
    """Of the target's prediction-only model: read, or trained on its pictures as most sources were."""
    if _holds_weights(request.target):
        return read_image_tower(Path(request.target).expanduser(), base, trust_base=request.trust_base).weights
    recipes = [v.recipe for v in vectors]
    recipe = replace(max(set(recipes), key=lambda r: (recipes.count(r), -(r.num_steps or 0))), workers_per_model=1)
    return _fine_tuned(request, base, recipe)


def _holds_weights(place: str) -> bool:
    """Whether it is a checkpoint; else it is a data set."""
    path = Path(place).expanduser()
    return path.suffix in _WEIGHTS or (path.is_dir() and any(p.suffix in _WEIGHTS for p in path.iterdir()))


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


def _tried_on_pictures(
    request: RecommendRequest, base: Base, fine_tuned: Weights, own: TaskVector, ranked: list[Ranked], store: Store
) -> list[Ranked]:
    """own: fine_tuned minus base."""
    labelled, class_names = read_validation(request.validation, request.class_names)
    pictures = OwnersPictures.read(labelled, class_names, request.calibrate, base)
    head = base.head(class_names, request.templates)
    classifier = SelfExplainingClassifier(base.visual, head, base.logit_scale, AttributionHead("efficiency")).to(request.device).eval()
    target = MergeTarget(classifier, fine_tuned, own, pictures)
    game, found = None, []
    progress = Progress("trying vectors", len(ranked), "vectors")
    for candidate in ranked:
        rule = _trial_rule(candidate, request)
        fisher = candidate.vector.load_attribution_fisher(store) if "attribution_fisher" in rule.needs else None
        model = TransferredModel(classifier, fine_tuned, target.edited(rule, candidate.vector.load(store), fisher))
        game = game or pictures.game(model)
        choice = pictures.search(model, game, request.bound).choose(AUTO_LAMBDAS)
        found.append(replace(candidate, tried=choice))
        progress.advance()
    return found


def _trial_rule(r: Ranked, request: RecommendRequest) -> MergeRule:
    """That of the vector; addition where it needs labelled pictures and there are none."""
    return Addition() if "class_gradient" in r.rule.needs and not request.validation else r.rule


def _told(relation: Relation | None, title: str) -> list[str]:
    if relation is None:
        return ["The store holds no finished sweep of this base: nothing says what similarity is worth. The paper found r = -0.36 (weak)."]
    r = relation.r
    if math.isnan(r.estimate):
        return [f"The sweep {relation.sweep[:12]} has too few pairs ({relation.num_pairs}) to say what similarity is worth."]
    doubt = "" if relation.is_told_from_none else ": not told from no relation, take the order as a hint"
    return [
        f"Similarity and {title} over {relation.num_pairs} pairs of the sweep {relation.sweep[:12]}: r = {r.estimate:.2f} "
        f"({r.confidence:.0%} interval {r.low:.2f} to {r.high:.2f}, domains drawn anew; p = {relation.p_value:.3f}).",
        f"Between the sources of one target, which is what the order goes by: {_within(relation)}{doubt}.",
        f"Pairs lie {relation.spread:.2f} about the line (standard deviation). The paper: r = {PAPER_R} with the normalised E-RMSE, weak.",
    ]


def _within(relation: Relation) -> str:
    r = relation.r_within
    if math.isnan(r.estimate):
        return "no target has sources enough to say"
    return f"r = {r.estimate:.2f} (interval {r.low:.2f} to {r.high:.2f}; p = {relation.p_within:.3f})"


def _tried(r: Ranked, request: RecommendRequest) -> str:
    assert r.tried is not None
    point = r.tried.point
    parts = [f"{_trial_rule(r, request).text}, lambda2 {point.lambda2:.2f}"]
    if point.normalized_accuracy is not None:
        parts.append(f"keeps {point.normalized_accuracy:.3f} of the accuracy")
    if point.infidelity is not None:
        before = r.tried.points[0].infidelity or math.nan
        parts.append(f"infidelity {point.infidelity:.4f} at the best scale (your model's own maps {before:.4f})")
    return f"  {r.vector.name[:32]:<32} alpha {r.vector.alpha:.2f}: {', '.join(parts)}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _finite(value: object) -> object:
    """With None for what is no finite number, as JSON wants it."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
