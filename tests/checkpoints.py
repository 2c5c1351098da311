"""One image tower as other libraries' users keep it: the layouts that `core.checkpoint_formats` reads."""

from __future__ import annotations

import re

import torch
from torch import Tensor


def moved(weights: dict[str, Tensor], seed: int = 0, share: float = 0.05) -> dict[str, Tensor]:
    """Weights as a fine-tuning moves them: each tensor by `share` of its own size."""
    generator = torch.Generator().manual_seed(seed)
    steps = {k: torch.randn(v.shape, generator=generator) for k, v in weights.items()}
    return {k: v + share * v.norm() * steps[k] / steps[k].norm() for k, v in weights.items()}


def as_timm(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of timm's `vit_*_clip_*`."""
    words = {
        "conv1": "patch_embed.proj", "ln_pre": "norm_pre", "ln_post": "norm", "transformer.resblocks": "blocks",
        "ln_1": "norm1", "ln_2": "norm2",
        "attn.in_proj_": "attn.qkv.", "attn.out_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    out = {}
    for name, weight in tower.items():
        if name == "class_embedding":
            out["cls_token"] = weight.reshape(1, 1, -1)
        elif name == "positional_embedding":
            out["pos_embed"] = weight[None]
        elif name == "proj":
            out["head.weight"], out["head.bias"] = weight.T.contiguous(), torch.zeros(weight.shape[1])
        else:
            out[re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], name)] = weight
    return out


def as_hugging_face(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of transformers' CLIPVisionModelWithProjection."""
    words = {
        "conv1": "embeddings.patch_embedding", "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm",
        "transformer.resblocks": "encoder.layers",
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.": "self_attn.", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    out = {}
    for name, weight in tower.items():
        if name == "proj":
            out["visual_projection.weight"] = weight.T.contiguous()
        elif name == "class_embedding":
            out["vision_model.embeddings.class_embedding"] = weight
        elif name == "positional_embedding":
            out["vision_model.embeddings.position_embedding.weight"] = weight
        else:
            found = "vision_model." + re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], name)
            if "in_proj_" in found:
                for part, own in zip("qkv", weight.chunk(3), strict=True):
                    out[found.replace("in_proj_", f"{part}_proj.")] = own.clone()
            else:
                out[found] = weight
    return out
