"""Runs a sweep: checks everything that can be checked first, then the missing stages in order, then the report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.data.domains import read_domain
from core.model import load_base
from core.shapley.estimators import LEARNED, make_design
from sweep.engines import cluster, interruption
from sweep.engines import shards as labelling
from sweep.engines.progress import Progress, duration, polled
from sweep.experiment.config import ConfigError, SweepConfig
from sweep.experiment.suites import DRAWN
from sweep.record.recording import record
from sweep.record.tracking import SweepRun, Tracker
from sweep.report.report import terminal_summary
from sweep.report.result import SweepResult
from sweep.stages import computations as stages
from sweep.stages.assembly import compute_result, load_result
from sweep.stages.plan import DomainFacts, Plan
from sweep.stages.sweep_labels import SweepLabels
from sweep.store.artifacts import Store


@dataclass(frozen=True)
class Places:
    """Where a sweep runs and writes. None: this machine's default."""

    store: str
    address: str | None = None
    tracking_uri: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float = 1.0


def make_plan(config: SweepConfig) -> Plan:
    """Check base, domains and label budgets, and give the plan. Nothing is computed or written.

    Raises ValueError (of the part that found it) naming the fix.
    """
    base = load_base(config.base)
    for settings in (config.labels.train, config.labels.validation, config.labels.test):
        if settings.estimator in LEARNED:
            raise ConfigError(
                f"a sweep learns no estimator ({settings.estimator}): choose another, or label with `python -m sweep.run label`"
            )
        try:
            make_design(settings.estimator, base.num_patches, settings.budget, l1_reg=settings.l1_reg)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    facts: dict[str, DomainFacts] = {}
    for source in config.domains:
        if source.location.startswith(DRAWN):
            found = stages.domain_facts_of_drawing(source.location.removeprefix(DRAWN), config.data)
            facts[source.name] = DomainFacts(*found, source=source.location)
        else:
            domain = read_domain(source.location, name=source.name, templates=source.templates)
            facts[source.name] = DomainFacts(domain.fingerprint, domain.class_names, domain.templates, domain.source)
    return Plan(config, base.fingerprint, base.preprocessing, facts)


def describe(plan: Plan) -> str:
    """What a sweep will cost, over all stages, before what exists already is taken off."""
    config = plan.config
    labels = config.labels
    limits = [
        f"at most {most} {split} pictures"
        for split, most in (("train", config.data.max_train_pictures), ("test", config.data.max_test_pictures))
        if most is not None
    ]
    return (
        f"{len(plan.domains)} domains{' of ' + ' and '.join(limits) if limits else ''}, {len(config.pairs)} pairs; "
        f"{len(plan.models)} models to train "
        f"({len(plan.domains)} prediction-only + {len(plan.domains)} x {len(config.search.alphas)} alphas); "
        f"{labels.train.estimator} labels at {labels.train.budget} (train, validation) and {labels.test.budget} (test) evaluations; "
        + (
            f"{config.search.num_trials} Optuna trials a pair"
            if config.search.method == "optuna"
            else f"a grid of {len(config.search.alphas)} alphas x {len(config.search.lambdas)} lambdas a pair"
        )
    )


def run_sweep(config: SweepConfig, places: Places, say: Callable[[str], None] = print) -> SweepResult:
    """Run a sweep to its end, or continue it. Only what is missing in the store is computed.

    On KeyboardInterrupt and on errors the MLflow run is closed and everything finished stays. Raises ValueError subclasses for bad
    input, before any computation.
    """
    started = time.monotonic()
    plan = make_plan(config)
    store = Store(places.store)
    store.check_writable()
    tracker = Tracker(places.tracking_uri, f"all_pairs/{config.suite}")
    tracker.check()
    say(f"Suite {config.suite}, base {config.base}, store {places.store}\n{describe(plan)}")
    key = plan.result().key
    parameters = {"suite": config.suite, "base": config.base, "num_domains": len(plan.domains), "num_pairs": len(config.pairs)}
    sweep_run = tracker.start_sweep(
        key, f"all_pairs {config.suite} {key[:8]}", {**parameters, **_flat_settings(config)}, {"suite": config.suite}
    )
    try:
        with interruption.remembered():
            result = _run_stages(plan, store, places, sweep_run, say)
    except KeyboardInterrupt:
        sweep_run.finish("KILLED")
        say("\nStopped. Everything finished is in the store: the same command continues from here.")
        raise
    except BaseException:
        sweep_run.finish("FAILED")
        raise
    sweep_run.finish("FINISHED")
    artifact = store.open(key)
    say("\n" + terminal_summary(result))
    say(f"\nReport: {artifact.path('report.html')}\nReview: {tracker.review_command()}   ({duration(time.monotonic() - started)})")
    return result


def _flat_settings(config: SweepConfig) -> dict[str, Any]:
    return {
        "alphas": list(config.search.alphas),
        "lambdas": list(config.search.lambdas),
        "lambda1": config.search.lambda1,
        "search": config.search.method,
        "select": config.search.select,
        "label_estimator": config.labels.train.estimator,
        "label_budget": config.labels.train.budget,
        "test_label_budget": config.labels.test.budget,
        "device": config.device,
    }


def _run_stages(plan: Plan, store: Store, places: Places, sweep_run: SweepRun, say: Callable[[str], None]) -> SweepResult:
    result_stage = plan.result()
    if store.exists(result_stage.key):
        say("Everything is in the store already: nothing to train, label or evaluate.")
        artifact = store.open(result_stage.key)
    else:
        threading.Thread(target=_import_engines, daemon=True).start()
        with cluster.connected(places.address, plan.config.device, places.num_workers, places.gpus_per_worker) as workers:
            _compute_missing(plan, store, workers, say)
            interruption.check()
            say("  report")
            artifact = compute_result(plan, store)
    result = load_result(artifact)
    if not sweep_run.already_finished:
        record(plan, store, sweep_run, artifact, result)
    return result


def _import_engines() -> None:
    """Import what the later stages need while the first ones run: seconds each."""
    import sweep.engines.training  # noqa: F401


def _compute_missing(plan: Plan, store: Store, workers: cluster.Workers, say: Callable[[str], None]) -> None:
    """The stages in order; each only for what is not in the store."""
    domains = [d for d in plan.domains if not store.exists(plan.pictures(d).key)]
    if domains:
        progress = Progress("pictures", len(domains), "domains")
        tasks = [(plan, store, d) for d in domains]
        for _ in cluster.run_tasks(_pictures_task, tasks, workers.number):
            progress.advance()
    interruption.check()
    for domain in plan.domains:
        skipped = store.open(plan.pictures(domain).key).manifest["meta"]["skipped"]
        if skipped:
            say(f"  {domain}: {len(skipped)} pictures cannot be read and are left out, the first: {skipped[0]['id']}")
    _train(plan, store, [(d, 1.0) for d in plan.domains], workers, "models", "prediction-only")

    interruption.check()
    job = SweepLabels(plan, store)
    shards = job.missing()
    if shards:
        meter = labelling.LabelMeter(sum(s.stop - s.start for s in shards))
        labelling.label_shards(job, shards, workers, meter.add)
    interruption.check()
    _train(plan, store, [m for m in plan.models if m[1] < 1.0], workers, "models", "self-explaining")
    interruption.check()

    pairs = [p for p in plan.config.pairs if not store.exists(plan.pair(*p).key)]
    if pairs:
        from sweep.engines.trials import search_pairs

        progress = Progress("search", len(pairs), "pairs")
        search_pairs(plan, store, pairs, workers, f"search-{plan.result().key[:12]}", progress.advance)


def _pictures_task(plan: Plan, store: Store, domain: str) -> None:
    stages.compute_pictures(plan, store, domain)


def _train(
    plan: Plan, store: Store, models: list[tuple[str, float]], workers: cluster.Workers, unit: str, kind: str
) -> None:
    missing = [m for m in models if not store.exists(plan.model(*m).key)]
    if not missing:
        return
    from sweep.engines.training import train_models

    progress = Progress("finetune", len(missing), f"{kind} {unit}")
    with polled(progress, lambda: sum(store.exists(plan.model(*m).key) for m in missing)):
        train_models(plan, store, missing, workers, f"{kind}-{plan.result().key[:12]}")
