"""The graph of a labelled data set: one classifier, one split, all its pictures. Pure data; nothing is computed here."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from core.data.domains import LabelledPictures
from core.games.attribution_labels import LabelSettings, precision_shift
from core.model import prompt_class_names
from sweep.experiment.config import ConfigError, Device
from sweep.stages.base import BaseFacts
from sweep.stages.heads import TextHead
from sweep.stages.label_pictures import StreamedPictures
from sweep.stages.labels import LabelShard, shard_ranges
from sweep.stages.learned import Learned, Lesson, make_learned
from sweep.stages.models import WEIGHTS, Classifier, StoredModel, open_artifact
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store, StoreError

MAX_PRECISION_SHIFT = 0.1
"""Low precision is used where it moves labels by at most this share of their standard error."""
NUM_TRIED = 4


@dataclass(frozen=True)
class ModelFacts:
    """The classifier that labels are asked of, before its base is loaded.

    stored: a sweep's fine-tuned weights, or None for the base's own. base_fingerprint: of the base those were trained from.
    """

    base_name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    stored: StoredModel | None = None
    base_fingerprint: str | None = None

    def check_base(self, base: BaseFacts) -> None:
        """Raises ConfigError where the fine-tuned weights were trained from another base."""
        if self.stored is not None and base.fingerprint != self.base_fingerprint:
            raise ConfigError(f"{self.stored.location} was fine-tuned from another base than {self.base_name}: name its base with --base")


def find_model(model: str, base: str | None, pictures: LabelledPictures) -> ModelFacts:
    """The model that `--model` names, for a data set's classes.

    model: an open_clip NAME:TAG or directory, or a fine-tuned model of a sweep: its artifact, <store>/artifacts/<xx>/<key>, whose base is
    named by `base`. Raises ConfigError or StoreError with the fix.
    """
    names = prompt_class_names(pictures.class_names)
    if not is_artifact(model):
        if base is not None:
            raise ConfigError("--base goes with a fine-tuned model of a sweep; an open_clip model is named by --model alone")
        return ModelFacts(model, names, tuple(pictures.templates))
    try:
        artifact = open_artifact(model)
    except StoreError as error:
        raise StoreError(f"--model {model}: {error}") from None
    if artifact.manifest["stage"] != "finetune":
        raise ConfigError(f"{model} is a {artifact.manifest['stage']} artifact: give one of the stage finetune")
    store = Store(model.rpartition("/artifacts/")[0])
    heads = [found for key in artifact.manifest["inputs"] if (found := store.open(key)).manifest["stage"] == "head"]
    if len(heads) != 1:
        raise ConfigError(f"{model} was trained on a union of {len(heads)} domains: give the model of one domain")
    params = heads[0].manifest["params"]
    if tuple(params["class_names"]) != names:
        raise ConfigError(
            f"{model} was trained on the classes {_few(params['class_names'])}, the data set has {_few(names)}: label the data set "
            "it was trained on, or one with the same class names in the same order"
        )
    stored = StoredModel(model.rstrip("/"), artifact.manifest["files"][WEIGHTS]["sha256"])
    base_fingerprint = artifact.manifest["params"]["base"]
    return ModelFacts(base or "miniature", tuple(params["class_names"]), tuple(params["templates"]), stored, base_fingerprint)


def is_artifact(model: str) -> bool:
    """Whether `--model` names an artifact in a store."""
    parts = model.rstrip("/").split("/")
    return len(parts) > 3 and parts[-3] == "artifacts"


def _few(names: Any) -> str:
    return f"{len(names)} ({', '.join(list(names)[:3])}, ...)"


@dataclass(frozen=True, eq=False)
class PrecisionTrial(Stage):
    """How far low precision moves labels of a few pictures, over their standard error."""

    kind = "precision"
    version = 1
    uses_device = True

    pictures: StreamedPictures
    classifier: Classifier
    settings: LabelSettings

    @property
    def name(self) -> str:
        return f"{self.settings.precision} of {self.classifier.name}"

    @property
    def params(self) -> dict[str, Any]:
        settings = {"precision": self.settings.precision, "value": self.settings.value, "fill": self.settings.fill}
        return {"pictures": self.pictures.params, **self.classifier.params, **settings, "device": self.classifier.device}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return self.classifier.inputs

    def compute(self, store: Store, directory: Path) -> None:
        device, shift = self.classifier.device, 0.0
        for chunk in self.pictures.chunks(store, range(min(NUM_TRIED, self.pictures.num_pictures)), device):
            if chunk.ids:
                inputs = self.pictures.preprocessing.normalise(torch.from_numpy(chunk.pixels).to(device))
                shift = precision_shift(self.classifier.load(store), self.settings, inputs, torch.from_numpy(chunk.class_ids).to(device))
        (directory / "precision.json").write_text(json.dumps({"shift": shift}))

    def choice(self, store: Store) -> tuple[LabelSettings, str]:
        """The settings with the precision that may be, and a sentence on it."""
        shift, fast = self.artifact(store).read_json("precision.json")["shift"], self.settings.precision
        if shift <= MAX_PRECISION_SHIFT:
            return self.settings, f"precision {fast}: it moves labels by {shift:.3f} of their standard error"
        slow = replace(self.settings, precision="float32")
        return slow, f"precision float32: {fast} would move labels by {shift:.3f} of their standard error"


@dataclass(frozen=True)
class LabelGraph:
    """The stages that label a data set. location: of it, the same on every node. max_pictures: only the first of it."""

    location: str
    pictures: LabelledPictures
    model: ModelFacts
    base: BaseFacts
    settings: LabelSettings
    device: Device
    shard_size: int
    max_pictures: int | None
    batch_size: int | None
    learning_pictures: int | None
    learning_budget: int

    @property
    def num_pictures(self) -> int:
        number = len(self.pictures.pictures)
        return number if self.max_pictures is None else min(number, self.max_pictures)

    @cached_property
    def streamed(self) -> StreamedPictures:
        found = self.pictures
        return StreamedPictures(self.location, found.split_name, found.fingerprint, self.num_pictures, self.base.preprocessing)

    @cached_property
    def classifier(self) -> Classifier:
        title = f"{self.pictures.name} {self.pictures.split_name}"
        head = TextHead(title, self.base, self.model.class_names, self.model.templates, self.device)
        return Classifier(self.base, (head,), self.model.stored, self.device)

    @property
    def role(self) -> str:
        """The pool's: the split's name, so that labels of two splits share no coalitions."""
        return self.pictures.split_name

    @property
    def precision_trial(self) -> PrecisionTrial:
        return PrecisionTrial(self.streamed, self.classifier, self.settings)

    @cached_property
    def learned(self) -> Learned | None:
        """Raises ConfigError for too few pictures."""
        title, preprocessing = f"{self.pictures.name} {self.role}", self.base.preprocessing
        lesson = Lesson(
            title,
            self.streamed,
            self.classifier,
            preprocessing,
            self.base.num_patches,
            self.settings,
            self.role,
            self.learning_budget,
            self.batch_size,
        )
        return make_learned(lesson, self.num_pictures, self.learning_pictures, self.shard_size)

    @cached_property
    def shards(self) -> tuple[LabelShard, ...]:
        title, preprocessing = f"{self.pictures.name} {self.role}", self.base.preprocessing
        what = (title, self.streamed, self.classifier, preprocessing, self.settings, self.role)
        return tuple(
            LabelShard(*what, *bounds, self.learned, self.batch_size) for bounds in shard_ranges(self.num_pictures, self.shard_size)
        )
