"""The attribution head: how patch attributions are read off a classifier's tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from core.value_function import ValueFunction

HeadKind = Literal["cosine", "efficiency"]
HEAD_KINDS: tuple[HeadKind, ...] = ("cosine", "efficiency")


@dataclass(frozen=True)
class AttributionHead:
    """Attributions of a class from the cosines of the projected patch tokens with the class embedding.

    kind: `cosine` is the paper's head (Figure 1): scale x cosine, without the logit scale, so that attributions and Shapley values of the
    scaled cosine are of one size. `efficiency` adds to every patch what is missing to the efficiency axiom, sum of phi = v(all) - v(empty),
    as FastSHAP (Jethani et al., 2022) and ViT-Shapley (Covert et al., 2023) do: v(all) from the CLS token of the same pass, v(empty) one
    constant a class. The order of the patches of a picture stays.
    scale: factor of the cosines; a transferred model's maps may need another one (`core.map_scale`). game: the value function
    whose efficiency is meant; the attribution labels' own.
    """

    kind: HeadKind = "cosine"
    scale: float = 1.0
    game: ValueFunction = field(default_factory=ValueFunction)

    @property
    def needs_empty(self) -> bool:
        """Whether v(empty) must be known."""
        return self.kind == "efficiency"

    def attributions(self, cosines: Tensor, gap: Tensor | None) -> Tensor:
        """cosines [N, M]; gap: v(all) - v(empty) [N], where the head needs it -> attributions [N, M]"""
        scaled = self.scale * cosines
        return scaled if gap is None else scaled + ((gap - scaled.sum(dim=1)) / cosines.shape[1])[:, None]

    def gap(self, cls: Tensor, empty: Tensor, class_ids: Tensor, head: Tensor, logit_scale: float) -> Tensor:
        """v(all) - v(empty) [N] of CLS features [N, K] and the CLS feature of the picture that shows nothing, [K]."""
        both = torch.stack([cls, empty.expand_as(cls)], dim=1)
        full, nothing = self.game.of_features(both, class_ids, head, logit_scale).unbind(dim=1)
        return full - nothing


COSINE = AttributionHead()
"""The paper's head."""
