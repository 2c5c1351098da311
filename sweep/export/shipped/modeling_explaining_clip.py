"""A CLIP image classifier that explains itself, for `AutoModelForImageClassification`: class logits and, from the same pass, how much each
patch of the picture speaks for every class. The image tower is transformers' own, the head is in `explaining_head.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.utils import ModelOutput

from .configuration_explaining_clip import ExplainingClipConfig
from .explaining_head import ExplainingHead


@dataclass
class ExplainedOutput(ModelOutput):
    """Of N pictures, C classes and M patches.

    loss: cross-entropy, where labels are given. logits: [N, C]. attributions: [N, C, M], of the patches row by row from the top left:
    `attributions.unflatten(-1, (g, g))` are maps, g being image_size // patch_size; above 0 speaks for the class, below against it.
    hidden_states, attentions: the image tower's, where they are asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    attributions: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ExplainingClipForImageClassification(CLIPVisionModelWithProjection):
    """The classifier. What it was fine-tuned from, and on what its maps rest, is in the README of its repository."""

    config_class = ExplainingClipConfig

    def __init__(self, config: ExplainingClipConfig) -> None:
        super().__init__(config)
        self.head = ExplainingHead(
            config.projection_dim,
            len(config.id2label or ()),
            kind=config.head_kind,
            scale=config.attribution_scale,
            value=config.value,
            label_scale=config.label_scale,
            logit_scale=config.logit_scale,
        )
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> ExplainedOutput | tuple[Any, ...]:
        """pixel_values: [N, 3, S, S] of the image processor. labels: class ids [N]. kwargs: the image tower's (output_attentions, say)."""
        vision = self.vision_model(pixel_values=pixel_values, **kwargs)
        # CLIP normalises and projects its CLS token only; here the patches get the same.
        tokens = self.visual_projection(self.vision_model.post_layernorm(vision.last_hidden_state))
        logits, attributions = self.head(tokens[:, 0], tokens[:, 1:])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        output = ExplainedOutput(loss, logits, attributions, vision.hidden_states, vision.attentions)
        return output.to_tuple() if return_dict is False else output
