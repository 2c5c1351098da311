"""The estimators of Shapley values by name. What each declares is in `estimator`; adding one is a module and a line here.

kernel_shap: constrained regression over paired coalitions, the paper's. leverage: the same regression, coalitions drawn by leverage.
permutation: antithetic permutations, unbiased. size_adjusted: kernel_shap with the effect of a coalition's size taken out: the same
limit, much less variance. calibrated: size_adjusted with a prior learned from some of the data set's pictures, a shrinkage estimator.
surrogate: a network learned from the data set's own evaluations predicts every game, and a picture's own correct it; shrinkage too.
shap: `shap.KernelExplainer` itself, for comparison.
"""

from __future__ import annotations

from core.shapley.calibration import CALIBRATED
from core.shapley.estimator import Design, Estimator, Learned, Seed
from core.shapley.kernel_shap import KERNEL_SHAP, LEVERAGE
from core.shapley.permutation import PERMUTATION
from core.shapley.shap_library import SHAP
from core.shapley.size_adjustment import SIZE_ADJUSTED
from core.shapley.surrogate import SURROGATE

ESTIMATORS: dict[str, Estimator] = {
    estimator.name: estimator for estimator in (KERNEL_SHAP, LEVERAGE, PERMUTATION, SIZE_ADJUSTED, CALIBRATED, SURROGATE, SHAP)
}


def find_estimator(name: str) -> Estimator:
    """The estimator of that name. Raises ValueError where there is none."""
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}: choose among {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def make_design(
    name: str, num_players: int, budget: int, seed: Seed = 0, *, learned: Learned | None = None, l1_reg: str = "none"
) -> Design:
    """A design of one estimator. Raises ValueError when the budget cannot be solved or the options do not go together."""
    estimator = find_estimator(name)
    estimator.check_l1_reg(l1_reg)
    sample = estimator.draw(num_players, budget, seed)
    return Design(sample, estimator.solver(sample, learned, l1_reg))
