"""The side head: what it keeps by construction, and that it learns."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.attribution_head import AttributionHead
from core.finetune import Recipe
from core.games.coalition_values import CoalitionEvaluator
from core.metrics import correlation
from core.side_head import SideHead, fit_side_head, frozen_features
from core.training_data import PicturesInMemory, TrainingData
from core.value_function import ValueFunction

RECIPE = Recipe(learning_rate=1e-5, batch_size=8, num_steps=150, warmup_steps=10)


@pytest.fixture
def classifier(base, sign_classifier):
    found = base.classifier(sign_classifier.head, AttributionHead("efficiency"))
    return found.eval().requires_grad_(False)


@pytest.fixture
def data(base, signs, classifier):
    """Labels that the features say: of each patch the cosine of its token with a fixed direction, times 2, plus what is missing to v."""
    features = frozen_features(classifier, signs.inputs, signs.class_ids)
    direction = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    labels = 2.0 * features.patches @ direction
    labels = labels + ((features.gap - labels.sum(1)) / 49)[:, None]
    return TrainingData(PicturesInMemory(signs.pixels), signs.class_ids, base.preprocessing, labels)


@pytest.mark.parametrize("game", [ValueFunction(), ValueFunction("log_odds"), ValueFunction(fill="drop")])
def test_its_attributions_share_out_what_the_patches_change(game, base, signs, sign_classifier):
    """Before any training, in every game; the values are those of the engine that makes the labels."""
    classifier = base.classifier(sign_classifier.head, AttributionHead("efficiency", game=game)).eval()
    evaluator = CoalitionEvaluator(classifier, value=game.value, label_scale=game.label_scale, fill=game.fill)
    ends = torch.stack([torch.zeros(49, dtype=torch.bool), torch.ones(49, dtype=torch.bool)])
    empty, full = evaluator.values(signs.inputs, signs.class_ids, ends).unbind(dim=1)
    found = SideHead(64).maps(classifier, signs.inputs, signs.class_ids)
    assert found.shape == (24, 49)
    torch.testing.assert_close(found.sum(dim=1), full - empty, atol=1e-4, rtol=0)  # a sum of 49 float32 numbers near 1


def test_the_classifier_stays_as_it_is_to_the_last_bit(classifier, data, signs):
    before, logits = copy.deepcopy(classifier.state_dict()), classifier.logits(signs.inputs)
    fit_side_head(classifier, data, replace(RECIPE, num_steps=3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert torch.equal(classifier.logits(signs.inputs), logits)
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_it_learns_what_the_features_say_and_finds_it_on_other_pictures(classifier, data, signs):
    first = TrainingData(data.pictures, data.class_ids[:16], data.preprocessing, data.attribution_labels[:16])
    side_head, losses = fit_side_head(classifier, first, RECIPE)
    assert losses[-1] < 0.2 * losses[0]
    found = side_head.maps(classifier, signs.inputs[16:], signs.class_ids[16:]).numpy()
    assert correlation(found, np.asarray(data.attribution_labels[16:])) > 0.8
    assert not any(parameter.requires_grad for parameter in side_head.parameters())


def test_the_same_recipe_gives_the_same_head_and_another_seed_another(classifier, data):
    short = replace(RECIPE, num_steps=3)
    heads = [fit_side_head(classifier, data, recipe)[0].state_dict() for recipe in (short, short, replace(short, seed=1))]
    assert all(torch.equal(tensor, heads[1][name]) for name, tensor in heads[0].items())
    assert not torch.equal(heads[0]["layers.0.weight"], heads[2]["layers.0.weight"])


def test_without_labels_it_is_refused(classifier, data):
    with pytest.raises(ValueError, match="attribution labels: give both"):
        fit_side_head(classifier, replace(data, attribution_labels=None), RECIPE)
