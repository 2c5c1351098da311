"""What an estimator that learns asks for, and what it makes of it: through the labeller, on drawn traffic signs; and one added here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import torch

from core import miniature
from core.games.attribution_labels import Labeller, LabelSettings
from core.shapley.calibration import AttributionPrior
from core.shapley.coalition_pool import CoalitionPool
from core.shapley.estimator import Estimator, ValueSolver
from core.shapley.estimators import ESTIMATORS
from core.shapley.learning import Learning, joined
from core.shapley.residual_posterior import IndependentCoalitions
from core.shapley.surrogate import NUM_REFERENCES
from core.shapley.surrogate_fit import LEAST_PICTURES
from core.shapley.surrogate_net import Surrogate

NUM_SIGNS = LEAST_PICTURES
CHUNK = 64


@dataclass(frozen=True)
class Signs:
    inputs: torch.Tensor
    class_ids: torch.Tensor
    ids: list[str]

    def chunks(self, indices):
        for start in range(0, len(indices), CHUNK):
            few = list(indices[start : start + CHUNK])
            yield self.inputs[few], self.class_ids[few], [self.ids[i] for i in few]


@pytest.fixture(scope="module")
def many_signs(base) -> Signs:
    pixels, class_ids = miniature.draw_split("traffic_signs", "train", NUM_SIGNS)
    inputs = base.preprocessing.normalise(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
    return Signs(inputs, torch.from_numpy(class_ids), [f"train/{i}" for i in range(NUM_SIGNS)])


class Learner:
    """All that a sweep does: asks for requests, evaluates them in chunks, fits."""

    def __init__(self, classifier, signs: Signs, settings: LabelSettings, num_pictures: int | None, reference_budget: int) -> None:
        self.signs, self.settings = signs, settings
        self.labeller = Labeller(classifier, settings, "train")
        self.learning = settings.learning(49, "train", reference_budget)
        assert isinstance(self.learning, Learning)
        self.requests = self.learning.requests(NUM_SIGNS, num_pictures)
        self.games = [
            joined([self.learning.evaluate(request, self.labeller.games(*chunk)) for chunk in signs.chunks(request.indices)])
            for request in self.requests
        ]

    def features(self, request):
        for inputs, class_ids, ids in self.signs.chunks(request.indices):
            yield self.labeller.features(inputs, class_ids), ids

    def fit(self, requests=None, games=None):
        steps: list[tuple[int, int, str]] = []
        found = self.learning.fit(
            self.requests if requests is None else requests,
            self.games if games is None else games,
            self.features,
            lambda *step: steps.append(step),
        )
        assert [done for done, _, _ in steps] == list(range(1, steps[-1][1] + 1))
        return found


@pytest.fixture(scope="module")
def calibrated(sign_classifier, many_signs):
    return Learner(sign_classifier, many_signs, LabelSettings(budget=48, estimator="calibrated", pool_size=4), 96, 200)


@pytest.fixture(scope="module")
def surrogate(sign_classifier, many_signs):
    return Learner(sign_classifier, many_signs, LabelSettings(budget=16, estimator="surrogate", pool_size=4), None, 128)


def error_against(labels, references) -> float:
    """Relative error of labels, the references' own noise taken off."""
    noise = np.square(references.standard_error).sum()
    squared = np.square(labels.attributions - references.attributions).sum() - noise
    return float(np.sqrt(max(squared, 0.0) / (np.square(references.attributions).sum() - noise)))


def test_the_calibrated_estimator_learns_a_prior_that_halves_the_error_of_its_budget(sign_classifier, signs, calibrated, references):
    prior, report = calibrated.fit()
    assert isinstance(prior, AttributionPrior)
    assert report.num_fitted == 72 and report.num_held_out == 24 and report.budget == 48 and report.is_refitted
    some = signs.inputs[:16], signs.class_ids[:16], signs.ids[:16]
    labels = Labeller(sign_classifier, calibrated.settings, "train", learned=prior).label(*some)
    plain = Labeller(sign_classifier, LabelSettings(budget=96, pool_size=4), "train").label(*some)
    assert error_against(labels, references) < 0.5 * error_against(plain, references)  # of twice the evaluations, the fewest that do
    assert 0.7 < report.relative_error / error_against(labels, references) < 1.5


def test_learning_costs_the_evaluations_it_says(calibrated, surrogate):
    assert calibrated.labeller.evaluator.num_evaluations == calibrated.learning.num_evaluations(calibrated.requests)
    assert calibrated.learning.num_evaluations(calibrated.requests) == 96 * 202 + 24 * 48
    own = NUM_SIGNS * (16 + 2)  # the labels' own, which they need no more
    assert surrogate.learning.num_evaluations(surrogate.requests) == NUM_REFERENCES * 128
    assert surrogate.labeller.evaluator.num_evaluations == own + NUM_REFERENCES * 128


def test_the_surrogate_learns_from_what_its_labels_need_anyway(sign_classifier, signs, surrogate, many_signs):
    learned, report = surrogate.fit()
    assert isinstance(learned, Surrogate)
    assert report.num_held_out == NUM_REFERENCES and report.budget == 16 and report.kernel_shap_relative_error is None
    assert report.relative_error < 0.9 and learned.prior.error_scale == report.z_spread
    known = surrogate.learning.known(surrogate.games)
    assert set(known) == set(many_signs.ids)
    knowing, plain = (
        Labeller(sign_classifier, surrogate.settings, "train", learned=learned, known=values) for values in (known, None)
    )
    some = many_signs.inputs[:24], many_signs.class_ids[:24], many_signs.ids[:24]
    one, other = knowing.label(*some), plain.label(*some)
    assert knowing.evaluator.num_evaluations == 0 and plain.evaluator.num_evaluations == 24 * 18
    np.testing.assert_allclose(one.attributions, other.attributions, atol=1e-4)  # float32 values of other batches


def test_known_values_hold_the_perturbations_too(sign_classifier, many_signs):
    settings = LabelSettings(budget=16, estimator="surrogate", num_perturbations=5)
    learning = settings.learning(49, "train", 256)
    labeller = Labeller(sign_classifier, settings, "train")
    chunk = next(many_signs.chunks(range(6)))
    found = learning.evaluate(learning.requests(NUM_SIGNS)[-1], labeller.games(*chunk))
    assert set(found) == {"ids", "values"} and found["values"].shape == (6, 16 + 2 + 5)
    for n, picture_id in enumerate(chunk[2]):
        alone = labeller.values(labeller.pool.member_of(picture_id), chunk[0][n : n + 1], chunk[1][n : n + 1])[0]
        np.testing.assert_allclose(found["values"][n], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["calibrated", "surrogate"])
def test_requests_are_a_seeded_choice_that_has_each_picture_once(name):
    learning = LabelSettings(budget=64, estimator=name).learning(49, "train", 512)
    requests = learning.requests(20_000, 1000, request_size=100)
    indices = [i for request in requests for i in request.indices]
    assert len(indices) == len(set(indices)) == 1000 and max(indices) < 20_000
    assert [request.index for request in requests] == list(range(len(requests)))
    assert requests == learning.requests(20_000, 1000, request_size=100)
    other = LabelSettings(budget=64, estimator=name, seed=1).learning(49, "train", 512)
    assert requests != other.requests(20_000, 1000, request_size=100)
    assert sum(len(request.indices) for request in learning.requests(700)) == min(700, learning.default_pictures)


@pytest.mark.parametrize("name", ["calibrated", "surrogate"])
def test_too_few_pictures_are_refused_before_any_is_evaluated(name):
    learning = LabelSettings(budget=64, estimator=name).learning(49, "train", 512)
    least = learning.least_pictures()
    assert learning.requests(least)
    with pytest.raises(ValueError, match=f"at least {least} pictures"):
        learning.requests(least - 1)
    with pytest.raises(ValueError, match="at least 102"):
        LabelSettings(budget=64, estimator=name).learning(49, "train", 60)
    assert learning.trusted_reference_budget == 4 * 49


def test_the_least_pictures_of_a_calibration_do(sign_classifier, many_signs):
    learner = Learner(sign_classifier, many_signs, LabelSettings(budget=48, estimator="calibrated"), 65, 102)
    assert learner.learning.least_pictures() == 65
    assert learner.fit()[1].num_fitted == 49


def test_requests_none_of_whose_pictures_can_be_read_are_left_out(calibrated, surrogate):
    without = [{} if k == 3 else games for k, games in enumerate(calibrated.games)]
    assert calibrated.fit(games=without)[1].num_held_out == 18  # the third group is a held-out one
    nothing = [{} for _ in surrogate.requests]
    assert surrogate.learning.known(nothing) == {}
    with pytest.raises(ValueError, match="the data set changed"):
        surrogate.fit(games=nothing)
    with pytest.raises(ValueError, match="one of them held out; 0 have pictures"):
        calibrated.fit(games=[{} for _ in calibrated.requests])
    with pytest.raises(ValueError, match=f"at least {LEAST_PICTURES} pictures, 32 can be read"):
        surrogate.fit(surrogate.requests[:2], surrogate.games[:2])


@pytest.mark.parametrize("name", ["calibrated", "surrogate"])
def test_references_of_two_roles_are_independent_of_each_other_and_of_every_pool(name):
    """Else an error common to what was learned for train and for test could pass from one to the other."""
    rows = []
    for role in ("train", "test"):
        learning = LabelSettings(budget=512, estimator=name).learning(49, role, 512)
        references = [learning._reference(request).coalitions for request in learning.requests(2000)[:3]]
        same_drawing = CoalitionPool(learning.reference_estimator, 49, 512, 3, role)  # as if the references took the labels' role
        for matrices in (references, [learning.pool.coalitions(m) for m in range(3)], [same_drawing.coalitions(m) for m in range(3)]):
            rows.append({row.tobytes() for matrix in matrices for row in matrix if 8 < row.sum() < 41})  # none meet by chance
    assert all(len(some) > 300 for some in rows)
    for one, other in combinations(range(len(rows)), 2):
        is_one_role_drawn_twice = one + 1 == other and one % 3 == 1
        assert is_one_role_drawn_twice or not rows[one] & rows[other]


def test_a_labeller_that_has_learned_nothing_evaluates_and_does_not_label(sign_classifier, signs):
    for name in ("calibrated", "surrogate"):
        labeller = Labeller(sign_classifier, LabelSettings(budget=32, estimator=name), "train")
        with pytest.raises(ValueError, match="fit one first"):
            labeller.label(signs.inputs[:2], signs.class_ids[:2], signs.ids[:2])
        assert labeller.evaluator.num_evaluations == 0


class MarginalSolver(ValueSolver):
    """Half of what each player adds to nobody and takes from all, and what is missing of the total shared out."""

    def attributions(self, values, value_empty, value_full):
        alone, without = np.split(values, 2, axis=1)
        found = ((alone - value_empty[:, None]) + (value_full[:, None] - without)) / 2
        return found + ((value_full - value_empty) - found.sum(1))[:, None] / found.shape[1]

    def standard_error(self, values, value_empty, value_full):
        return np.ones((len(values), values.shape[1] // 2))


@dataclass(frozen=True)
class Marginal(Estimator):
    name: str = "marginal"
    card: str = "what each patch adds alone and takes from all"

    def smallest_budget(self, num_players):
        return 2 * num_players

    def draw(self, num_players, budget, seed=0):
        if budget < 2 * num_players:
            raise ValueError(f"marginal needs {2 * num_players} evaluations")
        alone = np.eye(num_players, dtype=bool)
        return IndependentCoalitions(np.concatenate([alone, ~alone]))

    def solver(self, sample, learned=None, l1_reg="none"):
        return MarginalSolver()


def test_an_estimator_that_is_added_labels_pictures_with_no_other_change(sign_classifier, signs, monkeypatch, references):
    monkeypatch.setitem(ESTIMATORS, "marginal", Marginal())
    settings = LabelSettings(budget=100, estimator="marginal")
    labels = Labeller(sign_classifier, settings, "train").label(signs.inputs[:16], signs.class_ids[:16], signs.ids[:16])
    assert (labels.budget == 98).all() and (labels.standard_error == 1).all()
    np.testing.assert_allclose(labels.attributions.sum(1), labels.value_full - labels.value_empty, atol=1e-4)
    assert np.corrcoef(labels.attributions.ravel(), references.attributions.ravel())[0, 1] > 0.5
    with pytest.raises(ValueError, match="98 evaluations"):
        Labeller(sign_classifier, LabelSettings(budget=90, estimator="marginal"), "train")
    with pytest.raises(ValueError, match="l1_reg"):
        LabelSettings(estimator="marginal", l1_reg="aic")
