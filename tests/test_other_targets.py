"""The point that other targets choose: known cases, and that in a sweep nothing of the target itself has a part in it."""

from __future__ import annotations

import pandas as pd
import pytest

from sweep.stages.other_targets import common_point


def cells(accuracies: list[float], alpha: float = 0.2, infidelity: float = 1.0, step: float = 0.5) -> pd.DataFrame:
    lambdas = [step * i for i in range(len(accuracies))]
    return pd.DataFrame(
        {"alpha": alpha, "lambda2": lambdas, "normalized_accuracy": accuracies, "infidelity_at_best_scale": infidelity}
    ).sample(frac=1.0, random_state=0)


def test_the_mean_of_the_targets_is_bounded_not_each():
    """One loses a tenth at 1, the other nothing: together a twentieth."""
    assert common_point([cells([1.0, 1.0, 0.9]), cells([1.0, 1.0, 1.0])], 0.95) == (0.2, 1.0)
    assert common_point([cells([1.0, 1.0, 0.9]), cells([1.0, 1.0, 0.9])], 0.95) == (0.2, 0.75)


def test_targets_looked_at_elsewhere_are_straight_between_their_points():
    assert common_point([cells([1.0, 0.9], step=1.0), cells([1.0, 1.0, 0.9])], 0.975) == (0.2, pytest.approx(0.5))


def test_it_goes_no_further_than_every_target_was_looked_at_and_not_beyond_a_dip():
    assert common_point([cells([1.0, 1.0, 1.0]), cells([1.0, 1.0])], 0.95) == (0.2, 0.5)
    assert common_point([cells([1.0, 0.5, 1.0])], 0.95)[1] == pytest.approx(0.05)


def test_between_alphas_the_better_maps_decide():
    two = [pd.concat([cells([1.0, 1.0], 0.2, 0.3), cells([1.0, 0.9], 0.5, 0.2)])]
    assert common_point(two, 0.95) == (0.5, 0.25)
    undefined = [pd.concat([cells([1.0, 1.0], 0.2, 0.3), cells([1.0, 0.9], 0.5, float("nan"))])]
    assert common_point(undefined, 0.95) == (0.2, 0.5)


def test_the_point_at_zero_is_of_every_alpha():
    """Looked at with the first alpha alone, as a study does; the other one is kept up to the middle of 0 and its first point."""
    studied = cells([1.0, 0.9], 0.2, 0.3)
    other = cells([1.0, 0.9, 0.9], 0.5, 0.2)
    assert common_point([pd.concat([studied, other[other["lambda2"] > 0.0]])], 0.95) == (0.5, 0.25)
