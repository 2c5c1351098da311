"""A transferred model as a directory: plain open_clip loads it (`local-dir:`); beside it lies what makes it a classifier that explains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.attribution_head import HEAD_KINDS, AttributionHead
from core.base_models import open_clip_configuration
from core.model import Base, Preprocessing, SelfExplainingClassifier, load_base
from core.value_function import ValueFunction

CONFIGURATION = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
HEAD = "head.safetensors"
ATTRIBUTION_HEAD = "attribution_head.json"
PROVENANCE = "provenance.json"
CARD = "README.md"

_FORMAT = 1
"""Of `attribution_head.json`: raised when readers of today could not read it."""


class ModelDirectoryError(ValueError):
    """A directory holds no model, or not a whole one; the message names the fix."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What `read_model` gives. classifier: without gradients, v(empty) fixed, on the CPU. provenance: as it was written."""

    directory: Path
    classifier: SelfExplainingClassifier
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    provenance: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.classifier.visual.grid_size
        return int(rows), int(columns)


def write_model(
    directory: Path,
    classifier: SelfExplainingClassifier,
    base: Base,
    class_names: Sequence[str],
    templates: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Write all files but the card. The classifier's tower may be the base's own, merged in place.

    directory: new or empty. Class embeddings are [K, C], the empty feature is the CLS feature [K] of the picture that shows nothing.
    Raises ModelDirectoryError where the directory holds files, BaseModelError for a base whose text tower open_clip keeps elsewhere.
    """
    if len(class_names) != classifier.head.shape[1]:
        raise ModelDirectoryError(f"{len(class_names)} class names for {classifier.head.shape[1]} classes: name each once")
    configuration = open_clip_configuration(base)
    check_new(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if classifier.empty is None:
        classifier.fix_empty()
    assert base.clip is not None and classifier.empty is not None
    tower = {f"visual.{name}": weight for name, weight in classifier.visual.state_dict().items()}
    write_json(directory / CONFIGURATION, configuration)
    save_tensors({**base.clip.state_dict(), **tower}, directory / WEIGHTS)
    save_tensors({"class_embeddings": classifier.head, "empty_feature": classifier.empty}, directory / HEAD)
    described = {
        "format": _FORMAT,
        **asdict(classifier.attribution_head),
        "class_names": list(class_names),
        "templates": list(templates),
    }
    write_json(directory / ATTRIBUTION_HEAD, described)
    write_json(directory / PROVENANCE, dict(provenance))


def check_new(directory: Path) -> None:
    """Raise ModelDirectoryError unless a model can be written there without touching anything."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ModelDirectoryError(f"{directory} is there already and not empty: give another --out, or remove it")


def read_model(directory: Path) -> LoadedModel:
    """Read what `write_model` wrote. Raises ModelDirectoryError or BaseModelError, with the fix, where it is not whole."""
    for name in (CONFIGURATION, WEIGHTS, HEAD, ATTRIBUTION_HEAD):
        if not (directory / name).is_file():
            raise ModelDirectoryError(f"{directory} holds no model that explains: {name} is missing; make one with `transfer`")
    try:
        described = json.loads((directory / ATTRIBUTION_HEAD).read_text(encoding="utf-8"))
        provenance = json.loads((directory / PROVENANCE).read_text(encoding="utf-8")) if (directory / PROVENANCE).is_file() else {}
        tensors = load_file(directory / HEAD)
        head, empty = tensors["class_embeddings"], tensors["empty_feature"]
        attribution_head = _attribution_head(described)
        class_names, templates = tuple(described["class_names"]), tuple(described["templates"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelDirectoryError(f"{directory} cannot be read ({type(error).__name__}: {error}): write the model again") from error
    if head.ndim != 2 or head.shape[1] != len(class_names) or empty.shape != head.shape[:1]:
        raise ModelDirectoryError(f"{directory}: {HEAD} {list(head.shape)} is not of the {len(class_names)} classes: write the model again")
    base = load_base(f"local-dir:{directory}")
    classifier = SelfExplainingClassifier(base.visual, head, base.logit_scale, attribution_head).eval().requires_grad_(False)
    classifier.empty = empty
    return LoadedModel(directory, classifier, base.preprocessing, class_names, templates, provenance)


def _attribution_head(described: Mapping[str, Any]) -> AttributionHead:
    if described["format"] != _FORMAT:
        raise ValueError(f"{ATTRIBUTION_HEAD} has the format {described['format']}, which this version does not know")
    if described["kind"] not in HEAD_KINDS:
        raise ValueError(f"the attribution head {described['kind']!r} is none of {', '.join(HEAD_KINDS)}")
    return AttributionHead(described["kind"], float(described["scale"]), ValueFunction(**described["game"]))


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that everyone may read."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors writes files that only their owner can read


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON file for people, too."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
