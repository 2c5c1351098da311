"""The card of a transferred model, in the Hub's format: what it is, what made it, its scores and what they are read against, its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from core.model_directory import LoadedModel

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""Of the Hub: OWNER/NAME. The base in this package, or a directory, is none, and the Hub would look for it."""
_MOST_CLASSES = 50
"""Class names that the card lists; all of them are in the model's own files."""
_MADE = {"base", "checkpoint", "vector", "merge", "choice", "attribution_head", "validation", "calibration", "versions"}
"""What `transfer` says of how it made a model."""


@dataclass(frozen=True)
class CardScore:
    """A row of the scores' table. None: there is no such line, or nothing was measured."""

    title: str
    value: float
    checkpoint: float | None = None
    chance: float | None = None
    ceiling: float | None = None


def text(
    name: str, provenance: Mapping[str, Any], class_names: Sequence[str], zero_infidelity: float | None = None, license: str | None = None
) -> str:
    """The card. zero_infidelity: of a map of zeros on the calibration pictures, the line that infidelity is read against."""
    described = _described(name, provenance, class_names, provenance["templates"])
    scores = _scores(provenance["choice"], len(class_names), zero_infidelity)
    return _templates().get_template("model_card.md").render({**described, "license": license, "scores": scores})


def export_text(library: Literal["hf", "timm", "onnx"], name: str, model: LoadedModel) -> str:
    """The card of an exported model: how the library runs it, and all that its provenance tells (none where the model brings none)."""
    provenance = model.provenance
    is_made = provenance.keys() >= _MADE
    zero = provenance.get("zero_infidelity")
    return _templates().get_template(f"export/{library}.md").render({
        **_described(name, provenance, model.class_names, model.templates),
        "is_made": is_made,
        "license": provenance.get("license"),
        "scores": _scores(provenance["choice"], len(model.class_names), zero) if is_made else [],
        "library": {"hf": "transformers"}.get(library, library),
        "grid": model.grid,
        "head": model.classifier.attribution_head,
        "logit_scale": model.classifier.logit_scale,
        "preprocessing": model.preprocessing,
        "resampling": "BICUBIC" if model.preprocessing.interpolation == "bicubic" else "BILINEAR",
    })  # fmt: skip


def _described(name: str, provenance: Mapping[str, Any], class_names: Sequence[str], templates: Sequence[str]) -> dict[str, Any]:
    """What every card tells."""
    base = provenance.get("base", {"name": "", "hub_repository": None})
    repository = base["hub_repository"] or (base["name"] if _REPOSITORY.fullmatch(base["name"]) else None)
    return {
        "calibration": None,
        "validation": None,
        **provenance,
        "name": name,
        "base": base,
        "base_model": repository,
        "class_names": class_names,
        "shown_classes": list(class_names)[:_MOST_CLASSES],
        "templates": templates,
    }


def _scores(choice: Mapping[str, Any], num_classes: int, zero_infidelity: float | None) -> list[CardScore]:
    """Of the chosen point. The ceiling of a transferred model's accuracy is its checkpoint's; an exact map of an additive game scores 0."""
    chosen, before = choice["chosen"], choice["points"][0]
    rows = []
    if chosen["accuracy"] is not None:
        rows.append(CardScore("validation accuracy", chosen["accuracy"], before["accuracy"], 1.0 / num_classes, 1.0))
    if chosen["normalized_accuracy_lower"] is not None:
        rows.append(CardScore(f"normalised accuracy, lower limit ({choice['confidence']:.0%})", chosen["normalized_accuracy_lower"], 1.0))
    if chosen["agreement"] is not None:
        rows.append(CardScore("predictions that are the checkpoint's", chosen["agreement"], 1.0, 1.0 / num_classes, 1.0))
    if chosen["infidelity"] is not None:
        title = "infidelity at the best scale (smaller is better)"
        rows.append(CardScore(title, chosen["infidelity"], before["infidelity"], zero_infidelity, 0.0))
    return rows


@cache
def _templates() -> Environment:
    # Markdown, no HTML: nothing is escaped but what stands in YAML, whose strings are JSON's, and names, in code spans.
    loader = PackageLoader("sweep.report")
    templates = Environment(loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.filters.update(yaml=lambda value: json.dumps(value, ensure_ascii=False), code=_code, score=_score)
    return templates


def _code(value: object) -> str:
    """A code span on one line, whatever backticks and bars are in it."""
    return "`" + re.sub(r"[`|\s]+", " ", str(value)).strip() + "`"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
