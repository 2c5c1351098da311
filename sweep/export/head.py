"""The head of a model as the exported file computes it: for all classes at once, v(empty) as constants."""

from __future__ import annotations

import torch

from core.model import SelfExplainingClassifier
from sweep.export.shipped.explaining_head import ExplainingHead


def head_of(classifier: SelfExplainingClassifier) -> ExplainingHead:
    """The head of a classifier whose v(empty) is fixed. However its game hides patches, v(empty) is what remains of it."""
    assert classifier.empty is not None, "read_model fixes it"
    attribution_head = classifier.attribution_head
    size, num_classes = classifier.head.shape
    head = ExplainingHead(
        size,
        num_classes,
        kind=attribution_head.kind,
        scale=attribution_head.scale,
        value=attribution_head.game.value,
        label_scale=attribution_head.game.label_scale,
        logit_scale=classifier.logit_scale,
    )
    with torch.no_grad():
        head.class_embeddings.copy_(classifier.head)
        head.value_empty.copy_(head.values((classifier.empty @ classifier.head)[None])[0])
    return head.eval()
