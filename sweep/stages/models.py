"""Fine-tuned models: prediction-only (alpha = 1) and self-explaining, of one domain or of a union."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.attribution_head import COSINE, AttributionHead
from core.data.picture_shards import PictureShards
from core.data_parallel import DataParallel
from core.finetune import Recipe, finetune
from core.model import SelfExplainingClassifier
from core.shard_stream import ShardStream
from core.training_data import BatchSource, PictureSource, TrainingData
from sweep.experiment.config import ConfigError, Device
from sweep.stages.base import BaseFacts
from sweep.stages.heads import TextHead, load_heads
from sweep.stages.picture_stream import picture_stream
from sweep.stages.pictures import Pictures
from sweep.stages.stage import Stage
from sweep.store.artifacts import Artifact, Store

if TYPE_CHECKING:
    from sweep.stages.labels import LabelSet

WEIGHTS = "visual.safetensors"


@dataclass(frozen=True, eq=False)
class FineTuned(Stage):
    """Weights fine-tuned by eq. 4 on one domain's pictures, or on several domains' side by side.

    labels: of each domain's train split, where alpha < 1; a picture without one is left out. window: shards that are shuffled together
    where the pictures are streamed; None shuffles all, which reads at random. start: the model that it is trained from; None: the base.
    A killed training continues from its last checkpoint, on whatever node.
    """

    kind = "finetune"
    version = 2
    engine = "training"
    uses_device = True
    unit = "models"

    source: str
    base: BaseFacts
    pictures: tuple[Pictures, ...]
    heads: tuple[TextHead, ...]
    labels: tuple[LabelSet, ...]
    recipe: Recipe
    alpha: float
    attribution_head: AttributionHead
    device: Device
    window: int | None = None
    start: FineTuned | None = None

    @property
    def name(self) -> str:
        return f"{self.source} {'prediction-only' if self.alpha == 1.0 else f'alpha={self.alpha:g}'}"

    @property
    def params(self) -> dict[str, Any]:
        recipe = asdict(self.recipe)
        if self.num_workers == 1:
            del recipe["workers_per_model"]  # several change the last digits, which training spreads
        settings = {"base": self.base.fingerprint, "recipe": recipe, "alpha": float(self.alpha), "device": self.device}
        order = {} if self.window is None else {"window": self.window}
        head = {} if self.alpha == 1.0 else {"head": asdict(self.attribution_head)}
        return {**settings, **order, **head}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (*self.pictures, *self.heads, *self.labels, *((self.start,) if self.start else ()))

    @property
    def size(self) -> float:
        number = sum(pictures.domain.count("train") for pictures in self.pictures)
        return float(self.recipe.total_steps(number) * self.recipe.batch_size)

    @property
    def num_workers(self) -> int:
        return self.recipe.workers_per_model

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        """By all of the model's workers, which have joined torch's process group if there are several; the first one writes."""
        workers = DataParallel.joined() if self.num_workers > 1 else None
        assert workers is None or workers.share.size == self.num_workers
        data = self._batch_source(store)
        classifier = self.base.load().classifier(load_heads(store, self.heads), self.attribution_head)
        if self.start is not None:
            classifier.visual.load_state_dict(self.start.load(store))
        classifier.to(self.device)
        with store.checkpoint(self.key) as checkpoint:
            history = finetune(classifier, data, self.recipe, self.alpha, checkpoint=checkpoint, workers=workers)
        if workers is not None and not workers.is_first:
            return {}
        save_file({k: v.contiguous().cpu() for k, v in classifier.visual.state_dict().items()}, directory / WEIGHTS)
        (directory / "history.json").write_text(json.dumps([asdict(point) for point in history]))
        return {"num_pictures": len(data), "final_loss": history[-1].loss}

    def publish(self, store: Store, wait: bool = True, on_begin: Callable[[], None] | None = None) -> Artifact | None:
        artifact = super().publish(store, wait, on_begin)
        if artifact is not None:  # not before: a training that is killed between its end and this would begin anew
            store.checkpoint(self.key).remove()
        return artifact

    def _batch_source(self, store: Store) -> BatchSource:
        """`training_data`, or for more pictures than fit in memory their stream."""
        if self.window is None:
            return self.training_data(store)
        return self._stream(store, self.window)

    def picture_source(self, store: Store) -> PictureSource:
        """The pictures it was trained on, without labels, to take a few of: where they are streamed, only the shards of these come here."""
        if self.window is None:
            return self.training_data(store, with_labels=False)
        return self._stream(store, self.window, with_labels=False)

    def _stream(self, store: Store, window: int, with_labels: bool = True) -> ShardStream:
        num_classes_of = [len(head.class_names) for head in self.heads]
        return picture_stream(store, self.pictures, num_classes_of, self.labels, self.base.preprocessing, window, with_labels)

    def training_data(self, store: Store, with_labels: bool = True) -> TrainingData:
        """Pictures of all parts, taken at random; classes of the later parts follow those of the first.

        with_labels: False leaves the labels unread.
        """
        paths: list[Path] = []
        rows, class_ids, labels = [], [], []
        num_rows, num_classes = 0, 0
        for n, pictures in enumerate(self.pictures):
            split = pictures.load(store, "train")
            own = np.arange(len(split))
            if self.labels:
                own = self.labels[n].rows(store)
                if with_labels:
                    labels.append(torch.from_numpy(self.labels[n].attributions(store)))
            rows.append(num_rows + own)
            class_ids.append(num_classes + split.class_ids[own])
            paths += split.pixels.paths
            num_rows += len(split)
            num_classes += len(self.heads[n].class_names)
        return TrainingData(
            Rows(PictureShards(paths), torch.from_numpy(np.concatenate(rows))),
            torch.from_numpy(np.concatenate(class_ids)),
            self.base.preprocessing,
            torch.cat(labels) if labels else None,
        )

    def load(self, store: Store) -> dict[str, Tensor]:
        """Weights of the image tower."""
        return load_weights(str(self.artifact(store).path(WEIGHTS)))

    def history(self, store: Store) -> list[dict[str, Any]]:
        return list(self.artifact(store).read_json("history.json"))


@dataclass(frozen=True)
class Rows:
    """Some rows of stored pictures, as a picture source of a training."""

    pictures: PictureShards
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: Tensor) -> Tensor:
        return self.pictures.gather(self.rows[index])


@lru_cache(maxsize=6)
def load_weights(path: str) -> dict[str, Tensor]:
    return load_file(path)


@dataclass(frozen=True)
class StoredModel:
    """Weights that a sweep left in some store. location: <store>/artifacts/<xx>/<key>; sha256: of the weights' file."""

    location: str
    sha256: str

    @property
    def name(self) -> str:
        return self.location

    def load(self, store: Store) -> dict[str, Tensor]:
        artifact = open_artifact(self.location)
        if artifact.manifest["files"][WEIGHTS]["sha256"] != self.sha256:
            raise ConfigError(f"the model {self.location} changed while it was in use: start again")
        return load_weights(str(artifact.path(WEIGHTS)))


def open_artifact(location: str) -> Artifact:
    """The artifact <store>/artifacts/<xx>/<key>, in whatever store. Raises StoreError where there is none."""
    root, key = location.rstrip("/").rpartition("/artifacts/")[0], location.rstrip("/").rpartition("/")[2]
    return Store(root).open(key)


@dataclass(frozen=True)
class Classifier:
    """A classifier by what it is made of; `load` makes it. model: None for the base's own weights (zero-shot).

    Its attributions depend on attribution_head; its logits, and the games that labels are made of, do not.
    """

    base: BaseFacts
    heads: tuple[TextHead, ...]
    model: FineTuned | StoredModel | None
    device: Device
    attribution_head: AttributionHead = COSINE

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (*self.heads, *((self.model,) if isinstance(self.model, FineTuned) else ()))

    @property
    def params(self) -> dict[str, Any]:
        stored = {"weights": self.model.sha256} if isinstance(self.model, StoredModel) else {}
        head = {} if self.attribution_head == COSINE else {"head": asdict(self.attribution_head)}
        return {"base": self.base.fingerprint, **stored, **head}

    @property
    def name(self) -> str:
        return self.model.name if self.model else f"{self.base.name}, zero-shot"

    @property
    def alpha(self) -> float | None:
        """Weight of the classification loss it was trained with here; None where it was not."""
        return self.model.alpha if isinstance(self.model, FineTuned) else None

    @cached_property
    def fingerprint(self) -> str:
        """Of everything its outputs depend on."""
        parts = [self.params, *(stage.key for stage in self.inputs)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def load(self, store: Store) -> SelfExplainingClassifier:
        """The classifier on its device, without gradients."""
        classifier = self.base.load().classifier(load_heads(store, self.heads), self.attribution_head)
        if self.model is not None:
            classifier.visual.load_state_dict(self.model.load(store))
        return classifier.to(self.device).eval().requires_grad_(False)
