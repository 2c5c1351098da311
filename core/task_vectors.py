"""Task arithmetic: equations 1 to 3, 6 and 7 of the paper, over the image tower's trained weights. Equation 8 is in `core.merging.rule`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Weights = Mapping[str, Tensor]
"""The image tower's weights by name."""


BASE_FINGERPRINT, RANK = "base_fingerprint", "rank"
"""Metadata of the files; the second only of those that hold factors (`core.low_rank`)."""
_ATTRIBUTION_FISHER = "attribution_fisher."
"""Before the names of tensors that are no part of the vector, but what a merge rule needs besides it (`core.merging.rule.Evidence`)."""


class TaskVectorError(ValueError):
    """Weights that do not belong together, or a file that holds no task vector."""


@dataclass(frozen=True, eq=False)
class TaskVector:
    """A difference of weights with the same names and shapes, tied to the base model it was made from by the base's fingerprint."""

    weights: dict[str, Tensor]
    base_fingerprint: str

    @staticmethod
    def between(fine_tuned: Weights, start: Weights, base_fingerprint: str) -> TaskVector:
        """fine_tuned - start: a task vector tau for start = base; the explainability vector tau_star for self-explaining minus
        prediction-only weights of one domain. Raises TaskVectorError when names or shapes differ."""
        check_same_weights(fine_tuned, start)
        return TaskVector({k: fine_tuned[k] - start[k] for k in start}, base_fingerprint)

    def __add__(self, other: TaskVector) -> TaskVector:
        self.check_same_base(other)
        return TaskVector({k: v + other.weights[k] for k, v in self.weights.items()}, self.base_fingerprint)

    def __sub__(self, other: TaskVector) -> TaskVector:
        self.check_same_base(other)
        return TaskVector({k: v - other.weights[k] for k, v in self.weights.items()}, self.base_fingerprint)

    def __mul__(self, scaling_coefficient: float) -> TaskVector:
        return TaskVector({k: v * scaling_coefficient for k, v in self.weights.items()}, self.base_fingerprint)

    __rmul__ = __mul__

    def norm(self) -> float:
        """L2 norm over all weights."""
        return self._flat().norm().item()

    def cosine_similarity(self, other: TaskVector) -> float:
        """Cosine of the angle between two task vectors, in [-1, 1]; nan where one of them is zero."""
        self.check_same_base(other)
        a, b = self._flat(), other._flat()
        return (a @ b / (a.norm() * b.norm())).item() if a.norm() > 0 and b.norm() > 0 else float("nan")

    def apply_to(self, weights: Weights, scaling_coefficient: float = 1.0) -> dict[str, Tensor]:
        """weights + scaling_coefficient * self."""
        check_same_weights(weights, self.weights)
        return {k: v + scaling_coefficient * self.weights[k] for k, v in weights.items()}

    def to(self, device: torch.device | str) -> TaskVector:
        """The vector on a device: itself, where it is there already."""
        moved = {k: v.to(device) for k, v in self.weights.items()}
        return self if all(moved[k] is v for k, v in self.weights.items()) else TaskVector(moved, self.base_fingerprint)

    def save(self, path: Path, metadata: Mapping[str, str] | None = None, attribution_fisher: Weights | None = None) -> None:
        """Write it as safetensors, with the base's fingerprint in the metadata beside what is given.

        attribution_fisher: of the self-explaining model that it comes from, a number a weight; `load_attribution_fisher` reads it.
        Raises TaskVectorError where that is of another architecture.
        """
        described = {**(metadata or {}), BASE_FINGERPRINT: self.base_fingerprint}
        tensors = dict(self.weights)
        if attribution_fisher is not None:
            check_same_weights(self.weights, attribution_fisher)
            tensors |= {f"{_ATTRIBUTION_FISHER}{name}": value for name, value in attribution_fisher.items()}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, described)

    @staticmethod
    def load(path: Path, base_fingerprint: str | None = None) -> TaskVector:
        """Read what `save` wrote. base_fingerprint: of the base that it is meant for.

        Raises TaskVectorError where the file holds no task vector, or one of another base.
        """
        weights, metadata = read_vector_file(path, base_fingerprint)
        if RANK in metadata:
            raise TaskVectorError(f"{path} holds factors of rank {metadata[RANK]}: read it with core.low_rank.load_vector")
        return TaskVector(weights, metadata[BASE_FINGERPRINT])

    def check_same_base(self, other: TaskVector) -> None:
        """Raise TaskVectorError unless both are of one base and one architecture."""
        if self.base_fingerprint != other.base_fingerprint:
            raise TaskVectorError("the task vectors come from different base models: fine-tune both from one")
        check_same_weights(self.weights, other.weights)

    def _flat(self) -> Tensor:
        return torch.cat([v.double().flatten() for _, v in sorted(self.weights.items())])


def read_vector_file(path: Path, base_fingerprint: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, float32 whatever the file has, and metadata of a task vector's file; what is there for a merge rule besides is not read.

    Raises TaskVectorError as `TaskVector.load` does.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            own = [name for name in file.keys() if not name.startswith(_ATTRIBUTION_FISHER)]  # noqa: SIM118 - the file is no mapping
            tensors = {name: file.get_tensor(name).float() for name in own}
    except (SafetensorError, OSError) as error:
        raise TaskVectorError(f"{path} cannot be read ({error}): make the vector again") from error
    found = metadata.get(BASE_FINGERPRINT)
    if found is None:
        raise TaskVectorError(f"{path} does not name its base: give a file that TaskVector.save wrote")
    if base_fingerprint is not None and base_fingerprint != found:
        raise TaskVectorError(f"{path} belongs to the base {found[:12]}, not to {base_fingerprint[:12]}: use the base it was made from")
    return tensors, metadata


def load_attribution_fisher(path: Path) -> dict[str, Tensor] | None:
    """What `TaskVector.save` wrote beside a vector, float32 by the weights' names; None where the file has none."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(_ATTRIBUTION_FISHER)]  # noqa: SIM118 - the file is no mapping
        return {name.removeprefix(_ATTRIBUTION_FISHER): file.get_tensor(name).float() for name in names} or None


def gram_matrix(vectors: Sequence[TaskVector]) -> Tensor:
    """Inner products of n task vectors, float64 [n, n] on the CPU, added up weight by weight: no vector is ever flat as a whole."""
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for vector in vectors[1:]:
        vectors[0].check_same_base(vector)
    for name in vectors[0].weights if vectors else ():
        flat = torch.stack([v.weights[name].flatten().double() for v in vectors])
        gram += (flat @ flat.T).cpu()
    return gram


def cosine_matrix(vectors: Sequence[TaskVector]) -> Tensor:
    """Cosine similarities of n task vectors, float64 [n, n]; nan where one of them is zero."""
    gram = gram_matrix(vectors)
    norm = gram.diagonal().sqrt()
    return gram / (norm[:, None] * norm[None, :])


def check_same_weights(a: Weights, b: Weights) -> None:
    """Raise TaskVectorError unless names and shapes agree."""
    if a.keys() != b.keys():
        names = sorted(a.keys() ^ b.keys())
        raise TaskVectorError(f"the weights belong to different architectures: {len(names)} names differ, e.g. {names[0]}")
    for name in a:
        if a[name].shape != b[name].shape:
            raise TaskVectorError(f"{name} has shape {list(a[name].shape)} in one model and {list(b[name].shape)} in the other")
