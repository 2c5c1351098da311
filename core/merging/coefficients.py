"""aTLAS: how much of each vector each part of the network gets, learned by gradient descent (Zhang et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.merging.depths import depths
from core.task_vectors import TaskVector, TaskVectorError, Weights, check_same_weights

Grouping = Literal["tensor", "block"]
"""What has a coefficient of its own: every tensor, as in the paper, or every block (`core.merging.depths`), which is fewer to learn."""

Loss = Callable[[dict[str, Tensor], int], Tensor]
"""(the image tower's weights, the step's number) -> a scalar that gradients flow through, as `torch.func.functional_call` makes it."""


@dataclass(frozen=True, eq=False)
class Coefficients:
    """One number for each of T vectors and each group of weights.

    values: float32 [T, G]; group_of: weight's name -> its column; losses: the loss of each step that led here, before the step.
    """

    values: Tensor
    group_of: Mapping[str, int]
    losses: tuple[float, ...] = ()

    def of_vector(self, t: int) -> dict[str, Tensor]:
        """Weight's name -> the coefficient of its group for the t-th vector, []."""
        return {name: self.values[t, group].clone() for name, group in self.group_of.items()}

    def combined(self, vectors: Sequence[TaskVector]) -> TaskVector:
        """The sum over t of c[t, group] tau_t: one vector, to be added with a scaling coefficient of 1."""
        return TaskVector(_combined(vectors, self.values, self.group_of), vectors[0].base_fingerprint)


def fit_coefficients(
    start: Weights,
    vectors: Sequence[TaskVector],
    loss: Loss,
    *,
    grouping: Grouping = "tensor",
    num_steps: int = 200,
    learning_rate: float = 0.1,
    weight_decay: float = 0.0,
    initial: float = 0.0,
) -> Coefficients:
    """Coefficients c that make the loss at start + sum over t of c_t tau_t small: AdamW with cosine decay from `initial` on.

    start: the weights that the vectors are added to, on the device where all is computed: the prediction-only target model for
    explainability vectors. vectors: one or more of one base. loss: the caller's, on all pictures or on a batch for each step; without
    explanation labels, the sum of `classification_loss` and `infidelity_loss`. initial: 0 begins at `start` (the paper's choice), 1 at
    addition with lambda2 = 1.
    Raises TaskVectorError where vectors and weights differ in shape or base, FloatingPointError where the loss is no number any more.
    """
    if not vectors:
        raise TaskVectorError("there are no vectors to learn coefficients of: give at least one")
    for vector in vectors:
        check_same_weights(start, vector.weights)
        vectors[0].check_same_base(vector)
    group_of = depths(start) if grouping == "block" else {name: index for index, name in enumerate(start)}
    device = next(iter(start.values())).device
    values = torch.full((len(vectors), max(group_of.values()) + 1), initial, device=device, requires_grad=True)
    on_device = [vector.to(device) for vector in vectors]
    optimizer = torch.optim.AdamW([values], lr=learning_rate, weight_decay=weight_decay)
    losses: list[float] = []
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        moved = _combined(on_device, values, group_of)
        current = loss({name: weight + moved[name] for name, weight in start.items()}, step)
        losses.append(current.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step}: lower the learning rate")
        (values.grad,) = torch.autograd.grad(current, values)
        optimizer.step()
    return Coefficients(values.detach().cpu(), group_of, tuple(losses))


def _combined(vectors: Sequence[TaskVector], values: Tensor, group_of: Mapping[str, int]) -> dict[str, Tensor]:
    columns = values.unbind(1)
    return {
        name: torch.tensordot(columns[group_of[name]].to(weight.device), torch.stack([v.weights[name] for v in vectors]), dims=1)
        for name, weight in vectors[0].weights.items()
    }
