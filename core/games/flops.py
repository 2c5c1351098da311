"""Floating-point operations of the label engine, from a tower's shape."""

from __future__ import annotations

from core.games.coalition_values import Fill
from core.tower import ImageTower


def flops_per_evaluation(visual: ImageTower, fill: Fill = "mean") -> float:
    """Operations (a multiply-add counts two) of one coalition in `CoalitionEvaluator`: matrix products and attention.

    With `fill=drop` a coalition holds half of the patches on average. What is computed once a picture is in `flops_per_picture`.
    """
    blocks = visual.transformer.resblocks
    width = blocks[0].attn.embed_dim
    hidden = blocks[0].mlp[0].out_features
    num_patches = visual.grid_size[0] * visual.grid_size[1]
    # Over the coalitions of a pair, s and M - s tokens beside CLS: the mean of the length, and of its square at the even split.
    tokens = num_patches + 1 if fill == "mean" else num_patches / 2 + 1
    project, attend, mlp = 2 * width * width, 4 * tokens * width, 4 * width * hidden  # a token
    total = 0.0
    for j, block in enumerate(blocks):
        is_first, is_last = j == 0, j == len(blocks) - 1
        rows = 1 if is_last else tokens  # the last block's queries, output and MLP are for CLS alone
        if is_last and not is_first:  # each head attends to whole tokens, so that none has a key or a value
            total += block.attn.num_heads * attend + 4 * project + mlp
        else:
            total += rows * (attend + project + mlp) + (0 if is_first else rows * 3 * project)
    return total + 2 * width * visual.proj.shape[1]


def flops_per_picture(visual: ImageTower) -> float:
    """Operations done once a picture, whatever the budget: patch embeddings and the first block's projections."""
    width = visual.transformer.resblocks[0].attn.embed_dim
    num_patches = visual.grid_size[0] * visual.grid_size[1]
    patch = visual.conv1.weight[0].numel()
    return 2.0 * num_patches * patch * width + (num_patches + 1) * 6 * width * width
