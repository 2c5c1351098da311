"""The sizes of an open_clip image tower as other libraries' configurations name them, where they can build it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from core.model import BaseModelError
from core.tower import ImageTower


@dataclass(frozen=True)
class TowerShape:
    """image_size, patch_size: pixels a side. hidden: width of the blocks' inner layer. activation: `gelu` or `quick_gelu`."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    projection: int
    activation: str
    norm_eps: float


def tower_shape(visual: ImageTower, library: str) -> TowerShape:
    """The sizes of a tower of `core.model`. Raises BaseModelError for one with parts that CLIP's original does not have.

    library: whose CLIP it is to be, for the message.
    """
    blocks = visual.transformer.resblocks
    activation = {"QuickGELU": "quick_gelu", "GELU": "gelu"}.get(type(blocks[0].mlp.gelu).__name__)
    if getattr(blocks[0].mlp.gelu, "approximate", "none") != "none":
        activation = None
    norms = [module for module in visual.modules() if isinstance(module, nn.LayerNorm)]
    unlike = {
        "patches that are not square": visual.patch_size[0] != visual.patch_size[1],
        "no normalisation before its blocks": not isinstance(visual.ln_pre, nn.LayerNorm),
        "layer scale": not all(isinstance(scale, nn.Identity) for block in blocks for scale in (block.ls_1, block.ls_2)),
        "an activation of another kind": activation is None,
        "normalisations of different kinds": len({norm.eps for norm in norms}) != 1,
    }
    found = [what for what, is_so in unlike.items() if is_so]
    if found:
        has = " and ".join(found)
        raise BaseModelError(f"{library}'s CLIP cannot be this image tower, which has {has}: take --to onnx, which writes any")
    assert activation is not None
    attention = blocks[0].attn
    return TowerShape(
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        width=attention.embed_dim,
        layers=len(blocks),
        heads=attention.num_heads,
        hidden=blocks[0].mlp.c_fc.out_features,
        projection=visual.proj.shape[1],
        activation=activation,
        norm_eps=norms[0].eps,
    )
