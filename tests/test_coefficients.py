"""Learned coefficients: a quadratic loss has a closed form, and a real classifier's loss falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call

from core.losses import classification_loss, infidelity_loss
from core.merging.coefficients import fit_coefficients
from core.metrics import infidelity
from core.task_vectors import TaskVector, TaskVectorError

SHAPES = {
    "conv1.weight": (4, 3),
    "transformer.resblocks.0.ln_1.bias": (6,),
    "transformer.resblocks.1.ln_1.bias": (5,),
    "proj": (3, 4),
}


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


START, GOAL = random_weights(0), random_weights(1)
VECTORS = [TaskVector(random_weights(seed), "b") for seed in (2, 3)]


def distance(weights, step) -> torch.Tensor:
    return sum((weights[name] - GOAL[name]).square().sum() for name in SHAPES)


def least_squares(names: list[str]) -> np.ndarray:
    """The coefficients [T] of a group that bring its weights closest to the goal."""
    columns = np.stack([np.concatenate([v.weights[name].numpy().ravel() for name in names]) for v in VECTORS], 1)
    wanted = np.concatenate([(GOAL[name] - START[name]).numpy().ravel() for name in names])
    return np.linalg.lstsq(columns, wanted, rcond=None)[0]


def test_a_quadratic_loss_gives_least_squares_for_every_tensor():
    found = fit_coefficients(START, VECTORS, distance, num_steps=250)
    assert found.values.shape == (2, 4)
    for name, column in found.columns_of.items():
        assert np.abs(found.values[:, column].numpy() - least_squares([name])).max() < 1e-3
    assert found.losses[-1] < found.losses[0] == pytest.approx(distance(START, 0).item())
    combined = found.combined(VECTORS)
    best = {name: sum(c * v.weights[name] for c, v in zip(least_squares([name]).tolist(), VECTORS, strict=True)) for name in SHAPES}
    assert all((combined.weights[name] - best[name]).abs().max() < 1e-2 for name in SHAPES)
    assert distance(combined.apply_to(START), 0).item() == pytest.approx(found.losses[-1], rel=1e-4)


def test_blocks_share_coefficients():
    found = fit_coefficients(START, VECTORS, distance, grouping="block", num_steps=250)
    first, last = ["conv1.weight", "transformer.resblocks.0.ln_1.bias"], ["transformer.resblocks.1.ln_1.bias", "proj"]
    for column, names in enumerate((first, last)):
        assert {int(found.columns_of[name]) for name in names} == {column}
        assert np.abs(found.values[:, column].numpy() - least_squares(names)).max() < 1e-3


def test_every_row_of_a_matrix_gets_its_own_least_squares_and_a_bias_one_for_all():
    found = fit_coefficients(START, VECTORS, distance, grouping="row", num_steps=400)
    assert found.values.shape == (2, 4 + 1 + 1 + 3) and found.of_vector(0)["conv1.weight"].shape == (4, 1)
    for name, shape in SHAPES.items():
        rows = range(shape[0]) if len(shape) > 1 else [slice(None)]
        for row in rows:
            columns = np.stack([v.weights[name][row].numpy().ravel() for v in VECTORS], 1)
            best = np.linalg.lstsq(columns, (GOAL[name] - START[name])[row].numpy().ravel(), rcond=None)[0]
            own = [found.of_vector(t)[name].flatten()[row if len(shape) > 1 else 0].item() for t in (0, 1)]
            assert np.abs(own - best).max() < 1e-2, (name, row)
    combined, coefficients = found.combined(VECTORS), [found.of_vector(t) for t in (0, 1)]
    for name in SHAPES:
        expected = sum(c[name] * v.weights[name] for c, v in zip(coefficients, VECTORS, strict=True))
        assert torch.allclose(combined.weights[name], expected)
    assert distance(combined.apply_to(START), 0).item() == pytest.approx(found.losses[-1], rel=1e-3)


def test_no_step_is_the_start_or_addition_and_inputs_stay():
    before = {name: weight.clone() for name, weight in START.items()}
    nothing = fit_coefficients(START, VECTORS[:1], distance, num_steps=0).combined(VECTORS[:1])
    assert not any(weight.any() for weight in nothing.weights.values())
    addition = fit_coefficients(START, VECTORS[:1], distance, num_steps=0, initial=1.0).combined(VECTORS[:1])
    assert all(torch.equal(weight, VECTORS[0].weights[name]) for name, weight in addition.weights.items())
    assert all(torch.equal(START[name], weight) and not START[name].requires_grad for name, weight in before.items())


def test_what_does_not_belong_together_or_diverges_is_refused():
    with pytest.raises(TaskVectorError, match="at least one"):
        fit_coefficients(START, [], distance)
    with pytest.raises(TaskVectorError, match="different base models"):
        fit_coefficients(START, [VECTORS[0], TaskVector(VECTORS[1].weights, "another")], distance)
    with pytest.raises(TaskVectorError, match="names differ"):
        fit_coefficients({"proj": START["proj"]}, VECTORS, distance)
    with pytest.raises(FloatingPointError, match="at step 1: lower the learning rate"):
        fit_coefficients(START, VECTORS, lambda weights, step: distance(weights, step) / (1.0 - step), num_steps=3)


def test_infidelity_loss_is_the_metric_with_a_gradient():
    generator = np.random.default_rng(0)
    removed, maps = generator.random((6, 9)) < 0.5, generator.normal(size=(4, 9)).astype(np.float32)
    value_full, values = generator.normal(size=4).astype(np.float32), generator.normal(size=(4, 6)).astype(np.float32)
    predicted = torch.from_numpy(maps).requires_grad_()
    loss = infidelity_loss(predicted, torch.from_numpy(removed).float(), torch.from_numpy(value_full), torch.from_numpy(values))
    assert loss.item() == pytest.approx(infidelity(maps, removed, value_full, values), rel=1e-5)
    loss.backward()
    assert predicted.grad.abs().min() > 0


def test_a_classifiers_own_losses_flow_back_to_the_coefficients(base, sign_classifier, signs):
    """A vector that harms, minus the gradient of the loss for another: the harmful one gets negative coefficients where it matters."""
    start = {name: weight.detach() for name, weight in sign_classifier.visual.named_parameters()}

    def loss(weights, step):
        named = {f"visual.{k}": v for k, v in weights.items()}
        explained = functional_call(sign_classifier, named, (signs.inputs[:8], signs.class_ids[:8]))
        return classification_loss(explained.logits, signs.class_ids[:8])

    leaves = {name: weight.clone().requires_grad_() for name, weight in start.items()}
    gradients = torch.autograd.grad(loss(leaves, 0), list(leaves.values()))
    uphill = {name: g / max(1e-12, g.norm()) for name, g in zip(start, gradients, strict=True)}
    length = 0.02 / len(uphill) ** 0.5
    harmful = TaskVector({name: length * g for name, g in uphill.items()}, base.fingerprint)
    found = fit_coefficients(start, [harmful], loss, num_steps=5, grouping="block")
    assert (found.values < 0).all()
    assert found.losses[-1] < found.losses[0]
