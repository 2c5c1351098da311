"""The options of every sweep, and the configuration that they make of a suite."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from core.attribution_head import HEAD_KINDS
from core.data.domains import DomainError
from core.finetune import Recipe
from core.merging.combination import COMBINATIONS, parse_combination
from core.merging.rules import MERGE_RULES, parse_searched_rule
from core.shapley.estimators import ESTIMATORS
from sweep.commands.options import add_places, changed, numbers, parsed
from sweep.experiment.config import LABEL_SOURCES, OBJECTIVE_NAMES, ConfigError, DomainLocation, SplitLabels, Start, SweepConfig
from sweep.experiment.sources import OTHERS, TOGETHER
from sweep.experiment.suites import DRAWN, own_domains

Suites = Mapping[str, Callable[[], SweepConfig]]


def config_from(options: argparse.Namespace, suites: Suites) -> SweepConfig:
    """The suite with the fields that the command line changes. Raises ConfigError and its kin, with the fix."""
    if options.domains and options.suite not in (None, "own"):
        config = _chosen_domains(_suite(options.suite, suites), options.domains)
    elif options.domains:
        config = own_domains([_domain_location(location) for location in options.domains])
    else:
        config = _suite(options.suite or "miniature", suites)
    if options.templates:
        _check_not_drawn(config.domains)
        config = replace(config, domains=tuple(replace(d, templates=tuple(options.templates)) for d in config.domains))
    if options.labels:
        config = replace(config, domains=_with_labels(config.domains, options.labels))
    merge, searched = parsed("--merge", parse_searched_rule, options.merge) or (None, None)
    search = changed(
        config.search,
        method=options.search,
        alphas=numbers(options.alphas),
        lambdas=_lambdas(options, config),
        num_trials=options.num_trials,
        lambda1=options.lambda1,
        min_normalized_accuracy=options.min_normalized_accuracy,
        accuracy_confidence=options.accuracy_confidence,
        objective=options.objective,
        compares_objectives=options.compare_objectives,
        calibration=options.calibration,
        num_few_labels=options.num_few_labels,
        select=options.select,
        seed=options.seed,
        merge=merge,
        searched=searched,
    )
    labels = _changed_labels(config.labels, options)
    data = changed(
        config.data,
        max_train_pictures=options.max_train_pictures,
        max_test_pictures=options.max_test_pictures,
        max_corrupt_share=options.max_corrupt_share,
        validation_share=options.validation_share,
        seed=options.seed,
    )
    for name in ("learning_rate", "batch_size", "num_steps", "num_source_steps", "epochs"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} must be positive and finite, not {value}")
    if options.num_steps is not None and options.epochs is not None:
        raise ConfigError("--num-steps and --epochs are two lengths of one training: give one")
    if options.num_source_steps is not None and config.diverse_recipe is None:
        raise ConfigError(f"suite {config.suite} trains all sources alike: leave --num-source-steps out, or give --num-steps")
    recipe, diverse = _changed_recipe(config.recipe, options, options.num_steps), config.diverse_recipe
    if diverse is not None:
        diverse = _changed_recipe(diverse, options, options.num_source_steps)
    if options.workers_per_model is not None:
        diverse = changed(diverse or recipe, workers_per_model=options.workers_per_model)
    found: SweepConfig = changed(
        config,
        base=options.base,
        device=options.device,
        search=search,
        labels=labels,
        recipe=recipe,
        diverse_recipe=diverse,
        data=data,
        domains=tuple(_changed_domain(domain, options) for domain in config.domains),
        head=options.head,
        start=options.start,
        sources=tuple(options.sources) if options.sources else None,
        targets=tuple(options.targets) if options.targets else None,
        combine=parsed("--combine", parse_combination, options.combine),
    )
    trained = {source for pair in found.pairs for source in pair.source.trained}
    if (options.workers_per_model or 1) > 1 and all(found.recipe_of(source).workers_per_model == 1 for source in trained):
        raise ConfigError(
            "--workers-per-model is for models of several domains, and of sources that are no target, and this sweep trains none: leave it "
            "out"
        )
    return found


def _changed_labels(labels: SplitLabels, options: argparse.Namespace) -> SplitLabels:
    game = {name: getattr(options, name) for name in ("precision", "seed", "fill", "value")}
    validation = changed(labels.validation, estimator=options.estimator, **game)
    train = changed(labels.train, estimator=options.train_estimator or options.estimator, budget=options.budget, **game)
    if train.estimator == validation.estimator:
        validation = changed(validation, budget=options.budget)  # what is enough for one that learns is not for another
    found: SplitLabels = changed(
        labels,
        train=train,
        validation=changed(validation, budget=options.validation_budget),
        test=changed(labels.test, estimator=options.estimator, budget=options.test_budget, **game),
        max_train=options.max_train_labels,
        max_validation=options.max_validation_labels,
        max_test=options.max_test_labels,
        learning_pictures=options.calibration_pictures,
        learning_budget=options.calibration_budget,
        train_source=options.label_source,
    )
    return found


def _check_not_drawn(domains: Sequence[DomainLocation]) -> None:
    drawn = [domain.name for domain in domains if domain.location.startswith(DRAWN)]
    if drawn:
        raise ConfigError(f"--templates: the drawn domains have prompts of their own ({', '.join(drawn)}): leave these out, or --templates")


def _changed_recipe(recipe: Recipe, options: argparse.Namespace, num_steps: int | None) -> Recipe:
    if options.epochs is not None:
        recipe = _with_length(recipe, None, options.epochs)
    if num_steps is not None:
        recipe = _with_length(recipe, num_steps, None)
    return changed(
        recipe,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        seed=options.seed,
        warmup_steps=None if num_steps is None else min(recipe.warmup_steps, num_steps // 10),
    )


def _changed_domain(domain: DomainLocation, options: argparse.Namespace) -> DomainLocation:
    """A given length is that of every training. A domain with data settings of its own takes the seed, and a limit below its own: a trial
    with few pictures is one everywhere.
    """
    if options.epochs is not None:
        domain = replace(domain, epochs=None)
    if domain.data is None:
        return domain
    limits = {
        name: min(own, given)
        for name in ("max_train_pictures", "max_test_pictures")
        if (given := getattr(options, name)) is not None and (own := getattr(domain.data, name)) is not None
    }
    return replace(domain, data=changed(domain.data, seed=options.seed, **limits))


def _with_length(recipe: Recipe, num_steps: int | None, epochs: int | None) -> Recipe:
    try:
        return replace(recipe, num_steps=num_steps, epochs=epochs)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _suite(name: str, suites: Suites) -> SweepConfig:
    if name not in suites:
        raise ConfigError(f"unknown suite {name!r}: choose among {', '.join(suites)}, or give --domains")
    return suites[name]()


def _chosen_domains(config: SweepConfig, chosen: Sequence[str]) -> SweepConfig:
    """Some of a suite's domains, by NAME; NAME=LOCATION reads a copy of it from somewhere else."""
    known = {domain.name: domain for domain in config.domains}
    domains = []
    for text in chosen:
        name, separator, location = text.partition("=")
        if name not in known:
            raise ConfigError(f"suite {config.suite} has no domain {name!r}: choose among {', '.join(known)}")
        if separator and not location:
            raise ConfigError(f"--domains {text!r} names no place: write NAME=LOCATION, or {name} for the suite's own")
        domains.append(replace(known[name], location=location) if location else known[name])
    names = {OTHERS, *(domain.name for domain in domains)}
    # Of the suite's own sources, what is left of them.
    sources = tuple(source for source in config.sources or () if names.issuperset(source.split(TOGETHER)))
    return replace(config, domains=tuple(domains), sources=sources or None)


def _domain_location(location: str) -> DomainLocation:
    """NAME=LOCATION, or a location whose last part is the name."""
    name, separator, rest = location.partition("=")
    if separator and "/" not in name:
        if not rest:
            raise ConfigError(f"--domains {location!r} names no place: write NAME=LOCATION")
        return DomainLocation(name, rest)
    if location.startswith(DRAWN):
        return DomainLocation(location.removeprefix(DRAWN), location)
    if "://" not in location and not Path(location).exists():
        raise DomainError(f"there is no directory {location}: check the path given to --domains")
    return DomainLocation(location.rstrip("/").split("/")[-1].split("@")[0].replace(".", "_"), location)


def _with_labels(domains: Sequence[DomainLocation], given: Sequence[str]) -> tuple[DomainLocation, ...]:
    """The domains with what the label command wrote for some of them: DOMAIN=LOCATION."""
    locations = {}
    for text in given:
        name, separator, location = text.partition("=")
        if not separator or name not in {domain.name for domain in domains}:
            raise ConfigError(f"--labels {text!r} names no domain: write DOMAIN=LOCATION with one of {', '.join(d.name for d in domains)}")
        if not location:
            raise ConfigError(f"--labels {text!r} names no place: write DOMAIN=LOCATION")
        if name in locations:
            raise ConfigError(f"--labels names {name} twice: give one location")
        locations[name] = location
    return tuple(replace(d, labels=locations.get(d.name, d.labels)) for d in domains)


def _lambdas(options: argparse.Namespace, config: SweepConfig) -> tuple[float, ...] | None:
    given = numbers(options.lambdas)
    method = options.search or config.search.method
    if given is None and method != config.search.method:
        low, high = min(config.search.lambdas), max(config.search.lambdas)
        return (low, high) if method == "optuna" else tuple(round(low + (high - low) * i / 12, 10) for i in range(13))
    return given


def add_sweep_options(sweep: argparse.ArgumentParser, suites: Suites, default_sources: str) -> None:
    """default_sources: in words."""
    what = sweep.add_argument_group("what to run")
    what.add_argument("--suite", help=f"one of {', '.join(suites)} (miniature unless --domains is given)")
    what.add_argument(
        "--domains",
        nargs="+",
        metavar="DOMAIN",
        help="your own image sets: directories or hf://datasets/... URLs, or NAME=LOCATION; with --suite: some of its domains, by NAME or "
        "(read from a copy) NAME=LOCATION",
    )
    what.add_argument(
        "--sources",
        nargs="+",
        metavar="SOURCE",
        help="where explainability vectors are learned: domains, unions such as cars+textures, others: for each target the union of all "
        f"other domains, or several of these with their vectors made one, such as concepts,others (default: {default_sources})",
    )
    combinations = ", ".join(combination.text for combination in COMBINATIONS.values())
    what.add_argument(
        "--combine",
        metavar="HOW[:KEY=VALUE,...]",
        help=f"how the vectors of several sources (A,B) become one; with their parameters: {combinations}",
    )
    what.add_argument("--targets", nargs="+", metavar="DOMAIN", help="domains whose classifiers get the vectors (default: each domain)")
    what.add_argument("--templates", nargs="+", help="prompt templates with one {} each, for all domains, none of them drawn")
    what.add_argument("--base", help="base model: miniature, an open_clip NAME:TAG, or a model directory")
    what.add_argument("--seeds", type=int, metavar="N", help="run N seeds from --seed on, and say what they give together, with intervals")
    what.add_argument("--seed", type=int, help="seed of data selection, training, labels and search")

    search = sweep.add_argument_group("search")
    search.add_argument("--search", choices=("optuna", "grid"))
    search.add_argument("--alphas", help="weights of the classification loss, each one training a source: 0.3,0.7 or 0.1:0.9:0.1")
    search.add_argument("--lambdas", help="lambda2: the grid's values, or the two ends of Optuna's range: 0,1.2")
    search.add_argument("--lambda1", type=float, help="scaling coefficient of the target's own task vector")
    rules = ", ".join(rule.text for rule in MERGE_RULES.values())
    search.add_argument(
        "--merge",
        metavar="RULE[:KEY=VALUE,...]",
        help="how vectors are put together: addition (eq. 8) or another rule; KEY=search lets Optuna find a value for each pair; with "
        f"their parameters: {rules}",
    )
    search.add_argument("--num-trials", type=int, help="points an Optuna study evaluates for a pair")
    search.add_argument("--min-normalized-accuracy", type=float, help="accuracy constraint on a chosen point")
    search.add_argument(
        "--accuracy-confidence",
        type=float,
        help="confidence, one-sided, with which the accuracy constraint must be met on the pictures that there are; 0.5: as measured",
    )
    search.add_argument("--objective", choices=OBJECTIVE_NAMES, help="what a point is chosen by among those that keep the accuracy")
    search.add_argument(
        "--compare-objectives",
        action=argparse.BooleanOptionalAction,
        help="tell what every objective would have chosen, what a source's other targets would, and what each lacks of the best there was "
        "on test (its regret). Costs a score on test of every point: as many passes over the test pictures as the search takes over the "
        "validation pictures; nothing more is trained or labelled. (default: on in the miniature's universal, else off)",
    )
    search.add_argument("--num-few-labels", type=int, help="validation labels that the objective few_labels reads")
    search.add_argument(
        "--calibration", choices=("none", "scale"), help="scale: one factor of the maps, fitted on unlabelled validation pictures"
    )
    search.add_argument("--select", choices=("validation", "test"), help="the split points are chosen on")

    data = sweep.add_argument_group("data, labels and training")
    data.add_argument("--max-train-pictures", type=int)
    data.add_argument("--max-test-pictures", type=int)
    data.add_argument("--validation-share", type=float, help="share of the training pictures that points are chosen on")
    data.add_argument("--max-corrupt-share", type=float, help="share of unreadable pictures that is tolerated")
    data.add_argument(
        "--labels",
        nargs="+",
        metavar="DOMAIN=PLACE",
        help="train labels: a directory that `python -m sweep.run label` wrote, or a Parquet file (or directory of some) of your own with "
        "the columns id, the picture's name in the data set, and attributions, its map: a number a patch, row by row, or a list of rows "
        "of numbers over the whole picture, which is averaged over each patch; in the unit of the game, null where a picture has none",
    )
    data.add_argument(
        "--budget", type=int, help="evaluations a training picture's label takes, and a validation picture's of the same estimator"
    )
    data.add_argument("--validation-budget", type=int, help="evaluations a validation picture's label takes")
    data.add_argument("--test-budget", type=int, help="evaluations a test picture's label takes")
    data.add_argument(
        "--label-source",
        choices=LABEL_SOURCES,
        help="what models are trained to give: Shapley values (the default), or an explainer's maps of the prediction-only model at one "
        "factor that suits the game; scores are against Shapley values always",
    )
    data.add_argument("--estimator", choices=tuple(ESTIMATORS), help="of the Shapley values of all splits")
    data.add_argument("--train-estimator", choices=tuple(ESTIMATORS), help="of the train labels alone")
    data.add_argument("--calibration-pictures", type=int, help="pictures that an estimator learns from, where it learns")
    data.add_argument("--calibration-budget", type=int, help="evaluations of each of those with a reference")
    data.add_argument("--fill", choices=("mean", "drop"), help="what stands for a masked patch")
    data.add_argument("--value", choices=("logit", "log_odds", "probability"), help="value of the game that is explained")
    data.add_argument("--max-train-labels", type=int)
    data.add_argument("--max-validation-labels", type=int)
    data.add_argument("--max-test-labels", type=int)
    data.add_argument("--precision", choices=("float32", "bfloat16"), help="arithmetic of the label engine")
    data.add_argument("--epochs", type=int)
    data.add_argument("--num-steps", type=int)
    data.add_argument("--num-source-steps", type=int, help="of sources that are several domains or no target, where the suite says so")
    data.add_argument(
        "--workers-per-model",
        type=int,
        help="workers that share every batch of a model of several domains, or of a source that is no target (default: 1; all other models "
        "are trained side by side)",
    )
    data.add_argument("--head", choices=HEAD_KINDS, help="how attributions are read off patch tokens: the paper's, or meeting efficiency")
    data.add_argument("--start", choices=get_args(Start), help="what self-explaining models are trained from (the paper: base)")
    data.add_argument("--learning-rate", type=float)
    data.add_argument("--batch-size", type=int)
    add_places(sweep, "sweep_store", "directory or fsspec URL of the artifacts")
