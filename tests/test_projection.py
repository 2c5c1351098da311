"""What labelling will cost: operations against torch's own counter, and the arithmetic of the projection."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.games.coalition_values import CoalitionEvaluator
from core.games.flops import flops_per_evaluation, flops_per_picture
from core.shapley.kernel_shap import sample_coalitions
from sweep.experiment.config import ConfigError
from sweep.experiment.cost import GPUS, IMAGENET_1K_TRAIN, project


@pytest.fixture(scope="module")
def vit_b_32():
    """The image tower's shapes, without weights: operations are counted from these."""
    with torch.device("meta"):
        return open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).visual.eval()


def counted(classifier, fill: str, num_coalitions: int) -> float:
    size = classifier.visual.image_size[0]
    evaluator = CoalitionEvaluator(classifier, fill=fill)
    coalitions = torch.from_numpy(sample_coalitions(49, 512, seed=0).coalitions[100 : 100 + num_coalitions])
    # oneDNN's product is the one operation of the tower that torch's counter does not know.
    linear = {torch.ops.mkldnn._linear_pointwise: lambda rows, weight, *_, **__: 2 * rows[0] * rows[1] * weight[0]}
    with FlopCounterMode(display=False, custom_mapping=linear) as counter:
        evaluator._values(torch.zeros(1, 3, size, size), torch.tensor([0]), coalitions)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("fill", ["mean", "drop"])
def test_operations_of_the_miniature_and_of_a_larger_tower_are_those_torch_counts(fill, sign_classifier, vit_classifier):
    for classifier, number in ((sign_classifier, 64), (vit_classifier, 4)):
        visual = classifier.visual
        few, many = counted(classifier, fill, number), counted(classifier, fill, 3 * number)
        per_evaluation = (many - few) / (2 * number)
        # The drawn coalitions' lengths are not exactly half; only attention, a few percent, is not linear in them.
        assert flops_per_evaluation(visual, fill) == pytest.approx(per_evaluation, rel=0.01 if fill == "mean" else 0.05)
        if fill == "mean":
            once = few - number * per_evaluation
            assert 2 * flops_per_picture(visual) == pytest.approx(once, rel=0.05)  # the picture and the fill


def test_a_vit_b_32_evaluation_costs_less_than_the_plain_forward_pass(vit_b_32):
    torch.backends.mha.set_fastpath_enabled(False)  # whose one fused operation the counter does not know
    try:
        with FlopCounterMode(display=False) as counter:
            vit_b_32(torch.zeros(1, 3, 224, 224, device="meta"))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert 0.7 < flops_per_evaluation(vit_b_32) / counter.get_total_flops() < 0.9


def test_projection_of_imagenet(vit_b_32):
    flops = flops_per_evaluation(vit_b_32), flops_per_picture(vit_b_32)
    projection = project(IMAGENET_1K_TRAIN, 500, *flops, gpu="H100", utilisation=0.5, price_per_hour=3.0)
    assert projection.evaluations == 1_281_167 * 502
    assert projection.flops == pytest.approx(5.0e18, rel=0.05)
    assert projection.gpu_hours == pytest.approx(projection.flops / (989e12 * 0.5) / 3600)
    assert 2.0 < projection.gpu_hours < 3.5
    assert projection.price == pytest.approx(3 * projection.gpu_hours)
    text = str(projection)
    assert "1,281,167 pictures" in text and "H100" in text and "price" in text


def test_projections_scale_and_refuse_what_they_cannot_know():
    one = project(1000, 100, 1e9)
    assert project(2000, 100, 1e9).gpu_hours == pytest.approx(2 * one.gpu_hours)
    assert project(1000, 100, 1e9, utilisation=0.25).gpu_hours == pytest.approx(2 * one.gpu_hours)
    assert project(1000, 100, 1e9, gpu="A100").gpu_hours == pytest.approx(one.gpu_hours * GPUS["H100"] / GPUS["A100"])
    assert project(1000, 100, 1e9, num_calibration_evaluations=7).evaluations == one.evaluations + 7
    assert one.price is None and "price" not in str(one)
    with pytest.raises(ConfigError, match="choose among A10G"):
        project(1, 100, 1e9, gpu="TPU")
    with pytest.raises(ConfigError, match="utilisation"):
        project(1, 100, 1e9, utilisation=1.5)
