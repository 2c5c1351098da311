"""A model as a Hugging Face folder: AutoModelForImageClassification loads it, with the code that lies in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.checkpoint_formats import HUGGING_FACE, in_layout
from core.model import Preprocessing
from core.model_directory import LoadedModel, save_tensors, write_json
from sweep.export import shipped
from sweep.export.head import head_of
from sweep.export.tower import TowerShape, tower_shape

CODE = ("configuration_explaining_clip.py", "modeling_explaining_clip.py", "explaining_head.py")
_BILINEAR, _BICUBIC = 2, 3
"""Pillow's numbers."""


def write_hugging_face(model: LoadedModel, out: Path) -> None:
    """Weights, configurations and code into a directory, which is made. Raises BaseModelError, before it writes, for an odd tower."""
    classifier = model.classifier
    shape = tower_shape(classifier.visual, "transformers")
    head = head_of(classifier)
    weights = in_layout(dict(classifier.visual.state_dict()), HUGGING_FACE, "vision_model.")
    out.mkdir(parents=True, exist_ok=True)
    save_tensors({**weights, **{f"head.{name}": tensor for name, tensor in head.state_dict().items()}}, out / "model.safetensors")
    code = Path(shipped.__file__).parent
    for name in CODE:
        (out / name).write_bytes((code / name).read_bytes())
    settings = {
        "head_kind": head.kind,
        "attribution_scale": head.scale,
        "value": head.value,
        "label_scale": head.label_scale,
        "logit_scale": head.logit_scale,
    }
    write_json(out / "config.json", {**_configuration(shape, model.class_names), **settings})
    write_json(out / "preprocessor_config.json", image_processor(model.preprocessing))


def _configuration(shape: TowerShape, class_names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "model_type": "explaining_clip",
        "architectures": ["ExplainingClipForImageClassification"],
        "auto_map": {
            "AutoConfig": "configuration_explaining_clip.ExplainingClipConfig",
            "AutoModelForImageClassification": "modeling_explaining_clip.ExplainingClipForImageClassification",
        },
        "dtype": "float32",
        "id2label": {str(n): name for n, name in enumerate(class_names)},
        "label2id": {name: n for n, name in enumerate(class_names)},
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "projection_dim": shape.projection,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_channels": 3,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "hidden_act": shape.activation,
        "layer_norm_eps": shape.norm_eps,
    }


def image_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """`preprocessor_config.json`: CLIP's image processor, or for pictures that are squashed, not cropped, ViT's."""
    size = preprocessing.image_size
    square = {"height": size, "width": size}
    described = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _BICUBIC if preprocessing.interpolation == "bicubic" else _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if preprocessing.resize_mode == "squash":
        return {"image_processor_type": "ViTImageProcessor", "size": square, **described}
    crop = {"do_center_crop": True, "crop_size": square}
    return {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size}, **crop, **described}
