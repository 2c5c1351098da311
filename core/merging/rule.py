"""What a merge rule is: a way to put an explainability vector into a target model. Equation 8 of the paper is the rule `addition`.

Most of the literature merges many models into one. Here it is one vector tau_star on one target, so each method is restated for that case:
what it does to tau_star, given tau_ft of the target and what was measured on pictures. The merged model is

    base + lambda1 tau_ft(target) + lambda2 edited(tau_star(source))

for every rule: lambda1 and lambda2 keep their meaning, and lambda2 = 0 is the prediction-only target model exactly.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from core.merging.parameters import ParameterError, Parametrised
from core.task_vectors import TaskVector, Weights, check_same_weights

Need = Literal["class_fisher", "attribution_fisher", "class_gradient", "coefficients"]
"""The fields of `Evidence`."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was found out on pictures, for the rules that need it.

    A number a weight, measured by `core.sensitivity`:
    class_fisher: diagonal Fisher information of the class predictions of the target's prediction-only model, on the target's pictures.
    attribution_fisher: the same of the attributions of the source's self-explaining model, on the source's pictures.
    class_gradient: gradient of the classification loss at the target's prediction-only model, on the target's pictures.
    A number a tensor, [], or one for each of its R rows, [R, 1, ...], learned by `core.games.learned_coefficients`:
    coefficients: how much of each tensor of the explainability vector the target takes, from the target's pictures.
    """

    class_fisher: Weights | None = None
    attribution_fisher: Weights | None = None
    class_gradient: Weights | None = None
    coefficients: Weights | None = None


NO_EVIDENCE = Evidence()


class MergeRuleError(ParameterError):
    """A merge rule that cannot be used as asked; the message says what to give it."""


class Merger:
    """A merge rule applied to one target and one explainability vector, ready to give the weights of any point."""

    def __init__(self, base: Weights, target_task: Weights, edited: Weights, device: torch.device) -> None:
        """edited: the explainability vector as the rule adds it."""
        self._names = list(base)
        self._base = [base[name].to(device) for name in self._names]
        self._target_task = [target_task[name].to(device) for name in self._names]
        self._edited = [edited[name].to(device) for name in self._names]
        self._target: tuple[float, list[Tensor]] | None = None  # base + lambda1 tau_ft of the last lambda1

    def weights(self, lambda1: float, lambda2: float) -> dict[str, Tensor]:
        """The merged image tower, new tensors on the device. Cheap: a point of the search is one call."""
        if self._target is None or self._target[0] != lambda1:
            self._target = (lambda1, _plus(self._base, lambda1, self._target_task))
        return dict(zip(self._names, _plus(self._target[1], lambda2, self._edited), strict=True))


def _plus(weights: list[Tensor], scaling_coefficient: float, vector: list[Tensor]) -> list[Tensor]:
    """weights + scaling_coefficient vector: rounded after the product as well, so that it is equation 8 written out, to the last digit."""
    merged = list(torch._foreach_mul(vector, scaling_coefficient))
    torch._foreach_add_(merged, weights)
    return merged


def _like_coefficients(weight: Tensor, measured: Tensor | None) -> Tensor:
    """Of the shape that a weight's coefficients have: one for all of it, or one a row."""
    by_row = measured is not None and measured.dim() > 0 and weight.dim() > 1
    return weight.new_empty((len(weight), *[1] * (weight.dim() - 1)) if by_row else ())


@dataclass(frozen=True)
class MergeRule(Parametrised):
    """A way to merge. Subclasses are frozen dataclasses; the name and the fields are in the key of whatever is merged with it.

    needs: the evidence without which it cannot edit a vector.
    """

    needs: ClassVar[tuple[Need, ...]] = ()

    @abstractmethod
    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        """The explainability vector as this rule adds it: what lambda2 multiplies.

        target_task: tau_ft of the target domain. explainability: tau_star of the source domain. evidence: holds what the rule needs. All on
        one device, of one base. Nothing given is changed.
        """

    def edited_on(
        self, device: torch.device | str, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE
    ) -> TaskVector:
        """`edited` with all that it reads checked and brought to a device first; what lies there already is not copied.

        Raises TaskVectorError where vectors or evidence are not of one base and architecture, MergeRuleError where evidence is missing.
        """
        target_task.check_same_base(explainability)
        moved = {}
        for need in self.needs:
            measured: Weights | None = getattr(evidence, need)
            if measured is None:
                raise MergeRuleError(f"the merge rule {self.name} needs {need}: find it out on pictures (see Evidence) and give it")
            like = explainability.weights
            if need == "coefficients":
                like = {name: _like_coefficients(weight, measured.get(name)) for name, weight in like.items()}
            check_same_weights(like, measured)
            moved[need] = {name: value.to(device) for name, value in measured.items()}
        return self.edited(target_task.to(device), explainability.to(device), Evidence(**moved))

    def prepare(
        self,
        base: Weights,
        target_task: TaskVector,
        explainability: TaskVector,
        device: torch.device | str = "cpu",
        evidence: Evidence = NO_EVIDENCE,
    ) -> Merger:
        """Do once what all points share.

        base: the base's image tower. target_task: tau_ft of the target domain. explainability: tau_star of the source domain. What lies on
        the device already is not copied. Raises TaskVectorError where they are not of one base, MergeRuleError where evidence is missing.
        """
        edited = self.edited_on(device, target_task, explainability, evidence)
        check_same_weights(base, target_task.weights)
        return Merger(base, target_task.weights, edited.weights, torch.device(device))
