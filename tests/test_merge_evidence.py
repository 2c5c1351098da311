"""A sweep with a merge rule that needs pictures: what it needs is found out once a model or a pair, and merged with."""

from __future__ import annotations

import pytest
import torch
from in_process import compute, graph_of
from safetensors.torch import load_file

from core.sensitivity import attribution_fisher
from core.task_vectors import TaskVector
from sweep.stages.coefficients import LearnedCoefficients
from sweep.stages.pairs import Cells
from sweep.stages.sensitivity import NUM_PICTURES, SENSITIVITY, Sensitivity
from sweep.stages.stage import closure
from sweep.store.artifacts import Store

SMALL = [
    *("--suite", "miniature", "--domains", "clean_digits", "street_digits", "--num-steps", "2", "--precision", "float32"),
    *("--validation-share", "0.1"),
    *("--max-train-pictures", "20", "--max-test-pictures", "12", "--max-test-labels", "4", "--budget", "104", "--test-budget", "104"),
    *("--search", "grid", "--lambdas", "0,0.8"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("evidence") / "store"))


def pair_of(store: Store, *arguments: str):
    graph = graph_of(store, *SMALL, *arguments)
    return graph.pair(graph.config.pairs[0])


def needed(pair) -> list[tuple[str, str]]:
    return [(stage.need, stage.model.name) for stage in pair.inputs if isinstance(stage, Sensitivity)]


def test_a_pair_depends_on_what_its_rule_needs_and_on_nothing_else(store):
    two_alphas = ("--alphas", "0.5,0.8")
    fisher = pair_of(store, *two_alphas, "--merge", "fisher")
    assert needed(fisher) == [
        ("class_fisher", "street_digits prediction-only"),
        ("attribution_fisher", "clean_digits alpha=0.5"),
        ("attribution_fisher", "clean_digits alpha=0.8"),
    ]
    assert needed(Cells(fisher.transfer, fisher.search, 0.8)) == [needed(fisher)[0], needed(fisher)[2]]
    assert needed(pair_of(store, *two_alphas, "--merge", "gradient_sign")) == [("class_gradient", "street_digits prediction-only")]
    assert needed(pair_of(store, *two_alphas)) == []


def test_parameters_of_a_rule_are_in_the_key_and_its_evidence_is_shared(store):
    one, other = (pair_of(store, "--alphas", "0.5", "--merge", f"fisher:source_share={share}") for share in (0.5, 0.6))
    assert one.key != other.key
    assert one.key == pair_of(store, "--alphas", "0.5", "--merge", "fisher").key
    assert one.transfer.evidence == other.transfer.evidence


def test_fisher_merges_by_what_was_measured(store):
    by_fisher, by_addition = (pair_of(store, "--alphas", "0.5", *more) for more in (("--merge", "fisher"), ()))
    compute(store, by_fisher, by_addition)
    classes, attributions = by_fisher.transfer.evidence
    model = attributions.model
    classifier = model.base.load().classifier(model.heads[0].load(store))
    classifier.visual.load_state_dict(model.load(store))
    expected = attribution_fisher(classifier.eval(), model.training_data(store), NUM_PICTURES, model.recipe.seed)
    measured = load_file(attributions.artifact(store).path(SENSITIVITY))
    assert all(torch.allclose(measured[name], weight, rtol=1e-4) for name, weight in expected.items())
    assert classes.load(store).keys() == measured.keys() == model.load(store).keys()
    cells = [pair.cells(store).query("split == 'validation'").sort_values("lambda2") for pair in (by_fisher, by_addition)]
    assert cells[0]["e_rmse"].iloc[0] == cells[1]["e_rmse"].iloc[0]  # at lambda2 = 0 nothing is merged
    fisher, addition = (
        dict(pair.transfer.evaluator(store, pair.search).classifier(0.5, 0.8).visual.state_dict()) for pair in (by_fisher, by_addition)
    )
    start = by_addition.transfer.evaluator(store, by_addition.search).classifier(0.5, 0.0).visual.state_dict()
    apart = sum((fisher[name] - addition[name]).square().sum() for name in start)
    added = sum((addition[name] - start[name]).square().sum() for name in start)
    assert apart > 0.01 * added  # far beyond rounding: the information of two models differs weight by weight


def test_coefficients_are_learned_once_a_pair_and_alpha_and_depend_on_the_rules_parameters(store):
    two_alphas = ("--alphas", "0.5,0.8")
    pair = pair_of(store, *two_alphas, "--merge", "atlas")
    learned = [stage for stage in pair.inputs if isinstance(stage, LearnedCoefficients)]
    assert [stage.name for stage in learned] == [f"clean_digits alpha={alpha} on street_digits" for alpha in (0.5, 0.8)]
    assert Cells(pair.transfer, pair.search, 0.8).transfer.evidence_at(0.8) == (learned[1],)
    other = pair_of(store, *two_alphas, "--merge", "atlas:num_steps=61").transfer
    assert not set(other.evidence) & set(learned)
    read = {stage.kind for stage in closure(learned)}
    assert "label_set" in read  # of the source: its vector was learned on them; of the target there is none
    assert {stage.domain for stage in closure(learned) if stage.kind == "label_set"} == {"clean_digits"}


def test_atlas_adds_each_tensor_of_the_vector_by_its_learned_coefficient(store):
    """lambda2 = 0 is the prediction-only model, 1 the model that was fitted."""
    pair = pair_of(store, "--alphas", "0.5", "--merge", "atlas:num_steps=3")
    compute(store, pair)
    (stage,) = pair.transfer.evidence
    meta, coefficients = stage.artifact(store).manifest["meta"], stage.load(store)
    assert meta["final_loss"] < meta["first_loss"] and meta["num_pictures"] == 18  # 20 less a tenth for validation
    points = pair.transfer.evaluator(store, pair.search)
    start, star = stage.model.load(store), pair.transfer.source_vectors[0].load(store)
    fitted = TaskVector({name: coefficients[name] * weight for name, weight in star.weights.items()}, star.base_fingerprint)
    for lambda2 in (0.0, 1.0):
        merged = points.classifier(0.5, lambda2).visual.state_dict()
        expected = fitted.apply_to(start, lambda2)
        assert all(torch.allclose(merged[name], weight, atol=1e-6) for name, weight in expected.items())  # another order of the sum
    assert all(0.0 < (coefficient - 1.0).abs() < 0.1 for coefficient in coefficients.values())  # from addition on, 3 steps of 0.03
