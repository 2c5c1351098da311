"""How much a classifier's answers depend on each weight: what some merge rules need (`core.merging.rule.Evidence`).

Diagonal Fisher information is the expected squared gradient of the log likelihood of answers that the model itself draws (Martens, 2020),
with one draw a picture: unbiased, one backward pass a picture. Drawn, not given: gradients for the pictures' true classes are another
matrix (Kunstner et al., 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from core.losses import classification_loss
from core.model import Explained, SelfExplainingClassifier
from core.training_data import Batch, PictureSource, load_ahead

BATCH_SIZE = 32


def class_fisher(classifier: SelfExplainingClassifier, data: PictureSource, num_pictures: int = 256, seed: int = 0) -> dict[str, Tensor]:
    """Diagonal Fisher information of the predicted classes, by name of the image tower's weights, on the classifier's device.

    num_pictures: so many of the data's, drawn with the seed as the answers are; all, where there are fewer. The classifier stays as it is.
    """

    def log_likelihood(explained: Explained, generator: torch.Generator) -> Tensor:
        log_probabilities = F.log_softmax(explained.logits[0], dim=0)
        drawn = torch.multinomial(log_probabilities.detach().exp().cpu(), 1, generator=generator).item()
        return log_probabilities[int(drawn)]

    return _mean_squared_gradient(classifier, data, log_likelihood, num_pictures, seed)


def attribution_fisher(
    classifier: SelfExplainingClassifier, data: PictureSource, num_pictures: int = 256, seed: int = 0
) -> dict[str, Tensor]:
    """Diagonal Fisher information of the true class's attributions, which equation 5 takes as means of normal variables of one variance:
    the sum over patches of the squared gradient of each (for variance 1). As `class_fisher` otherwise.
    """

    def log_likelihood(explained: Explained, generator: torch.Generator) -> Tensor:
        attributions = explained.attributions[0]
        residual = torch.randn(len(attributions), generator=generator).to(attributions)  # of drawn labels
        return residual @ attributions

    return _mean_squared_gradient(classifier, data, log_likelihood, num_pictures, seed)


def class_gradient(classifier: SelfExplainingClassifier, data: PictureSource, num_pictures: int = 256, seed: int = 0) -> dict[str, Tensor]:
    """Gradient of the classification loss, the mean over pictures; of all arguments as `class_fisher`."""
    weights = _weights(classifier)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    num_seen = 0
    for batch in _drawn(classifier, data, num_pictures, torch.Generator().manual_seed(seed)):
        explained = _explained(classifier, weights, data, batch)
        losses = classification_loss(explained.logits, batch.class_ids) * len(batch.class_ids)
        _add(found, torch.autograd.grad(losses, list(weights.values())))
        num_seen += len(batch.class_ids)
    return {name: total / num_seen for name, total in found.items()}


def _mean_squared_gradient(
    classifier: SelfExplainingClassifier,
    data: PictureSource,
    score: Callable[[Explained, torch.Generator], Tensor],
    num_pictures: int,
    seed: int,
) -> dict[str, Tensor]:
    """Of a score of one picture's answers, which may draw from the generator."""
    weights = _weights(classifier)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    num_seen = 0
    for batch in _drawn(classifier, data, num_pictures, generator):
        for n in range(len(batch.class_ids)):
            explained = _explained(classifier, weights, data, Batch(batch.pixels[n : n + 1], batch.class_ids[n : n + 1], None))
            gradients = torch.autograd.grad(score(explained, generator), list(weights.values()))
            _add(found, [gradient.square() for gradient in gradients])
            num_seen += 1
    return {name: total / num_seen for name, total in found.items()}


def _weights(classifier: SelfExplainingClassifier) -> dict[str, Tensor]:
    """The image tower's own tensors, as leaves that take gradients."""
    return {name: weight.detach().requires_grad_() for name, weight in classifier.visual.named_parameters()}


def _drawn(
    classifier: SelfExplainingClassifier, data: PictureSource, num_pictures: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Batches of some of the pictures, on the classifier's device. Raises ValueError where there are none."""
    if not len(data) or num_pictures < 1:
        raise ValueError("no pictures to measure on: give at least one")
    chosen = torch.randperm(len(data), generator=generator)[:num_pictures]
    return load_ahead(data.take(chosen.split(BATCH_SIZE)), classifier.head.device)


def _explained(classifier: SelfExplainingClassifier, weights: dict[str, Tensor], data: PictureSource, batch: Batch) -> Explained:
    inputs = data.preprocessing.normalise(batch.pixels)
    in_place = {f"visual.{name}": weight for name, weight in weights.items()}
    explained: Explained = functional_call(classifier, in_place, (inputs, batch.class_ids))
    return explained


def _add(totals: dict[str, Tensor], more: Sequence[Tensor]) -> None:
    torch._foreach_add_(list(totals.values()), list(more))
