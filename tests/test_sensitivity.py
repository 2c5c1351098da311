"""Fisher information and gradients of a real classifier against the Jacobian of its answers."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from core.losses import classification_loss
from core.model import SelfExplainingClassifier
from core.sensitivity import attribution_fisher, class_fisher, class_gradient
from core.training_data import PicturesInMemory, TrainingData

# A kind of weight each, small ones: a Jacobian has a row for every class or patch.
SOME = ("transformer.resblocks.1.attn.in_proj_bias", "ln_post.weight", "class_embedding")


@pytest.fixture(scope="module")
def data(base, signs):
    """One picture."""
    return TrainingData(PicturesInMemory(signs.pixels[:1]), signs.class_ids[:1], base.preprocessing)


@pytest.fixture(scope="module")
def unsure(sign_classifier) -> SelfExplainingClassifier:
    """With a small logit scale, so that every class is drawn now and then."""
    return SelfExplainingClassifier(sign_classifier.visual, sign_classifier.head, logit_scale=5.0)


def jacobian(classifier, signs, what: str) -> dict[str, torch.Tensor]:
    """Of the picture's logits [C, ...] or attributions [M, ...] with respect to SOME weights."""
    some = {f"visual.{name}": dict(classifier.visual.named_parameters())[name].detach() for name in SOME}

    def answers(*weights):
        explained = functional_call(classifier, dict(zip(some, weights, strict=True)), (signs.inputs[:1], signs.class_ids[:1]))
        return getattr(explained, what)[0]

    return dict(zip(SOME, torch.autograd.functional.jacobian(answers, tuple(some.values())), strict=True))


def flat(weights) -> torch.Tensor:
    """All of SOME."""
    return torch.cat([weights[name].flatten() for name in SOME])


def test_class_fisher_is_the_squared_gradient_of_a_class_that_the_model_draws(unsure, signs, data):
    p = unsure(signs.inputs[:1]).logits[0].softmax(0).detach()
    rows = jacobian(unsure, signs, "logits")
    squared = []  # of d log p_c = row c - sum over k of p_k row k
    for c in range(len(p)):
        squared.append(flat({name: (row[c] - torch.tensordot(p, row, dims=1)).square() for name, row in rows.items()}))
    counts = torch.zeros(len(p))
    for seed in range(30):
        found = flat(class_fisher(unsure, data, seed=seed))
        errors = torch.stack([(found - one).norm() / one.norm() for one in squared])
        assert errors.min() < 1e-3  # float32 gradients
        counts[errors.argmin()] += 1
    assert (counts > 0).sum() > 3
    assert ((counts / 30 - p).abs() < 4 * (p * (1 - p) / 30).sqrt()).all()


def test_attribution_fisher_is_the_sum_of_the_patches_squared_gradients(sign_classifier, signs, data):
    """The mean of 30 draws of a chi-square variable with one degree of freedom is off by 26 %."""
    expected = flat({name: rows.square().sum(0) for name, rows in jacobian(sign_classifier, signs, "attributions").items()})
    found = torch.stack([flat(attribution_fisher(sign_classifier, data, seed=seed)) for seed in range(30)]).mean(0)
    assert (found - expected).norm() / expected.norm() < 0.5
    assert found.sum().item() == pytest.approx(expected.sum().item(), rel=0.5)


def test_fisher_information_is_a_mean_over_pictures(base, sign_classifier, signs):
    """Of two copies of a picture it is that of one, as far as the draws go: the second draw follows the first."""
    twice = TrainingData(PicturesInMemory(signs.pixels[[0, 0]]), signs.class_ids[[0, 0]], base.preprocessing)
    once = TrainingData(PicturesInMemory(signs.pixels[:1]), signs.class_ids[:1], base.preprocessing)
    both = flat(attribution_fisher(sign_classifier, twice, seed=5))
    first = flat(attribution_fisher(sign_classifier, twice, num_pictures=1, seed=5))
    second = 2 * both - first
    assert second.min() > -1e-4 * both.max() and not torch.allclose(first, second)
    assert flat(attribution_fisher(sign_classifier, once, num_pictures=9, seed=5)).isfinite().all()


def test_class_gradient_is_the_gradient_of_the_mean_loss_whatever_the_batches(base, sign_classifier, signs, monkeypatch):
    data = TrainingData(PicturesInMemory(signs.pixels), signs.class_ids, base.preprocessing)
    found = class_gradient(sign_classifier, data)
    weights = {f"visual.{name}": p.detach().requires_grad_() for name, p in sign_classifier.visual.named_parameters()}
    loss = classification_loss(functional_call(sign_classifier, weights, (signs.inputs,)).logits, signs.class_ids)
    expected = dict(zip(found, torch.autograd.grad(loss, list(weights.values())), strict=True))
    assert found.keys() == base.visual.state_dict().keys()
    scale = max(weight.abs().max() for weight in expected.values())
    assert all((found[name] - weight).abs().max() < 1e-5 * scale for name, weight in expected.items())
    monkeypatch.setattr("core.sensitivity.BATCH_SIZE", 7)
    again = class_gradient(sign_classifier, data)
    assert all((again[name] - found[name]).abs().max() < 1e-5 * scale for name in found)


def test_the_classifier_stays_as_it_is_and_a_seed_gives_the_same(sign_classifier, data):
    before = {name: weight.clone() for name, weight in sign_classifier.state_dict().items()}
    first, again, other = (attribution_fisher(sign_classifier, data, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(weight, before[name]) for name, weight in sign_classifier.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in sign_classifier.parameters())


def test_no_pictures_are_refused(base, sign_classifier, signs):
    for few, number in ((0, 256), (2, 0)):
        data = TrainingData(PicturesInMemory(signs.pixels[:few]), signs.class_ids[:few], base.preprocessing)
        with pytest.raises(ValueError, match="no pictures"):
            class_fisher(sign_classifier, data, num_pictures=number)
