"""What a recommendation is asked for, what it knows, and how it is told."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from core.data.domains import DEFAULT_TEMPLATES
from core.games.lambda2 import Bound, Choice
from core.merging.addition import Addition
from core.merging.rule import MergeRule
from sweep.experiment.config import ConfigError, Device
from sweep.report.relation import PAPER_R, Relation
from sweep.report.tables import SCORE_TITLES
from sweep.stages.catalogue import StoredVector

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
        if self.write and not Path(self.write).expanduser().absolute().parent.is_dir():
            raise ConfigError(f"--write {self.write}: make its directory first")
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
        rows += ["", f"Next: {shlex.join(self._transfer(vector))}"]
        return "\n".join(rows)

    def _transfer(self, vector: str) -> list[str]:
        """The command that adds the best vector. Names in capitals stand for what only its owner knows."""
        request, rule = self.request, trial_rule(self.best.rule, self.request)
        is_checkpoint = holds_weights(request.target)
        command = ["python", "-m", "sweep.run", "transfer", "--checkpoint", request.target if is_checkpoint else "MINE"]
        command += ["--base", request.base, "--vector", vector]
        command += [] if rule == Addition() else ["--merge", rule.text]
        labelled = request.validation or (None if is_checkpoint else request.target)
        if labelled:
            command += ["--validation", labelled]
        if request.class_names or not labelled:
            command += ["--class-names", *(request.class_names or ("CLASS", "CLASS"))]
        if request.calibrate:
            command += ["--calibrate", request.calibrate]
        elif not labelled and not request.write:
            command += ["--lambda2", "1" if self.best.lambda2 is None else f"{self.best.lambda2:.2f}"]
        return [*command, "--out", "explaining/"]

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
                "tried": {"merge": trial_rule(r.rule, self.request).text, **asdict(r.tried.point)} if r.tried else None,
            }
            for r in self.ranked
        ]
        return json.dumps(_finite({"relation": relation, "vectors": rows, "best": self.best.vector.key}), indent=1)


def trial_rule(rule: MergeRule, request: RecommendRequest) -> MergeRule:
    """That of the vector; addition where it needs labelled pictures and there are none."""
    return Addition() if "class_gradient" in rule.needs and not request.validation else rule


def _told(relation: Relation | None, title: str) -> list[str]:
    if relation is None:
        return [f"No finished sweep of this base is in the store: nothing says what similarity is worth. The paper: r = {PAPER_R} (weak)."]
    r = relation.r
    if math.isnan(r.estimate):
        return [f"The sweep {relation.sweep[:12]} has too few pairs ({relation.num_pairs}) to say what similarity is worth."]
    doubt = "" if relation.is_told_from_none else ": not told from no relation, take the order as a hint"
    return [
        f"Similarity and {title} over {relation.num_pairs} pairs of the sweep {relation.sweep[:12]}: r = {r.estimate:.2f} "
        f"({r.confidence:.0%} interval {r.low:.2f} to {r.high:.2f}, domains drawn anew; p = {relation.p_value:.3f}).",
        f"Between the sources of one target, which is what the order goes by: {_within(relation)}{doubt}.",
        f"Pairs lie {relation.spread:.2f} about the line (standard deviation). The paper: r = {PAPER_R} with E-RMSE, weak.",
    ]


def _within(relation: Relation) -> str:
    r = relation.r_within
    if math.isnan(r.estimate):
        return "no target has sources enough to say"
    return f"r = {r.estimate:.2f} (interval {r.low:.2f} to {r.high:.2f}; p = {relation.p_within:.3f})"


def _tried(r: Ranked, request: RecommendRequest) -> str:
    assert r.tried is not None
    point = r.tried.point
    parts = [f"{trial_rule(r.rule, request).text}, lambda2 {point.lambda2:.2f}"]
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


def holds_weights(place: str) -> bool:
    """Whether it is a checkpoint; else it is a data set."""
    path = Path(place).expanduser()
    return path.suffix in _WEIGHTS or (path.is_dir() and any(p.suffix in _WEIGHTS for p in path.iterdir()))
