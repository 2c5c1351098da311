"""The estimators of Shapley values by name. What each declares is in `estimator`; adding one is a module that holds it.

kernel_shap: constrained regression over paired coalitions, the paper's. leverage: the same regression, coalitions drawn by leverage.
permutation: antithetic permutations, unbiased. size_adjusted: kernel_shap with the effect of a coalition's size taken out: the same
limit, much less variance. calibrated: size_adjusted with a prior learned from some of the data set's pictures, a shrinkage estimator.
surrogate: a network learned from the data set's own evaluations predicts every game, and a picture's own correct it; shrinkage too.
shap: `shap.KernelExplainer` itself, for comparison.
"""

from __future__ import annotations

import importlib
import pkgutil

from core import shapley
from core.shapley.estimator import Design, Estimator, Learned, Seed


def _declared() -> dict[str, Estimator]:
    """The estimators that the modules of this package hold, by name."""
    names = [module.name for module in pkgutil.iter_modules(shapley.__path__) if f"{shapley.__name__}.{module.name}" != __name__]
    modules = [importlib.import_module(f"{shapley.__name__}.{name}") for name in names]
    found = {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Estimator)}
    return dict(sorted(found.items()))


ESTIMATORS: dict[str, Estimator] = _declared()


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
