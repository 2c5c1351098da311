"""Command line: `python -m sweep.run all_pairs` and `python -m sweep.run label`. Argument parsing only."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from core.data.domains import DomainError
from core.finetune import Recipe
from core.model import BaseModelError
from core.shapley.estimators import ESTIMATORS, LEARNED
from sweep.commands.all_pairs import Places, describe, make_plan, run_sweep
from sweep.commands.label_options import add_label_parser, run_label_options
from sweep.experiment.config import ConfigError, DomainSource, SweepConfig
from sweep.experiment.suites import DRAWN, SUITES, own_domains
from sweep.record.tracking import TrackingError
from sweep.stages.computations import CorruptPicturesError
from sweep.store.artifacts import StoreError

# What is the user's to mend, by its message. Any other error is ours and shows where it arose.
USER_ERRORS = (ConfigError, DomainError, BaseModelError, StoreError, TrackingError, CorruptPicturesError)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 2 bad input (the message names the fix), 130 interrupted, 1 anything else."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        if options.command == "label":
            run_label_options(options)
            return 0
        config = config_from(options)
        if options.dry_run:
            print(describe(make_plan(config)))
            return 0
        places = Places(options.store, options.address, options.tracking_uri, options.workers, options.gpus_per_worker)
        run_sweep(config, places)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except USER_ERRORS as error:
        if not options.verbose:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_BAD_INPUT
        raise
    return 0


def config_from(options: argparse.Namespace) -> SweepConfig:
    """The suite with the fields that the command line changes."""
    if options.domains and options.suite not in (None, "own"):
        config = _chosen_domains(_suite(options.suite), options.domains)
    elif options.domains:
        config = own_domains([_domain_source(location) for location in options.domains])
    else:
        config = _suite(options.suite or "miniature")
    if options.templates:
        config = replace(config, domains=tuple(replace(d, templates=tuple(options.templates)) for d in config.domains))
    search = _changed(
        config.search,
        method=options.search,
        alphas=_numbers(options.alphas),
        lambdas=_lambdas(options, config),
        num_trials=options.num_trials,
        lambda1=options.lambda1,
        min_normalized_accuracy=options.min_normalized_accuracy,
        select=options.select,
        seed=options.seed,
    )
    game = {name: getattr(options, name) for name in ("precision", "seed", "estimator", "fill", "value")}
    labels = _changed(
        config.labels,
        train=_changed(config.labels.train, budget=options.budget, **game),
        validation=_changed(config.labels.validation, budget=options.budget, **game),
        test=_changed(config.labels.test, budget=options.test_budget, **game),
        max_train=options.max_train_labels,
        max_test=options.max_test_labels,
    )
    recipe = config.recipe
    if options.epochs is not None:
        recipe = _with_length(recipe, None, options.epochs)
    if options.num_steps is not None:
        recipe = _with_length(recipe, options.num_steps, None)
    recipe = _changed(
        recipe,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        seed=options.seed,
        warmup_steps=None if options.num_steps is None else min(recipe.warmup_steps, options.num_steps // 10),
    )
    data = _changed(
        config.data,
        max_train_pictures=options.max_train_pictures,
        max_test_pictures=options.max_test_pictures,
        max_corrupt_share=options.max_corrupt_share,
        seed=options.seed,
    )
    return _changed(
        config, base=options.base, device=options.device, search=search, labels=labels, recipe=recipe, data=data
    )


def _with_length(recipe: Recipe, num_steps: int | None, epochs: int | None) -> Recipe:
    try:
        return replace(recipe, num_steps=num_steps, epochs=epochs)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _suite(name: str) -> SweepConfig:
    if name not in SUITES:
        raise ConfigError(f"unknown suite {name!r}: choose among {', '.join(SUITES)}, or give --domains")
    return SUITES[name]()


def _chosen_domains(config: SweepConfig, chosen: Sequence[str]) -> SweepConfig:
    """Some of a suite's domains, by NAME; NAME=LOCATION reads a copy of it from somewhere else."""
    known = {domain.name: domain for domain in config.domains}
    domains = []
    for text in chosen:
        name, _, location = text.partition("=")
        if name not in known:
            raise ConfigError(f"suite {config.suite} has no domain {name!r}: choose among {', '.join(known)}")
        domains.append(replace(known[name], location=location) if location else known[name])
    return replace(config, domains=tuple(domains))


def _domain_source(location: str) -> DomainSource:
    """NAME=LOCATION, or a location whose last part is the name."""
    name, separator, rest = location.partition("=")
    if separator and "/" not in name:
        return DomainSource(name, rest)
    if location.startswith(DRAWN):
        return DomainSource(location.removeprefix(DRAWN), location)
    if "://" not in location and not Path(location).exists():
        raise DomainError(f"there is no directory {location}: check the path given to --domains")
    return DomainSource(location.rstrip("/").split("/")[-1].split("@")[0].replace(".", "_"), location)


def _changed(config: Any, **changes: Any) -> Any:
    """The dataclass with the changes that are not None. Raises ConfigError for a value that it refuses."""
    names = {f.name for f in fields(config)}
    assert set(changes) <= names
    try:
        return replace(config, **{k: v for k, v in changes.items() if v is not None})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _numbers(text: str | None) -> tuple[float, ...] | None:
    """`0.1,0.5` -> (0.1, 0.5); `0.1:0.9:0.1` -> the range with its end."""
    if text is None:
        return None
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            count = round((stop - start) / step) + 1
            return tuple(round(start + i * step, 10) for i in range(count))
        return tuple(float(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{text!r} is no list of numbers: write 0.1,0.5,0.9 or 0.1:0.9:0.1") from None


def _lambdas(options: argparse.Namespace, config: SweepConfig) -> tuple[float, ...] | None:
    given = _numbers(options.lambdas)
    method = options.search or config.search.method
    if given is None and method != config.search.method:
        low, high = min(config.search.lambdas), max(config.search.lambdas)
        return (low, high) if method == "optuna" else tuple(round(low + (high - low) * i / 12, 10) for i in range(13))
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweep.run", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser(
        "all_pairs",
        help="transfer explanations between all pairs of domains",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=None,
    )
    what = sweep.add_argument_group("what to run")
    what.add_argument("--suite", help=f"one of {', '.join(SUITES)} (miniature unless --domains is given)")
    what.add_argument(
        "--domains",
        nargs="+",
        metavar="DOMAIN",
        help="your own image sets: directories or hf://datasets/... URLs, or NAME=LOCATION; with --suite: some of its domains, by NAME or "
        "(read from a copy) NAME=LOCATION",
    )
    what.add_argument("--templates", nargs="+", help="prompt templates with one {} each, for all domains")
    what.add_argument("--base", help="base model: miniature, an open_clip NAME:TAG, or a model directory")
    what.add_argument("--seed", type=int, help="seed of data selection, training, labels and search")

    search = sweep.add_argument_group("search")
    search.add_argument("--search", choices=("optuna", "grid"))
    search.add_argument("--alphas", help="weights of the classification loss, each one training a domain: 0.3,0.7 or 0.1:0.9:0.1")
    search.add_argument("--lambdas", help="lambda2: the grid's values, or the two ends of Optuna's range: 0,1.2")
    search.add_argument("--lambda1", type=float, help="scaling coefficient of the target's own task vector")
    search.add_argument("--num-trials", type=int, help="points an Optuna study evaluates for a pair")
    search.add_argument("--min-normalized-accuracy", type=float, help="accuracy constraint on a chosen point")
    search.add_argument("--select", choices=("validation", "test"), help="the split points are chosen on")

    data = sweep.add_argument_group("data, labels and training")
    data.add_argument("--max-train-pictures", type=int)
    data.add_argument("--max-test-pictures", type=int)
    data.add_argument("--max-corrupt-share", type=float, help="share of unreadable pictures that is tolerated")
    data.add_argument("--budget", type=int, help="evaluations a training or validation picture's label takes")
    data.add_argument("--test-budget", type=int, help="evaluations a test picture's label takes")
    data.add_argument("--estimator", choices=[e for e in ESTIMATORS if e not in LEARNED], help="of the Shapley values")
    data.add_argument("--fill", choices=("mean", "drop"), help="what stands for a masked patch")
    data.add_argument("--value", choices=("logit", "log_odds", "probability"), help="value of the game that is explained")
    data.add_argument("--max-train-labels", type=int)
    data.add_argument("--max-test-labels", type=int)
    data.add_argument("--precision", choices=("float32", "bfloat16"), help="arithmetic of the label engine")
    data.add_argument("--epochs", type=int)
    data.add_argument("--num-steps", type=int)
    data.add_argument("--learning-rate", type=float)
    data.add_argument("--batch-size", type=int)

    where = sweep.add_argument_group("where")
    where.add_argument("--store", default="sweep_store", help="directory or fsspec URL of the artifacts")
    where.add_argument("--tracking-uri", help="MLflow tracking URI (default: what `mlflow ui` opens here)")
    where.add_argument("--address", help="Ray cluster to run on: auto, or ray://... (default: start Ray here)")
    where.add_argument("--workers", type=int, help="worker processes a stage keeps busy")
    where.add_argument("--gpus-per-worker", type=float, default=1.0)
    where.add_argument("--device", choices=("cpu", "cuda"))
    where.add_argument("--dry-run", action="store_true", default=False, help="check the input, say what would run, and stop")
    where.add_argument("--verbose", action="store_true", default=False)
    add_label_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
