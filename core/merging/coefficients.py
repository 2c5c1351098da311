"""aTLAS: how much of each vector each part of the network gets, learned by gradient descent (Zhang et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.compiler import compiler_deferred
from core.merging.depths import depths
from core.task_vectors import TaskVector, TaskVectorError, Weights, check_same_weights

Grouping = Literal["tensor", "block", "row"]
"""What has a coefficient of its own: every tensor, as in the paper, every block (`core.merging.depths`), which is fewer to learn, or every
row of tensors of two and more dimensions, which is many more."""

Loss = Callable[[dict[str, Tensor], int], Tensor]
"""(the image tower's weights, the step's number) -> a scalar that gradients flow through, as `torch.func.functional_call` makes it."""


@dataclass(frozen=True, eq=False)
class Coefficients:
    """One number for each of T vectors and each group of weights.

    values: float32 [T, G]; columns_of: weight's name -> the columns that multiply it, int64 [] for the whole of it or [R, 1, ...] for its R
    rows; losses: the loss of each step that led here, before the step.
    """

    values: Tensor
    columns_of: Mapping[str, Tensor]
    losses: tuple[float, ...] = ()

    def of_vector(self, t: int) -> dict[str, Tensor]:
        """Weight's name -> what multiplies it in the t-th vector, [] or [R, 1, ...]."""
        return {name: self.values[t, columns].clone() for name, columns in self.columns_of.items()}

    def combined(self, vectors: Sequence[TaskVector]) -> TaskVector:
        """The sum over t of c[t, group] tau_t: one vector, to be added with a scaling coefficient of 1."""
        return TaskVector(_combined(vectors, self.values, self.columns_of), vectors[0].base_fingerprint)


@compiler_deferred()
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
    device = next(iter(start.values())).device
    columns_of = {name: columns.to(device) for name, columns in _columns(start, grouping).items()}
    num_groups = 1 + max(int(columns.max()) for columns in columns_of.values())
    values = torch.full((len(vectors), num_groups), initial, device=device, requires_grad=True)
    on_device = [vector.to(device) for vector in vectors]
    optimizer = torch.optim.AdamW([values], lr=learning_rate, weight_decay=weight_decay)
    losses: list[float] = []
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        moved = _combined(on_device, values, columns_of)
        current = loss({name: weight + moved[name] for name, weight in start.items()}, step)
        losses.append(current.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step}: lower the learning rate")
        (values.grad,) = torch.autograd.grad(current, values)
        optimizer.step()
    return Coefficients(values.detach().cpu(), {name: columns.cpu() for name, columns in columns_of.items()}, tuple(losses))


def _columns(weights: Weights, grouping: Grouping) -> dict[str, Tensor]:
    """Of each weight the columns of its coefficients, as `Coefficients` has them."""
    if grouping == "block":
        return {name: torch.tensor(depth) for name, depth in depths(weights).items()}
    found: dict[str, Tensor] = {}
    number = 0
    for name, weight in weights.items():
        by_row = grouping == "row" and weight.dim() > 1
        rows = len(weight) if by_row else 1
        columns = torch.arange(number, number + rows)
        found[name] = columns.view(-1, *[1] * (weight.dim() - 1)) if by_row else columns[0]
        number += rows
    return found


def _combined(vectors: Sequence[TaskVector], values: Tensor, columns_of: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: sum((values[t, columns].to(v.weights[name].device) * v.weights[name] for t, v in enumerate(vectors)), torch.zeros(()))
        for name, columns in columns_of.items()
    }
