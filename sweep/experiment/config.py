"""What a sweep is to do: frozen, typed, checked. Every field that changes a number enters the keys of the artifacts it changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

from core.attribution_head import AttributionHead, HeadKind
from core.explainers.explainer import EXPLAINERS
from core.finetune import Recipe
from core.games.attribution_labels import LabelSettings
from core.merging.addition import Addition
from core.merging.combination import Combination, Mean
from core.merging.parameters import ParameterError
from core.merging.rule import MergeRule
from core.value_function import ValueFunction
from sweep.experiment.sources import OTHERS, ConfigError, Pair, Source, make_pairs

__all__ = ["ConfigError", "DataSettings", "Device", "DomainLocation", "SearchSettings", "SplitLabels", "SweepConfig"]

SearchMethod = Literal["optuna", "grid"]
Selection = Literal["validation", "test"]
Device = Literal["cpu", "cuda"]
Calibration = Literal["none", "scale"]
ObjectiveName = Literal["accuracy_bound", "e_rmse", "iou_at_10", "correlation", "infidelity", "few_labels"]
SHAPLEY = "shapley"
Start = Literal["base", "prediction_only"]
LABEL_SOURCES = (SHAPLEY, *EXPLAINERS)
OBJECTIVE_NAMES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
LABEL_FREE_OBJECTIVES: tuple[ObjectiveName, ...] = ("accuracy_bound", "infidelity")
"""Those that read no explanation label of the target."""


@dataclass(frozen=True)
class DataSettings:
    """Which pictures of a domain are used. None: all."""

    max_train_pictures: int | None = None
    max_test_pictures: int | None = None
    validation_share: float = 0.1
    max_corrupt_share: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_train_pictures", "max_test_pictures"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ConfigError(f"{name} must be at least 2, not {value}")
        if not 0.0 < self.validation_share < 1.0:
            raise ConfigError(f"validation_share must lie between 0 and 1, not {self.validation_share}")
        if not 0.0 <= self.max_corrupt_share < 1.0:
            raise ConfigError(f"max_corrupt_share must lie in [0, 1), not {self.max_corrupt_share}")
        if self.seed < 0:
            raise ConfigError(f"a seed must not be negative: {self.seed}")


@dataclass(frozen=True)
class DomainLocation:
    """Where a domain comes from.

    location: `miniature:NAME` (drawn at first use), a directory, or a URL fsspec knows (`hf://datasets/...`).
    templates: prompt templates with one `{}` each; None takes the domain's own or the reader's default.
    epochs: overrides the recipe's length for this domain. labels: a directory or URL that the label command wrote for the train split of
    this domain, or Parquet of the user's own; None labels it in the sweep. data: overrides the sweep's settings. is_source_only: it is no
    target, and no part of `others`.
    """

    name: str
    location: str
    templates: tuple[str, ...] | None = None
    epochs: int | None = None
    labels: str | None = None
    data: DataSettings | None = None
    is_source_only: bool = False


@dataclass(frozen=True)
class SplitLabels:
    """Labels of each split. None: every picture of the split; the accuracy is always measured on all.

    train, validation, test: settings of each split's labels. num_second_draw: test pictures that are labelled a second time, with other
    coalitions, to see how well two draws agree (the label ceiling). shard_size: pictures that are labelled, stored and resumed together.
    learning_pictures, learning_budget: for estimators that learn from the pictures first: how many (None: the estimator's default), and
    the evaluations of those with references. train_source: what the train labels are, Shapley values or the maps of an explainer
    (`core.explainers`); validation and test labels are Shapley values always.
    """

    train: LabelSettings
    validation: LabelSettings
    test: LabelSettings
    max_train: int | None = None
    max_validation: int | None = None
    max_test: int | None = None
    num_second_draw: int = 16
    shard_size: int = 64
    learning_pictures: int | None = None
    learning_budget: int = 512
    train_source: str = SHAPLEY

    def __post_init__(self) -> None:
        if self.train_source not in LABEL_SOURCES:
            raise ConfigError(f"train labels come from one of {', '.join(LABEL_SOURCES)}, not {self.train_source!r}")
        for name in ("max_train", "max_validation", "max_test"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}_labels must be at least 1, not {value}")


@dataclass(frozen=True)
class SearchSettings:
    """The search over alpha and lambda2 for each (source, target) pair.

    alphas: each costs one training a source domain. lambdas: the grid's lambda2 values, or the two ends of the range Optuna searches.
    num_trials: points an Optuna study evaluates. min_normalized_accuracy: the constraint a chosen point must meet on the split it is
    chosen on. accuracy_confidence: with which it must be met, one-sided, the split's pictures being a sample; 0.5 takes the accuracy as it
    is. objective: what is wanted of a point that meets it (`sweep.stages.objectives`). calibration: `scale` fits one factor of the maps
    on the validation pictures' own game values, which are no labels. num_few_labels: validation labels that the objective `few_labels`
    may see. select: the split that alpha and lambda2 are chosen on. merge: how the vectors are put together, eq. 8 or another rule.
    searched: parameters of `merge` that a study finds with alpha and lambda2, each within the rule's own range, from `merge`'s value on.
    compares_objectives: every point is scored on test as well, for a table of what each objective would have chosen.
    """

    method: SearchMethod = "optuna"
    alphas: tuple[float, ...] = (0.5,)
    lambdas: tuple[float, ...] = (0.0, 1.2)
    num_trials: int = 16
    lambda1: float = 1.0
    min_normalized_accuracy: float = 0.95
    accuracy_confidence: float = 0.5
    objective: ObjectiveName = "e_rmse"
    calibration: Calibration = "none"
    num_few_labels: int = 8
    compares_objectives: bool = False
    select: Selection = "validation"
    seed: int = 0
    merge: MergeRule = field(default_factory=Addition)
    searched: tuple[str, ...] = ()

    @property
    def merge_text(self) -> str:
        """The rule as `--merge` takes it."""
        return self.merge.text_searching(self.searched)

    def __post_init__(self) -> None:
        for alpha in self.alphas:
            if not 0.0 <= alpha <= 1.0:
                raise ConfigError(f"alpha must lie in [0, 1], not {alpha}")
            if alpha == 1.0:
                raise ConfigError("alpha = 1 is prediction-only training, whose explainability vector is zero: leave it out")
        if not self.alphas or len(set(self.alphas)) < len(self.alphas):
            raise ConfigError(f"give at least one alpha, each once: {list(self.alphas)}")
        if not self.lambdas or not all(math.isfinite(v) for v in self.lambdas):
            raise ConfigError(f"give at least one finite lambda2, not {list(self.lambdas)}")
        if self.method == "optuna" and (len(self.lambdas) != 2 or self.lambdas[0] >= self.lambdas[1]):
            raise ConfigError(f"for Optuna, lambdas are the two ends of its range, lowest first, not {list(self.lambdas)}")
        if len(set(self.lambdas)) < len(self.lambdas):
            raise ConfigError(f"give each lambda2 once: {list(self.lambdas)}")
        if not math.isfinite(self.lambda1):
            raise ConfigError(f"lambda1 must be a finite number, not {self.lambda1}")
        if self.num_trials < 1:
            raise ConfigError(f"a study needs at least one trial, not {self.num_trials}")
        if not 0.0 <= self.min_normalized_accuracy <= 1.0:
            raise ConfigError(f"min_normalized_accuracy must lie in [0, 1], not {self.min_normalized_accuracy}")
        if not 0.0 < self.accuracy_confidence < 1.0:
            raise ConfigError(f"accuracy_confidence must lie between 0 and 1, not {self.accuracy_confidence}")
        if self.num_few_labels < 1:
            raise ConfigError(f"num_few_labels must be at least 1, not {self.num_few_labels}")
        self._check_searched()

    def _check_searched(self) -> None:
        try:
            self.merge.check_searched(self.searched)
        except ParameterError as error:
            raise ConfigError(f"--merge: {error}") from error
        names, asked = " and ".join(self.searched), f"--merge {self.merge_text}"
        if self.searched and self.method == "grid":
            raise ConfigError(
                f"{asked} is found by a study, and a grid is over alpha and lambda2: take --search optuna, or give {names} a value"
            )
        if self.searched and self.compares_objectives:
            raise ConfigError(
                f"{asked} is a rule for each pair, and where objectives are compared, one point of one rule is looked for that suits "
                f"several targets: give {names} a value, or take --no-compare-objectives"
            )
        if self.searched and self.num_trials <= (num_first := 1 + len(self.alphas)):
            raise ConfigError(
                f"{asked} is searched after a study's first {num_first} trials, which are at the rule's own values: "
                f"give --num-trials more than {num_first}"
            )


@dataclass(frozen=True)
class ConvergenceSettings:
    """Figure 6: Kernel SHAP on some test pictures of every target with these budgets, ascending."""

    budgets: tuple[int, ...]
    num_pictures: int


@dataclass(frozen=True)
class SweepConfig:
    """A whole sweep: which sources' explainability vectors are added to which targets, and everything their numbers depend on.

    sources: names as `--sources` takes them (see `Source`); None: each domain by itself. targets: names of domains; None: all but those
    that are sources only. head: how attributions are read off a classifier. start: what self-explaining models are trained from, the
    base (the paper) or the weights of the same source's prediction-only model, on the same batches. diverse_recipe: how sources are
    trained on that are more than one domain, or no target; None: as the others. combine: how the vectors of several sources become one,
    where a source is `A,B`. scores_source_models: the sources' own models are scored
    on the targets, for Table 1. convergence: None leaves Figure 6 out.
    """

    suite: str
    base: str
    domains: tuple[DomainLocation, ...]
    data: DataSettings
    recipe: Recipe
    labels: SplitLabels
    search: SearchSettings
    device: Device = "cpu"
    head: HeadKind = "cosine"
    start: Start = "base"
    diverse_recipe: Recipe | None = None
    scores_source_models: bool = False
    convergence: ConvergenceSettings | None = None
    sources: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    combine: Combination = field(default_factory=Mean)

    def __post_init__(self) -> None:
        names = [domain.name for domain in self.domains]
        if len(names) < 2:
            raise ConfigError(f"a sweep needs a source and a target: at least two domains, there is {len(names)}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"two domains are called {twice[0]!r}: rename one of the directories")
        if OTHERS in names:
            raise ConfigError(f"no domain can be called {OTHERS!r}, which is a source: give it another name, as NAME=LOCATION")
        if not self.target_names:
            raise ConfigError("every domain is a source only: name --targets")
        if not self.pairs:
            raise ConfigError("no source differs from every target: name other --sources or --targets")

    @property
    def target_names(self) -> tuple[str, ...]:
        """The domains that vectors are added to."""
        return self.targets or tuple(domain.name for domain in self.domains if not domain.is_source_only)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All (source, target) pairs, by source. A source that holds the target itself is no source for it."""
        names = tuple(domain.name for domain in self.domains)
        alike = tuple(domain.name for domain in self.domains if not domain.is_source_only)
        return make_pairs(self.sources or names, self.target_names, names, alike)

    @property
    def used_domains(self) -> tuple[DomainLocation, ...]:
        """The domains that are a target or a part of a source, in their order."""
        used = set(self.target_names) | {part for pair in self.pairs for part in pair.source.parts}
        return tuple(domain for domain in self.domains if domain.name in used)

    def with_seed(self, seed: int) -> SweepConfig:
        """The same sweep with another seed of training, labels and search; the pictures stay."""
        labels = {role: replace(getattr(self.labels, role), seed=seed) for role in ("train", "validation", "test")}
        return replace(
            self,
            recipe=replace(self.recipe, seed=seed),
            diverse_recipe=replace(self.diverse_recipe, seed=seed) if self.diverse_recipe else None,
            labels=replace(self.labels, **labels),
            search=replace(self.search, seed=seed),
        )

    def data_of(self, domain: str) -> DataSettings:
        """Which of a domain's pictures are used."""
        return self._location(domain).data or self.data

    def recipe_of(self, source: Source) -> Recipe:
        """How models are trained on a source."""
        locations = [self._location(part) for part in source.parts]
        is_diverse = source.is_union or locations[0].is_source_only
        recipe = self.diverse_recipe if is_diverse and self.diverse_recipe else self.recipe
        epochs = [location.epochs for location in locations if location.epochs is not None]
        return replace(recipe, epochs=max(epochs)) if epochs and recipe.num_steps is None else recipe

    @property
    def attribution_head(self) -> AttributionHead:
        """Of every self-explaining model. Its game is that of the labels."""
        labels = self.labels.train
        return AttributionHead(self.head, game=ValueFunction(labels.value, labels.label_scale, labels.fill))

    def _location(self, name: str) -> DomainLocation:
        return next(domain for domain in self.domains if domain.name == name)
