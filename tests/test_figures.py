"""The figures show what the frames say, where they say it."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from synthetic_result import DOMAINS, synthetic_result

from core.metrics import iou_at, top_patches
from core.statistics import pearson
from sweep.report.figures.coefficients import caption, coefficient_panels
from sweep.report.figures.convergence import caption as convergence_caption
from sweep.report.figures.convergence import convergence_panel
from sweep.report.figures.examples import example_rows
from sweep.report.figures.highlighting import faded, outline
from sweep.report.figures.matrices import matrix_panel
from sweep.report.figures.similarities import similarity_correlations
from sweep.report.figures.trade_off import trade_off
from sweep.report.result import SweepResult
from sweep.report.tables import chosen_pairs, paper_points


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return synthetic_result(num_examples=2)


def _points(figure: Figure, panel: int, gid: str) -> np.ndarray:
    found = [c.get_offsets() for c in figure.axes[panel].collections if c.get_gid() == gid]
    return np.concatenate(found)


def _sorted(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.T)]


def test_trade_off_plots_every_pair_where_the_frame_says(result):
    figure, pairs = trade_off(result), chosen_pairs(result)
    for panel, column in ((0, "normalized_e_rmse"), (1, "iou_at_10")):
        expected = pairs[[column, "normalized_accuracy"]].to_numpy()
        np.testing.assert_allclose(_sorted(_points(figure, panel, "pairs")), _sorted(expected))
    zero = sorted(line.get_xdata()[0] for line in figure.axes[0].lines if line.get_gid() == "zero_predictor")
    own = result.references.set_index(["reference", "domain"])["e_rmse"]
    np.testing.assert_allclose(zero, sorted(own["zero_predictor"] / own["prediction_only"]))
    chance = [line.get_xdata()[0] for line in figure.axes[1].lines if line.get_gid() == "chance"]
    assert chance == [pytest.approx(0.118, abs=5e-4)]


def test_trade_off_colour_is_the_source_and_shape_the_target(result):
    figure, pairs = trade_off(result), chosen_pairs(result)
    groups = [c for c in figure.axes[0].collections if c.get_gid() == "pairs"]
    assert len(groups) == len(DOMAINS)
    colour_of: dict[str, tuple[float, ...]] = {}
    for target, group in zip(DOMAINS, groups, strict=True):
        sources = pairs[pairs["target_domain"] == target]["source_domain"]
        for source, colour in zip(sources, group.get_facecolors(), strict=True):
            assert colour_of.setdefault(source, tuple(colour)) == tuple(colour)
    assert len(set(colour_of.values())) == len(DOMAINS)
    assert len({group.get_paths()[0].vertices.tobytes() for group in groups}) == len(DOMAINS)


@pytest.mark.parametrize(("alphas", "num_bands"), [([0.3, 0.5, 0.7], len(DOMAINS)), ([0.2, 0.5], 0)])
def test_curves_have_a_band_where_there_are_alphas_enough(alphas, num_bands):
    figure = coefficient_panels(synthetic_result(alphas=alphas, num_examples=0))
    for axes in figure.axes[:3]:
        assert sum(collection.get_gid() == "bands" for collection in axes.collections) == num_bands
        assert len([line for line in axes.lines if line.get_marker() not in ("None", "")]) == len(DOMAINS)


def test_curves_of_a_universal_sweep_are_of_one_source_each():
    """A row of panels a source, each named, with axes that say what they are."""
    result = synthetic_result(DOMAINS[:3], sources=["concepts", "others"], command="universal", num_examples=0)
    figure = coefficient_panels(result)
    *panels, _ = figure.axes
    assert [axes.get_title() for axes in panels] == [
        "(a) concepts", "(b) concepts", "(c) concepts", "(d) others", "(e) others", "(f) others",
    ]  # fmt: skip
    assert all(axes.get_ylabel().endswith("is better)") for axes in panels)
    pairs = chosen_pairs(result).set_index(["source_domain", "target_domain"])
    cells = result.cells[result.cells["split"] == "validation"]
    for row, source in enumerate(("concepts", "others")):
        for line, target in zip(panels[3 * row + 1].lines, DOMAINS[:3], strict=False):
            own = cells[(cells["source_domain"] == source) & (cells["target_domain"] == target)]
            own = own[np.isclose(own["alpha"], pairs.loc[(source, target), "alpha"])]
            np.testing.assert_allclose(line.get_ydata(), own.sort_values("lambda2")["iou_at_10"])
    assert "A row of panels each: concepts, others." in caption(result).text


def test_levels_differ_in_colour_and_dashes_from_each_other_and_from_the_references():
    """Figure 6. With dashes that differ a line is known to who sees no hue."""
    result = synthetic_result(DOMAINS[:4], sources=["concepts", "others", "concepts,others"], has_convergence=True, num_examples=0)
    axes = convergence_panel(result).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:2] == ["Kernel SHAP", "its 95 % interval, 4 targets"]
    lines = [line for line in axes.lines if str(line.get_label()).startswith(("from", "chance", "label"))]
    assert len(lines) == 5
    for number, line in enumerate(lines):
        for other in lines[:number]:
            assert np.abs(np.subtract(to_rgb(line.get_color()), to_rgb(other.get_color()))).max() > 0.2
            assert line.get_linestyle() != other.get_linestyle() or line._unscaled_dash_pattern != other._unscaled_dash_pattern


def test_curve_and_level_of_figure_6_are_of_the_same_pictures():
    """A level is the mean over the targets of their pictures' overlap in one pass; pictures that are on the curve alone do not count."""
    result = synthetic_result(DOMAINS[:4], sources=["concepts"], has_convergence=True, num_examples=0)
    few = replace(result, one_pass=result.one_pass[result.one_pass["picture"] < 3])
    for found, pictures in ((result, 6), (few, 3)):
        level = next(line for line in convergence_panel(found).axes[0].lines if str(line.get_label()).startswith("from"))
        expected = found.one_pass.groupby("target_domain")["iou_at_10"].mean().mean()
        assert level.get_ydata()[0] == pytest.approx(expected)
        assert f"over {4 * pictures} pictures" in convergence_caption(found).text
    steady = replace(result, one_pass=result.one_pass.assign(iou_at_10=result.one_pass["iou_at_10"].mean()))
    width = lambda found: np.ptp([float(n) for n in re.findall(r"interval (\d+) to (\d+)", convergence_caption(found).text)[0]])  # noqa: E731
    assert width(result) > width(steady)  # the level's own error counts


def test_correlation_panels_state_r_of_what_they_plot(result):
    figure = similarity_correlations(result)
    assert len(figure.axes) == 6
    for panel in range(6):
        points = _points(figure, panel, "pairs")
        fit = pearson(points[:, 0], points[:, 1])
        text = next(t.get_text() for t in figure.axes[panel].texts)
        low, high = re.fullmatch(rf"r = {fit.r:.2f} \[(.+), (.+)\], p [<=] .*", text).groups()
        assert float(low) <= round(fit.r, 2) <= float(high)
        (line,) = figure.axes[panel].lines
        slope, intercept = np.polyfit(points[:, 0], points[:, 1], 1)
        np.testing.assert_allclose(line.get_ydata(), slope * line.get_xdata() + intercept)
    fixed, chosen = paper_points(result), chosen_pairs(result)
    assert set(fixed["lambda2"]) == {0.8} and len(set(chosen["lambda2"])) > 1
    np.testing.assert_allclose(_points(figure, 2, "pairs"), fixed[["similarity_prediction_only", "e_rmse"]])
    within = chosen[["similarity_prediction_only", "normalized_e_rmse"]] - chosen.groupby("target_domain")[
        ["similarity_prediction_only", "normalized_e_rmse"]
    ].transform("mean")
    np.testing.assert_allclose(_points(figure, 5, "pairs"), within)


def test_matrix_holds_each_pair_in_its_place_and_supervised_on_the_diagonal(result):
    image = matrix_panel(result, "correlation").axes[0].images[0]
    shown = np.ma.getdata(image.get_array())
    pairs = chosen_pairs(result).set_index(["source_domain", "target_domain"])
    assert shown[0, 5] == pairs.loc[("cars", "scenes"), "correlation"]
    assert shown[5, 0] == pairs.loc[("scenes", "cars"), "correlation"]
    supervised = result.references.query("reference == 'supervised' and domain == 'cars'")["correlation"]
    assert supervised.min() <= shown[0, 0] <= supervised.max()


@pytest.mark.parametrize("column", ["normalized_e_rmse", "normalized_accuracy"])
def test_normalised_matrices_are_centred_on_the_prediction_only_model(result, column):
    norm = matrix_panel(result, column).axes[0].images[0].norm
    assert norm(1.0) == pytest.approx(0.5)
    assert norm.vmax - 1 == pytest.approx(1 - norm.vmin)


def test_example_rows_state_the_overlap_that_they_show(result):
    example = result.examples[0]
    axes = example_rows([example]).axes[0]
    shown = {text.get_gid(): text.get_text() for text in axes.texts if text.get_gid()}
    maps = {name: values[None] for name, values in example.attributions.items()}
    label = maps.pop("label")
    assert shown == {name: f"{iou_at(10, values, label):.2f}" for name, values in maps.items()}


def test_example_columns_are_the_papers_and_a_combined_source_has_no_model_of_its_own(result):
    """Figure 5: the proposed model, the target's, the source's two, zero-shot; supervised beside them."""
    example = result.examples[0]
    combined = replace(example, attributions={k: v for k, v in example.attributions.items() if not k.startswith("source_")})
    axes = example_rows([example, combined]).axes[0]
    titles = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold" and text.get_ha() == "center"]
    assert titles == [
        "input", "label", "transferred", "prediction-only", "source,\nprediction-only", "source,\nself-explaining", "zero-shot",
        "supervised",
    ]  # fmt: skip
    missing = [text for text in axes.texts if text.get_text() == "no such\nmodel"]
    assert [round(text.get_position()[0] - 0.47) for text in missing] == [4, 5]
    assert "not run" not in [text.get_text() for text in axes.texts]


def test_only_the_top_patches_keep_their_colours():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (60, 50, 3), dtype=np.uint8)  # neither side is a multiple of 7
    attributions = rng.normal(size=49).astype(np.float32)
    is_top = top_patches(attributions[None], 10)[0]
    is_kept = (faded(pixels, is_top) == pixels).all(axis=2)
    for row in range(60):
        for column in range(50):
            if is_top[(row * 7 // 60) * 7 + column * 7 // 50]:
                assert is_kept[row, column]
    # A grey and pale pixel can equal its original only by accident.
    assert is_kept.mean() == pytest.approx(10 / 49, abs=0.03)


def test_the_outline_surrounds_the_top_patches():
    alone, joined, edge = np.zeros(49, bool), np.zeros(49, bool), np.zeros(49, bool)
    alone[24], joined[[24, 25]], edge[0] = True, True, True
    assert len(outline(alone)) == 4 and len(outline(joined)) == 6 and len(outline(edge)) == 4
    corners = {point for segment in outline(alone) for point in segment}
    np.testing.assert_allclose(sorted(corners), [(a / 7, b / 7) for a in (3, 4) for b in (3, 4)])


def test_only_where_a_source_is_a_target_a_matrix_holds_the_supervised_model():
    result = synthetic_result(DOMAINS[:4], sources=["imagenet", DOMAINS[2], "others"], num_examples=0)
    axes = matrix_panel(result, "correlation").axes[0]
    shown = np.ma.getdata(axes.images[0].get_array())
    pairs = chosen_pairs(result).set_index(["source_domain", "target_domain"])["correlation"]
    assert shown.shape == (3, 4)
    assert shown[0, 3] == pairs["imagenet", DOMAINS[3]] and shown[2, 0] == pairs["others", DOMAINS[0]]
    (frame,) = [line for line in axes.lines if line.get_gid() == "supervised"]
    assert (np.mean(frame.get_xdata()[:4]), np.mean(frame.get_ydata()[:4])) == pytest.approx((2, 1))
    assert (DOMAINS[2], DOMAINS[2]) not in pairs.index and np.isfinite(shown[1, 2])


def test_sources_that_are_no_targets_have_a_legend_of_their_own():
    figure = trade_off(synthetic_result(DOMAINS[:3], sources=["imagenet", "others"], num_examples=0))
    sources, targets = ([text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[2:])
    assert sources == ["imagenet", "others"] and targets == list(DOMAINS[:3])
    colours = {tuple(colour) for c in figure.axes[0].collections if c.get_gid() == "pairs" for colour in c.get_facecolors()}
    assert len(colours) == 2
