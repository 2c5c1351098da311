"""v(S) in token space against the plain masked forward pass, and labels against the shap library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.attribution_labels import AttributionLabels, Labeller, LabelSettings, perturbations
from core.coalition_values import CoalitionEvaluator
from core.kernel_shap import sample_coalitions
from core.model import load_base


def plain_values(classifier, inputs, class_ids, coalitions, scale, value):
    """v(S) by masking pixels and running the whole tower, one picture after the other."""
    grid = classifier.visual.grid_size[0]
    side = inputs.shape[-1] // grid
    keep = coalitions.view(-1, 1, grid, grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    out = []
    with torch.no_grad():
        for picture, class_id in zip(inputs, class_ids, strict=True):
            cosine = F.normalize(classifier.visual(picture * keep)[0], dim=-1) @ classifier.head
            if value == "logit":
                out.append(scale * cosine[:, class_id])
                continue
            probability = (classifier.logit_scale * cosine).softmax(-1)[:, class_id]
            log_odds = scale / classifier.logit_scale * torch.log(probability / (1 - probability))
            out.append(probability if value == "probability" else log_odds)
    return torch.stack(out)


@pytest.mark.parametrize("value", ["logit", "log_odds", "probability"])
@pytest.mark.parametrize("batch_size", [7, 64, 500])
def test_token_space_masking_equals_the_plain_masked_forward_pass(signs, sign_classifier, value, batch_size):
    coalitions = torch.from_numpy(sample_coalitions(49, 100, seed=3).coalitions)
    evaluator = CoalitionEvaluator(sign_classifier, value=value, label_scale=3.5, batch_size=batch_size)
    ours = evaluator.values(signs.inputs[:3], signs.class_ids[:3], coalitions)
    plain = plain_values(sign_classifier, signs.inputs[:3], signs.class_ids[:3], coalitions, 3.5, value)
    # float32: two orders of summation of the same numbers
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-4)
    assert evaluator.num_evaluations == 300


def test_token_space_masking_equals_the_plain_forward_pass_of_vit_b_32():
    base = load_base("ViT-B-32:random")
    classifier = base.classifier(base.head(["cat", "dog"], ["a photo of a {}."])).eval()
    inputs = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    coalitions = torch.from_numpy(sample_coalitions(49, 96, seed=0).coalitions[:6])
    ours = CoalitionEvaluator(classifier).values(inputs, torch.tensor([0]), coalitions)
    plain = plain_values(classifier, inputs, torch.tensor([0]), coalitions, 3.5, "logit")
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-4)


def test_bfloat16_shifts_labels_by_less_than_a_tenth_of_their_standard_error(signs, sign_classifier):
    exact, low = (
        Labeller(sign_classifier, LabelSettings(budget=512, precision=precision), "train").label(
            signs.inputs[:8], signs.class_ids[:8], signs.ids[:8]
        )
        for precision in ("float32", "bfloat16")
    )
    shift = np.sqrt(np.square(exact.attributions - low.attributions).mean())
    assert shift < 0.1 * np.sqrt(np.square(exact.standard_error).mean())


def test_labels_agree_with_the_shap_library_within_sampling_error(signs, sign_classifier):
    shap = pytest.importorskip("shap", reason="the shap library is a test dependency")
    budget = 1500
    settings = LabelSettings(budget=budget, pool_size=1)
    ours = Labeller(sign_classifier, settings, "train").label(signs.inputs[:2], signs.class_ids[:2], signs.ids[:2])
    for n in range(2):

        def game(z, n=n):
            coalitions = torch.from_numpy(np.asarray(z) > 0.5)
            return CoalitionEvaluator(sign_classifier).values(signs.inputs[n : n + 1], signs.class_ids[n : n + 1], coalitions)[0].numpy()

        np.random.seed(0)
        explainer = shap.KernelExplainer(game, np.zeros((1, 49)), silent=True)
        theirs = np.asarray(explainer.shap_values(np.ones((1, 49)), nsamples=budget, l1_reg=False)).ravel()
        # Two independent draws with about the same error each: their distance is sqrt(2) standard errors a patch, and a root mean square
        # over 49 patches stays within 1.5 times that.
        distance = np.sqrt(np.square(ours.attributions[n] - theirs).mean())
        expected = np.sqrt(2 * np.square(ours.standard_error[n]).mean())
        assert distance < 1.5 * expected
        assert abs(theirs.sum() - ours.attributions[n].sum()) < 1e-3


def test_labels_do_not_depend_on_the_batch_they_were_made_in(signs, sign_classifier):
    labeller = Labeller(sign_classifier, LabelSettings(budget=128, pool_size=4, num_perturbations=8), "train")
    together = labeller.label(signs.inputs[:6], signs.class_ids[:6], signs.ids[:6])
    parts = [labeller.label(signs.inputs[i : i + 2], signs.class_ids[i : i + 2], signs.ids[i : i + 2]) for i in (0, 2, 4)]
    apart = AttributionLabels.concatenate(parts)
    np.testing.assert_allclose(together.attributions, apart.attributions, atol=2e-3)
    np.testing.assert_allclose(together.perturbation_values, apart.perturbation_values, atol=1e-5)


def test_efficiency_of_labels_and_meaning_of_perturbation_values(signs, sign_classifier):
    settings = LabelSettings(budget=128, num_perturbations=16)
    labels = Labeller(sign_classifier, settings, "test").label(signs.inputs[:4], signs.class_ids[:4], signs.ids[:4])
    np.testing.assert_allclose(labels.attributions.sum(1), labels.value_full - labels.value_empty, atol=1e-4)
    with torch.no_grad():
        logits = sign_classifier.logits(signs.inputs[:4])
    own = logits.gather(1, signs.class_ids[:4, None])[:, 0] / sign_classifier.logit_scale * 3.5
    np.testing.assert_allclose(labels.value_full, own.numpy(), atol=1e-4)
    kept = torch.from_numpy(~perturbations(49, 16))
    plain = plain_values(sign_classifier, signs.inputs[:4], signs.class_ids[:4], kept, 3.5, "logit")
    np.testing.assert_allclose(labels.perturbation_values, plain.numpy(), atol=1e-4)


def test_train_and_test_roles_draw_independent_labels(signs, sign_classifier):
    one = [signs.inputs[:2], signs.class_ids[:2], signs.ids[:2]]
    train, test = (Labeller(sign_classifier, LabelSettings(budget=128), role).label(*one) for role in ("train", "test"))
    assert np.abs(train.attributions - test.attributions).max() > 1e-3


@pytest.mark.parametrize("settings", [{"budget": 40}, {"pool_size": 0}, {"label_scale": 0.0}])
def test_label_settings_that_cannot_work_are_refused_before_any_evaluation(sign_classifier, settings):
    with pytest.raises(ValueError):
        Labeller(sign_classifier, LabelSettings(**settings), "train")
