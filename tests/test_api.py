"""`sweep.load`: what its explanations say is what the classifier computes, and the libraries that draw them take them as they are."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from transfers import CLASS_NAMES, stacked, write_explaining_model, write_pictures

import sweep
from core.attribution_head import AttributionHead
from core.games.coalition_values import CoalitionEvaluator
from core.model_directory import ModelDirectoryError
from core.value_function import ValueFunction
from sweep.explain.model import UnknownClassError
from sweep.explain.overlays import coloured, overlay
from sweep.explain.pictures import PicturesError

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 7, by_class=False)


@pytest.fixture(scope="module")
def model(base, tmp_path_factory):
    return sweep.load(write_explaining_model(tmp_path_factory.mktemp("models") / "signs", base, AttributionHead("efficiency", 2.0)))


@pytest.fixture(scope="module")
def pixels(pictures):
    return stacked(pictures)


def inputs_of(model, pixels):
    return model.preprocessing.normalise(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))


def test_importing_the_package_loads_no_library():
    code = "import sys, sweep; sweep.load; print([m for m in ('torch', 'shap', 'open_clip', 'mlflow', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_explanation_is_the_classifiers_own_forward_pass(model, pictures, pixels):
    explanation = model.explain(pictures, batch_size=3)
    with torch.no_grad():
        explained = model.classifier(inputs_of(model, pixels))
    predicted = explained.logits.argmax(1).numpy()
    assert explanation.values.shape == (7, 56, 56, 1, 1) and explanation.maps.shape == (7, 1, 7, 7)
    np.testing.assert_allclose(explanation.maps.reshape(7, 49), explained.attributions.numpy(), atol=1e-5)
    assert np.asarray(explanation.output_names)[:, 0].tolist() == [CLASS_NAMES[i] for i in predicted]
    assert np.array_equal(explanation.data, pixels) and explanation.instance_names[0] == "000.png"
    assert explanation.error_std is None


def test_maps_and_base_value_sum_to_the_value_of_the_whole_picture(model, pictures, pixels):
    explanation = model.explain(pictures, classes=list(CLASS_NAMES[:3]))
    evaluator = CoalitionEvaluator(model.classifier)
    ends = torch.stack([torch.zeros(49, dtype=torch.bool), torch.ones(49, dtype=torch.bool)])
    for output in range(3):
        values = evaluator.values(inputs_of(model, pixels), torch.full((7,), output), ends).numpy()
        np.testing.assert_allclose(explanation.base_values[:, output], values[:, 0], atol=1e-4)
        total = explanation.values[..., output].sum(axis=(1, 2, 3)) + explanation.base_values[:, output]
        np.testing.assert_allclose(total, values[:, 1], atol=1e-4)


@pytest.mark.parametrize("number", [1, 3, 56])
def test_shap_takes_any_number_of_pictures_and_slices_them(model, pixels, number):
    import shap

    many = [Image.fromarray(p) for p in np.resize(pixels, (number, *pixels.shape[1:]))]
    explanation = model.explain(many, classes=["stop sign", CLASS_NAMES[0]])
    assert isinstance(explanation, shap.Explanation) and explanation.output_dims == (4,)
    some = explanation[: min(2, number)]
    np.testing.assert_allclose(some.maps, explanation.maps[:2], atol=1e-6)  # sums of float32, in whatever order
    figure = some.plot(show=False)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[1:3] == ["stop sign", CLASS_NAMES[0]]
    drawn = figure.axes[1].images[1].get_array()
    np.testing.assert_allclose(drawn, explanation.values[0, :, :, 0, 0])
    matplotlib.pyplot.close(figure)


def test_attribute_is_captums_and_its_gap_is_that_of_efficiency(base, model, pixels, tmp_path):
    inputs = inputs_of(model, pixels)
    target = torch.arange(7)
    attributions = model.attribute(inputs, target)
    assert attributions.shape == inputs.shape
    delta = model.compute_convergence_delta(attributions, None, inputs, target)
    torch.testing.assert_close(delta, torch.zeros(7), atol=1e-4, rtol=0)
    grey = model.compute_convergence_delta(attributions, torch.zeros_like(inputs), inputs, target)
    torch.testing.assert_close(grey, delta, atol=1e-4, rtol=0)
    assert torch.equal(model.attribute(inputs, 3), model.attribute(inputs, torch.full((7,), 3)))
    # The paper's head owes nothing to efficiency: its gap is what Captum's formula says, with values from plain forward passes.
    plain = sweep.load(write_explaining_model(tmp_path / "cosine", base, AttributionHead("cosine", game=ValueFunction("probability"))))
    attributions = plain.attribute(inputs, 2)
    with torch.no_grad():
        value = lambda x: plain.classifier.logits(x).softmax(1)[:, 2]  # noqa: E731
        expected = attributions.sum(dim=(1, 2, 3)) - (value(inputs) - value(torch.zeros_like(inputs)))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(plain.compute_convergence_delta(attributions, None, inputs, 2), expected, atol=1e-4, rtol=0)


def test_predictions_are_probabilities_in_the_pictures_order(model, pictures, pixels):
    predictions = model.predict(sorted(pictures.glob("*.png")), batch_size=2)
    with torch.no_grad():
        expected = model.classifier.logits(inputs_of(model, pixels)).softmax(1).numpy()
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-5)
    assert predictions.class_names == tuple(CLASS_NAMES[i] for i in expected.argmax(1)) and predictions.names[3] == "003.png"


def test_all_forms_of_a_picture_are_the_same_picture(model, pictures, pixels):
    path = pictures / "000.png"
    forms = [path, str(path), [path], Image.open(path), pixels[0], pixels[:1], [pixels[0]]]
    maps = [model.explain(form).maps for form in forms]
    assert all(np.array_equal(found, maps[0]) for found in maps)


def test_what_is_no_picture_is_refused_and_damage_in_a_folder_left_out(model, pictures, pixels, tmp_path):
    for wrong, message in [
        (pixels[0] / 255.0, "of float64: give a path"),
        (pixels[0, :, :, 0], r"\[56, 56\]"),
        ([3], "a int"),
        ([], "no picture that can be read"),
    ]:
        with pytest.raises(PicturesError, match=message):
            model.explain(wrong)
    with pytest.raises(UnknownClassError, match="no class 'stp sign': did you mean 'stop sign'"):
        model.explain(pictures, classes="stp sign")
    with pytest.raises(ModelDirectoryError, match="make one with `transfer`"):
        sweep.load(tmp_path)
    (tmp_path / "good.png").write_bytes((pictures / "000.png").read_bytes())
    (tmp_path / "bad.png").write_bytes((pictures / "000.png").read_bytes()[:60])
    assert model.explain(tmp_path).instance_names == ["good.png"]


def test_overlays_are_what_show_cam_on_image_accepts(model, pictures, pixels):
    explanation = model.explain(pictures)
    rgb, mask = explanation.overlay(2)
    attributions = explanation.maps[2, 0]
    assert rgb.shape == (56, 56, 3) and mask.shape == (56, 56) and rgb.dtype == mask.dtype == np.float32
    assert rgb.max() <= 1.0 and mask.min() >= 0.0 and 0.5 < mask.max() <= 1.0  # its own checks
    np.testing.assert_allclose(rgb * 255, pixels[2], atol=1e-4)
    positive = torch.from_numpy(attributions).clamp_min(0.0)[None, None]
    smooth = torch.nn.functional.interpolate(positive / positive.max(), (56, 56), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(mask, smooth, atol=1e-5)
    assert not overlay(pixels[0], -np.ones((7, 7)))[1].any()


def test_show_cam_on_image_draws_an_overlay(model, pictures):
    show = pytest.importorskip("pytorch_grad_cam.utils.image", reason="pytorch-grad-cam is not installed").show_cam_on_image
    explanation = model.explain(pictures)
    rgb, mask = explanation.overlay(2)
    drawn = show(rgb, mask, use_rgb=True)
    assert drawn.shape == rgb.shape and drawn.dtype == np.uint8
    assert (drawn != show(rgb, np.zeros_like(mask), use_rgb=True)).any()


def test_colours_are_red_for_and_blue_against(pixels):
    attributions = np.zeros((7, 7))
    attributions[1, 2], attributions[5, 5] = 1.0, -0.5
    drawn = coloured(pixels[0], attributions).astype(int)
    assert drawn.shape == (224, 224, 3)
    red, blue, rest = drawn[40:60, 70:90], drawn[165:185, 165:185], drawn[:28, :28]
    assert (red[..., 0] > red[..., 2]).all() and (blue[..., 2] > blue[..., 0]).all() and np.ptp(rest, axis=2).max() == 0
