"""A model as a timm folder: `timm.create_model("local-dir:...")` loads its image tower; the head lies beside it.

timm's own head is one linear layer of the CLS token. CLIP's logits are cosines, so that the token must be made of unit length first: no
linear layer does that. The folder therefore gives CLIP's projection as timm's head, and its README the few lines that make logits and
attributions of the projected tokens.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from core.checkpoint_formats import TIMM, in_layout
from core.model import BaseModelError, Preprocessing
from core.model_directory import LoadedModel, save_tensors, write_json
from sweep.export.head import head_of
from sweep.export.tower import TowerShape, tower_shape

_NORM_EPS = 1e-5
"""Of all CLIP towers in timm; its configuration cannot say another."""
_NAMES = {(768, 32): "base_patch32", (768, 16): "base_patch16", (1024, 14): "large_patch14", (1280, 14): "huge_patch14"}


def write_timm(model: LoadedModel, out: Path) -> None:
    """Weights, configuration and head into a directory, which is made. Raises BaseModelError, before it writes, for an odd tower."""
    classifier = model.classifier
    shape = tower_shape(classifier.visual, "timm")
    if shape.norm_eps != _NORM_EPS:
        eps = f"{_NORM_EPS:g}, this image tower with {shape.norm_eps:g}"
        raise BaseModelError(f"timm's CLIP normalises with an epsilon of {eps}: take --to hf or onnx")
    head = head_of(classifier)
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(in_layout(dict(classifier.visual.state_dict()), TIMM), out / "model.safetensors")
    save_tensors(dict(head.state_dict()), out / "head.safetensors")
    write_json(out / "config.json", _configuration(shape, model.preprocessing))
    write_json(out / "class_names.json", list(model.class_names))


def _configuration(shape: TowerShape, preprocessing: Preprocessing) -> dict[str, Any]:
    """All sizes are given, so that the architecture's name says no more than what kind of model it is."""
    name = _NAMES.get((shape.width, shape.patch_size), "base_patch32")
    kind = "clip_quickgelu" if shape.activation == "quick_gelu" else "clip"
    ratio = shape.hidden / shape.width
    return {
        "architecture": f"vit_{name}_{kind}_224",
        "num_classes": shape.projection,
        "num_features": shape.width,
        "global_pool": "token",
        "model_args": {
            "img_size": shape.image_size,
            "patch_size": shape.patch_size,
            "embed_dim": shape.width,
            "depth": shape.layers,
            "num_heads": shape.heads,
            "mlp_ratio": ratio if int(shape.width * ratio) == shape.hidden else math.nextafter(ratio, math.inf),
        },
        "pretrained_cfg": {
            "input_size": [3, shape.image_size, shape.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic" if preprocessing.interpolation == "bicubic" else "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash" if preprocessing.resize_mode == "squash" else "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": shape.projection,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
