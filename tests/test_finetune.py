"""The training loop: what alpha means, determinism, and continuing after a kill."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from core.finetune import Recipe, TrainingData, batches, finetune
from core.losses import combined_loss, explanation_loss

RECIPE = Recipe(learning_rate=5e-4, batch_size=8, num_steps=8, warmup_steps=2)


@pytest.fixture
def data(base, signs):
    labels = torch.randn(24, 49, generator=torch.Generator().manual_seed(0)) * 0.1
    return TrainingData(signs.pixels, signs.class_ids, base.preprocessing, labels)


def trained(classifier, data, recipe=RECIPE, alpha=1.0, **options):
    classifier = copy.deepcopy(classifier)
    return classifier, finetune(classifier, data, recipe, alpha, **options)


def same_weights(a, b):
    return all(torch.equal(x, b.visual.state_dict()[k]) for k, x in a.visual.state_dict().items())


def test_alpha_1_is_prediction_only_training_bit_for_bit(sign_classifier, data):
    with_labels, history = trained(sign_classifier, data, alpha=1.0)
    without, other = trained(sign_classifier, replace(data, attribution_labels=None), alpha=1.0)
    assert [p.loss for p in history] == [p.loss for p in other] == [p.classification_loss for p in history]
    assert same_weights(with_labels, without)


def test_the_first_loss_is_equation_4(base, sign_classifier, data):
    _, history = trained(sign_classifier, data, alpha=0.3)
    index = next(batches(24, 8, 8, RECIPE.seed))
    with torch.no_grad():
        explained = sign_classifier(base.preprocessing.normalise(data.pixels[index]), data.class_ids[index])
    classification = torch.nn.functional.cross_entropy(explained.logits, data.class_ids[index])
    squared = (explained.attributions - data.attribution_labels[index]).pow(2).sum(1).mean()
    assert abs(history[0].loss - (0.3 * classification + 0.7 * squared).item()) < 1e-3
    assert abs(history[0].explanation_loss - squared.item()) < 1e-3


def test_explanation_loss_sums_over_patches_and_means_over_pictures():
    predicted, labels = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    assert explanation_loss(predicted, labels).item() == pytest.approx((9 + 1) / 2)
    assert combined_loss(torch.tensor(2.0), torch.tensor(4.0), 0.25).item() == pytest.approx(3.5)


def test_training_lowers_both_losses(sign_classifier, data):
    recipe = replace(RECIPE, num_steps=40)
    _, history = trained(sign_classifier, data, recipe, alpha=0.5)
    assert history[-1].classification_loss < 0.7 * history[0].classification_loss
    assert history[-1].explanation_loss < 0.7 * history[0].explanation_loss


def test_same_seed_gives_the_same_weights_and_another_seed_others(sign_classifier, data):
    a, _ = trained(sign_classifier, data, alpha=0.5)
    b, _ = trained(sign_classifier, data, alpha=0.5)
    c, _ = trained(sign_classifier, data, replace(RECIPE, seed=1), alpha=0.5)
    assert same_weights(a, b) and not same_weights(a, c)


def test_a_killed_training_continues_to_the_same_weights(sign_classifier, data, tmp_path):
    undisturbed, history = trained(sign_classifier, data, alpha=0.5)
    checkpoint = tmp_path / "checkpoint"

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        trained(sign_classifier, data, alpha=0.5, checkpoint=checkpoint, checkpoint_every_s=-1.0, on_progress=kill)
    assert checkpoint.exists()
    continued, resumed_history = trained(sign_classifier, data, alpha=0.5, checkpoint=checkpoint)
    assert same_weights(undisturbed, continued)
    assert resumed_history == history
    assert not checkpoint.exists()


def test_every_training_on_a_data_set_sees_the_same_batches():
    whole = [b.tolist() for b in batches(20, 8, 10, seed=3)]
    assert whole == [b.tolist() for b in batches(20, 8, 10, seed=3)]
    assert whole[4:] == [b.tolist() for b in batches(20, 8, 10, seed=3, start=4)]
    assert len({i for b in whole[:2] for i in b}) == 16  # an epoch repeats no picture
    assert [len(b) for b in batches(3, 8, 2, seed=0)] == [3, 3]


@pytest.mark.parametrize(
    ("alpha", "drop_labels", "message"), [(1.5, False, r"\[0, 1\]"), (-0.1, False, r"\[0, 1\]"), (0.5, True, "needs attribution labels")]
)
def test_impossible_trainings_are_refused(sign_classifier, data, alpha, drop_labels, message):
    if drop_labels:
        data = replace(data, attribution_labels=None)
    with pytest.raises(ValueError, match=message):
        trained(sign_classifier, data, alpha=alpha)


def test_a_recipe_has_one_length():
    with pytest.raises(ValueError, match="either num_steps or epochs"):
        Recipe(learning_rate=1e-3, batch_size=8)
    assert Recipe(learning_rate=1e-3, batch_size=8, epochs=3).total_steps(20) == 6
