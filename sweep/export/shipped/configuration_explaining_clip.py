"""The configuration of a CLIP image classifier that explains itself."""

from __future__ import annotations

from transformers import CLIPVisionConfig


class ExplainingClipConfig(CLIPVisionConfig):
    """That of CLIP's image tower (sizes, activation, `id2label`), and what `explaining_head.py` is set to.

    head_kind: `cosine` or `efficiency`. attribution_scale: factor of the patches' cosines. value, label_scale: what the attributions of a
    picture sum to with `efficiency`. logit_scale: logits are logit_scale x cosine.
    """

    model_type = "explaining_clip"

    head_kind: str = "efficiency"
    attribution_scale: float = 1.0
    value: str = "logit"
    label_scale: float = 3.5
    logit_scale: float = 100.0
