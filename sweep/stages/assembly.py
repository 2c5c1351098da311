"""The result of a sweep put together from its artifacts: cells, references, similarities and examples."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.model import SelfExplainingClassifier
from core.task_vectors import cosine_matrix
from sweep.report.report import write_report
from sweep.report.result import CELL_COLUMNS, REFERENCE_COLUMNS, SIMILARITY_COLUMNS, Example, SweepResult
from sweep.stages.computations import explainability_vector, load_classifier, load_pictures, run, target_task_vector, zero_shot
from sweep.stages.evaluation import SplitEvaluator, Transfer, other_mean_map, prediction_only_scores, reference_rows
from sweep.stages.plan import Plan
from sweep.store.artifacts import Artifact, Store

Scores = Mapping[str, Any]


def compute_result(plan: Plan, store: Store) -> Artifact:
    """Assemble the result of a sweep whose pairs are all searched, with its report. Files: those of SweepResult, report.html, figures."""

    def compute(directory: Path) -> dict[str, Any]:
        result = SweepResult(
            sweep_key=plan.result().key,
            suite=plan.config.suite,
            domains=tuple(plan.domains),
            provenance=provenance(plan, store),
            cells=_cells(plan, store),
            references=_references(plan, store),
            similarities=_similarities(plan, store),
            examples=tuple(_examples(plan, store)),
        )
        result.to_directory(directory)
        write_report(result, directory)
        return {"num_pairs": len(plan.config.pairs)}

    artifact = run(store, plan.result(), compute)
    assert artifact is not None
    return artifact


def load_result(artifact: Artifact) -> SweepResult:
    """A result that was assembled before."""
    with tempfile.TemporaryDirectory() as directory:
        for name in artifact.manifest["files"]:
            if "/" not in name:  # figures are not read back
                shutil.copyfile(artifact.path(name), Path(directory) / name)
        return SweepResult.from_directory(Path(directory))


def provenance(plan: Plan, store: Store) -> dict[str, str | int | float | bool | None]:
    """Everything that made the numbers, flat: settings, seeds, hashes, library versions, skipped pictures."""
    config = plan.config
    flat: dict[str, Any] = {"select": config.search.select, "base": config.base, "base_fingerprint": plan.base_fingerprint}
    for name in ("data", "recipe", "search"):
        flat.update({f"{name}.{k}": v for k, v in asdict(getattr(config, name)).items()})
    for split in ("train", "validation", "test"):
        flat.update({f"labels.{split}.{k}": v for k, v in asdict(getattr(config.labels, split)).items()})
    flat["device"] = config.device
    for domain, facts in plan.domains.items():
        meta = store.open(plan.pictures(domain).key).manifest["meta"]
        flat[f"domain.{domain}.source"] = facts.source
        flat[f"domain.{domain}.fingerprint"] = facts.fingerprint
        flat[f"domain.{domain}.pictures"] = ", ".join(f"{k} {v}" for k, v in meta["counts"].items())
        if meta["skipped"]:
            flat[f"domain.{domain}.skipped"] = "; ".join(f"{s['split']} {s['id']}: {s['reason']}" for s in meta["skipped"])[:2000]
    flat.update({f"version.{p}": version(p) for p in ("torch", "open_clip_torch", "ray", "optuna", "mlflow")})
    return {k: json.dumps(v) if isinstance(v, (tuple, list, dict)) else v for k, v in flat.items()}


def _cells(plan: Plan, store: Store) -> pd.DataFrame:
    frames = [pd.read_parquet(store.open(plan.pair(s, t).key).path("cells.parquet")) for s, t in plan.config.pairs]
    return pd.concat(frames, ignore_index=True)[list(CELL_COLUMNS)]


def _references(plan: Plan, store: Store) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for domain in plan.domains:
        prediction_only = prediction_only_scores(plan, store, domain, "test")
        found = [row for row in reference_rows(plan, store, domain) if row["split"] == "test"]
        found.append({"domain": domain, "reference": "other_mean_map", "alpha": None, **asdict(other_mean_map(plan, store, domain))})
        for row in found:
            for name in ("accuracy", "e_rmse"):
                value, base = row[name], prediction_only[name]
                row[f"normalized_{name}"] = None if value is None or not base else value / base
            rows.append(row)
    return pd.DataFrame(rows)[list(REFERENCE_COLUMNS)]


def _similarities(plan: Plan, store: Store) -> pd.DataFrame:
    """Cosine similarities of the task vectors of every pair, per alpha."""
    domains = list(plan.domains)
    prediction_only = cosine_matrix([target_task_vector(plan, store, d) for d in domains]).numpy()
    rows = []
    for alpha in plan.config.search.alphas:
        explainability = cosine_matrix([explainability_vector(plan, store, d, alpha) for d in domains]).numpy()
        for s, source in enumerate(domains):
            for t, target in enumerate(domains):
                if s != t:
                    rows.append((source, target, alpha, prediction_only[s, t], explainability[s, t]))
    return pd.DataFrame(rows, columns=list(SIMILARITY_COLUMNS))


def _examples(plan: Plan, store: Store) -> list[Example]:
    """Two labelled test pictures of each domain (the first, not picked) with every model's attributions.

    `transferred` is the domain's pair with the smallest validation E-RMSE; `supervised` at that pair's alpha.
    """
    examples: list[Example] = []
    for target in plan.domains:
        rows = [_chosen(plan, store, s, t) for s, t in plan.config.pairs if t == target]
        best = min(rows, key=lambda row: row["e_rmse"])
        source, alpha = best["source_domain"], best["alpha"]
        transfer = Transfer(plan, store, source, target)
        models: dict[str, SelfExplainingClassifier] = {
            "prediction_only": load_classifier(plan, store, target, 1.0),
            "supervised": load_classifier(plan, store, target, alpha),
            "zero_shot": zero_shot(plan, target).to(plan.config.device),
            "transferred": transfer.classifier(alpha, best["lambda1"], best["lambda2"]),
        }
        evaluator = SplitEvaluator(plan, store, target, "test")
        pictures = load_pictures(plan, store, target, "test")
        outputs = {name: evaluator.outputs(model)[1] for name, model in models.items()}
        for i in range(min(2, len(evaluator.labels))):
            attributions = {name: values[i].astype(np.float32) for name, values in outputs.items()}
            examples.append(
                Example(
                    domain=target,
                    source_domain=source,
                    class_name=plan.domains[target].class_names[int(pictures.class_ids[i])],
                    pixels=np.ascontiguousarray(pictures.pixels[i].transpose(1, 2, 0)),
                    attributions={"label": evaluator.labels.attributions[i], **attributions},
                )
            )
    return examples


def _chosen(plan: Plan, store: Store, source: str, target: str) -> dict[str, Any]:
    """The chosen cell of a pair, on the split it was chosen on."""
    cells = pd.read_parquet(store.open(plan.pair(source, target).key).path("cells.parquet"))
    row = cells[cells["is_chosen"] & (cells["split"] == plan.config.search.select)].iloc[0]
    return dict(row)
