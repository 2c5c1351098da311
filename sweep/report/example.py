"""One test picture of a target with every model's attributions, and how a transferred model's change with lambda2."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXAMPLE_ATTRIBUTIONS = (
    "label", "transferred", "prediction_only", "source_prediction_only", "source_self_explaining", "zero_shot", "supervised",
)  # fmt: skip
"""In the order of the paper's Figure 5, which has all but the last."""


class ExampleError(ValueError):
    """A picture whose maps do not fit it or each other."""


@dataclass(frozen=True, eq=False)
class LambdaMaps:
    """What one pair's transferred models say of a picture, at some evaluated points of the pair's chosen alpha.

    lambdas: [L], ascending. attributions: float32 [L, M], of the true class, calibrated where the pair's points are. class_names: [L], the
    predicted classes; probabilities: [L], their softmax.
    """

    lambdas: tuple[float, ...]
    attributions: NDArray[np.float32]
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("lambdas", "class_names", "probabilities"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        number = len(self.lambdas)
        if not number or list(self.lambdas) != sorted(set(self.lambdas)):
            raise ExampleError(f"maps over lambda2 need one or more lambda2, ascending, not {list(self.lambdas)}")
        if {len(self.attributions), len(self.class_names), len(self.probabilities)} != {number}:
            raise ExampleError(f"maps over lambda2 need a map, a class and a probability for each of {number} lambda2")
        if not np.isfinite(self.attributions).all():
            raise ExampleError("maps over lambda2 are not finite: leave that pair out of the example")


@dataclass(frozen=True, eq=False)
class Example:
    """One test picture with the attributions of its true class from every model that is compared.

    pixels: uint8 [H, W, 3]; attributions: name in EXAMPLE_ATTRIBUTIONS -> float32 [M], M = g * g patches row by row.
    `label` must be there; a model that was not run is left out. `source_domain` is where `transferred` came from; `source_prediction_only`
    and `source_self_explaining` are its own models with the target's classes, which a source of combined vectors does not have.
    over_lambda: source -> the maps of its pair with this target; may be of no source.
    """

    domain: str
    source_domain: str
    class_name: str
    pixels: NDArray[np.uint8]
    attributions: Mapping[str, NDArray[np.float32]]
    over_lambda: Mapping[str, LambdaMaps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ExampleError(f"example pixels must be uint8 [H, W, 3], not {self.pixels.dtype} {self.pixels.shape}")
        unknown = set(self.attributions) - set(EXAMPLE_ATTRIBUTIONS)
        if unknown or "label" not in self.attributions:
            raise ExampleError(f"example attributions need 'label' and may hold {EXAMPLE_ATTRIBUTIONS}, not {unknown}")
        num_players = len(self.attributions["label"])
        for name, values in self.attributions.items():
            if values.shape != (num_players,) or math.isqrt(num_players) ** 2 != num_players:
                raise ExampleError(f"example attributions {name!r} must be [g * g], not {values.shape}")
            if not np.isfinite(values).all():
                raise ExampleError(f"example attributions {name!r} are not finite: leave that model out of the example")
        for source, maps in self.over_lambda.items():
            if maps.attributions.shape[1:] != (num_players,):
                raise ExampleError(f"maps over lambda2 from {source!r} must be [L, {num_players}], not {maps.attributions.shape}")

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Its arrays by name."""
        yield "pixels", self.pixels
        for name, values in self.attributions.items():
            yield name, values.astype(np.float32)
        for number, maps in enumerate(self.over_lambda.values()):
            yield f"over_lambda/{number}", maps.attributions.astype(np.float32)

    def description(self) -> dict[str, Any]:
        """The rest of it, for JSON."""
        return {
            "domain": self.domain,
            "source_domain": self.source_domain,
            "class_name": self.class_name,
            "over_lambda": [
                {
                    "source_domain": source,
                    "lambdas": list(maps.lambdas),
                    "class_names": list(maps.class_names),
                    "probabilities": list(maps.probabilities),
                }
                for source, maps in self.over_lambda.items()
            ],
        }

    @classmethod
    def from_parts(cls, description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> "Example":
        """Of what `description` and `arrays` gave."""
        parts = dict(description)
        over_lambda = {
            found.pop("source_domain"): LambdaMaps(attributions=arrays[f"over_lambda/{number}"], **found)
            for number, found in enumerate(dict(part) for part in parts.pop("over_lambda"))
        }
        attributions = {name: arrays[name] for name in EXAMPLE_ATTRIBUTIONS if name in arrays}
        return cls(**parts, pixels=arrays["pixels"], attributions=attributions, over_lambda=over_lambda)
