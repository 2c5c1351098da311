"""Everything that made a sweep's numbers, flat: settings, seeds, hashes, library versions, skipped pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from sweep.experiment.config import SweepConfig
from sweep.stages.pairs import PairSearch
from sweep.stages.pictures import Pictures
from sweep.stages.stage import closure
from sweep.store.artifacts import Store

LIBRARIES = ("torch", "open_clip_torch", "ray", "optuna", "mlflow")


def provenance(config: SweepConfig, pairs: Sequence[PairSearch], store: Store) -> dict[str, str | int | float | bool | None]:
    """Of the sweep that these pairs are of."""
    flat: dict[str, Any] = {
        "select": config.search.select,
        "base": config.base,
        "base_fingerprint": pairs[0].transfer.zero_shot.base.fingerprint,
    }
    for name in ("data", "recipe", "search"):
        flat.update({f"{name}.{k}": v for k, v in asdict(getattr(config, name)).items()})
    del flat["search.searched"]  # the rule's text says it
    flat |= {"search.merge": config.search.merge_text, "combine": config.combine.text}
    for split in ("train", "validation", "test"):
        flat.update({f"labels.{split}.{k}": v for k, v in asdict(getattr(config.labels, split)).items()})
    flat["labels.train_source"] = config.labels.train_source
    flat |= {"head": config.head, "start": config.start, "device": config.device}
    if config.diverse_recipe is not None:
        flat |= {f"diverse_recipe.{k}": v for k, v in asdict(config.diverse_recipe).items()}
    for stage in closure(pairs):
        if isinstance(stage, Pictures):
            meta, domain = stage.artifact(store).manifest["meta"], stage.domain
            flat[f"domain.{domain.name}.source"] = domain.source
            flat[f"domain.{domain.name}.fingerprint"] = domain.fingerprint
            flat[f"domain.{domain.name}.pictures"] = ", ".join(f"{k} {v}" for k, v in meta["counts"].items())
            if meta["skipped"]:
                named = "; ".join(f"{s['split']} {s['id']}: {s['reason']}" for s in meta["skipped"])
                flat[f"domain.{domain.name}.skipped"] = f"{meta['num_skipped']}: {named}"[:2000]
    flat.update({f"version.{p}": version(p) for p in LIBRARIES})
    return {k: json.dumps(v) if isinstance(v, (tuple, list, dict)) else v for k, v in flat.items()}
