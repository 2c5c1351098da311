"""What the plan must know of a domain before anything is computed: names and numbers, never a pixel."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core import miniature
from core.data.domains import Domain, read_domain, validation_indices
from core.model import prompt_class_names
from sweep.experiment.config import ConfigError, DataSettings, DomainLocation
from sweep.experiment.suites import DRAWN

_log = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DRAWING_VERSION = 1
NUM_DRAWN = 500
"""Pictures of a drawn split whose number nobody limits."""


@dataclass(frozen=True)
class DomainFacts:
    """A domain that was looked at.

    fingerprint: of its files' content. quick_fingerprint: of their sizes and times, by which a worker sees that it reads the same.
    prompt_names: class names that prompts can be made of. source: where it was read, with the commit of a Hub data set; for the record,
    in no key. counts: pictures of each split that the sweep takes, before those that cannot be read are left out.
    """

    name: str
    location: str
    class_names: tuple[str, ...]
    prompt_names: tuple[str, ...]
    templates: tuple[str, ...]
    fingerprint: str
    quick_fingerprint: str
    source: str
    counts: tuple[int, int, int]

    @property
    def is_drawn(self) -> bool:
        return self.location.startswith(DRAWN)

    def count(self, split: Split) -> int:
        return self.counts[SPLITS.index(split)]


def look_at(domain: DomainLocation, data: DataSettings) -> DomainFacts:
    """Read what the plan must know. Raises DomainError or ConfigError, with the fix."""
    found = _open(domain.location, domain.name, domain.templates, data, True)
    num_train, num_test = len(found.splits["train"]), len(found.splits["test"])
    if num_train < 2:
        raise ConfigError(f"{domain.name} has {num_train} training picture: a validation split needs at least 2")
    is_path = not domain.location.startswith(DRAWN) and "://" not in domain.location
    return DomainFacts(
        domain.name,
        os.path.abspath(os.path.expanduser(domain.location)) if is_path else domain.location,
        tuple(found.class_names),
        prompt_class_names(found.class_names),
        tuple(found.templates),
        found.fingerprint,
        found.quick_fingerprint,
        found.source,
        _counts(num_train, num_test, data),
    )


def _counts(num_train: int, num_test: int, data: DataSettings) -> tuple[int, int, int]:
    num_validation = min(max(1, round(data.validation_share * num_train)), num_train - 1)
    limits = _limits(data)

    def limited(split: Split, number: int) -> int:
        most = limits[split]
        return number if most is None else min(number, most)

    return limited("train", num_train - num_validation), limited("validation", num_validation), limited("test", num_test)


def _limits(data: DataSettings) -> dict[Split, int | None]:
    if data.max_train_pictures is None:
        return {"train": None, "validation": None, "test": data.max_test_pictures}
    num_validation = max(1, round(data.max_train_pictures * data.validation_share))
    return {"train": data.max_train_pictures - num_validation, "validation": num_validation, "test": data.max_test_pictures}


def open_domain(facts: DomainFacts, data: DataSettings) -> Domain:
    """The domain's reader, once a process. Raises ConfigError where its files are no longer those that were planned with."""
    found = _open(facts.location, facts.name, facts.templates, data, False)
    if found.quick_fingerprint != facts.quick_fingerprint:
        raise ConfigError(f"the files of {facts.name} changed while they were in use: start again")
    return found


@lru_cache(maxsize=4)
def _open(location: str, name: str, templates: tuple[str, ...] | None, data: DataSettings, checks_content: bool) -> Domain:
    if location.startswith(DRAWN):
        return _drawn(location.removeprefix(DRAWN), name, data)
    return read_domain(location, name=name, templates=templates, checks_content=checks_content)


def _drawn(drawing: str, name: str, data: DataSettings) -> Domain:
    try:
        spec = miniature.domain_spec(drawing)
    except ValueError as error:
        choices = f"{', '.join(miniature.DOMAIN_NAMES)}, or the source {' or '.join(miniature.SOURCE_NAMES)}"
        raise ConfigError(f"the miniature suite has no domain {drawing!r}: choose among {choices}") from error
    train, test = data.max_train_pictures or NUM_DRAWN, data.max_test_pictures or NUM_DRAWN
    splits = {
        "train": miniature.DrawnSplit(drawing, "train", train, data.seed),
        "test": miniature.DrawnSplit(drawing, "test", test, data.seed),
    }
    fingerprint = f"drawn/{DRAWING_VERSION}/{drawing}/{train}/{test}/{data.seed}"
    return Domain(name, spec.class_names, spec.templates, splits, fingerprint, f"{DRAWN}{drawing}", fingerprint)


def selected(facts: DomainFacts, data: DataSettings, split: Split) -> NDArray[np.int64]:
    """Which pictures of the domain's own train or test split the sweep's split takes, in its order: the same at each call.

    Files are often sorted by class, and of an order the first ones are labelled: so it is mixed, but for drawn domains, which are mixed
    already.
    """
    return _selected(facts, data, split)


def mixed(index: NDArray[np.int64], pieces: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Pictures of a split in a random order in which those of one piece stay together. pieces: [N], of all of the split's pictures."""
    rng = np.random.default_rng(seed)
    rank = rng.permutation(int(pieces.max()) + 1)
    return index[np.lexsort((rng.random(len(index)), rank[pieces[index]]))]


@lru_cache(maxsize=4)
def _selected(facts: DomainFacts, data: DataSettings, split: Split) -> NDArray[np.int64]:
    domain = open_domain(facts, data)
    if split == "test":
        index = np.arange(len(domain.splits["test"]))
    else:
        train, validation = validation_indices(domain.splits["train"].ids, data.validation_share, data.seed)
        index = train if split == "train" else validation
    most = _limits(data)[split]
    if most is not None and len(index) > most:
        index = np.sort(np.random.default_rng(data.seed).choice(index, most, replace=False))
    assert len(index) == facts.count(split)
    if facts.is_drawn:
        return index
    return mixed(index, domain.splits["test" if split == "test" else "train"].pieces, data.seed)
