"""The graph of a sweep's stages: which artifacts there are and what each depends on. Pure data; nothing is computed here.

    pictures(D) -> prediction_only(D) -> label_set(D, split) -> self_explaining(D, alpha)
                                                 |
    reference(T), pair(S, T): evaluated from the weights of both domains and the labels of T  -> result

alpha needs training, lambda1 and lambda2 only merge: so a sweep trains len(domains) x (1 + len(alphas)) models, whatever the number of
pairs and trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from core.games.attribution_labels import LabelSettings
from core.model import Preprocessing
from sweep.experiment.config import DomainSource, SweepConfig
from sweep.store.artifacts import artifact_key

LabelSplit = Literal["train", "validation", "test", "ceiling"]
LABEL_SPLITS: tuple[LabelSplit, ...] = ("train", "validation", "test", "ceiling")

# Raised when the code of a stage changes what it computes: its artifacts and all that depend on them are then made anew.
VERSIONS = {"pictures": 1, "finetune": 1, "label": 2, "reference": 1, "cells": 1, "pair": 1, "result": 1}


@dataclass(frozen=True)
class Stage:
    """One artifact: its kind, what it is called for people, its parameters and the keys of the artifacts it is made from."""

    kind: str
    name: str
    params: Mapping[str, Any] = field(hash=False)
    inputs: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        return artifact_key(self.kind, VERSIONS[self.kind], self.params, self.inputs)


@dataclass(frozen=True)
class DomainFacts:
    """What the plan must know of a domain before anything is computed.

    fingerprint: of its files. source: where it was read, with the commit of a Hub data set; for the record, in no key.
    """

    fingerprint: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Plan:
    """A configuration with the facts that its keys depend on."""

    config: SweepConfig
    base_fingerprint: str
    preprocessing: Preprocessing
    domains: Mapping[str, DomainFacts] = field(hash=False)

    def source(self, domain: str) -> DomainSource:
        return next(source for source in self.config.domains if source.name == domain)

    def pictures(self, domain: str) -> Stage:
        """The domain's pictures, decoded and resized, in the splits train, validation and test."""
        facts = self.domains[domain]
        params = {"fingerprint": facts.fingerprint, "preprocessing": asdict(self.preprocessing), "data": asdict(self.config.data)}
        return Stage("pictures", domain, params, ())

    def prediction_only(self, domain: str) -> Stage:
        """Weights fine-tuned on the domain without explanation supervision."""
        return Stage("finetune", f"{domain} prediction-only", self._training(domain, 1.0), (self.pictures(domain).key,))

    def self_explaining(self, domain: str, alpha: float) -> Stage:
        """Weights fine-tuned on the domain with explanation supervision."""
        inputs = (self.pictures(domain).key, self.label_set(domain, "train").key)
        return Stage("finetune", f"{domain} alpha={alpha:g}", self._training(domain, alpha), inputs)

    def _training(self, domain: str, alpha: float) -> dict[str, Any]:
        recipe = asdict(self.config.recipe)
        epochs = self.source(domain).epochs
        if epochs is not None and recipe["num_steps"] is None:
            recipe["epochs"] = epochs
        facts = self.domains[domain]
        return {
            "base": self.base_fingerprint,
            "class_names": facts.class_names,
            "templates": facts.templates,
            "recipe": recipe,
            "alpha": float(alpha),
            "device": self.config.device,
        }

    def label_settings(self, split: LabelSplit) -> LabelSettings:
        labels = self.config.labels
        return {"train": labels.train, "validation": labels.validation}.get(split, labels.test)

    def max_labelled(self, split: LabelSplit) -> int | None:
        labels = self.config.labels
        if split == "ceiling":
            return labels.num_ceiling if labels.max_test is None else min(labels.num_ceiling, labels.max_test)
        return {"train": labels.max_train, "validation": None, "test": labels.max_test}[split]

    def label_set(self, domain: str, split: LabelSplit) -> Stage:
        """All labels of a split; its content is that of its shards. `ceiling` is a second draw for the first test pictures."""
        params = {
            "split": split,
            "settings": asdict(self.label_settings(split)),
            "max_pictures": self.max_labelled(split),
            "device": self.config.device,
        }
        return Stage("label", f"{domain} {split}", params, (self.prediction_only(domain).key, self.pictures(domain).key))

    def label_shard(self, domain: str, split: LabelSplit, start: int, stop: int) -> Stage:
        """Labels of the pictures start .. stop - 1 of a split."""
        return Stage(
            "label", f"{domain} {split} {start}-{stop}", {"start": start, "stop": stop}, (self.label_set(domain, split).key,)
        )

    def shard_ranges(self, num_pictures: int, split: LabelSplit) -> list[tuple[int, int]]:
        """The shards of a split that has `num_pictures` pictures."""
        most = self.max_labelled(split)
        end = num_pictures if most is None else min(most, num_pictures)
        size = self.config.labels.shard_size
        return [(start, min(start + size, end)) for start in range(0, end, size)]

    def reference(self, domain: str) -> Stage:
        """Scores of the models and maps that any transferred model of the domain is compared with."""
        inputs = [self.prediction_only(domain).key, *(self.self_explaining(domain, a).key for a in self.config.search.alphas)]
        inputs += [self.label_set(domain, split).key for split in LABEL_SPLITS]
        return Stage("reference", domain, {"base": self.base_fingerprint}, tuple(inputs))

    def cells(self, source: str, target: str, alpha: float) -> Stage:
        """The grid's scores of one pair and alpha, over all lambda2, on the split that is selected on."""
        search = self.config.search
        params = {"lambda1": search.lambda1, "lambdas": search.lambdas, "select": search.select}
        return Stage("cells", f"{source} -> {target} alpha={alpha:g}", params, self._merged(source, target, (alpha,)))

    def pair(self, source: str, target: str) -> Stage:
        """The search of one pair: every evaluated cell, the chosen point and its scores on test."""
        search = asdict(self.config.search)
        inputs = self._merged(source, target, self.config.search.alphas)
        return Stage("pair", f"{source} -> {target}", {"search": search}, inputs)

    def _merged(self, source: str, target: str, alphas: tuple[float, ...]) -> tuple[str, ...]:
        stages = [self.pictures(target), self.prediction_only(target), self.prediction_only(source)]
        stages += [self.self_explaining(source, alpha) for alpha in alphas]
        stages += [self.label_set(target, "validation"), self.label_set(target, "test")]
        return tuple(stage.key for stage in stages)

    def result(self) -> Stage:
        """The whole sweep: all cells, references and similarities, and the report."""
        inputs = [self.pair(s, t).key for s, t in self.config.pairs] + [self.reference(d).key for d in self.domains]
        return Stage("result", self.config.suite, {"suite": self.config.suite, "domains": tuple(self.domains)}, tuple(inputs))

    @property
    def models(self) -> list[tuple[str, float]]:
        """Every distinct training as (domain, alpha); alpha = 1 is prediction-only."""
        return [(d, 1.0) for d in self.domains] + [(d, a) for d in self.domains for a in self.config.search.alphas]

    def model(self, domain: str, alpha: float) -> Stage:
        return self.prediction_only(domain) if alpha == 1.0 else self.self_explaining(domain, alpha)
