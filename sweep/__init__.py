"""Sweeps of explainability vectors, and the models that come of them: `sweep.load(DIR).explain(pictures).plot()`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweep.explain.model import ExplainingModel

__all__ = ["load"]


def load(directory: str | Path, device: str = "cpu") -> ExplainingModel:
    """The model that `transfer` wrote to a directory, ready to classify and explain pictures. device: "cpu" or "cuda".

    Raises ModelDirectoryError, with the fix, for a directory without a whole model.
    """
    from sweep.explain.model import ExplainingModel  # torch and open_clip take seconds, which `import sweep` must not

    return ExplainingModel.load(Path(directory), device)
