"""Grad-CAM on a CLIP ViT (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2020).

The layer is the last block's first normalisation: what its attention reads. The logit is read off the CLS token, which takes from the
patches for the last time in that attention, so that of the last block's own patch tokens it has no gradient at all. It is the layer that
pytorch-grad-cam takes for ViTs. Attributions are the channels' activations weighted by their mean gradients over the patches, what is
negative set to 0; they have no unit and are left as they are, where a picture to look at would be brought to [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.model import SelfExplainingClassifier
from core.tower import block_output, embed, linear


def grad_cam(classifier: SelfExplainingClassifier, inputs: Tensor, class_ids: Tensor) -> Tensor:
    """Grad-CAM of the logits of `class_ids` [N]. inputs: normalised [N, 3, S, S] -> [N, M], at least 0.

    Takes a forward pass; the backward one goes through the last block's CLS row alone, which is a small part of a pass.
    """
    tower = classifier.visual
    *earlier, last = tower.transformer.resblocks
    with torch.no_grad():
        states = embed(tower, inputs)
        for block in earlier:
            states = block_output(block, states)
    with torch.enable_grad():
        layer = last.ln_1(states).requires_grad_(True)
        qkv = linear(layer, last.attn.in_proj_weight, last.attn.in_proj_bias)
        cls = tower.ln_post(block_output(last, states, qkv, cls_only=True)[:, 0])
        unit = F.normalize(linear(cls, tower.proj.t()), dim=-1)
        logits = classifier.logit_scale * torch.einsum("nk,kn->n", unit, classifier.head[:, class_ids])
        (gradient,) = torch.autograd.grad(logits.sum(), layer)
    weights = gradient[:, 1:].mean(dim=1)
    return torch.einsum("nmd,nd->nm", layer.detach()[:, 1:], weights).relu()
