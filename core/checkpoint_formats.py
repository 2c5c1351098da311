"""The image tower of a user's checkpoint, whoever wrote it: layouts are told by their names and converted to open_clip's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.checkpoint_files import CheckpointError, CheckpointFile, open_checkpoint
from core.model import Base
from core.task_vectors import Weights

FARTHEST_FINE_TUNED = 0.7
"""Median relative distance of its matrices from the base's above which a checkpoint is taken for one of another base.

Two trainings from different seeds lie about 1.4 apart (orthogonal, of one norm). On the miniature base a fine-tuning of 200 steps at a
learning rate of 5e-4 ends at 0.09 (`cars`); freshly drawn weights lie at 1.27, the base itself with its channels in another order at 1.41
(`tests/test_checkpoint_formats.py`). Models of CLIP's size are fine-tuned at learning rates fifty times smaller, and move less.
"""


@dataclass(frozen=True)
class Layout:
    """How a library names the weights of a CLIP image tower.

    patch_embedding: the name that only an image tower has; what stands before it is the tower's prefix. renames: patterns that turn an
    open_clip name into the library's, in order. projection: name of the projection, beside the tower where `projection_is_outside`.
    ignored: names that hold nothing learned.
    """

    name: str
    patch_embedding: str
    renames: tuple[tuple[str, str], ...]
    projection: str
    projection_is_outside: bool = False
    has_transposed_projection: bool = True
    splits_attention: bool = False
    ignored: tuple[str, ...] = ()

    def prefix(self, names: Iterable[str]) -> str | None:
        """What stands before the tower's names; None where the layout is another."""
        end = self.patch_embedding
        found = [name[: -len(end)] for name in names if name == end or name.endswith(f".{end}")]
        return min(found, key=len) if found else None

    def sources(self, name: str) -> tuple[str, ...]:
        """The library's names, relative to the tower, of an open_clip weight: three where attention is split."""
        if name == "proj":
            return (self.projection,)
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        if self.splits_attention and (match := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name)):
            return tuple(f"{match[1]}.{part}_proj.{match[2]}" for part in "qkv")
        return (name,)


OPEN_CLIP = Layout("open_clip", "conv1.weight", (), "proj", has_transposed_projection=False)
HUGGING_FACE = Layout(
    "Hugging Face CLIP",
    "embeddings.patch_embedding.weight",
    (
        (r"^class_embedding$", "embeddings.class_embedding"),
        (r"^positional_embedding$", "embeddings.position_embedding.weight"),
        (r"^conv1\.", "embeddings.patch_embedding."),
        (r"^ln_pre\.", "pre_layrnorm."),  # as transformers spells it
        (r"^ln_post\.", "post_layernorm."),
        (r"^transformer\.resblocks\.", "encoder.layers."),
        (r"\.ln_([12])\.", r".layer_norm\1."),
        (r"\.attn\.", ".self_attn."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ),
    "visual_projection.weight",
    projection_is_outside=True,
    splits_attention=True,
    ignored=("embeddings.position_ids",),
)
TIMM = Layout(
    "timm",
    "patch_embed.proj.weight",
    (
        (r"^class_embedding$", "cls_token"),
        (r"^positional_embedding$", "pos_embed"),
        (r"^conv1\.", "patch_embed.proj."),
        (r"^ln_pre\.", "norm_pre."),
        (r"^ln_post\.", "norm."),
        (r"^transformer\.resblocks\.", "blocks."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ),
    "head.weight",
    ignored=("head.bias",),
)
LAYOUTS = (HUGGING_FACE, TIMM, OPEN_CLIP)


@dataclass(frozen=True, eq=False)
class FineTunedTower:
    """The image tower of a checkpoint, ready for the base's: float32, open_clip's names, the base's shapes.

    layout: who wrote it, for people. distance: of its matrices from the base's, relative, the median. has_other_text_tower: whether the
    text tower beside it is not the base's. files: that it was read from.
    """

    weights: dict[str, Tensor]
    layout: str
    distance: float
    has_other_text_tower: bool
    files: tuple[Path, ...]


def base_tower(base: Base) -> FineTunedTower:
    """The base's own tower in the place of a fine-tuned one: a zero-shot classifier."""
    weights = {name: weight.clone() for name, weight in base.visual.state_dict().items()}
    return FineTunedTower(weights, "the base itself, zero-shot", 0.0, False, ())


def read_image_tower(path: Path, base: Base, *, trust_base: bool = False) -> FineTunedTower:
    """The fine-tuned image tower in a checkpoint of open_clip, Hugging Face CLIP, timm or the task-vectors repository.

    trust_base: take it for a fine-tuned model of this base however far from it its weights lie. Raises CheckpointError, with the fix, for
    other layouts, missing or unknown names, other shapes, integers, numbers that are not finite, and weights that are not of this base.
    """
    file = open_checkpoint(path)
    layout, prefix = find_layout(file)
    check_activation(file, base)
    start = dict(base.visual.state_dict())
    weights = converted(file, layout, prefix, start)
    distance = relative_distance(weights, start)
    if distance > FARTHEST_FINE_TUNED and not trust_base:
        raise CheckpointError(
            f"{path} is no fine-tuned {base.name}: its weights lie {distance:.2f} times the base's size from it, those of fine-tuned "
            f"models at most {FARTHEST_FINE_TUNED}, other pretrainings at about 1.4. Name the model it was fine-tuned from with --base, or "
            "say --trust-base where you know better"
        )
    name = "task-vectors" if layout is OPEN_CLIP and re.search(r"(^|\.)model\.visual\.$", prefix) else layout.name
    return FineTunedTower(weights, name, distance, _has_other_text_tower(file, base), file.files)


def find_layout(file: CheckpointFile) -> tuple[Layout, str]:
    """The layout of a checkpoint, and what stands before the names of its image tower. Raises CheckpointError for another one."""
    for layout in LAYOUTS:
        prefix = layout.prefix(file.tensors)
        if prefix is not None:
            return layout, prefix
    some = ", ".join(sorted(file.tensors)[:3])
    known = "open_clip, Hugging Face CLIP, timm's CLIP ViTs and the task-vectors repository"
    raise CheckpointError(f"{file.path} has no CLIP image tower among its names ({some}, ...): give weights as {known} name them")


def converted(file: CheckpointFile, layout: Layout, prefix: str, start: Weights) -> dict[str, Tensor]:
    """The tower under open_clip's names in float32. start: the base's, whose names and shapes it must have. Raises CheckpointError."""
    beside = prefix.removesuffix("vision_model.") if layout.projection_is_outside else prefix
    place = lambda name: (beside if name == layout.projection else prefix) + name  # noqa: E731
    sources = {name: [place(source) for source in layout.sources(name)] for name in start}
    _check_names(file, layout, prefix, {source for names in sources.values() for source in names})
    weights = {}
    for name, wanted in start.items():
        parts = [_checked(file, source) for source in sources[name]]
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        if name == "proj" and layout.has_transposed_projection:
            weight = weight.T.contiguous()
        if name in ("class_embedding", "positional_embedding") and weight.numel() == wanted.numel():
            weight = weight.reshape(wanted.shape)  # timm's have dimensions of one in front
        if name == "proj" and weight.shape[0] == wanted.shape[0] and weight.shape != wanted.shape:
            raise CheckpointError(
                f"{file.path}: {sources[name][0]} projects to {weight.shape[1]} numbers, CLIP's space has {wanted.shape[1]}: "
                "a classifier's own head has no text embeddings to explain; fine-tune the tower with CLIP's projection kept"
            )
        if weight.shape != wanted.shape:
            raise CheckpointError(
                f"{file.path} is of another architecture: {sources[name][0]} makes {name} {list(weight.shape)}, the base's is "
                f"{list(wanted.shape)}. Name the model it was fine-tuned from with --base"
            )
        weights[name] = weight
    _check_head_bias(file, layout, prefix)
    return weights


def in_layout(tower: Weights, layout: Layout, prefix: str = "") -> dict[str, Tensor]:
    """The inverse of `converted`: a tower of open_clip's names under the library's names and in its shapes.

    prefix: what stands before the tower's names; before the projection's too, unless the layout keeps it outside.
    """
    weights: dict[str, Tensor] = {}
    for name, weight in tower.items():
        sources = layout.sources(name)
        place = "" if name == "proj" and layout.projection_is_outside else prefix
        if name == "proj" and layout.has_transposed_projection:
            weight = weight.T
        if layout is TIMM and name in ("class_embedding", "positional_embedding"):
            weight = weight.reshape(1, -1, weight.shape[-1])
        weights |= {place + source: part for source, part in zip(sources, weight.chunk(len(sources)), strict=True)}
    if layout is TIMM:
        weights[f"{prefix}head.bias"] = torch.zeros(tower["proj"].shape[1])
    return weights


def relative_distance(weights: Weights, start: Weights) -> float:
    """Median over the matrices of |w - w0| / |w0|, Frobenius norms. Vectors are left out: normalisations lie near 1 in every model."""
    distances = [((weights[k] - w0).norm() / w0.norm().clamp_min(1e-12)).item() for k, w0 in start.items() if w0.ndim >= 2]
    return float(torch.tensor(distances).median())


def check_activation(file: CheckpointFile, base: Base) -> None:
    """Raise CheckpointError where the configuration beside the weights names another activation: weights do not show it."""
    found = _activation(file.configuration)
    own = "quick_gelu" if type(base.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU" else "gelu"
    if found is not None and found != own:
        fix = "ViT-B-32-quickgelu instead of ViT-B-32, say" if found == "quick_gelu" else "the one without quickgelu in its name"
        raise CheckpointError(f"{file.path} computes with {found}, the base {base.name} with {own}: name the base of that kind ({fix})")


def _activation(configuration: Mapping[str, Any]) -> str | None:
    if "model_cfg" in configuration:
        return "quick_gelu" if configuration["model_cfg"].get("quick_gelu") else "gelu"
    if "architecture" in configuration:
        return "quick_gelu" if "quickgelu" in str(configuration["architecture"]) else "gelu"
    declared = (configuration.get("vision_config") or configuration).get("hidden_act")
    return None if declared is None else str(declared)


def _check_names(file: CheckpointFile, layout: Layout, prefix: str, wanted: set[str]) -> None:
    missing = sorted(wanted - file.tensors.keys())
    if missing and all(name.endswith(layout.projection) for name in missing):
        raise CheckpointError(
            f"{file.path} has no projection into CLIP's space ({missing[0]}): save the model with it "
            "(CLIPModel or CLIPVisionModelWithProjection, not CLIPVisionModel; in timm with its CLIP head)"
        )
    inside = {name for name in file.tensors if name.startswith(prefix)}
    if not prefix:  # then everything is: what shares its first word with the tower's names
        words = {name.split(".")[0] for name in wanted}
        inside = {name for name in inside if name.split(".")[0] in words}
    unknown = sorted(inside - wanted - {prefix + name for name in layout.ignored})
    if missing or unknown:
        told = [f"{len(names)} {what}, e.g. {names[0]}" for names, what in ((missing, "are missing"), (unknown, "are unknown")) if names]
        raise CheckpointError(
            f"the names in {file.path} are not those of the base's image tower in the layout of {layout.name}: {'; '.join(told)}. "
            "Name the model it was fine-tuned from with --base, and save all of its weights"
        )


def _checked(file: CheckpointFile, name: str) -> Tensor:
    try:
        tensor = file.tensors[name]()
    except Exception as error:  # safetensors has an error type of its own, torch several
        raise CheckpointError(f"{file.path}: {name} cannot be read ({error}): it is cut short; copy or save it again") from error
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{file.path}: {name} is {kind}, quantised: save the weights in float32, float16 or bfloat16")
    weight = tensor.float()
    if not bool(torch.isfinite(weight).all()):
        raise CheckpointError(f"{file.path}: {name} holds numbers that are not finite: the training diverged; take an earlier checkpoint")
    return weight


def _check_head_bias(file: CheckpointFile, layout: Layout, prefix: str) -> None:
    name = f"{prefix}head.bias"
    if layout is TIMM and name in file.tensors and bool(_checked(file, name).any()):
        raise CheckpointError(f"{file.path}: {name} is not zero, and CLIP's projection has no bias: fine-tune with the head's bias frozen")


def _has_other_text_tower(file: CheckpointFile, base: Base) -> bool:
    """Whether a text projection beside the tower differs from the base's: a training of both towers moves it."""
    own = getattr(base.clip, "text_projection", None)
    if not isinstance(own, Tensor):
        return False
    for name, get in file.tensors.items():
        if name.split(".")[-1] == "text_projection" or name.endswith("text_projection.weight"):
            found = get().float()
            found = found.T if name.endswith(".weight") else found
            return found.shape != own.shape or not torch.allclose(found, own, atol=1e-2 * own.abs().max().item(), rtol=0)
    return False
