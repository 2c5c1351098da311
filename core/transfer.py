"""An explainability vector in a user's fine-tuned model: equation 8 with lambda1 = 1."""

from __future__ import annotations

import torch

from core.model import SelfExplainingClassifier
from core.task_vectors import TaskVector, Weights, check_same_weights


class TransferredModel:
    """One classifier on its device, set to fine_tuned + lambda2 vector: equation 8 where lambda1 is 1, base + tau_ft being fine_tuned.

    classifier: its tower is overwritten. Raises TaskVectorError where the weights are not of one architecture.
    """

    def __init__(self, classifier: SelfExplainingClassifier, fine_tuned: Weights, vector: TaskVector) -> None:
        self.classifier = classifier
        self._tower = dict(classifier.visual.state_dict())
        check_same_weights(self._tower, fine_tuned)
        check_same_weights(self._tower, vector.weights)
        self._fine_tuned, self._vector = fine_tuned, vector.weights

    @torch.no_grad()
    def set(self, lambda2: float) -> SelfExplainingClassifier:
        """The classifier at a lambda2; tensor by tensor, so that it takes the memory of one."""
        for name, weight in self._tower.items():
            weight.copy_(torch.add(self._fine_tuned[name].to(weight.device), self._vector[name].to(weight.device), alpha=lambda2))
        self.classifier.empty = None
        return self.classifier
