"""What a classifier's own forward pass of a picture says of each patch: the input of a surrogate (`core.surrogate`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.coalition_values import CoalitionEvaluator, block_output, embed

NUM_STATES = 4


@torch.inference_mode()
def patch_features(evaluator: CoalitionEvaluator, inputs: Tensor, class_ids: Tensor) -> Tensor:
    """Features of every patch for the class in question, float32. inputs: normalised [N, 3, S, S], class_ids [N] -> [N, M, D].

    Of at most `NUM_STATES` hidden states, from the embedding to the last block: the state, and of its projection the cosine with the class
    embedding, the cosine with the CLS token's and the norm. Of the last one also the projection times the class embedding, and this.
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
            found += [tokens[:, 1:].float(), torch.stack([of_class, of_picture, norm[..., 0]], dim=-1)[:, 1:]]
    embedding = F.normalize(embedding, dim=-1)[:, None]
    found += [unit[:, 1:] * embedding, embedding.expand_as(unit[:, 1:])]
    return torch.cat(found, dim=-1)
