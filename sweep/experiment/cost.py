"""What labelling a data set will take: evaluations, operations, GPU-hours and price."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sweep.experiment.config import ConfigError

GPUS: dict[str, float] = {
    "A10G": 70e12,
    "L4": 121e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}
"""Peak of dense bfloat16 matrix products with float32 accumulation, operations a second, from the makers' data sheets (SXM forms)."""

ASSUMED_UTILISATION = 0.5
"""Share of a GPU's peak, where none was measured."""

IMAGENET_1K_TRAIN = 1_281_167


@dataclass(frozen=True)
class Projection:
    """evaluations and flops of all pictures; gpu_hours on one GPU of the name; price in the currency of price_per_hour, or None."""

    num_pictures: int
    evaluations: int
    flops: float
    gpu: str
    utilisation: float
    gpu_hours: float
    price: float | None

    def __str__(self) -> str:
        lines = [
            f"{self.num_pictures:,} pictures, {self.evaluations:,} evaluations, {self.flops:.3g} floating-point operations",
            f"on one {self.gpu} at {self.utilisation:.0%} of its bfloat16 peak (--utilisation): {self.gpu_hours:,.2f} GPU-hours",
        ]
        if self.price is not None:
            lines.append(f"price: {self.price:,.2f} at the rate given")
        return "\n".join(lines)


def project(
    num_pictures: int,
    budget: int,
    flops_per_evaluation: float,
    flops_per_picture: float = 0.0,
    *,
    num_calibration_evaluations: int = 0,
    gpu: str = "H100",
    utilisation: float = ASSUMED_UTILISATION,
    price_per_hour: float | None = None,
) -> Projection:
    """Project the labelling of a data set. budget: evaluations a picture besides the empty and the grand coalition.

    price_per_hour: of one such GPU. Raises ConfigError for a GPU that is not known, a utilisation outside (0, 1] or a price that is none.
    """
    if gpu not in GPUS:
        raise ConfigError(f"the peak of a {gpu!r} is not known: choose among {', '.join(GPUS)}")
    if not 0.0 < utilisation <= 1.0:
        raise ConfigError(f"utilisation must lie in (0, 1], not {utilisation}")
    if price_per_hour is not None and not 0.0 <= price_per_hour < math.inf:
        raise ConfigError(f"price_per_hour must be a finite number, 0 or more, not {price_per_hour}")
    evaluations = num_pictures * (budget + 2) + num_calibration_evaluations
    flops = evaluations * flops_per_evaluation + num_pictures * flops_per_picture
    hours = flops / (GPUS[gpu] * utilisation) / 3600
    return Projection(
        num_pictures, evaluations, flops, gpu, utilisation, hours, None if price_per_hour is None else hours * price_per_hour
    )
