"""What a sweep's options ask for: what it would cost, the sweep, or one for each of several seeds and what they say together."""

from __future__ import annotations

import argparse
import hashlib
import re

import pandas as pd

from core.merging.addition import Addition
from core.statistics.intervals import mean_interval
from sweep.commands.options import Places, places_from
from sweep.commands.sweep import Say, describe_sweep, flat_settings, run_sweep
from sweep.engines.cluster import check_storage
from sweep.experiment.config import ConfigError, SweepConfig
from sweep.record.note import running_note
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker
from sweep.report.seeds import over_seeds, seeds_summary

_NOT_IN_METRICS = r"[^/\w.\- :]"
"""Characters that MLflow refuses in a metric's name; a source may have them."""
_JOINTS = {"+": " with ", ",": " and "}
"""What stands for those that join domains: `A+B` and `A,B` are two sources."""


def run_as_asked(command: str, config: SweepConfig, options: argparse.Namespace) -> None:
    """A dry run, one sweep, or several seeds. Raises ConfigError and its kin for bad input."""
    places = places_from(options)
    assert places.store is not None
    check_storage(places.store)
    if options.seeds is not None:
        _check_number(options.seeds)
    if options.dry_run:
        first = config.search.seed
        each = "" if options.seeds is None else f"{options.seeds} seeds, {first} to {first + options.seeds - 1}, and for each: "
        print(f"{each}{describe_sweep(command, config)}")
    elif options.seeds is not None:
        run_seeds(command, config, options.seeds, places)
    else:
        run_sweep(command, config, places)


def _check_number(num_seeds: int) -> None:
    if num_seeds < 2:
        raise ConfigError(f"several seeds are two or more, not {num_seeds}: leave --seeds out for one")


def run_seeds(command: str, config: SweepConfig, num_seeds: int, places: Places, say: Say = print) -> pd.DataFrame:
    """Run a sweep with num_seeds seeds from the configuration's on: training, labels and search anew, the pictures the same.

    The table of `over_seeds`, recorded as a run beside the sweeps' own. Raises what `run_sweep` raises.
    """
    _check_number(num_seeds)
    first = config.search.seed
    results = []
    for seed in range(first, first + num_seeds):
        say(f"\nSeed {seed}, {seed - first + 1} of {num_seeds}")
        results.append(run_sweep(command, config.with_seed(seed), places, say))
    table = over_seeds(results)
    summary = seeds_summary(table, len(results[0].targets))
    say(f"\n{summary}")
    keys = {seed: result.sweep_key for seed, result in enumerate(results, first)}
    _record(command, config, places, table, summary, keys)
    return table


def _record(command: str, config: SweepConfig, places: Places, table: pd.DataFrame, summary: str, keys: dict[int, str]) -> None:
    """keys: seed -> key of its sweep."""
    key = hashlib.sha256("".join(keys.values()).encode()).hexdigest()[:40]
    tracker = Tracker(places.tracking_uri, f"{command}/{config.suite}")
    params = {**flat_settings(config), "num_seeds": len(keys), "seeds": list(keys), "sweep_keys": list(keys.values())}
    merge = config.search.merge_text
    merged = f", merged by `{merge}`" if merge != Addition.name else ""
    heading = f"**{len(keys)} seeds** of {command} on suite {config.suite}{merged}, taken together."
    name = f"{command} {config.suite} {len(keys)} seeds {key[:8]}"
    run = SweepRun(tracker, key, name, params, {"suite": config.suite}, running_note(heading))
    run.log_table("seeds", table)
    run.log_metrics(_metrics(table))
    run.describe(f"{heading}\n\n```\n{summary}\n```")
    run.finish()


def _metrics(table: pd.DataFrame) -> dict[str, float]:
    """SOURCE.MEASURE of the transferred models: the mean over the seeds; and with `.low` and `.high` the ends of its 95 % interval."""
    metrics: dict[str, float] = {}
    transferred = table[(table["model"] == "transferred") & ~table["measure"].str.startswith("beats: ")]
    for (source, measure), values in transferred.groupby(["source_domain", "measure"])["value"]:
        joined = "".join(_JOINTS.get(character, character) for character in str(source))
        name, mean = f"{re.sub(_NOT_IN_METRICS, '_', joined)}.{measure}", mean_interval(values)
        metrics |= {name: mean.estimate, f"{name}.low": mean.low, f"{name}.high": mean.high}
    return metrics
