"""A side head: an explainer that is trained beside a classifier and leaves it untouched, so that the accuracy is exactly the classifier's.

As FastSHAP (Jethani et al., 2022) and ViT-Shapley (Covert et al., 2023) do it, but on the classifier's own last features in place of a
network of the explainer's own: it needs the classifier's forward pass and little more. It is what explanation supervision reaches when it
may not change the features.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from core.compiler import compiler_deferred
from core.finetune import Recipe, make_optimizer
from core.losses import explanation_loss
from core.model import SelfExplainingClassifier
from core.training_data import TrainingData, load_ahead

HIDDEN_WIDTH = 128
LEARNING_RATE = 2e-3
"""A head starts from random weights: the rate at which a pretrained tower is tuned would leave it there."""


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """What a side head reads of N pictures. cls [N, K] and patches [N, M, K]: the classifier's unit features; class_embeddings [N, K];
    gap [N]: v(all) - v(empty) of the class."""

    cls: Tensor
    patches: Tensor
    class_embeddings: Tensor
    gap: Tensor


@torch.no_grad()
def frozen_features(classifier: SelfExplainingClassifier, inputs: Tensor, class_ids: Tensor) -> FrozenFeatures:
    """Of normalised inputs [N, 3, S, S] for their classes [N]. The game is that of the classifier's attribution head."""
    if classifier.empty is None:
        classifier.fix_empty()
    assert classifier.empty is not None
    cls, patches = classifier.features(inputs)
    gap = classifier.attribution_head.gap(cls, classifier.empty, class_ids, classifier.head, classifier.logit_scale)
    return FrozenFeatures(cls, patches, classifier.head[:, class_ids].T, gap)


class SideHead(nn.Module):
    """One hidden layer on each patch's token, its product with the class embedding, the CLS token and the class embedding.

    The attributions are shifted to meet the efficiency axiom, as those of the efficiency-normalised attribution head.
    """

    def __init__(self, feature_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * feature_width, HIDDEN_WIDTH), nn.GELU(), nn.Linear(HIDDEN_WIDTH, 1))

    def forward(self, features: FrozenFeatures) -> Tensor:
        """Attributions [N, M]"""
        patches, of_class = features.patches, features.class_embeddings[:, None]
        whole = torch.cat([features.cls[:, None], of_class], dim=-1).expand(-1, patches.shape[1], -1)
        raw = self.layers(torch.cat([patches, patches * of_class, whole], dim=-1) * patches.shape[-1] ** 0.5)[..., 0]
        return raw + ((features.gap - raw.sum(dim=1)) / raw.shape[1])[:, None]

    @torch.no_grad()
    def maps(self, classifier: SelfExplainingClassifier, inputs: Tensor, class_ids: Tensor) -> Tensor:
        """Attributions [N, M] of normalised inputs [N, 3, S, S] for their classes [N]."""
        found: Tensor = self(frozen_features(classifier, inputs, class_ids))
        return found


@compiler_deferred()
def fit_side_head(classifier: SelfExplainingClassifier, data: TrainingData, recipe: Recipe) -> tuple[SideHead, list[float]]:
    """Train a side head by eq. 5 on the labels of `data`; gives it with the losses of some 100 steps.

    recipe: batches, length, warm-up and seed are those of the classifier's training, so that both see the same; the learning rate is
    LEARNING_RATE. Raises ValueError without labels or pictures, FloatingPointError where the loss is no number any more.
    """
    if data.attribution_labels is None or len(data) == 0:
        raise ValueError("a side head is trained on pictures with attribution labels: give both")
    recipe = replace(recipe, learning_rate=LEARNING_RATE)
    device = classifier.head.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        side_head = SideHead(classifier.head.shape[0])
    side_head.to(device)
    parameters = list(side_head.parameters())
    optimizer, total = make_optimizer(parameters, recipe, device), recipe.total_steps(len(data))
    every, losses = max(1, total // 100), list[float]()
    with closing(load_ahead(data.batches(recipe.batch_size, total, recipe.seed), device)) as loaded:
        for step, batch in enumerate(loaded):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step, total)
            assert batch.attribution_labels is not None
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                features = frozen_features(classifier, data.preprocessing.normalise(batch.pixels), batch.class_ids)
            loss = explanation_loss(side_head(features), batch.attribution_labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            if step % every == 0 or step == total - 1:
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(f"the side head's loss is {losses[-1]} at step {step}: its labels are too large")
    return side_head.eval().requires_grad_(False), losses
