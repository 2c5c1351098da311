"""A sweep with a merge rule that needs pictures: what it needs is measured once a model, and merged with."""

from __future__ import annotations

import pytest
import torch
from in_process import compute, graph_of
from safetensors.torch import load_file

from core.sensitivity import attribution_fisher
from sweep.stages.pairs import Cells
from sweep.stages.sensitivity import NUM_PICTURES, SENSITIVITY, Sensitivity
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
    assert one.transfer.sensitivities == other.transfer.sensitivities


def test_fisher_merges_by_what_was_measured(store):
    by_fisher, by_addition = (pair_of(store, "--alphas", "0.5", *more) for more in (("--merge", "fisher"), ()))
    compute(store, by_fisher, by_addition)
    classes, attributions = by_fisher.transfer.sensitivities
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
