"""Values v(S) of a classifier's game on a picture, for many coalitions at once, exactly as the plain masked forward pass gives them.

The players are the M patches; a patch outside S is replaced by the data set's mean colour. Patches do not overlap, so the
replacement is exact in token space, and three things are computed once instead of once a coalition: the patch embeddings, the first
block's query, key and value of each patch in its two states, and (since only the CLS feature is read) nothing but the CLS row of the
last block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.model import Block, ImageTower, SelfExplainingClassifier

Value = Literal["logit", "log_odds", "probability"]


class CoalitionEvaluator:
    """Evaluates v(S) of one classifier.

    value: `logit` is label_scale x cosine of the CLS and class features; `log_odds` the log odds of the class probability, times
    label_scale / logit_scale so that both are of one size; `probability` the class probability.
    dtype: the arithmetic of the tower (float32 or bfloat16); the last normalisation and product are float32 always.
    batch_size: coalitions evaluated at once.
    """

    def __init__(
        self,
        classifier: SelfExplainingClassifier,
        *,
        value: Value = "logit",
        label_scale: float = 3.5,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
    ) -> None:
        self.value, self.label_scale, self.batch_size = value, label_scale, batch_size
        self.head, self.logit_scale = classifier.head.float(), classifier.logit_scale
        self._dtype = dtype
        self._tower = _cast(classifier.visual, dtype)
        self.num_evaluations = 0

    @torch.inference_mode()
    def values(self, inputs: Tensor, class_ids: Tensor, coalitions: Tensor) -> Tensor:
        """v(S) of each picture's class. inputs: normalised [N, 3, S, S]; class_ids [N]; coalitions bool [P, M] -> float32 [N, P]."""
        tower = self._tower
        first = tower.transformer.resblocks[0]
        embedded = self._states(first, _embed(tower, inputs.to(self._dtype)))  # [N, T, 4 D]
        fill = self._states(first, _embed(tower, torch.zeros_like(inputs[:1], dtype=self._dtype)))[0]  # [T, 4 D]
        is_present = F.pad(coalitions.to(inputs.device), (1, 0), value=True)[:, :, None]  # the CLS token is no player
        num_pictures, num_coalitions = len(inputs), len(coalitions)
        chunk = min(self.batch_size, num_coalitions)
        pictures_at_once = max(1, self.batch_size // num_coalitions)
        out = torch.empty(num_pictures, num_coalitions, device=inputs.device)
        for n in range(0, num_pictures, pictures_at_once):
            state, ids = embedded[n : n + pictures_at_once, None], class_ids[n : n + pictures_at_once]
            for p in range(0, num_coalitions, chunk):
                tokens = torch.where(is_present[p : p + chunk], state, fill).flatten(0, 1)
                cls = self._cls_features(tokens)
                out[n : n + pictures_at_once, p : p + chunk] = self._value(cls.unflatten(0, (len(ids), -1)), ids)
        self.num_evaluations += num_pictures * num_coalitions
        return out

    def _states(self, block: Block, tokens: Tensor) -> Tensor:
        """A token beside its query, key and value in the first block: none depends on the other tokens. [N, T, D] -> [N, T, 4 D]"""
        return torch.cat([tokens, F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias)], dim=-1)

    def _cls_features(self, states: Tensor) -> Tensor:
        """Unit CLS features [B, K] in float32 from first-block states [B, T, 4 D]."""
        blocks: list[Block] = list(self._tower.transformer.resblocks)
        width = states.shape[-1] // 4
        tokens = states[..., :width]
        for j, block in enumerate(blocks):
            qkv = states[..., width:] if j == 0 else None
            tokens = _block(block, tokens, qkv, cls_only=j == len(blocks) - 1)
        return F.normalize((self._tower.ln_post(tokens[:, 0]) @ self._tower.proj).float(), dim=-1)

    def _value(self, cls: Tensor, class_ids: Tensor) -> Tensor:
        """cls [N, P, K], class_ids [N] -> [N, P]"""
        if self.value == "logit":
            return self.label_scale * torch.einsum("npk,kn->np", cls, self.head[:, class_ids])
        log_probabilities = F.log_softmax(self.logit_scale * cls @ self.head, dim=-1)
        own = log_probabilities.gather(2, class_ids[:, None, None].expand(-1, cls.shape[1], 1))[..., 0]
        if self.value == "probability":
            return own.exp()
        others = log_probabilities.scatter(2, class_ids[:, None, None].expand(-1, cls.shape[1], 1), -torch.inf)
        return self.label_scale / self.logit_scale * (own - others.logsumexp(dim=-1))


def _cast(visual: ImageTower, dtype: torch.dtype) -> ImageTower:
    """The tower in another precision: itself where it has it already, else a copy."""
    if next(visual.parameters()).dtype == dtype:
        return visual
    return copy.deepcopy(visual).to(dtype)


def _embed(tower: ImageTower, inputs: Tensor) -> Tensor:
    """Tokens before the first block, after the normalisation before it. [N, 3, S, S] -> [N, T, D]"""
    return tower._embeds(inputs)


def _block(block: Block, tokens: Tensor, qkv: Tensor | None, cls_only: bool = False) -> Tensor:
    """One residual attention block; with cls_only the CLS row alone comes out. tokens [B, T, D], qkv [B, T, 3 D] if known already."""
    attention = block.attn
    width = tokens.shape[-1]
    if qkv is not None:
        query, key, value = qkv.chunk(3, dim=-1)
    elif cls_only:
        normed = block.ln_1(tokens)
        query = F.linear(normed[:, :1], attention.in_proj_weight[:width], attention.in_proj_bias[:width])
        key, value = F.linear(normed, attention.in_proj_weight[width:], attention.in_proj_bias[width:]).chunk(2, dim=-1)
    else:
        query, key, value = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    if cls_only:
        tokens, query = tokens[:, :1], query[:, :1]
    split: Callable[[Tensor], Tensor] = lambda x: x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # noqa: E731
    mixed = F.scaled_dot_product_attention(split(query), split(key), split(value)).transpose(1, 2).flatten(2)
    tokens = tokens + block.ls_1(attention.out_proj(mixed))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
