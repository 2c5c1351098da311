"""v(S) in token space against the plain masked forward pass, and labels against the shap library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from patience import PATIENCE_S

from core.games.attribution_labels import AttributionLabels, Labeller, LabelSettings, perturbations, precision_shift
from core.games.coalition_values import CoalitionEvaluator, is_out_of_memory
from core.shapley.kernel_shap import sample_coalitions


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
    coalitions = torch.from_numpy(sample_coalitions(49, 100, seed=3).coalitions[::3])
    evaluator = CoalitionEvaluator(sign_classifier, value=value, label_scale=3.5, batch_size=batch_size)
    ours = evaluator.values(signs.inputs[:3], signs.class_ids[:3], coalitions)
    plain = plain_values(sign_classifier, signs.inputs[:3], signs.class_ids[:3], coalitions, 3.5, value)
    # float32: two orders of summation of the same numbers
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-4)
    assert evaluator.num_evaluations == ours.numel() > 90


def test_token_space_masking_equals_the_plain_forward_pass_of_another_tower(vit_classifier):
    inputs = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    coalitions = torch.from_numpy(sample_coalitions(49, 96, seed=0).coalitions[:6])
    ours = CoalitionEvaluator(vit_classifier).values(inputs, torch.tensor([0]), coalitions)
    plain = plain_values(vit_classifier, inputs, torch.tensor([0]), coalitions, 3.5, "logit")
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_dropped_tokens_equal_the_plain_forward_pass_over_the_tokens_that_are_left(signs, sign_classifier, batch_size):
    ends = np.stack([np.zeros(49, bool), np.ones(49, bool)])
    coalitions = torch.from_numpy(np.concatenate([sample_coalitions(49, 96, seed=3).coalitions[:30], ends]))
    evaluator = CoalitionEvaluator(sign_classifier, fill="drop", batch_size=batch_size)
    ours = evaluator.values(signs.inputs[:3], signs.class_ids[:3], coalitions)
    tower = sign_classifier.visual
    with torch.no_grad():
        tokens = tower._embeds(signs.inputs[:3])
        for p, coalition in enumerate(coalitions):
            kept = torch.cat([torch.tensor([0]), 1 + coalition.nonzero()[:, 0]])
            pooled = tower.ln_post(tower.transformer(tokens[:, kept])[:, 0]) @ tower.proj
            cosine = F.normalize(pooled, dim=-1) @ sign_classifier.head
            expected = 3.5 * cosine.gather(1, signs.class_ids[:3, None])[:, 0]
            torch.testing.assert_close(ours[:, p], expected, atol=2e-5, rtol=2e-4)
    assert evaluator.num_evaluations == 3 * 32


def test_bfloat16_shifts_labels_by_less_than_a_tenth_of_their_standard_error(signs, sign_classifier):
    exact, low = (
        Labeller(sign_classifier, LabelSettings(budget=512, precision=precision), "train").label(
            signs.inputs[:4], signs.class_ids[:4], signs.ids[:4]
        )
        for precision in ("float32", "bfloat16")
    )
    shift = np.sqrt(np.square(exact.attributions - low.attributions).mean())
    assert shift < 0.1 * np.sqrt(np.square(exact.standard_error).mean())


def test_the_shift_by_low_precision_is_measured(signs, sign_classifier):
    some = signs.inputs[:4], signs.class_ids[:4]
    assert precision_shift(sign_classifier, LabelSettings(precision="float32"), *some) == 0.0
    assert 0.0 < precision_shift(sign_classifier, LabelSettings(precision="bfloat16"), *some) < 0.1


@pytest.mark.parametrize(("estimator", "budget"), [("kernel_shap", 256), ("leverage", 256), ("permutation", 480), ("size_adjusted", 224)])
def test_error_bars_cover_the_error_against_a_high_budget(signs, sign_classifier, references, estimator, budget):
    """z-scores of labels against references of another pool, both errors counted."""
    some = signs.inputs[:16], signs.class_ids[:16], signs.ids[:16]
    settings = LabelSettings(budget=budget, estimator=estimator, pool_size=8)
    labels = Labeller(sign_classifier, settings, "train").label(*some)
    z = (labels.attributions - references.attributions) / np.sqrt(labels.standard_error**2 + references.standard_error**2)
    # 16 pictures x 49 patches, correlated within a picture: the spread is known to about 10 %. Permutations' are a little cautious.
    assert 0.75 < np.sqrt(np.square(z).mean()) < 1.25
    assert (np.abs(z) < 1.96).mean() > 0.9


def test_pictures_stop_early_when_their_error_bar_is_small_enough(signs, sign_classifier):
    some = signs.inputs[:5], signs.class_ids[:5], signs.ids[:5]
    full = Labeller(sign_classifier, LabelSettings(budget=1024, pool_size=3), "train").label(*some)
    settings = LabelSettings(budget=1024, pool_size=3, target_error=0.5)
    assert settings.rounds(49) == [512, 1024]
    assert LabelSettings(budget=2400, estimator="permutation", target_error=0.2).rounds(49) == [300, 600, 1200, 2400]
    labeller = Labeller(sign_classifier, settings, "train")
    early = labeller.label(*some)
    relative = np.sqrt(np.square(early.standard_error).mean(1) / np.square(early.attributions).mean(1))
    stopped = early.budget < 1024
    assert stopped.any() and not stopped.all() and (relative[stopped] <= 0.5).all()
    assert labeller.evaluator.num_evaluations == early.budget.sum() + 2 * 5  # nothing is evaluated twice
    np.testing.assert_allclose(early.attributions[~stopped], full.attributions[~stopped], atol=1e-4)
    np.testing.assert_allclose(early.attributions.sum(1), early.value_full - early.value_empty, atol=1e-4)
    # Rounds of permutation sampling are whole permutations: 300 evaluations hold 288.
    one = [of_all[:1] for of_all in some]
    odd = Labeller(sign_classifier, LabelSettings(budget=700, estimator="permutation", target_error=1e-6), "train").label(*one)
    assert (odd.budget == 672).all()
    never = Labeller(sign_classifier, LabelSettings(budget=256, estimator="permutation", target_error=1e-6), "train").label(*one)
    assert (never.budget == 192).all()


def test_batch_size_is_found_by_trial_and_changes_no_value(signs, sign_classifier):
    labeller = Labeller(sign_classifier, LabelSettings(budget=256), "train")
    found = labeller.find_batch_size(signs.inputs[:8], signs.class_ids[:8])
    assert found >= 32 and found & (found - 1) == 0
    assert labeller.evaluator.num_evaluations == 0 and labeller.evaluator.seconds == 0.0


@pytest.mark.parametrize(("rate", "found", "tried"), [(1e5, 64, {32, 64, 128}), (10.0, 32, {32})])
def test_a_slow_model_is_not_tried_for_long(signs, sign_classifier, monkeypatch, rate, found, tried):
    """rate: evaluations a second in batches of 32, by a clock of its own; twice that from 64 on."""
    evaluator = CoalitionEvaluator(sign_classifier)
    sizes = []

    def values(inputs, class_ids, coalitions):
        sizes.append(evaluator.batch_size)
        evaluator.seconds += len(inputs) * len(coalitions) / (rate * min(2, evaluator.batch_size // 32))

    monkeypatch.setattr(evaluator, "values", values)
    coalitions = torch.from_numpy(sample_coalitions(49, 256).coalitions)
    assert evaluator.find_batch_size(signs.inputs[:8], signs.class_ids[:8], coalitions) == found
    assert set(sizes) == tried


OUT_OF_MEMORY = """
import logging, resource, sys, torch
logging.basicConfig(level=logging.WARNING, format="%(message)s")
torch.set_num_threads(1)
from core.games.coalition_values import CoalitionEvaluator
from core.shapley.kernel_shap import sample_coalitions
from core.model import load_base
base = load_base("miniature")
classifier = base.classifier(base.head(["cat", "dog"], ["a photo of a {}."]))
inputs = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
coalitions = torch.from_numpy(sample_coalitions(49, 512).coalitions)
small = CoalitionEvaluator(classifier, batch_size=64)
expected = small.values(inputs, torch.zeros(2, dtype=torch.long), coalitions)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, resource.RLIM_INFINITY))
large = CoalitionEvaluator(classifier, batch_size=1024)
values = large.values(inputs, torch.zeros(2, dtype=torch.long), coalitions)
assert large.batch_size < 1024, large.batch_size
assert large.num_evaluations == 2 * 512
torch.testing.assert_close(values, expected, atol=2e-5, rtol=2e-4)
"""


def test_out_of_memory_halves_the_batch_and_goes_on():
    """With a real limit on a process's memory."""
    here = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, cwd=here, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "out of memory: the label engine goes on with batches of" in done.stderr


def test_the_words_for_no_memory_and_no_others():
    """Which of them one meets depends on the processor and on where memory ends."""
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("could not create a primitive")):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_labels_agree_with_the_shap_library_within_sampling_error(signs, sign_classifier):
    import shap

    budget = 800
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


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": 40},
        {"pool_size": 0},
        {"label_scale": 0.0},
        {"budget": 128, "estimator": "permutation"},
        {"target_error": -1.0},
        {"target_error": 0.5, "l1_reg": "aic"},
        {"l1_reg": "ridge"},
        {"estimator": "lime"},
        {"estimator": "surrogate", "target_error": 0.2},
        {"estimator": "shap", "target_error": 0.2},
        {"estimator": "surrogate", "l1_reg": "aic"},
        {"estimator": "calibrated", "budget": 33},
    ],
)
def test_label_settings_that_cannot_work_are_refused_before_any_evaluation(sign_classifier, settings):
    with pytest.raises(ValueError):
        Labeller(sign_classifier, LabelSettings(**settings), "train")
