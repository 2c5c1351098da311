"""Each merge rule against its formula, worked out here in NumPy or by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.merging.dare import Dare
from core.merging.depths import depths
from core.merging.fisher import Fisher
from core.merging.gradient_sign import GradientSign
from core.merging.lines import Lines
from core.merging.opcm import Opcm
from core.merging.rule import Evidence, MergeRuleError
from core.merging.ties import Ties
from core.task_vectors import TaskVector


def vector(**weights) -> TaskVector:
    return TaskVector({name: torch.as_tensor(value, dtype=torch.float32) for name, value in weights.items()}, "b")


def random_vector(seed: int, **shapes: tuple[int, ...]) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    return TaskVector({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, "b")


def ones_like(weights) -> TaskVector:
    return TaskVector({name: torch.ones_like(weight) for name, weight in weights.items()}, "b")


# LiNeS


def test_lines_scales_by_depth_and_reads_the_map_at_the_last_one(base):
    """Four blocks in the miniature base: 0.1, 0.4, 0.7, 1."""
    star = ones_like(base.visual.state_dict())
    scaled = Lines(first=0.1, last=1.0).edited(star, star).weights
    num_blocks = len(base.visual.transformer.resblocks)
    expected = {f"transformer.resblocks.{n}.": 0.1 + 0.9 * n / (num_blocks - 1) for n in range(num_blocks)}
    expected |= {name: 0.1 for name in ("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.")}
    expected |= {name: 1.0 for name in ("ln_post.", "proj")}
    for name, weight in scaled.items():
        (scale,) = {value for prefix, value in expected.items() if name.startswith(prefix)}
        torch.testing.assert_close(weight, torch.full_like(weight, scale))
    assert all(any(name.startswith(prefix) for name in scaled) for prefix in expected)


def test_lines_with_equal_ends_is_addition_and_one_block_is_the_last(base):
    star = random_vector(0, **{name: tuple(weight.shape) for name, weight in base.visual.state_dict().items()})
    same = Lines(first=1.0, last=1.0).edited(star, star).weights
    assert all(torch.equal(same[name], weight) for name, weight in star.weights.items())
    single = ones_like({"conv1.weight": torch.empty(2), "transformer.resblocks.0.ln_1.bias": torch.empty(2), "proj": torch.empty(2)})
    assert {v.unique().item() for v in Lines(first=0.2, last=0.9).edited(single, single).weights.values()} == {torch.tensor(0.9).item()}


def test_a_weight_of_another_architecture_has_no_depth():
    assert depths(["transformer.resblocks.11.mlp.c_fc.weight", "proj", "ln_pre.bias"]) == {
        "transformer.resblocks.11.mlp.c_fc.weight": 11,
        "proj": 11,
        "ln_pre.bias": 0,
    }
    with pytest.raises(MergeRuleError, match="how deep layer1.0.conv1.weight stands"):
        depths(["layer1.0.conv1.weight"])


# OPCM


def opcm_in_numpy(target: np.ndarray, star: np.ndarray, share: float) -> np.ndarray:
    """As the paper has it, with square U and V."""
    u, s, vh = np.linalg.svd(target.astype(np.float64), full_matrices=True)
    part = np.cumsum(s) / s.sum()
    num_leading = int((part <= share).sum())
    projected = u.T @ star @ vh.T
    np.fill_diagonal(projected, 0.0)
    projected[:num_leading, :num_leading] = 0.0
    return u @ projected @ vh


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (5, 9), (6, 3, 2, 2)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_opcm_is_the_papers_projection(shape, share):
    target, star = random_vector(1, w=shape), random_vector(2, w=shape)
    edited = Opcm(share=share).edited(target, star).weights["w"]
    flat = (weights.weights["w"].reshape(shape[0], -1).numpy() for weights in (target, star))
    expected = opcm_in_numpy(*flat, share).reshape(shape)
    assert np.abs(edited.numpy() - expected).max() < 1e-5  # float32 decompositions of numbers of size 1


def test_opcm_leaves_what_a_target_of_low_rank_does_not_use_and_adds_vectors_of_biases_as_they_are():
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q for _ in range(2))
    target = vector(w=2.0 * torch.outer(u[:, 0], v[:, 0]), bias=[1.0, 2.0], empty=torch.zeros(3, 3))
    star = vector(w=0.7 * torch.outer(u[:, 0], v[:, 0]) + u[:, 1:4] @ v[:, 1:4].T, bias=[3.0, 4.0], empty=torch.eye(3))
    edited = Opcm(share=1.0).edited(target, star).weights
    torch.testing.assert_close(edited["w"], u[:, 1:4] @ v[:, 1:4].T, atol=1e-5, rtol=0)
    assert torch.equal(edited["bias"], star.weights["bias"])
    assert torch.equal(edited["empty"], star.weights["empty"])


# TIES


def test_ties_by_hand():
    """Of eight numbers each the four largest are kept: the threshold of both is 3."""
    target = vector(a=[5.0, -3.0, 0.1, 4.0], b=[[0.2, -6.0], [0.3, 0.4]])
    star = vector(a=[-4.0, 5.0, 3.0, 0.5], b=[[-0.1, -7.0], [2.0, 1.0]])
    edited = Ties(share=0.5).edited(target, star).weights
    # -4 is outvoted by 5; 5 outvotes -3; 3 stands alone; 0.5 was trimmed; -7 agrees with -6; the rest was trimmed.
    assert edited["a"].tolist() == [0.0, 5.0, 3.0, 0.0]
    assert edited["b"].tolist() == [[0.0, -7.0], [0.0, 0.0]]


def test_ties_without_trimming_drops_exactly_what_the_target_outvotes():
    target, star = random_vector(3, a=(40,), b=(7, 5)), random_vector(4, a=(40,), b=(7, 5))
    edited = Ties(share=1.0).edited(target, star)
    for name, weight in star.weights.items():
        task = target.weights[name]
        outvoted = (task.sign() != weight.sign()) & (task.abs() > weight.abs())
        assert torch.equal(edited.weights[name], torch.where(outvoted, 0.0, weight))
    same = Ties(share=1.0).edited(star, star)
    assert all(torch.equal(same.weights[name], weight) for name, weight in star.weights.items())


# DARE


def test_dare_drops_a_share_and_scales_the_rest_alike_for_every_vector():
    shapes = {"a": (100, 100), "b": (100, 100)}
    star, other = random_vector(5, **shapes), random_vector(6, **shapes)
    rule = Dare(drop_rate=0.75)
    edited = rule.edited(other, star).weights
    kept = {name: weight != 0 for name, weight in edited.items()}
    for name, weight in star.weights.items():
        assert kept[name].float().mean().item() == pytest.approx(0.25, abs=0.02)  # 10 000 draws: 4.6 standard errors
        assert torch.equal(edited[name], torch.where(kept[name], weight / 0.25, 0.0))
    assert (kept["a"] != kept["b"]).any()
    alone = rule.edited(other, TaskVector({"b": other.weights["b"]}, "b")).weights["b"]
    assert torch.equal(alone != 0, kept["b"])  # the draw is of the tensor's name
    again, elsewhere = (Dare(drop_rate=0.75, seed=seed).edited(other, star).weights["a"] for seed in (0, 1))
    assert torch.equal(again, edited["a"]) and not torch.equal(elsewhere, edited["a"])


def test_dare_is_addition_on_average_and_at_no_drop_rate():
    star = random_vector(7, w=(4, 4))
    drawn = torch.stack([Dare(drop_rate=0.5, seed=seed).edited(star, star).weights["w"] for seed in range(2000)])
    error = (drawn.mean(0) - star.weights["w"]).abs()
    assert (error < 5 * star.weights["w"].abs() / 2000**0.5).all()  # a draw's standard deviation is the weight itself at rate 0.5
    assert torch.equal(Dare(drop_rate=0.0).edited(star, star).weights["w"], star.weights["w"])


# Fisher


def test_fisher_is_the_mean_of_two_models_weighted_by_their_information():
    """Equation 3 of Matena and Raffel for the target model and the target model + (lambda2 / s) tau_star, in NumPy."""
    names = {"w": (6, 4), "bias": (5,)}
    base, target, star = (random_vector(seed, **names) for seed in (8, 9, 10))
    fishers = [{name: weight.square() for name, weight in random_vector(seed, **names).weights.items()} for seed in (11, 12)]
    share, lambda1, lambda2 = 0.3, 1.0, 0.8
    merger = Fisher(source_share=share).prepare(base.weights, target, star, evidence=Evidence(*fishers))
    merged = merger.weights(lambda1, lambda2)
    norms = [np.sqrt(sum(np.square(weight.numpy()).sum() for weight in fisher.values())) for fisher in fishers]
    for name in names:
        first = base.weights[name].double().numpy() + lambda1 * target.weights[name].double().numpy()
        second = first + lambda2 / share * star.weights[name].double().numpy()
        precision = (1 - share) * fishers[0][name].numpy() / norms[0], share * fishers[1][name].numpy() / norms[1]
        expected = (precision[0] * first + precision[1] * second) / (precision[0] + precision[1])
        assert np.abs(merged[name].numpy() - expected).max() < 1e-5


def test_fisher_knows_its_limits():
    star = vector(w=[1.0, 1.0, 1.0, 1.0])
    target, source = {"w": torch.tensor([4.0, 4.0, 0.0, 0.0])}, {"w": torch.tensor([4.0, 0.0, 4.0, 0.0])}
    edited = Fisher(source_share=0.5).edited(star, star, Evidence(target, source)).weights["w"]
    # Equal information is addition; only the target's, nothing; only the source's, 1 / s; nobody's, the target's.
    torch.testing.assert_close(edited, torch.tensor([1.0, 0.0, 2.0, 0.0]), atol=1e-5, rtol=0)
    equal = Fisher(source_share=0.2).edited(star, star, Evidence(target, {"w": 7.0 * target["w"]})).weights["w"]
    torch.testing.assert_close(equal[:2], star.weights["w"][:2])
    with pytest.raises(MergeRuleError, match="0 for every weight"):
        Fisher().edited(star, star, Evidence(target, {"w": torch.zeros(4)}))


# GradFix


def test_gradient_sign_keeps_what_lowers_the_loss_to_first_order():
    star = vector(w=[1.0, -2.0, 3.0, -4.0, 5.0])
    gradient = {"w": torch.tensor([0.1, 0.1, -0.1, -0.1, 0.0])}
    edited = GradientSign().edited(star, star, Evidence(class_gradient=gradient)).weights["w"]
    assert edited.tolist() == [0.0, -2.0, 3.0, 0.0, 0.0]
    assert (gradient["w"] * edited).sum() < 0 < (gradient["w"] * (star.weights["w"] - edited)).sum()
