"""Explainers of a classifier that need no training of their own: what a self-explaining classifier's attributions are read against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from core.explainers.grad_cam import grad_cam
from core.explainers.rollout import attention_rollout, gradient_rollout
from core.model import SelfExplainingClassifier


@dataclass(frozen=True)
class Explainer:
    """One explainer. maps: (classifier, normalised inputs [N, 3, S, S], class_ids [N]) -> attributions [N, M], without a unit; not to be
    called in inference mode. passes: what it takes a picture, in forward passes."""

    name: str
    maps: Callable[[SelfExplainingClassifier, Tensor, Tensor], Tensor]
    passes: int


EXPLAINERS: dict[str, Explainer] = {
    explainer.name: explainer
    for explainer in (
        Explainer("grad_cam", grad_cam, passes=1),
        Explainer("attention_rollout", lambda classifier, inputs, class_ids: attention_rollout(classifier, inputs), passes=1),
        Explainer("gradient_rollout", gradient_rollout, passes=3),
    )
}
