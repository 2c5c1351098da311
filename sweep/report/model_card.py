"""The card of a transferred model, in the Hub's format: what it is, what made it, its scores and what they are read against, its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_MOST_CLASSES = 50
"""Class names that the card lists; the others are in attribution_head.json."""


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
    base = provenance["base"]
    repository = base["hub_repository"] or (base["name"] if _REPOSITORY.fullmatch(base["name"]) else None)
    return _templates().get_template("model_card.md").render(
        name=name,
        license=license,
        base_model=repository,
        base=base,
        checkpoint=provenance["checkpoint"],
        vector=provenance["vector"],
        merge=provenance["merge"],
        choice=provenance["choice"],
        attribution_head=provenance["attribution_head"],
        validation=provenance["validation"],
        calibration=provenance["calibration"],
        versions=provenance["versions"],
        class_names=class_names,
        shown_classes=list(class_names)[:_MOST_CLASSES],
        templates=provenance["templates"],
        scores=_scores(provenance["choice"], len(class_names), zero_infidelity),
    )


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
