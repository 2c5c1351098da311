"""What every kind of stage computes on one small, fixed pipeline, in short: to see when that changes.

    {kind: {"version", "inputs": kinds it is made from, "outputs": {name of the stage: {what: summary}}}}

A summary of numbers is their count, root mean square, mean, mean product with a fixed wave (by which an order shows) and some of them; a
text is itself.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from in_process import compute, graph_of
from safetensors.numpy import load_file

from core.base_models import describe_base
from sweep.commands.label_export import LabelExport
from sweep.experiment.config import ConvergenceSettings
from sweep.experiment.sources import Source
from sweep.stages.base import BaseModel
from sweep.stages.graph import SweepGraph, alone
from sweep.stages.other_targets import OtherTargetsPoint
from sweep.stages.pairs import Cells
from sweep.stages.stage import Stage, closure
from sweep.store.artifacts import Artifact, Store

RECORD = Path(__file__).parent / "stage_outputs.json"
ROOT = Path(__file__).parent.parent
PER_KIND = 2
"""Stages of a kind that are kept, the first ones in the order of work."""
NOT_KEPT = {"precision"}
"""How far bfloat16 moves labels is the processor's affair."""
TOLERANCE = 1e-3
"""Of a summary, relative to the root mean square: processors differ in the last bits, which two steps of AdamW spread."""

DIGITS = ["--suite", "miniature", "--domains", "clean_digits", "street_digits", "--precision", "float32", "--alphas", "0.5"]
SMALL = [
    *("--num-steps", "2", "--validation-share", "0.1", "--max-train-pictures", "20", "--max-test-pictures", "12", "--max-test-labels", "4"),
    *("--budget", "104", "--test-budget", "104"),
]
GRID = [*SMALL, "--search", "grid", "--lambdas", "0,0.8"]
OPTUNA = [*SMALL, "--search", "optuna", "--num-trials", "3"]
LEARNING = [
    *("--validation-share", "0.1"),
    *("--num-steps", "2", "--max-train-pictures", "74", "--max-test-pictures", "12", "--budget", "104", "--test-budget", "104"),
    *("--estimator", "calibrated", "--calibration-budget", "128"),
]


def kinds() -> dict[str, type[Stage]]:
    """Every kind of stage there is."""

    def below(cls: type[Stage]) -> Iterator[type[Stage]]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    return {cls.kind: cls for cls in below(Stage) if "kind" in vars(cls)}


def file_of(kind: str) -> str:
    return Path(inspect.getfile(kinds()[kind])).relative_to(ROOT).as_posix()


def pipeline(store: Store, directory: Path) -> list[Stage]:
    """The stages of the pipeline, computed, inputs first."""
    grid, optuna = graph_of(store, *DIGITS, *GRID), graph_of(store, *DIGITS, *OPTUNA)
    studied = optuna.pair(optuna.config.pairs[0])
    compute(store, grid.result, studied)
    learning = graph_of(store, *DIGITS, *LEARNING).labels("clean_digits", "train")
    taken = graph_of(store, *DIGITS, *GRID, "--labels", f"clean_digits={_exported(grid, store, directory)}")
    imported = taken.labels("clean_digits", "train")
    fisher = graph_of(store, *DIGITS, *GRID, "--merge", "fisher")
    atlas = graph_of(store, *DIGITS, *GRID, "--merge", "atlas:num_steps=3")
    evidence = (*fisher.evidence(fisher.config.pairs[0]), *atlas.evidence(atlas.config.pairs[0]))
    explained = graph_of(store, *DIGITS, *GRID, "--label-source", "grad_cam").labels("clean_digits", "train")
    measured = replace(grid.config, convergence=ConvergenceSettings((104, 112), num_pictures=3))
    convergence = replace(grid, config=measured).convergence("clean_digits")
    compute(store, learning, imported, explained, convergence, *evidence)
    pair = grid.pair(grid.config.pairs[0])
    both = grid.task_vector(Source("both", ("clean_digits", "street_digits"), (alone("clean_digits"), alone("street_digits"))))
    point = OtherTargetsPoint(pair, (grid.pair(grid.config.pairs[1]),))
    compute(store, both, point)
    cells = Cells(pair.transfer, pair.search, 0.5)  # made within the pair, and none of its inputs
    ends = [studied, grid.result, learning, imported, explained, convergence, *evidence, both, point]
    return [BaseModel(describe_base(grid.config.base)), *closure(ends), cells]


@dataclass(frozen=True)
class WatchedPipeline:
    """The pipeline, computed once for all tests, which only read it, and the artifacts that were opened meanwhile.

    reads: by a stage's key, those opened while it was computed. made: those that were computed within it.
    """

    store: Store
    stages: list[Stage]
    reads: dict[str, set[str]]
    made: dict[str, set[str]]


def watched_pipeline(directory: Path) -> WatchedPipeline:
    reads: dict[str, set[str]] = {}
    made: dict[str, set[str]] = {}
    computing: list[str] = []
    plain_compute, plain_open = Store._compute, Store.open

    def recorded_compute(store: Store, key: str, *arguments: object) -> None:
        made.setdefault(computing[-1] if computing else "", set()).add(key)
        computing.append(key)
        try:
            plain_compute(store, key, *arguments)
        finally:
            computing.pop()

    def recorded_open(store: Store, key: str) -> Artifact:
        if computing:
            reads.setdefault(computing[-1], set()).add(key)
        return plain_open(store, key)

    store = Store(str(directory / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "_compute", recorded_compute)
        patch.setattr(Store, "open", recorded_open)
        return WatchedPipeline(store, pipeline(store, directory), reads, made)


def _exported(graph: SweepGraph, store: Store, directory: Path) -> Path:
    """The sweep's own train labels of a domain as the label command writes them."""
    labels = graph.labels("clean_digits", "train")
    out = LabelExport(str(directory / "labels"))
    game = {"value": "logit", "label_scale": 3.5, "fill": "mean"}
    model = {"name": "own", "fingerprint": "own", "base": graph.base.fingerprint}
    out.begin({"key": "own", "settings": game, "role": "train", "shards": len(labels.shards), "model": model})
    for index, shard in enumerate(labels.shards):
        out.write_shard(shard, index, len(labels.shards), store)
    return directory / "labels"


def outputs(store: Store, stages: list[Stage]) -> dict[str, dict[str, Any]]:
    """What is recorded of computed stages, by kind."""
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        if stage.kind in NOT_KEPT:
            continue
        entry = found.setdefault(stage.kind, {"version": stage.version, "inputs": [], "outputs": {}})
        entry["inputs"] = sorted({*entry["inputs"], *(other.kind for other in closure([stage]))} - {stage.kind})
        name = stage.name if stage.name not in entry["outputs"] else f"{stage.name}, again"
        if len(entry["outputs"]) < PER_KIND:
            entry["outputs"][name] = described(stage.artifact(store))
    return found


def described(artifact: Artifact) -> dict[str, Any]:
    """Summaries of everything in an artifact but times, keys, and what is drawn of the rest."""
    found: dict[str, Any] = {}
    for name in sorted(artifact.manifest["files"]):
        path = artifact.path(name)
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            if frame.empty:
                found[f"{name} rows"] = 0
                continue
            found |= {f"{name} {column}": summary(_column(frame[column])) for column in frame.columns}
        elif path.suffix == ".npy":
            found[name] = summary(np.load(path))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found |= {f"{name} {key}": summary(arrays[key]) for key in sorted(arrays.files)}
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
            found[name] = summary(np.concatenate([tensors[key].astype(np.float64).ravel() for key in sorted(tensors)]))
        elif path.suffix == ".json" and name != "result.json":  # that one is of keys and library versions
            found |= {f"{name} {key}": value for key, value in _leaves(json.loads(path.read_text()))}
    return found | {f"meta {key}": value for key, value in _leaves(artifact.manifest["meta"])}


def _column(values: pd.Series) -> np.ndarray:
    if isinstance(values.iloc[0], np.ndarray):
        return np.stack(values.to_list())
    return values.to_numpy()


def summary(values: np.ndarray) -> list[Any]:
    """Of an array: numbers in brief, texts (and what is undefined) as they are."""
    if values.dtype.kind in "OUSb":
        texts = [value if isinstance(value, str) else repr(value) for value in values.ravel().tolist()]
        return [len(texts), *texts[:20]]
    flat = values.astype(np.float64).ravel()
    known = np.where(np.isfinite(flat), flat, 0.0)
    if not flat.size:
        return [0, 0.0]
    wave = 2**0.5 * np.cos(np.arange(flat.size))
    some = known[np.unique(np.linspace(0, flat.size - 1, 8).round().astype(int))] if flat.size > 1 else []
    return [int(flat.size), *(float(f"{v:.6g}") for v in (np.square(known).mean() ** 0.5, known.mean(), (known * wave).mean(), *some))]


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts of a JSON value, but those that say when it was made; lists of numbers in brief."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if "seconds" not in key and key not in ("started", "created"):
                yield from _leaves(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        if value and all(isinstance(v, (int, float)) for v in value):
            yield prefix, summary(np.asarray(value))
        else:
            for n, inner in enumerate(value[:20]):
                yield from _leaves(inner, f"{prefix}[{n}]")
    else:
        yield prefix, summary(np.asarray([value])) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def differences(recorded: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """For each kind that is not as recorded, what to do about it. Where an earlier kind is to blame, only that one."""
    changed = {kind: _changed(recorded[kind]["outputs"], now["outputs"]) for kind, now in found.items() if kind in recorded}
    raised = {kind for kind in changed if recorded[kind]["version"] != found[kind]["version"]}
    blamed = {kind for kind in changed if kind in raised or changed[kind]}
    anew = "record anew with `python tests/record_stage_outputs.py`"
    advice: dict[str, str] = {kind: f"{kind} is not recorded: {anew}" for kind in found.keys() - recorded.keys()}
    advice |= {kind: f"there is no stage {kind} any more: {anew}" for kind in recorded.keys() - found.keys()}
    for kind in blamed:
        if kind in raised:
            advice[kind] = f"{kind} has another version than was recorded: {anew}"
        elif not blamed & set(found[kind]["inputs"]):
            what = f"{kind} computes something else than before ({changed[kind]})"
            advice[kind] = f"{what}: raise its version in {file_of(kind)}, then {anew}"
    return advice


def _changed(recorded: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> str:
    """The first thing that differs, in words; empty where nothing does."""
    if recorded.keys() != found.keys():
        return f"stages {sorted(recorded.keys() ^ found.keys())}"
    for name, before in recorded.items():
        now = found[name]
        if before.keys() != now.keys():
            return f"{name}: {sorted(before.keys() ^ now.keys())}"
        for what, value in before.items():
            if not _is_same(value, now[what]):
                return f"{name}, {what}: {value} was recorded, now {now[what]}"
    return ""


def _is_same(before: Any, now: Any) -> bool:
    if not (isinstance(before, list) and isinstance(now, list) and len(before) == len(now)):
        return False if isinstance(before, list) else before == now
    if any(isinstance(value, str) for value in (*before, *now)):
        return before == now
    return before[0] == now[0] and all(abs(a - b) <= TOLERANCE * before[1] for a, b in zip(before[1:], now[1:], strict=True))


def computed() -> dict[str, dict[str, Any]]:
    """Compute the pipeline in a directory that is removed again."""
    with tempfile.TemporaryDirectory() as directory:
        store = Store(f"{directory}/store")
        return outputs(store, pipeline(store, Path(directory)))
