"""What can be known of a base model without building it: for checks before work starts, where there may be no room or GPU for it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.clip_library import open_clip
from core.miniature import weights as miniature_weights
from core.model import MINIATURE, RANDOM_WEIGHTS, Base, BaseModelError


@dataclass(frozen=True)
class BaseDescription:
    """identity: says when the model must be looked at anew (its files' checksum, or its name with open_clip's version); not the
    fingerprint of its weights, which only loading them gives. num_patches: M."""

    name: str
    identity: str
    num_patches: int


def describe_base(name: str) -> BaseDescription:
    """The base model that `load_base` would load. Raises BaseModelError, with the fix, for one that cannot be there."""
    if name == MINIATURE:
        directory = miniature_weights.BASE_DIRECTORY
        return _of_directory(name, directory)
    directory = Path(name.removeprefix("local-dir:"))
    if name.startswith("local-dir:") or directory.is_dir():
        return _of_directory(name, directory)
    model_name, _, tag = name.partition(":")
    if model_name not in open_clip().list_models():
        close = ", ".join(m for m in open_clip().list_models() if m.lower().startswith(model_name.lower()[:5]))[:200]
        raise BaseModelError(f"unknown base model {model_name!r}: give `miniature`, NAME:TAG of open_clip or a directory; close: {close}")
    tags = open_clip().list_pretrained_tags_by_model(model_name)
    if not tag:
        raise BaseModelError(f"name the weights of {model_name}: {model_name}:TAG with a TAG of: {', '.join(tags) or 'none'} (or `random`)")
    if tag != RANDOM_WEIGHTS and tag not in tags:
        raise BaseModelError(f"{model_name} has no pretrained weights {tag!r}; there are: {', '.join(tags)} (or `random`)")
    config = open_clip().get_model_config(model_name)
    return BaseDescription(name, f"{name}, open_clip {version('open_clip_torch')}", _num_patches(name, config))


def _of_directory(name: str, directory: Path) -> BaseDescription:
    files = [directory / "open_clip_config.json", directory / "open_clip_model.safetensors"]
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            raise BaseModelError(f"{directory} is no open_clip model directory: {file.name} is missing")
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    try:
        config = json.loads(files[0].read_text())["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{files[0]} cannot be read ({type(error).__name__}: {error}): write the model again") from error
    return BaseDescription(name, digest.hexdigest(), _num_patches(name, config))


def _num_patches(name: str, config: dict) -> int:
    try:
        tower = config["vision_cfg"]
        side = int(tower["image_size"] if isinstance(tower["image_size"], int) else tower["image_size"][0])
        return (side // int(tower["patch_size"])) ** 2
    except (KeyError, TypeError, ValueError):
        fix = "choose an open_clip ViT with a CLS token (ViT-B-32, say)"
        raise BaseModelError(f"the image tower of {name} has no patches: {fix}") from None


def open_clip_configuration(base: Base) -> dict[str, Any]:
    """What `open_clip_config.json` must hold for plain open_clip to build the base: `model_cfg` and `preprocess_cfg`.

    Raises BaseModelError for a base that is no plain CLIP: open_clip keeps the text tower of others elsewhere.
    """
    if type(base.clip) is not open_clip().CLIP:
        kind = type(base.clip).__name__
        raise BaseModelError(f"{base.name} is a {kind}, no plain CLIP: its text tower cannot be written; choose a ViT-B-32, say")
    directory = miniature_weights.BASE_DIRECTORY if base.name == MINIATURE else Path(base.name)
    if directory.is_dir():
        config = dict(json.loads((directory / "open_clip_config.json").read_text())["model_cfg"])
    else:
        config = dict(open_clip().get_model_config(base.name.partition(":")[0]))
    # A pretrained tag may ask for another activation than its model's name.
    config["quick_gelu"] = type(base.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    preprocessing = base.preprocessing
    return {
        "model_cfg": config,
        "preprocess_cfg": {
            "size": preprocessing.image_size,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": preprocessing.interpolation,
            "resize_mode": preprocessing.resize_mode,
        },
    }


def hub_repository(name: str) -> str | None:
    """The Hub repository that open_clip has the weights NAME:TAG from; None where it names none."""
    if ":" not in name or Path(name).is_dir():
        return None
    model_name, _, tag = name.partition(":")
    repository = str(open_clip().get_pretrained_cfg(model_name, tag).get("hf_hub", "")).strip("/")
    return "/".join(repository.split("/")[:2]) or None
