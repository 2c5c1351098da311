"""What of a finished sweep goes into MLflow, under which names."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from sweep.record.sweep_run import SweepRun
from sweep.report.result import SCORE_COLUMNS, SweepResult
from sweep.stages import computations as stages
from sweep.stages.plan import LABEL_SPLITS, Plan
from sweep.stages.stage import ChildRun
from sweep.store.artifacts import Artifact, Store


def record(plan: Plan, store: Store, sweep_run: SweepRun, artifact: Artifact, result: SweepResult) -> None:
    """Log a finished sweep to MLflow: children for models, label sets and pairs, tables, report and figures on the parent."""
    with tempfile.TemporaryDirectory() as scratch:
        for domain, alpha in plan.models:
            _record_model(plan, store, sweep_run, result, domain, alpha, Path(scratch))
        for domain in plan.domains:
            _record_labels(plan, store, sweep_run, domain)
        _record_pairs(plan, store, sweep_run, result)
        _write_result_files(artifact, Path(scratch) / "result")
        for name in ("cells", "references", "similarities"):
            sweep_run.log_table(name, getattr(result, name))
        sweep_run.log_artifacts(Path(scratch) / "result")
    chosen = result.cells[(result.cells["split"] == "test") & result.cells["is_chosen"]]
    means = {f"mean_{c}": float(chosen[c].mean()) for c in ("normalized_accuracy", "normalized_e_rmse", "iou_at_10", "correlation")}
    sweep_run.log_metrics({**means, "num_models": len(plan.models), "num_cells": len(result.cells)})


def _write_result_files(artifact: Artifact, directory: Path) -> None:
    """The report and figures as files to log; tables are logged by themselves."""
    for name in artifact.manifest["files"]:
        if name.startswith("figures/") or name.endswith(".html"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path(name), directory / name)


def _record_model(plan: Plan, store: Store, sweep_run: SweepRun, result: SweepResult, domain: str, alpha: float, scratch: Path) -> None:
    stage = plan.model(domain, alpha)
    if sweep_run.is_logged(stage.key):
        return
    artifact = store.open(stage.key)
    vector, name = (
        (stages.target_task_vector(plan, store, domain), "task_vector")
        if alpha == 1.0
        else (stages.explainability_vector(plan, store, domain, alpha), "explainability_vector")
    )
    path = scratch / f"{name}.safetensors"
    metadata = {"base_fingerprint": vector.base_fingerprint, "domain": domain, "alpha": repr(alpha), "model": stage.key}
    save_file({k: v.contiguous() for k, v in vector.weights.items()}, path, metadata)
    row = _reference(result, domain, "prediction_only" if alpha == 1.0 else "supervised", alpha)
    history = artifact.read_json("history.json")
    curves = {
        metric: [(point["step"], point[metric]) for point in history if point[metric] is not None]
        for metric in ("loss", "classification_loss", "explanation_loss")
    }
    recipe = {f"recipe.{k}": v for k, v in stage.params["recipe"].items()}
    child = ChildRun(
        "finetune",
        stage.key,
        stage.name,
        {"source_domain": domain, "alpha": alpha, "base": plan.config.base, "base_fingerprint": plan.base_fingerprint, **recipe},
        {**row, "vector_norm": vector.norm(), "final_loss": history[-1]["loss"]},
        {"kind": "prediction_only" if alpha == 1.0 else "self_explaining"},
        artifact.manifest["started"],
        artifact.manifest["seconds"],
        [(path, "vectors")],
        curves={metric: points for metric, points in curves.items() if points},
    )
    sweep_run.log_child(child, store)


def _reference(result: SweepResult, domain: str, reference: str, alpha: float) -> dict[str, float]:
    rows = result.references
    rows = rows[(rows["domain"] == domain) & (rows["reference"] == reference)]
    if reference == "supervised":
        rows = rows[rows["alpha"] == alpha]
    return {name: float(rows.iloc[0][name]) for name in SCORE_COLUMNS} if len(rows) else {}


def _record_labels(plan: Plan, store: Store, sweep_run: SweepRun, domain: str) -> None:
    counts = stages.count_pictures(plan, store, domain)
    for split in LABEL_SPLITS:
        stage = plan.label_set(domain, split)
        if sweep_run.is_logged(stage.key):
            continue
        bounds = plan.shard_ranges(counts["test" if split == "ceiling" else split], split)
        shards = [store.open(plan.label_shard(domain, split, *b).key).manifest for b in bounds]
        labels = stages.load_labels(plan, store, domain, split)
        error = float((labels.standard_error.astype("float64") ** 2).sum(1).mean() ** 0.5)
        size = float((labels.attributions.astype("float64") ** 2).sum(1).mean() ** 0.5)
        child = ChildRun(
            "label",
            stage.key,
            stage.name,
            {"source_domain": domain, "split": split, **{f"label.{k}": v for k, v in stage.params["settings"].items()}},
            {
                "num_pictures": len(labels),
                "evaluations": sum(s["meta"]["evaluations"] for s in shards),
                "label_standard_error": error,
                "label_norm": size,
            },
            {},
            min(s["started"] for s in shards),
            sum(s["seconds"] for s in shards),
        )
        sweep_run.log_child(child, store)


def _record_pairs(plan: Plan, store: Store, sweep_run: SweepRun, result: SweepResult) -> None:
    chosen = result.cells[(result.cells["split"] == "test") & result.cells["is_chosen"]]
    chosen = chosen.merge(result.similarities, on=["source_domain", "target_domain", "alpha"], how="left")
    for row in chosen.to_dict("records"):
        stage = plan.pair(row["source_domain"], row["target_domain"])
        if sweep_run.is_logged(stage.key):
            continue
        manifest = store.open(stage.key).manifest
        similarities = ("similarity_prediction_only", "similarity_explainability")
        child = ChildRun(
            "pair",
            stage.key,
            stage.name,
            {name: row[name] for name in ("source_domain", "target_domain", "alpha", "lambda1", "lambda2")},
            {name: row[name] for name in (*SCORE_COLUMNS, *similarities)},
            {"constraint_met": str(manifest["meta"]["constraint_met"]), "select": plan.config.search.select},
            manifest["started"],
            manifest["seconds"],
        )
        sweep_run.log_child(child, store)
