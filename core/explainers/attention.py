"""A residual attention block with its attention weights, which `core.tower` never holds: its attention is a fused operation."""

from __future__ import annotations

from torch import Tensor

from core.tower import Block, linear


def attended(block: Block, states: Tensor) -> tuple[Tensor, Tensor]:
    """What `core.tower.block_output` gives of tokens [N, T, D], and the attention weights [N, H, T, T], a query a row of sum 1."""
    attention = block.attn
    qkv = linear(block.ln_1(states), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(dim=-1)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    states = states + block.ls_1(linear(mixed, attention.out_proj.weight, attention.out_proj.bias))
    return states + block.ls_2(block.mlp(block.ln_2(states))), weights
