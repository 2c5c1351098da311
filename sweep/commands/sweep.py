"""Runs a sweep: checks everything that can be checked first, then what is missing of its graph, and records it as it comes.

The driver plans, waits and writes down. It builds no model and sees no pixel: it may be a small machine without a GPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.base_models import BaseDescription, describe_base
from core.model import MINIATURE
from sweep.commands.options import Places
from sweep.commands.session import Session
from sweep.engines import interruption
from sweep.engines.job import Work
from sweep.engines.progress import Progress
from sweep.experiment.config import SHAPLEY, ConfigError, SplitLabels, SweepConfig
from sweep.experiment.suites import DRAWN
from sweep.record.note import running_note
from sweep.record.recorder import Recorder
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker
from sweep.report.description import description_markdown
from sweep.report.page import tables_as_html
from sweep.report.result import FRAMES, RESULT, SweepResult
from sweep.report.table1 import table1
from sweep.report.tables import chosen_pairs
from sweep.report.terminal import terminal_summary
from sweep.report.text import duration
from sweep.stages.base import BaseModel
from sweep.stages.domains import DomainFacts, look_at
from sweep.stages.graph import SweepGraph
from sweep.stages.imported_labels import GivenLabels, look_at_labels
from sweep.stages.learned import check_learning
from sweep.stages.models import FineTuned
from sweep.stages.pairs import PairSearch
from sweep.stages.pictures import Pictures
from sweep.stages.plan import Plan
from sweep.store.artifacts import Store

Say = Callable[[str], None]
LEAST_PATCHES = 10
"""Of a picture: IoU@10 compares so many."""


@dataclass(frozen=True)
class Checked:
    """A configuration whose base, domains and imported labels were looked at."""

    base: BaseDescription
    domains: Mapping[str, DomainFacts]
    imported: Mapping[str, GivenLabels]


def check(config: SweepConfig) -> Checked:
    """Look at base, label budgets, domains and imported labels. Nothing is computed or written.

    Raises ValueError (of the part that found it) naming the fix.
    """
    base = describe_base(config.base)
    if base.num_patches < LEAST_PATCHES:
        raise ConfigError(
            f"--base {config.base} has {base.num_patches} patches a picture, and models are scored by the {LEAST_PATCHES} strongest: take "
            "one with smaller patches or larger pictures"
        )
    for settings in (config.labels.train, config.labels.validation, config.labels.test):
        try:
            settings.check(base.num_patches)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    imported = {
        d.name: look_at_labels(d.labels, d.name, config.labels.train, base.num_patches) for d in config.used_domains if d.labels
    }
    domains = {domain.name: look_at(domain, config.data_of(domain.name)) for domain in config.used_domains}
    labels = config.labels
    learning = labels.learning_budget, labels.learning_pictures
    for name, facts in domains.items():
        is_given = name in imported or labels.train_source != SHAPLEY
        for settings in (*(() if is_given else (labels.train,)), labels.validation, labels.test):
            check_learning(f"{name}/train", settings, base.num_patches, learning[0], facts.count("train"), learning[1])
    return Checked(base, domains, imported)


def describe_sweep(command: str, config: SweepConfig) -> str:
    """What a sweep will cost, over all stages, before what exists already is taken off."""
    check(config)
    return _told(config)


def _told(config: SweepConfig) -> str:
    """The description for the terminal, with what to expect of the toy base on pictures that are not drawn."""
    if config.base != MINIATURE or all(domain.location.startswith(DRAWN) for domain in config.used_domains):
        return _description(config)
    return (
        f"{_description(config)}\nNote: the base `{MINIATURE}` has seen drawings only. On photographs its maps say little, and what "
        "carries over costs accuracy: for results take --base ViT-B-32:datacomp_xl_s13b_b90k"
    )


def _description(config: SweepConfig) -> str:
    labels, alphas = config.labels, config.search.alphas
    limits = [
        f"at most {most} {split} pictures"
        for split, most in (("train", config.data.max_train_pictures), ("test", config.data.max_test_pictures))
        if most is not None
    ]
    domains = {domain.name for domain in config.used_domains}
    trained = {source for pair in config.pairs for source in pair.source.trained}
    num_prediction_only = len(domains | {source.parts[0] for source in trained if not source.is_union})
    num_prediction_only += len({source.parts for source in trained if source.is_union})
    explaining = {source.parts for source in trained} | {(target,) for target in config.target_names}
    return (
        f"{len(domains)} domains{' of ' + ' and '.join(limits) if limits else ''}, {len(config.pairs)} pairs; "
        f"{num_prediction_only + len(explaining) * len(alphas)} models to train "
        f"({num_prediction_only} prediction-only + {len(explaining)} x {len(alphas)} alphas); "
        f"{_told_labels(labels)}; "
        + (
            f"{config.search.num_trials} Optuna trials a pair"
            if config.search.method == "optuna"
            else f"a grid of {len(alphas)} alphas x {len(config.search.lambdas)} lambdas a pair"
        )
        + (", every point scored on test too" if config.search.compares_objectives and config.search.select != "test" else "")
    )


def _told_labels(labels: SplitLabels) -> str:
    """What gives the labels of each split, and by how many evaluations a picture."""
    splits = {"train": labels.train, "validation": labels.validation, "test": labels.test}
    told = {split: f"{settings.estimator} labels at {settings.budget} evaluations" for split, settings in splits.items()}
    if labels.train_source != SHAPLEY:
        told["train"] = f"labels by {labels.train_source}"
    by_text: dict[str, list[str]] = {}
    for split, text in told.items():
        by_text.setdefault(text, []).append(split)
    return ", ".join(f"{text} ({', '.join(of)})" for text, of in by_text.items())


def run_sweep(command: str, config: SweepConfig, places: Places, say: Say = print) -> SweepResult:
    """Run a sweep to its end, or continue it. Only what is missing in the store is computed.

    On KeyboardInterrupt and on errors the MLflow run is closed and everything finished stays. Raises ValueError subclasses for bad
    input, before any computation where it can be known.
    """
    started = time.monotonic()
    assert places.store is not None
    checked = check(config)
    domains = checked.domains
    store = Store(places.store)
    store.check_writable()
    tracker = Tracker(places.tracking_uri, f"{command}/{config.suite}")
    tracker.check()
    say(f"Suite {config.suite}, base {config.base}, store {places.store}\n{_told(config)}")
    sweep_run: SweepRun | None = None
    try:
        with interruption.remembered(), Session(store, places, config.device) as session:
            base = BaseModel(checked.base)
            session.compute([base], lambda work: None)
            facts = base.load(store)
            for domain, labels in checked.imported.items():
                labels.check_base(domain, facts.fingerprint)
            graph = SweepGraph(command, config, facts, domains, checked.imported)
            key = graph.result.key
            sweep_run = SweepRun(
                tracker,
                key,
                f"{command} {config.suite} {key[:8]}",
                flat_settings(config),
                {"suite": config.suite},
                running_note(f"Explainability vectors of suite **{config.suite}**: {_description(config)}."),
            )
            sweep_run.log_plan(Plan.of(str(store), [base, *graph.stages]))
            with Recorder(sweep_run, store, _RecordingProgress()) as recorder:
                result = _compute(graph, session, recorder, say)
                _finish(graph, store, recorder, result)
    except KeyboardInterrupt:
        if sweep_run is not None:
            sweep_run.finish("KILLED")
        say("\nStopped. Everything finished is in the store: the same command continues from here.")
        raise
    except BaseException:
        if sweep_run is not None:
            sweep_run.finish("FAILED")
        raise
    artifact = store.open(key)
    say("\n" + terminal_summary(result))
    review = f"{tracker.review_command()}   then {sweep_run.page}"
    say(f"\nReport: {artifact.path('report.html')}\nReview: {review}\n({duration(time.monotonic() - started)})")
    return result


def flat_settings(config: SweepConfig) -> dict[str, Any]:
    """The parameters of a sweep's run in the record. Sweeps that differ in their seed alone share them."""
    return {
        "suite": config.suite,
        "base": config.base,
        "num_domains": len({domain.name for domain in config.used_domains}),
        "num_pairs": len(config.pairs),
        "sources": list(config.sources or ()),
        "targets": list(config.target_names),
        "alphas": list(config.search.alphas),
        "lambdas": list(config.search.lambdas),
        "lambda1": config.search.lambda1,
        "merge": config.search.merge_text,
        "search": config.search.method,
        "select": config.search.select,
        "objective": config.search.objective,
        "head": config.head,
        "label_source": config.labels.train_source,
        "label_estimator": config.labels.train.estimator,
        "label_budget": config.labels.train.budget,
        "test_label_estimator": config.labels.test.estimator,
        "test_label_budget": config.labels.test.budget,
        "device": config.device,
    }


def _compute(graph: SweepGraph, session: Session, recorder: Recorder, say: Say) -> SweepResult:
    store, result = session.store, graph.result

    def on_done(work: Work) -> None:
        recorder.on_finished(work)  # type: ignore[arg-type]  # the engines' view of a stage
        if isinstance(work, Pictures):
            meta = work.artifact(store).manifest["meta"]
            if meta["skipped"]:
                first = meta["skipped"][0]["id"]
                say(f"  {work.name}: {meta['num_skipped']} pictures cannot be read and are left out, the first: {first}")

    if store.exists(result.key):
        say("Everything is in the store already: nothing to train, label or evaluate.")
    else:
        threading.Thread(target=_import_engines, daemon=True).start()
        session.compute([result], on_done)
    for stage in graph.stages:  # those that were there before, too
        if stage.is_recorded:
            recorder.on_finished(stage)
    return result.load(store)


def _import_engines() -> None:
    """Import what the later engines need while the first ones run: seconds each."""
    import sweep.engines.shards
    import sweep.engines.training
    import sweep.engines.trials  # noqa: F401


def _finish(graph: SweepGraph, store: Store, recorder: Recorder, result: SweepResult) -> None:
    """Record what is the whole sweep's."""
    artifact = store.open(graph.result.key)
    names = [n for n in artifact.manifest["files"] if n.startswith("figures/") or n.endswith((".html", RESULT))]
    files: Mapping[str, Path] = {name: artifact.path(name) for name in names}
    chosen = chosen_pairs(result)
    means = {f"mean_{c}": float(chosen[c].mean()) for c in ("normalized_accuracy", "normalized_e_rmse", "iou_at_10", "correlation")}
    num_models = sum(isinstance(stage, FineTuned) for stage in graph.stages)
    tables = {**{name: getattr(result, name) for name in FRAMES}, "table1": table1(result)}
    recorder.finish(
        files=files,
        tables={name: table for name, table in tables.items() if not table.empty},
        pages=tables_as_html(result),
        metrics={**means, "num_models": num_models, "num_cells": len(result.cells)},
        note=description_markdown(result),
        compared=[stage.key for stage in graph.stages if isinstance(stage, PairSearch)],
    )


class _RecordingProgress:
    """How much of the record is written, while the sweep waits for it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def __call__(self, num_done: int, num_all: int) -> None:
        interruption.check()
        if self._progress is None:
            self._progress = Progress("record", num_all, "runs")
        if num_done > self._progress.done:
            self._progress.advance(num_done - self._progress.done)
