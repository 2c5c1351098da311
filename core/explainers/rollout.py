"""Attention rollout and its gradient-weighted form: how much of the CLS token comes from each patch, followed through all blocks.

Both are products of matrices a block, of which only the CLS token's row is read: it is multiplied from the last block back to the first,
[T] times [T, T], in place of [T, T] times [T, T].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.explainers.attention import attended
from core.model import SelfExplainingClassifier
from core.tower import embed, linear


@torch.no_grad()
def attention_rollout(classifier: SelfExplainingClassifier, inputs: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020). [N, 3, S, S] -> [N, M], of sum below 1.

    A block's matrix is half the attention weights, mean over the heads, and half the identity, for its residual connection. The same
    for every class: the head is not read. Takes a forward pass.
    """
    tower = classifier.visual
    states, matrices = embed(tower, inputs), []
    for block in tower.transformer.resblocks:
        states, weights = attended(block, states)
        matrices.append(weights.mean(dim=1))
    row = _cls_row(states)
    for matrix in reversed(matrices):
        row = 0.5 * row + 0.5 * (row[:, None] @ matrix)[:, 0]
    return row[:, 1:]


def gradient_rollout(classifier: SelfExplainingClassifier, inputs: Tensor, class_ids: Tensor) -> Tensor:
    """Gradient-weighted rollout (Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers", 2021) of the logits of `class_ids` [N]. inputs: normalised [N, 3, S, S] -> [N, M], at least 0.

    A block adds the identity and the attention weights times their gradients, what is negative set to 0, mean over the heads. Takes a
    forward and a backward pass, which is about three passes, and holds every block's attention weights.
    """
    tower = classifier.visual
    with torch.no_grad():
        start = embed(tower, inputs)
    with torch.enable_grad():
        states, attention = start.requires_grad_(True), []
        for block in tower.transformer.resblocks:
            states, weights = attended(block, states)
            attention.append(weights)
        unit = F.normalize(linear(tower.ln_post(states[:, 0]), tower.proj.t()), dim=-1)
        logits = classifier.logit_scale * torch.einsum("nk,kn->n", unit, classifier.head[:, class_ids])
        gradients = torch.autograd.grad(logits.sum(), attention)
    row = _cls_row(states.detach())
    for weights, gradient in zip(reversed(attention), reversed(gradients), strict=True):
        row = row + (row[:, None] @ (weights.detach() * gradient).relu().mean(dim=1))[:, 0]
    return row[:, 1:]


def _cls_row(states: Tensor) -> Tensor:
    """The identity's row of the CLS token. [N, T]"""
    row = torch.zeros_like(states[:, :, 0])
    row[:, 0] = 1.0
    return row
