"""The classifier that a data set is labelled with: an open_clip model's zero-shot head, or a sweep's fine-tuned weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from safetensors.torch import load_file

from core.model import Base, Preprocessing, SelfExplainingClassifier, load_base, prompt_class_names
from sweep.experiment.config import ConfigError
from sweep.store.artifacts import Artifact, Store, StoreError

WEIGHTS = "visual.safetensors"


@dataclass(frozen=True)
class LabelModel:
    """A classifier by what it is made of. Can be sent to other processes; `load` makes it.

    base: as `--base` of a sweep. checkpoint: location of a `finetune` artifact in a store, or None for the base's own weights.
    class_names, templates: of the head. fingerprint: of all of it.
    """

    base: str
    checkpoint: str | None
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    preprocessing: Preprocessing
    fingerprint: str

    def load(self) -> SelfExplainingClassifier:
        """The classifier on the CPU."""
        base = load_base(self.base)
        classifier = base.classifier(base.head(self.class_names, self.templates))
        if self.checkpoint is not None:
            classifier.visual.load_state_dict(load_file(_open(self.checkpoint).path(WEIGHTS)))
        if _fingerprint(base, self.checkpoint, self.class_names, self.templates) != self.fingerprint:
            raise ConfigError(f"the model {self.checkpoint or self.base} changed while it was in use: start again")
        return classifier.eval()


def find_model(model: str, base: str | None, class_names: Sequence[str], templates: Sequence[str]) -> tuple[LabelModel, Base]:
    """The model that `--model` names, for a data set's classes, and its base.

    model: an open_clip NAME:TAG or directory, or a fine-tuned model of a sweep: its artifact, <store>/artifacts/<xx>/<key>, whose base is
    named by `base`. Raises ConfigError, BaseModelError or StoreError with the fix.
    """
    if not is_artifact(model):
        if base is not None:
            raise ConfigError("--base goes with a fine-tuned model of a sweep; an open_clip model is named by --model alone")
        loaded = load_base(model)
        names = prompt_class_names(class_names)
        fingerprint = _fingerprint(loaded, None, names, templates)
        return LabelModel(model, None, tuple(names), tuple(templates), loaded.preprocessing, fingerprint), loaded
    artifact = _open(model)
    if artifact.manifest["stage"] != "finetune":
        raise ConfigError(f"{model} is a {artifact.manifest['stage']} artifact: give one of the stage finetune")
    params = artifact.manifest["params"]
    if list(params["class_names"]) != list(class_names):
        raise ConfigError(
            f"{model} was trained on the classes {_few(params['class_names'])}, the data set has {_few(class_names)}: label the data set "
            "it was trained on, or one with the same class names in the same order"
        )
    name = base or "miniature"
    loaded = load_base(name)
    if loaded.fingerprint != params["base"]:
        raise ConfigError(f"{model} was fine-tuned from another base than {name}: name its base with --base")
    names, templates = tuple(params["class_names"]), tuple(params["templates"])
    fingerprint = _fingerprint(loaded, model, names, templates)
    return LabelModel(name, model, names, templates, loaded.preprocessing, fingerprint), loaded


def is_artifact(model: str) -> bool:
    """Whether `--model` names an artifact in a store."""
    parts = PurePosixPath(model).parts
    return len(parts) > 3 and parts[-3] == "artifacts"


def _open(model: str) -> Artifact:
    root, key = model.rpartition("/artifacts/")[0], PurePosixPath(model).name
    store = Store(root)
    if not store.exists(key):
        raise StoreError(f"there is no artifact {key} in the store {root}: check --model")
    return store.open(key)


def _fingerprint(base: Base, checkpoint: str | None, class_names: Sequence[str], templates: Sequence[str]) -> str:
    parts = [base.fingerprint, list(class_names), list(templates)]
    if checkpoint is not None:
        parts.append(_open(checkpoint).manifest["files"][WEIGHTS]["sha256"])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(list(names)[:3])}, ...)"


def to_device(classifier: SelfExplainingClassifier, device: str) -> SelfExplainingClassifier:
    """The classifier on a device, without gradients."""
    return classifier.to(torch.device(device)).requires_grad_(False)
