"""Estimators that learn from the pictures before they label them: the games they ask for, and the fit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.games.attribution_labels import Labeller, LabelSettings
from core.model import Preprocessing
from core.shapley import estimator as contract
from core.shapley.learning import CalibrationReport, GamesRequest, Learning, joined
from sweep.experiment.config import ConfigError
from sweep.stages.label_pictures import PictureRange
from sweep.stages.models import Classifier
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store

GAMES, LEARNED, REPORT = "games.npz", "learned.npz", "report.json"


@dataclass(frozen=True)
class Lesson:
    """What an estimator's learning for one label set depends on: the pictures, the classifier, the settings and the pool's role."""

    title: str
    pictures: PictureRange
    classifier: Classifier
    preprocessing: Preprocessing
    num_patches: int
    settings: LabelSettings
    role: str
    reference_budget: int
    batch_size: int | None

    @property
    def params(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures.params,
            "classifier": self.classifier.params,
            "settings": asdict(self.settings),
            "role": self.role,
            "reference_budget": self.reference_budget,
            "device": self.classifier.device,
        }

    @property
    def learning(self) -> Learning:
        found = self.settings.learning(self.num_patches, self.role, self.reference_budget)
        assert found is not None
        return found

    def labeller(self, store: Store) -> Labeller:
        """A labeller that has learned nothing yet."""
        return Labeller(self.classifier.load(store), self.settings, self.role, batch_size=self.batch_size or 64)

    def chunks(self, store: Store, request: GamesRequest) -> Iterator[tuple[Tensor, Tensor, list[str], int]]:
        """Inputs [N, 3, S, S], class ids [N] and ids of a request's pictures, and how many beside them cannot be read."""
        device = self.classifier.device
        for chunk in self.pictures.chunks(store, request.indices, device):
            inputs = self.preprocessing.normalise(torch.from_numpy(chunk.pixels).to(device))
            yield inputs, torch.from_numpy(chunk.class_ids).to(device), chunk.ids, len(chunk.skipped)


@dataclass(frozen=True, eq=False)
class Games(Stage):
    """Values of one request's pictures' games."""

    kind = "games"
    version = 1
    engine = "shards"
    uses_device = True
    unit = "pictures"

    lesson: Lesson
    request: GamesRequest

    @property
    def name(self) -> str:
        return f"{self.lesson.title} games {self.request.index}"

    @property
    def params(self) -> dict[str, Any]:
        return {**self.lesson.params, "request": asdict(self.request)}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (*self.lesson.classifier.inputs, *self.lesson.pictures.inputs(self.request.indices))

    @property
    def size(self) -> float:
        return float(len(self.request.indices))

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        lesson, learning = self.lesson, self.lesson.learning
        labeller = _last_labeller(store, lesson)
        evaluator = labeller.evaluator
        began, before = time.monotonic(), (evaluator.num_evaluations, evaluator.seconds)
        parts: list[dict[str, NDArray[Any]]] = []
        num_skipped = 0
        for inputs, class_ids, ids, skipped in lesson.chunks(store, self.request):
            num_skipped += skipped
            if ids:
                parts.append(learning.evaluate(self.request, labeller.games(inputs, class_ids, ids)))
        arrays = joined(parts)
        np.savez(directory / GAMES, **arrays)  # type: ignore[arg-type]
        return {
            "num_pictures": len(arrays.get("ids", ())),
            "num_skipped": num_skipped,
            "evaluations": evaluator.num_evaluations - before[0],
            "seconds": round(time.monotonic() - began, 3),
            "evaluation_seconds": round(evaluator.seconds - before[1], 3),
        }

    def load(self, store: Store) -> dict[str, NDArray[Any]]:
        with np.load(self.artifact(store).path(GAMES), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


_labeller: tuple[tuple[Any, ...], Labeller] | None = None


def _last_labeller(store: Store, lesson: Lesson) -> Labeller:
    """The process's labeller for a lesson: requests come lesson by lesson."""
    global _labeller
    wanted = (lesson.classifier.fingerprint, lesson.settings, lesson.role, lesson.batch_size)
    if _labeller is None or _labeller[0] != wanted:
        _labeller = (wanted, lesson.labeller(store))
    return _labeller[1]


@dataclass(frozen=True, eq=False)
class Learned(Stage):
    """What an estimator has learned of a label set's pictures, with a report of what it is worth on others."""

    kind = "learned"
    version = 1
    uses_device = True

    lesson: Lesson
    games: tuple[Games, ...]

    @property
    def name(self) -> str:
        return f"{self.lesson.title} {self.lesson.settings.estimator}"

    @property
    def params(self) -> dict[str, Any]:
        return self.lesson.params

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (*self.lesson.classifier.inputs, *self.games)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        lesson = self.lesson
        labeller = lesson.labeller(store)

        def features(request: GamesRequest) -> Iterator[tuple[Tensor, Sequence[str]]]:
            for inputs, class_ids, ids, _ in lesson.chunks(store, request):
                if ids:
                    yield labeller.features(inputs, class_ids), ids

        requests = [games.request for games in self.games]
        try:
            found, report = lesson.learning.fit(requests, [games.load(store) for games in self.games], features, _say_nothing)
        except ValueError as error:
            raise ConfigError(f"{error}: raise --calibration-pictures, or take another estimator") from error
        (directory / LEARNED).write_bytes(found.to_bytes())
        (directory / REPORT).write_text(json.dumps(asdict(report)))
        return {"relative_error": report.relative_error, "num_held_out": report.num_held_out}

    def load(self, store: Store, device: str) -> contract.Learned:
        content = self.artifact(store).path(LEARNED).read_bytes()
        return self.lesson.learning.learned.from_bytes(content).to(device)

    def known(self, store: Store, pictures: PictureRange) -> dict[str, NDArray[np.float32]]:
        """Values that the labels of these pictures need not evaluate again, by picture id: of those that it learned from.

        A shortcut and no input: games that are no longer there are evaluated again, by the labels that want them.
        """
        if pictures.params != self.lesson.pictures.params:
            return {}  # other pictures may have the same ids
        there = store.existing(games.key for games in self.games)
        return self.lesson.learning.known(games.load(store) for games in self.games if games.key in there)

    def report(self, store: Store) -> CalibrationReport:
        return CalibrationReport(**self.artifact(store).read_json(REPORT))


def _say_nothing(done: int, total: int, words: str) -> None:
    pass


def check_learning(
    where: str, settings: LabelSettings, num_patches: int, reference_budget: int, num_available: int, num_pictures: int | None
) -> Learning | None:
    """The learning of the settings' estimator, if it learns. Raises ConfigError for too few pictures or evaluations, before any is made."""
    try:
        learning = settings.learning(num_patches, "train", reference_budget)
        if learning is not None:
            learning.requests(num_available, num_pictures)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return learning


def make_learned(lesson: Lesson, num_available: int, num_pictures: int | None, request_size: int) -> Learned | None:
    """What a label set's estimator learns; None where it learns nothing. num_available: pictures of the lesson that it may choose from.

    Raises ConfigError for too few pictures.
    """
    learning = lesson.settings.learning(lesson.num_patches, lesson.role, lesson.reference_budget)
    if learning is None:
        return None
    try:
        requests = learning.requests(num_available, num_pictures, request_size=request_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Learned(lesson, tuple(Games(lesson, request) for request in requests))
