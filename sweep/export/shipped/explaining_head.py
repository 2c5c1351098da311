"""The head of a self-explaining CLIP classifier: class logits, and of every class what each patch of the picture contributes.

It stands alone (torch only): an exported model carries this file with it. Method: Transferring Visual Explainability of Self-Explaining
Models through Task Arithmetic (Yoshikawa et al., 2025), Figure 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExplainingHead(nn.Module):
    """C class embeddings of size K that serve the CLS token (logits) and every patch token (attributions).

    kind: `cosine`, attributions are scale x cosine of patch and class; or `efficiency`, they are shifted by one number a class, so that
    they sum to v(all) - v(empty), v being what the classifier says of the class: how much the whole picture is worth.
    value: what v is: `logit` (label_scale x cosine of CLS token and class), `log_odds` (of the class's probability, times
    label_scale / logit_scale) or `probability`. v(empty), of the picture that shows nothing, is one constant a class.
    Weights: class_embeddings [K, C] of unit length, value_empty [C].
    """

    class_embeddings: Tensor
    value_empty: Tensor

    def __init__(
        self, size: int, num_classes: int, *, kind: str, scale: float, value: str, label_scale: float, logit_scale: float
    ) -> None:
        super().__init__()
        if kind not in ("cosine", "efficiency") or value not in ("logit", "log_odds", "probability"):
            raise ValueError(f"kind is cosine or efficiency, not {kind!r}; value is logit, log_odds or probability, not {value!r}")
        self.kind, self.scale = kind, scale
        self.value, self.label_scale, self.logit_scale = value, label_scale, logit_scale
        self.register_buffer("class_embeddings", torch.zeros(size, num_classes))
        self.register_buffer("value_empty", torch.zeros(num_classes))

    def forward(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Projected tokens, cls [N, K] and patches [N, M, K], of any length -> logits [N, C], attributions [N, C, M]; float32."""
        embeddings = self.class_embeddings.float()
        cosines = F.normalize(cls.float(), dim=-1) @ embeddings
        attributions = self.scale * (F.normalize(patches.float(), dim=-1) @ embeddings).transpose(1, 2)
        if self.kind == "efficiency":
            gap = self.values(cosines) - self.value_empty.float()
            attributions = attributions + ((gap - attributions.sum(dim=2)) / attributions.shape[2])[:, :, None]
        return self.logit_scale * cosines, attributions

    def values(self, cosines: Tensor) -> Tensor:
        """v of every class, [N, C], from the cosines of the CLS token and the classes, [N, C]."""
        if self.value == "logit":
            return self.label_scale * cosines
        log_p = (self.logit_scale * cosines).log_softmax(dim=-1)
        if self.value == "probability":
            return log_p.exp()
        # log(1 - p): of the likeliest class from the others' probabilities, since there 1 - p has no digits left.
        likeliest = log_p.argmax(dim=-1, keepdim=True)
        others = log_p.scatter(-1, likeliest, -torch.inf).logsumexp(dim=-1, keepdim=True)
        log_not_p = torch.log1p(-log_p.exp()).scatter(-1, likeliest, others)
        return self.label_scale / self.logit_scale * (log_p - log_not_p)
