"""The tower's forward pass against open_clip's own, and its gradients against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from core import tower
from core.clip_library import open_clip


@pytest.mark.parametrize("name", ["miniature", "ViT-S/32"])
def test_tokens_and_cls_token_are_those_of_open_clip(name, base, signs, vit):
    large = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model, inputs = (base, signs.inputs) if name == "miniature" else (vit, large)
    with torch.no_grad():
        visual = copy.deepcopy(model.visual).eval()
        visual.output_tokens = True
        pooled, patches = visual(inputs)
        tokens = tower.tokens(visual, inputs)
        # float32 sums in another order: 1e-6 was seen of values of size 3
        torch.testing.assert_close(tokens[:, 1:], patches, atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens[:, 0] @ visual.proj, pooled, atol=1e-5, rtol=0)
        torch.testing.assert_close(tower.cls_token(visual, inputs), tokens[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["all tokens", "CLS alone"])
def test_gradients_are_those_of_open_clips_forward_pass(which, base, signs):
    """Of every weight of the tower, for a loss of what is read."""
    generator = torch.Generator().manual_seed(1)
    towards_cls, towards_patches = torch.randn(24, 64, generator=generator), torch.randn(24, 49, 96, generator=generator)

    def gradients(forward):
        visual = copy.deepcopy(base.visual).train().requires_grad_(True)
        visual.output_tokens = True
        pooled, patches = forward(visual)
        loss = (pooled * towards_cls).sum()
        if which == "all tokens":
            loss = loss + (patches * towards_patches).sum()
        loss.backward()
        return {name: parameter.grad for name, parameter in visual.named_parameters()}

    def ours(visual):
        if which == "CLS alone":
            return tower.linear(tower.cls_token(visual, signs.inputs), visual.proj.t()), None
        tokens = tower.tokens(visual, signs.inputs)
        return tower.linear(tokens[:, 0], visual.proj.t()), tokens[:, 1:]

    expected, found = gradients(lambda visual: visual(signs.inputs)), gradients(ours)
    for name, gradient in expected.items():
        # Relative to the weight's largest gradient: some entries are sums that cancel.
        assert (found[name] - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def test_the_product_has_the_derivatives_of_its_formula():
    """In float32, where oneDNN computes it, against float64 autograd of F.linear."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(3, 5, 7, generator=generator), torch.randn(4, 7, generator=generator)
    bias, towards = torch.randn(4, generator=generator), torch.randn(3, 5, 4, generator=generator)
    single = [x.clone().requires_grad_(True) for x in (inputs, weight, bias)]
    double = [x.double().requires_grad_(True) for x in (inputs, weight, bias)]
    out, expected = tower.linear(*single), F.linear(*double)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
    (out * towards).sum().backward()
    (expected * towards).sum().backward()
    for ours, theirs in zip(single, double, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-5, rtol=0)


def test_the_product_takes_rows_that_do_not_lie_together_and_weights_without_bias():
    inputs, weight = torch.randn(6, 8, 5).transpose(0, 1)[:, 1:2], torch.randn(5, 3).t()
    inputs.requires_grad_(True)
    out = tower.linear(inputs, weight)
    torch.testing.assert_close(out, inputs @ weight.t(), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(out.sum(), inputs)
    torch.testing.assert_close(gradient, weight.sum(0).expand_as(inputs), atol=1e-6, rtol=0)


def test_the_gelu_that_onednn_takes_with_the_product_before_it_is_torchs(base):
    """It takes it without a gradient alone."""
    mlp = copy.deepcopy(base.visual.transformer.resblocks[0].mlp).requires_grad_(True)
    tokens = torch.randn(3, 50, 96, generator=torch.Generator().manual_seed(0))
    plain = tower._mlp(mlp, tokens)  # with a gradient: GELU by itself
    assert plain.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(tower._mlp(mlp, tokens), plain, atol=1e-6, rtol=0)
        expected = copy.deepcopy(mlp).double()(tokens.double())
        low = tower._mlp(copy.deepcopy(mlp).bfloat16(), tokens.bfloat16()).double()
        assert (low - expected).abs().max() < 0.02 * expected.abs().max()
        quick = copy.deepcopy(mlp)
        quick.gelu = open_clip().transformer.QuickGELU()  # another function, which must not be taken for it
        torch.testing.assert_close(tower._mlp(quick, tokens), quick(tokens), atol=1e-5, rtol=0)
        assert (quick(tokens) - plain).abs().max() > 1e-3
