"""What a sweep's options ask for: what it would cost, the sweep, or one for each of several seeds and what they say together."""

from __future__ import annotations

import argparse
import hashlib
import re
from typing import Any

import pandas as pd

from sweep.commands.options import Places, places_from
from sweep.commands.sweep import Say, describe_sweep, run_sweep
from sweep.experiment.config import ConfigError, SweepConfig
from sweep.record.note import running_note
from sweep.record.sweep_run import SweepRun
from sweep.record.tracker import Tracker
from sweep.report.seeds import over_seeds, seeds_summary

_NOT_IN_METRICS = r"[^/\w.\- :]"
"""Characters that MLflow refuses in a metric's name; a source may have them (`A+B`, `A,B`)."""


def run_as_asked(command: str, config: SweepConfig, options: argparse.Namespace) -> None:
    """A dry run, one sweep, or several seeds. Raises ConfigError and its kin for bad input."""
    if options.dry_run:
        print(describe_sweep(command, config))
    elif options.seeds is not None:
        run_seeds(command, config, options.seeds, places_from(options))
    else:
        run_sweep(command, config, places_from(options))


def run_seeds(command: str, config: SweepConfig, num_seeds: int, places: Places, say: Say = print) -> pd.DataFrame:
    """Run a sweep with num_seeds seeds from the configuration's on: training, labels and search anew, the pictures the same.

    The table of `over_seeds`, recorded as a run beside the sweeps' own. Raises what `run_sweep` raises.
    """
    if num_seeds < 2:
        raise ConfigError(f"several seeds are two or more, not {num_seeds}: leave --seeds out for one")
    first = config.search.seed
    results = []
    for seed in range(first, first + num_seeds):
        say(f"\nSeed {seed}, {seed - first + 1} of {num_seeds}")
        results.append(run_sweep(command, config.with_seed(seed), places, say))
    table = over_seeds(results)
    summary = seeds_summary(table, len(results[0].targets))
    say(f"\n{summary}")
    keys = [result.sweep_key for result in results]
    _record(command, config, places, table, summary, keys)
    return table


def _record(command: str, config: SweepConfig, places: Places, table: pd.DataFrame, summary: str, keys: list[str]) -> None:
    key = hashlib.sha256("".join(keys).encode()).hexdigest()[:40]
    tracker = Tracker(places.tracking_uri, f"{command}/{config.suite}")
    params: dict[str, Any] = {"suite": config.suite, "num_seeds": len(keys), "sweep_keys": keys}
    note = running_note(f"**{len(keys)} seeds** of {command} on suite {config.suite}, taken together.")
    run = SweepRun(tracker, key, f"{command} {config.suite} {len(keys)} seeds {key[:8]}", params, {"suite": config.suite}, note)
    transferred = table[table["model"] == "transferred"]
    means = transferred[~transferred["measure"].str.startswith("beats: ")].groupby(["source_domain", "measure"])["value"].mean()
    run.log_table("seeds", table)
    run.log_metrics({f"{re.sub(_NOT_IN_METRICS, '_', str(source))}.{measure}": float(value) for (source, measure), value in means.items()})
    run.describe(f"**{len(keys)} seeds** of {command} on suite {config.suite}, taken together.\n\n```\n{summary}\n```")
    run.finish()
