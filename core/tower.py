"""The forward pass of an open_clip image tower, piece by piece: for training, for evaluation and for games on its patches.

The mathematics is open_clip's own (a test holds both together); what differs is the time. Tensors stay [N, T, D] in memory throughout,
where `nn.MultiheadAttention` leaves transposed ones on which every later operation is slow, and the last block can be computed for the
CLS row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ImageTower = Any
"""An open_clip VisionTransformer."""
Block = Any
"""One of its residual attention blocks."""


def tokens(tower: ImageTower, inputs: Tensor) -> Tensor:
    """All tokens after the last normalisation, CLS first. inputs: normalised [N, 3, S, S] -> [N, T, D]"""
    states = embed(tower, inputs)
    for block in tower.transformer.resblocks:
        states = block_output(block, states)
    return tower.ln_post(states)


def cls_token(tower: ImageTower, inputs: Tensor) -> Tensor:
    """The CLS token of `tokens` alone, for less. inputs: normalised [N, 3, S, S] -> [N, D]"""
    states = embed(tower, inputs)
    blocks = list(tower.transformer.resblocks)
    for block in blocks:
        states = block_output(block, states, cls_only=block is blocks[-1])
    return tower.ln_post(states[:, 0])


def embed(tower: ImageTower, inputs: Tensor) -> Tensor:
    """Tokens before the first block, after the normalisation before it. [N, 3, S, S] -> [N, T, D]"""
    return tower._embeds(inputs)


def block_output(block: Block, tokens: Tensor, qkv: Tensor | None = None, cls_only: bool = False) -> Tensor:
    """One residual attention block; with cls_only the CLS row alone comes out. tokens [B, T, D], qkv [B, T, 3 D] if known already."""
    attention = block.attn
    if qkv is None and cls_only:
        mixed = _cls_attention(attention, block.ln_1(tokens))
    else:
        if qkv is None:
            qkv = linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
        mixed = _attend(query[:, :, :1] if cls_only else query, key, value).transpose(1, 2).flatten(2)
    tokens = tokens[:, :1] if cls_only else tokens
    tokens = tokens + block.ls_1(linear(mixed, attention.out_proj.weight, attention.out_proj.bias))
    return tokens + block.ls_2(_mlp(block.mlp, block.ln_2(tokens)))


def _cls_attention(attention: Any, normed: Tensor) -> Tensor:
    """The CLS row's attention over all tokens, normed [B, T, D] -> [B, 1, D].

    One query a head: so it goes through the key's matrix to the tokens, and their mix through the value's, and no key or value is computed.
    The key's bias adds the same to every logit of a query, and is left out.
    """
    num_heads, width = attention.num_heads, normed.shape[-1]
    by_head: Callable[[Tensor], Tensor] = lambda x: x.unflatten(0, (num_heads, -1))  # noqa: E731
    of_query, of_key, of_value = attention.in_proj_weight.chunk(3)
    query = linear(normed[:, 0], of_query, attention.in_proj_bias[:width]) * (width // num_heads) ** -0.5
    towards = torch.bmm(query.unflatten(-1, (num_heads, -1)).transpose(0, 1), by_head(of_key)).transpose(0, 1)  # [B, H, D]
    weights = torch.bmm(towards, normed.transpose(1, 2)).softmax(dim=-1)  # [B, H, T]
    mixed = torch.bmm(weights, normed).transpose(0, 1)  # [H, B, D]
    values = torch.bmm(mixed, by_head(of_value).transpose(1, 2))  # [H, B, D / H]
    return (values.transpose(0, 1).flatten(1) + attention.in_proj_bias[2 * width :])[:, None]


def _mlp(mlp: Any, tokens: Tensor) -> Tensor:
    weight, bias = mlp.c_fc.weight, mlp.c_fc.bias
    if _fuses_gelu(mlp.gelu, tokens, weight):
        rows = tokens.reshape(-1, tokens.shape[-1]).contiguous()
        hidden = _product(rows, weight, bias, gelu=True).view(*tokens.shape[:-1], -1)
    else:
        hidden = mlp.gelu(linear(tokens, weight, bias))
    return linear(hidden, mlp.c_proj.weight, mlp.c_proj.bias)


def _fuses_gelu(activation: Any, inputs: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes the GELU with the product before it, which spares a pass over the widest tensor: on a CPU without a gradient.

    In float32 the numbers are the same to the last bit; in bfloat16 they are rounded once, not twice.
    """
    if torch.is_grad_enabled() or not (_HAS_ONEDNN and inputs.device.type == "cpu") or torch.is_autocast_enabled("cpu"):
        return False
    if not (isinstance(activation, torch.nn.GELU) and activation.approximate == "none" and inputs.dtype == weight.dtype):
        return False
    return inputs.dtype == torch.float32 or (inputs.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention [B, H, Q, D]. In low precision on a CPU, for sequences this short, three plain operations are faster than the fused one."""
    if query.is_cuda or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value)
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(dim=-1) @ value


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs @ weight.T + bias. inputs [..., D], weight [E, D], bias [E] -> [..., E]

    In float32 on a CPU the product is oneDNN's: torch's own choice there, MKL, does not use AVX-512 on every processor that has it, and is
    then half as fast. Both compute in float32, in another order.
    """
    is_float32 = inputs.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(inputs.device.type)
    if not (_HAS_ONEDNN and is_float32 and inputs.device.type == "cpu"):
        return F.linear(inputs, weight, bias)
    rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
    out: Tensor = _OneDnnLinear.apply(rows, weight, bias) if torch.is_grad_enabled() else _product(rows, weight, bias)
    return out.view(*inputs.shape[:-1], -1)


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """a @ b.T + bias by oneDNN, or GELU of it. a [R, D], b [E, D] -> [R, E]"""
    activation, kind = ("gelu", "none") if gelu else ("none", "")  # kind none: by the error function, not approximated by tanh
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, activation, [], kind)
    return out


class _OneDnnLinear(torch.autograd.Function):
    """rows @ weight.T + bias with oneDNN's product in both directions; the operation itself has no derivative in torch."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        gradient = gradients[0].contiguous()
        rows, weight = ctx.saved_tensors
        return (
            _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None,
            gradient.t() @ rows if ctx.needs_input_grad[1] else None,  # oneDNN would copy both, transposed: no faster than MKL's worst
            gradient.sum(0) if ctx.needs_input_grad[2] else None,
        )
