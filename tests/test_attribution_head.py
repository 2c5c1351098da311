"""The attribution heads: the paper's, and the one that meets the efficiency axiom of the labels' game."""

import pytest
import torch

from core.attribution_head import COSINE, AttributionHead
from core.finetune import Recipe, finetune
from core.games.coalition_values import CoalitionEvaluator
from core.model import load_base
from core.training_data import PicturesInMemory, TrainingData
from core.value_function import ValueFunction

GAMES = [
    ValueFunction("logit", 3.5, "mean"),
    ValueFunction("log_odds", 2.0, "mean"),
    ValueFunction("probability", 1.0, "mean"),
    ValueFunction("logit", 3.5, "drop"),
]


@pytest.fixture(scope="module")
def base():
    return load_base("miniature")


@pytest.fixture(scope="module")
def text_head(base):
    return base.head(("sedan", "forest", "letter A", "octagon"), ("a photo of a {}",))


@pytest.fixture(scope="module")
def inputs(base):
    pixels = torch.randint(0, 256, (5, 3, 56, 56), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return base.preprocessing.normalise(pixels)


CLASS_IDS = torch.tensor([0, 1, 2, 3, 1])


@pytest.mark.parametrize("game", GAMES, ids=lambda g: f"{g.value}-{g.fill}")
def test_efficiency_head_sums_to_the_games_own_values(base, text_head, inputs, game):
    """The oracle is the label engine, which evaluates the empty and the grand coalition of the same model."""
    classifier = base.classifier(text_head, AttributionHead("efficiency", game=game)).eval()
    evaluator = CoalitionEvaluator(classifier, value=game.value, label_scale=game.label_scale, fill=game.fill)
    ends = torch.stack([torch.zeros(49, dtype=torch.bool), torch.ones(49, dtype=torch.bool)])
    empty, full = evaluator.values(inputs, CLASS_IDS, ends).unbind(1)
    with torch.inference_mode():
        sums = classifier(inputs, CLASS_IDS).attributions.sum(1)
    assert torch.allclose(sums, full - empty, atol=2e-5)


def test_heads_order_the_patches_of_a_picture_alike(base, text_head, inputs):
    with torch.inference_mode():
        cosine = base.classifier(text_head)(inputs, CLASS_IDS).attributions
        shifted = base.classifier(text_head, AttributionHead("efficiency"))(inputs, CLASS_IDS).attributions
    difference = shifted - cosine
    assert torch.allclose(difference, difference[:, :1].expand_as(difference), atol=1e-5)
    assert difference.abs().max() > 0.01


def test_logits_do_not_depend_on_the_head(base, text_head, inputs):
    with torch.inference_mode():
        logits = [base.classifier(text_head, head)(inputs).logits for head in (COSINE, AttributionHead("efficiency", 0.3))]
    assert torch.allclose(*logits, atol=1e-5)


@pytest.mark.parametrize("fill", ["mean", "drop"])
def test_fixed_empty_feature_gives_the_same_maps(base, text_head, inputs, fill):
    classifier = base.classifier(text_head, AttributionHead("efficiency", game=ValueFunction(fill=fill))).eval()
    with torch.inference_mode():
        before = classifier(inputs, CLASS_IDS).attributions
        classifier.fix_empty()
        after = classifier(inputs, CLASS_IDS).attributions
        alone = classifier(inputs[:1], CLASS_IDS[:1]).attributions
    assert torch.allclose(before, after, atol=1e-5)
    assert torch.allclose(before[:1], alone, atol=1e-5)


def test_gradients_reach_the_weights_through_the_empty_picture(base, text_head, inputs):
    """v(empty) is of the same weights: with it held fixed the gradient would be another one."""
    gradients = []
    for is_fixed in (False, True):
        classifier = base.classifier(text_head, AttributionHead("efficiency"))
        if is_fixed:
            classifier.fix_empty()
        weight = classifier.visual.proj.requires_grad_(True)
        classifier(inputs, CLASS_IDS).attributions.square().sum().backward()
        gradients.append(weight.grad.clone())
    assert not torch.allclose(*gradients, rtol=1e-2)


def test_training_with_the_efficiency_head_learns_the_labels(base, text_head):
    """Labels that meet the axiom of no game: the head can then only fit their shape, and that it must."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 3, 56, 56), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(16, 49)
    labels[:, :7] = 0.3  # the first row of patches
    class_ids = torch.arange(16) % 4
    classifier = base.classifier(text_head, AttributionHead("efficiency"))
    data = TrainingData(PicturesInMemory(pixels), class_ids, base.preprocessing, labels)
    history = finetune(classifier, data, Recipe(learning_rate=1e-3, batch_size=16, num_steps=30), alpha=0.2)
    assert history[-1].explanation_loss < 0.5 * history[0].explanation_loss
