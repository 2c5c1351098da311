"""Merge rules: equation 8 to the last digit, and that another rule needs nothing but its class."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest
import torch

from core import merging
from core.merging import MERGE_RULES, Merger, MergeRule
from core.task_vectors import TaskVector, TaskVectorError


@pytest.fixture(scope="module")
def towers(base):
    """The base's image tower, and a target and an explainability vector of the size that trainings give."""
    generator = torch.Generator().manual_seed(0)
    weights = dict(base.visual.state_dict())
    vectors = [
        TaskVector({k: 0.01 * torch.randn(v.shape, generator=generator) for k, v in weights.items()}, base.fingerprint) for _ in range(2)
    ]
    return weights, *vectors


def equation_8(base, target_task, explainability, lambda1, lambda2):
    """Written out weight by weight, in the paper's order."""
    return {k: (v + lambda1 * target_task.weights[k]) + lambda2 * explainability.weights[k] for k, v in base.items()}


def test_addition_is_equation_8_to_the_last_digit_at_every_point(towers):
    merger = MERGE_RULES["addition"].prepare(*towers)
    for lambda1, lambda2 in ((1.0, 0.0), (1.0, 0.7), (0.3, 0.7), (1.0, 1.2), (0.0, 0.0)):
        merged, expected = merger.weights(lambda1, lambda2), equation_8(*towers, lambda1, lambda2)
        assert all(torch.equal(merged[k], expected[k]) for k in expected)
        assert list(merged) == list(towers[0])


def test_points_do_not_change_each_other_nor_what_they_are_made_from(towers):
    before = copy.deepcopy(towers)
    merger = MERGE_RULES["addition"].prepare(*towers)
    first = merger.weights(1.0, 0.5)
    kept = {k: v.clone() for k, v in first.items()}
    for weight in merger.weights(1.0, 0.9).values():
        weight.zero_()
    assert all(torch.equal(first[k], kept[k]) for k in kept)
    assert all(torch.equal(merger.weights(1.0, 0.5)[k], kept[k]) for k in kept)
    assert all(torch.equal(towers[0][k], before[0][k]) for k in kept)
    assert all(torch.equal(towers[i].weights[k], before[i].weights[k]) for i in (1, 2) for k in kept)


def test_vectors_that_do_not_belong_together_are_refused(towers):
    base, target_task, explainability = towers
    rule = MERGE_RULES["addition"]
    with pytest.raises(TaskVectorError, match="different base models"):
        rule.prepare(base, target_task, TaskVector(explainability.weights, "another"))
    with pytest.raises(TaskVectorError, match="shape"):
        rule.prepare({**base, "proj": torch.zeros(2, 2)}, target_task, explainability)


@dataclass(frozen=True)
class Trimmed(MergeRule):
    """Only the largest entries of the explainability vector (the trimming of TIES, arXiv 2306.01708), added."""

    name: ClassVar[str] = "trimmed"
    share: float = 0.2

    def prepare(self, base, target_task, explainability, device="cpu") -> Merger:
        size = torch.cat([v.abs().flatten() for v in explainability.weights.values()])
        least = size.kthvalue(round((1 - self.share) * len(size))).values
        kept = {k: v * (v.abs() > least) for k, v in explainability.weights.items()}
        return MERGE_RULES["addition"].prepare(base, target_task, TaskVector(kept, explainability.base_fingerprint), device)


def test_a_rule_added_to_the_table_merges_through_the_same_interface(towers, monkeypatch):
    monkeypatch.setitem(merging.MERGE_RULES, "trimmed", Trimmed(share=0.1))
    rule = MERGE_RULES["trimmed"]
    assert (rule.name, asdict(rule)) == ("trimmed", {"share": 0.1})  # what enters a key
    moved = {
        name: TaskVector.between(MERGE_RULES[name].prepare(*towers).weights(1.0, 1.0), equation_8(*towers, 1.0, 0.0), "b")
        for name in ("trimmed", "addition")
    }
    share = {name: sum((v.abs() > 1e-6).sum().item() for v in vector.weights.values()) for name, vector in moved.items()}
    assert share["trimmed"] / share["addition"] == pytest.approx(0.1, abs=0.01)
    assert moved["trimmed"].norm() < moved["addition"].norm()


def test_every_rule_goes_by_its_name_and_leaves_the_target_model_at_lambda2_zero(towers):
    base, target_task, _ = towers
    for name, rule in MERGE_RULES.items():
        assert rule.name == name
        merged = rule.prepare(*towers).weights(1.0, 0.0)
        for key, weight in target_task.apply_to(base).items():
            torch.testing.assert_close(merged[key], weight, atol=1e-6, rtol=0)
