"""What a classifier's own forward pass of a picture says of each patch: the input of a surrogate (`core.shapley.surrogate`)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from core.games.coalition_values import CoalitionEvaluator
from core.tower import block_output, embed

NUM_STATES = 4
MAX_WIDTH = 128
"""States wider than this are projected to it by a fixed random matrix, so that the features of thousands of pictures fit in memory."""


@torch.inference_mode()
def patch_features(evaluator: CoalitionEvaluator, inputs: Tensor, class_ids: Tensor) -> Tensor:
    """Features of every patch for the class in question, float32. inputs: normalised [N, 3, S, S], class_ids [N] -> [N, M, D].

    Of at most `NUM_STATES` hidden states, from the embedding to the last block: the state, and of its projection the cosine with the class
    embedding, the cosine with the CLS token's and the norm. Of the last one also the projection times the class embedding, and this.
    The width of a state counts as min(its own, `MAX_WIDTH`).
    """
    tower = evaluator.tower
    blocks = list(tower.transformer.resblocks)
    wanted = {round(k * len(blocks) / (NUM_STATES - 1)) for k in range(NUM_STATES)}
    embedding = evaluator.head[:, class_ids].T  # [N, K]
    tokens = embed(tower, inputs.to(evaluator.dtype))
    found: list[Tensor] = []
    unit = tokens
    for depth in range(len(blocks) + 1):
        if depth:
            tokens = block_output(blocks[depth - 1], tokens)
        if depth in wanted:
            projected = (tower.ln_post(tokens) @ tower.proj).float()
            norm = projected.norm(dim=-1, keepdim=True)
            unit = projected / norm.clamp_min(1e-12)
            of_class = torch.einsum("ntk,nk->nt", unit, embedding)
            of_picture = torch.einsum("ntk,nk->nt", unit, unit[:, 0])
            found += [_narrow(tokens[:, 1:].float()), torch.stack([of_class, of_picture, norm[..., 0]], dim=-1)[:, 1:]]
    embedding = F.normalize(embedding, dim=-1)[:, None]
    found += [_narrow(unit[:, 1:] * embedding), _narrow(embedding).expand(-1, unit.shape[1] - 1, -1)]
    return torch.cat(found, dim=-1)


def _narrow(states: Tensor) -> Tensor:
    width = states.shape[-1]
    return states if width <= MAX_WIDTH else states @ _projection(width).to(states.device)


@lru_cache(maxsize=8)
def _projection(width: int) -> Tensor:
    """Random directions of unit variance. [width, MAX_WIDTH]"""
    return torch.randn(width, MAX_WIDTH, generator=torch.Generator().manual_seed(width)) / width**0.5
