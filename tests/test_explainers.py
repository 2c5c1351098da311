"""Explainers against plain implementations on open_clip's own modules."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.explainers.explainer import EXPLAINERS
from core.explainers.grad_cam import grad_cam
from core.explainers.rollout import attention_rollout, gradient_rollout


@pytest.fixture(scope="module")
def classifier(sign_classifier):
    """As a stage loads it: its weights ask for no gradients."""
    return copy.deepcopy(sign_classifier).requires_grad_(False)


def plain_forward(visual, inputs):
    """CLS features [N, K] and each block's attention weights [N, H, T, T], by formula; the weights are `nn.MultiheadAttention`'s own."""
    states, found = visual._embeds(inputs).detach().requires_grad_(True), []
    for block in visual.transformer.resblocks:
        attention, normed = block.attn, block.ln_1(states)
        _, expected = attention(normed, normed, normed, need_weights=True, average_attn_weights=False)
        split = torch.einsum("ntd,ed->nte", normed, attention.in_proj_weight) + attention.in_proj_bias
        query, key, value = (part.unflatten(2, (attention.num_heads, -1)) for part in split.split(normed.shape[2], dim=2))
        weights = F.softmax(torch.einsum("nqhd,nkhd->nhqk", query, key) / query.shape[3] ** 0.5, dim=3)
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
        found.append(weights)
        states = states + attention.out_proj(torch.einsum("nhqk,nkhd->nqhd", weights, value).flatten(2))
        states = states + block.mlp(block.ln_2(states))
    return F.normalize(visual.ln_post(states)[:, 0] @ visual.proj, dim=-1), found


def multihead_weights(visual, inputs):
    """Attention weights of each block as `nn.MultiheadAttention` reports them in open_clip's forward pass, mean over heads. [N, T, T]"""
    found = []

    def report(attention, normed):
        found.append(attention(normed, normed, normed, need_weights=True)[1].double().numpy())

    # The attention reads what the first normalisation gives.
    hooks = [
        block.ln_1.register_forward_hook(lambda module, arguments, output, attention=block.attn: report(attention, output))
        for block in visual.transformer.resblocks
    ]
    with torch.no_grad():
        visual(inputs)
    for hook in hooks:
        hook.remove()
    return found


def test_grad_cam_is_that_of_hooks_on_open_clips_forward_pass(classifier, signs):
    visual = copy.deepcopy(classifier.visual)
    kept = []

    def keep(module, inputs, output):
        output.requires_grad_(True).retain_grad()
        kept.append(output)

    hook = visual.transformer.resblocks[-1].ln_1.register_forward_hook(keep)
    pooled, _ = visual(signs.inputs)
    hook.remove()
    logits = classifier.logit_scale * F.normalize(pooled, dim=-1) @ classifier.head
    logits.gather(1, signs.class_ids[:, None]).sum().backward()
    activations, gradients = kept[0].detach().numpy()[:, 1:], kept[0].grad.numpy()[:, 1:]
    expected = np.maximum((activations * gradients.mean(axis=1, keepdims=True)).sum(axis=2), 0.0)
    found = grad_cam(classifier, signs.inputs, signs.class_ids)
    assert found.shape == (24, 49) and not found.requires_grad
    # float32 sums in another order, of numbers that cancel
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * expected.max())
    assert (expected > 0.1 * expected.max()).any(axis=1).mean() > 0.5  # it is no map of zeros that agrees


def test_no_layer_after_that_of_grad_cam_would_do(classifier, signs):
    """The logit has no gradient of the last block's patch tokens."""
    visual = copy.deepcopy(classifier.visual)
    kept = []
    hook = visual.transformer.resblocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output.requires_grad_(True)))
    pooled, _ = visual(signs.inputs)
    hook.remove()
    (gradient,) = torch.autograd.grad(pooled.sum(), kept[0])
    assert not gradient[:, 1:].any() and gradient[:, 0].any()


def test_rollout_is_the_product_of_multihead_attentions_own_weights(classifier, signs):
    weights = multihead_weights(copy.deepcopy(classifier.visual), signs.inputs)
    num_tokens = weights[0].shape[-1]
    expected = np.eye(num_tokens)[None]
    for attention in weights:
        expected = (0.5 * attention + 0.5 * np.eye(num_tokens)) @ expected
    found = attention_rollout(classifier, signs.inputs)
    assert found.shape == (24, 49)
    np.testing.assert_allclose(found.numpy(), expected[:, 0, 1:], atol=1e-6)  # float32 against float64; the largest are near 0.1
    # Rows of every matrix sum to 1: what is missing to 1 is the CLS token's own share, at least that of the residual connections.
    own = 1.0 - found.sum(dim=1)
    assert (own >= 0.5 ** len(weights)).all() and (own < 1.0).all()


def test_gradient_rollout_is_the_product_of_weights_and_their_gradients(classifier, signs):
    features, weights = plain_forward(classifier.visual, signs.inputs)
    logits = classifier.logit_scale * features @ classifier.head
    gradients = torch.autograd.grad(logits.gather(1, signs.class_ids[:, None]).sum(), weights)
    expected = np.eye(weights[0].shape[-1])[None]
    for attention, gradient in zip(weights, gradients, strict=True):
        expected = expected + (attention.detach().double() * gradient).clamp_min(0.0).mean(dim=1).numpy() @ expected
    found = gradient_rollout(classifier, signs.inputs, signs.class_ids)
    assert found.shape == (24, 49) and not found.requires_grad
    np.testing.assert_allclose(found.numpy(), expected[:, 0, 1:], atol=1e-4 * expected[:, 0, 1:].max())


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_explanation_is_of_its_own_picture_and_class_and_leaves_no_gradients(name, classifier, signs):
    maps, others = EXPLAINERS[name].maps, (signs.class_ids + 1) % classifier.head.shape[1]
    found = maps(classifier, signs.inputs, signs.class_ids)
    # Batches of another size may sum in another order.
    alone = maps(classifier, signs.inputs[3:4], signs.class_ids[3:4])
    torch.testing.assert_close(alone[0], found[3], atol=float(1e-4 * found.max()), rtol=0)
    of_others = maps(classifier, signs.inputs, others)
    assert torch.equal(of_others, found) == (name == "attention_rollout")
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in classifier.parameters())
