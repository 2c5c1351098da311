"""Merge rules: equation 8 to the last digit, what holds for every rule, and that another one needs nothing but its class."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

import pytest
import torch

from core.merging import rules
from core.merging.parameters import ParameterError
from core.merging.rule import Evidence, MergeRule, MergeRuleError
from core.merging.rules import MERGE_RULES, parse_rule
from core.merging.ties import trimmed
from core.task_vectors import TaskVector, TaskVectorError

POINTS = ((1.0, 0.0), (1.0, 0.7), (0.3, 0.7), (1.0, 1.2), (0.0, 0.0))
EVERY_RULE = pytest.mark.parametrize("rule", MERGE_RULES.values(), ids=MERGE_RULES)


@pytest.fixture(scope="module")
def towers(base):
    """The base's image tower, and a target and an explainability vector of the size that trainings give."""
    generator = torch.Generator().manual_seed(0)
    weights = dict(base.visual.state_dict())
    vectors = [
        TaskVector({k: 0.01 * torch.randn(v.shape, generator=generator) for k, v in weights.items()}, base.fingerprint) for _ in range(2)
    ]
    return weights, *vectors


@pytest.fixture(scope="module")
def evidence(towers):
    """All that a rule may need."""
    generator = torch.Generator().manual_seed(1)
    drawn = [{k: torch.randn(v.shape, generator=generator) for k, v in towers[0].items()} for _ in range(3)]
    first, second = ({k: v.square() for k, v in weights.items()} for weights in drawn[:2])
    return Evidence(first, second, drawn[2], {name: torch.tensor(0.1 * n) for n, name in enumerate(towers[0])})


def equation_8(base, target_task, explainability, lambda1, lambda2):
    """Written out weight by weight, in the paper's order."""
    return {k: (v + lambda1 * target_task.weights[k]) + lambda2 * explainability.weights[k] for k, v in base.items()}


def test_addition_is_equation_8_to_the_last_digit_at_every_point(towers):
    merger = MERGE_RULES["addition"].prepare(*towers)
    for lambda1, lambda2 in POINTS:
        merged, expected = merger.weights(lambda1, lambda2), equation_8(*towers, lambda1, lambda2)
        assert all(torch.equal(merged[k], expected[k]) for k in expected)
        assert list(merged) == list(towers[0])


@EVERY_RULE
def test_every_rule_is_equation_8_with_its_edited_vector_and_lambda2_zero_the_prediction_only_model(rule, towers, evidence):
    base, target_task, explainability = towers
    edited = rule.edited(target_task, explainability, evidence)
    edited.check_same_base(explainability)
    merger = rule.prepare(*towers, evidence=evidence)
    for lambda1, lambda2 in POINTS:
        merged, expected = merger.weights(lambda1, lambda2), equation_8(base, target_task, edited, lambda1, lambda2)
        assert all(torch.equal(merged[k], expected[k]) for k in expected)
    prediction_only, merged = target_task.apply_to(base), merger.weights(1.0, 0.0)
    assert all(torch.equal(merged[k], prediction_only[k]) for k in base)


@EVERY_RULE
def test_points_do_not_change_each_other_nor_what_they_are_made_from(rule, towers, evidence):
    before = copy.deepcopy((towers, evidence))
    merger = rule.prepare(*towers, evidence=evidence)
    first = merger.weights(1.0, 0.5)
    kept = {k: v.clone() for k, v in first.items()}
    for weight in merger.weights(1.0, 0.9).values():
        weight.zero_()
    assert all(torch.equal(first[k], kept[k]) for k in kept)
    assert all(torch.equal(merger.weights(1.0, 0.5)[k], kept[k]) for k in kept)
    (old_base, *old_vectors), old_evidence = before
    assert all(torch.equal(towers[0][k], old_base[k]) for k in kept)
    assert all(torch.equal(towers[i].weights[k], old_vectors[i - 1].weights[k]) for i in (1, 2) for k in kept)
    assert all(torch.equal(getattr(evidence, f.name)[k], getattr(old_evidence, f.name)[k]) for f in fields(evidence) for k in kept)


@EVERY_RULE
def test_vectors_that_do_not_belong_together_are_refused(rule, towers, evidence):
    base, target_task, explainability = towers
    with pytest.raises(TaskVectorError, match="different base models"):
        rule.prepare(base, target_task, TaskVector(explainability.weights, "another"), evidence=evidence)
    with pytest.raises(TaskVectorError, match="shape"):
        rule.prepare({**base, "proj": torch.zeros(2, 2)}, target_task, explainability, evidence=evidence)


@EVERY_RULE
def test_a_rule_says_what_evidence_it_lacks(rule, towers, evidence):
    for need in rule.needs:
        incomplete = Evidence(**{f.name: getattr(evidence, f.name) for f in fields(evidence) if f.name != need})
        with pytest.raises(MergeRuleError, match=f"{rule.name} needs {need}"):
            rule.prepare(*towers, evidence=incomplete)
    if not rule.needs:
        rule.prepare(*towers)


@EVERY_RULE
def test_a_rule_is_its_text_and_its_search_space_holds_values_that_it_takes(rule):
    assert MERGE_RULES[rule.name] is rule and parse_rule(rule.name) == parse_rule(rule.text) == rule
    for name, (low, high) in rule.search_space().items():
        assert low < high and low <= getattr(rule, name) <= high
        assert {parameter.name: parameter.type for parameter in fields(rule)}[name] == "float"  # what a study suggests
        for value in (low, (low + high) / 2, high):
            changed = rule.with_parameters({name: value})
            assert asdict(changed) == asdict(rule) | {name: value}
            assert parse_rule(changed.text) == changed != parse_rule(f"{rule.name}:{name}={low + 0.25 * (high - low)}")
    for parameter in fields(rule):
        with pytest.raises(ParameterError, match=f"{parameter.name} (of {rule.name} )?must"):
            parse_rule(f"{rule.name}:{parameter.name}=nan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("substraction", "unknown merge rule 'substraction': choose among addition, atlas, atlas_rows, dare, "),
        ("addition:scale=2", "addition has no parameter 'scale': it has none"),
        ("lines:frist=0.1", "lines has no parameter 'frist': it has first, last"),
        ("lines:first", "gives no value for 'first': write lines:first=VALUE,last=VALUE"),
        ("addition:", "write addition, which has no parameters"),
        ("lines:first=0,first=1", "gives first twice"),
        ("lines:first=half", "first must be a number, not 'half'"),
        ("dare:seed=0.5", "seed must be a whole number, not '0.5'"),
        ("dare:drop_rate=1", r"drop_rate of dare must lie in \[0, 1\), not 1.0"),
    ],
)
def test_a_bad_text_is_refused_with_what_there_is(text, message):
    with pytest.raises(ParameterError, match=message):
        parse_rule(text)


@dataclass(frozen=True)
class Trimmed(MergeRule):
    """Only the largest entries of the explainability vector, added."""

    name: ClassVar[str] = "trimmed"
    share: float = 0.2

    def edited(self, target_task, explainability, evidence=None) -> TaskVector:
        return TaskVector(trimmed(explainability.weights, self.share), explainability.base_fingerprint)


def test_a_rule_added_to_the_table_merges_through_the_same_interface(towers, monkeypatch):
    monkeypatch.setitem(rules.MERGE_RULES, "trimmed", Trimmed())
    rule = parse_rule("trimmed:share=0.1")
    assert (rule.name, asdict(rule)) == ("trimmed", {"share": 0.1})  # what enters a key
    moved = {
        rule.name: TaskVector.between(rule.prepare(*towers).weights(1.0, 1.0), equation_8(*towers, 1.0, 0.0), "b")
        for rule in (rule, MERGE_RULES["addition"])
    }
    share = {name: sum((v.abs() > 1e-6).sum().item() for v in vector.weights.values()) for name, vector in moved.items()}
    assert share["trimmed"] / share["addition"] == pytest.approx(0.1, abs=0.01)
    assert moved["trimmed"].norm() < moved["addition"].norm()
