"""The coefficients of aTLAS for a target, learned from what its owner has: pictures, labelled or not, and no labels of maps.

The loss is equation 4's with two parts that read no label. Classes: cross-entropy with those that the prediction-only model predicts, so
that these stay. Explanation: `core.losses.shape_loss` of the maps against that model's game, a few values v(S) a picture, of which
attribution labels are estimated and which are not solved for here. The game is played once, before the first step, and stands: a merged
model's own game changes with its weights, and one in which nothing matters is explained by any flat map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from core.games.lambda2 import Calibration
from core.losses import classification_loss, combined_loss, shape_loss
from core.merging.atlas import Atlas
from core.merging.coefficients import Coefficients, fit_coefficients
from core.model import Explained, SelfExplainingClassifier
from core.task_vectors import TaskVector
from core.training_data import PictureSource, batches

BATCH_SIZE = 32


def learn_coefficients(
    classifier: SelfExplainingClassifier, data: PictureSource, vector: TaskVector, rule: Atlas, seed: int = 0
) -> Coefficients:
    """Coefficients of an explainability vector for the prediction-only model that `classifier` is, as `rule` says.

    classifier: on its device, with the head whose maps are meant; it stays as it is. data: the rule's number of its pictures, drawn
    with the seed as the batches are; all, where there are fewer; no label is read. Raises ValueError where there are no pictures,
    TaskVectorError where classifier and vector differ in shape, FloatingPointError where the fit diverges.
    """
    if not len(data):
        raise ValueError("no pictures to learn coefficients on: give at least one")
    device = classifier.head.device
    (batch,) = data.take([torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: rule.num_pictures]])
    game = Calibration.play(classifier, batch.pixels, data.preprocessing)
    removed, class_ids = torch.from_numpy(game.removed).float().to(device), torch.from_numpy(game.class_ids).to(device)
    changes = torch.from_numpy(game.value_full[:, None] - game.perturbation_values).to(device)
    of_step = list(batches(len(class_ids), BATCH_SIZE, rule.num_steps, seed))

    def loss(weights: dict[str, Tensor], step: int) -> Tensor:
        some = of_step[step].to(device)
        in_place = {f"visual.{name}": weight for name, weight in weights.items()}
        explained: Explained = functional_call(classifier, in_place, (game.inputs[some], class_ids[some]))
        explanation = shape_loss(explained.attributions, removed, changes[some])
        return combined_loss(classification_loss(explained.logits, class_ids[some]), explanation, 1.0 - rule.explanation_weight)

    start = {name: weight.detach() for name, weight in classifier.visual.named_parameters()}
    return fit_coefficients(
        start, [vector], loss, grouping=rule.grouping, num_steps=rule.num_steps, learning_rate=rule.learning_rate, initial=1.0
    )
