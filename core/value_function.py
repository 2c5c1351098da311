"""The value function v(S) of a classifier's game: what a picture with some of its patches hidden is worth for a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Value = Literal["logit", "log_odds", "probability"]
Fill = Literal["mean", "drop"]


@dataclass(frozen=True)
class ValueFunction:
    """v(S) as a function of the CLS feature of the picture that shows the patches in S alone.

    value: `logit` is label_scale x cosine of the CLS and class features; `log_odds` the log odds of the class probability, times
    label_scale / logit_scale so that both are of one size; `probability` the class probability.
    fill: what stands for a patch outside S: `mean`, the data set's mean colour, or `drop`, nothing: its token is left out.
    """

    value: Value = "logit"
    label_scale: float = 3.5
    fill: Fill = "mean"

    def of_features(self, cls: Tensor, class_ids: Tensor, head: Tensor, logit_scale: float) -> Tensor:
        """cls: unit features [N, P, K] of P coalitions a picture; class_ids [N]; head [K, C] -> v [N, P], float32."""
        if self.value == "logit":
            return self.label_scale * torch.einsum("npk,kn->np", cls, head[:, class_ids])
        log_probabilities = F.log_softmax(logit_scale * cls @ head, dim=-1)
        own_index = class_ids[:, None, None].expand(-1, cls.shape[1], 1)
        own = log_probabilities.gather(2, own_index)[..., 0]
        if self.value == "probability":
            return own.exp()
        others = log_probabilities.scatter(2, own_index, -torch.inf)
        return self.label_scale / logit_scale * (own - others.logsumexp(dim=-1))
